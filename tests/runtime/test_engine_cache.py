"""The engine cache: right after every crash, race and alteration, with real processes, real locks and real files."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import random
import resource
import shutil
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge4d.runtime.engine_cache import CachedEngine, EngineCache, EngineKey, cache_folder
from edge4d.runtime.errors import InvalidEngine, InvalidRequest

KEY = EngineKey(
    name="street.core",
    onnx="a" * 64,
    plugins="b" * 64,
    precision="fp16",
    profiles={"image": [[1, 3, 64, 64], [1, 3, 256, 448], [1, 3, 512, 1024]]},
    options={"level": 3, "tf32": True, "workspace": None},
    builder="tensorrt 8.6.0",
    device="sm90 NVIDIA H200",
    cuda="13",
    platform="linux-x86_64",
)
ENGINE = bytes(range(256)) * 40


class Builder:
    """Builds `data`, and counts."""

    def __init__(self, data: bytes = ENGINE) -> None:
        self.data, self.builds = data, 0

    def __call__(self, report) -> bytes:
        self.builds += 1
        return self.data


@pytest.fixture
def cache(tmp_path: Path) -> EngineCache:
    return EngineCache(tmp_path / "cache")


def engine_file(cache: EngineCache, key: EngineKey = KEY) -> Path:
    return cache.folder / key.file_name


def manifest_file(cache: EngineCache, key: EngineKey = KEY) -> Path:
    return cache.folder / f"{key.file_name}.json"


def change_manifest(cache: EngineCache, **values: object) -> None:
    manifest = json.loads(manifest_file(cache).read_text())
    manifest_file(cache).write_text(json.dumps({**manifest, **values}))


def must_not_build(report) -> bytes:
    raise AssertionError("built again")


# --- keys -------------------------------------------------------------------------------------------------------------


def test_file_names():
    assert KEY.file_name == f"street.core.{KEY.digest[:12]}.sm90.trt8.6.0.fp16.engine"
    rtx = dataclasses.replace(KEY, builder="tensorrt_rtx 1.7.1.116", device="sm89")
    assert rtx.file_name == f"street.core.{rtx.digest[:12]}.sm89.rtx1.7.1.116.fp16.engine"


CHANGES = {
    "name": "street.perceive",
    "onnx": "c" * 64,
    "plugins": "",
    "precision": "fp32",
    "profiles": {"image": [[1, 3, 64, 64], [1, 3, 256, 448], [1, 3, 512, 1025]]},
    "options": {"level": 3, "tf32": 1, "workspace": None},  # 1 equals True in Python
    "builder": "tensorrt 8.6.1",
    "device": "sm90 NVIDIA H100",
    "cuda": "12",
    "platform": "linux-aarch64",
}


def test_every_field_has_a_change():
    assert list(CHANGES) == [field.name for field in dataclasses.fields(EngineKey)]


@pytest.mark.parametrize("field", CHANGES)
def test_every_field_is_part_of_the_key(cache, field):
    cache.get(KEY, Builder())
    other = dataclasses.replace(KEY, **{field: CHANGES[field]})
    assert other.digest != KEY.digest
    assert cache.get(other, Builder(b"other")).data == b"other"
    assert cache.get(KEY, must_not_build).data == ENGINE


def test_a_key_is_the_same_in_every_order_and_for_tuples():
    options = dict(reversed(KEY.options.items()))
    profiles = {name: tuple(map(tuple, shapes)) for name, shapes in KEY.profiles.items()}
    assert dataclasses.replace(KEY, options=options, profiles=profiles).digest == KEY.digest


@pytest.mark.parametrize(
    "name", ["../../etc/passwd", "/tmp/x", "..", ".hidden", "", "a\0b", "a\nb", "ä" * 500, "\ud800"]
)
def test_no_name_leads_out_of_the_folder(cache, name):
    key = dataclasses.replace(KEY, name=name, precision=name, device=name, builder=name)
    path = cache.get(key, Builder()).path
    assert path.parent == cache.folder
    assert not path.name.startswith(".")
    assert path.is_file()
    assert cache.get(key, must_not_build).data == ENGINE
    assert [entry.path for entry in cache.entries()] == [path]


# --- use --------------------------------------------------------------------------------------------------------------


def test_an_engine_is_built_once(cache):
    first = cache.get(KEY, Builder(), check=lambda data: None)
    assert first == CachedEngine(engine_file(cache), ENGINE, built=True, reason="not built before")
    assert engine_file(cache).read_bytes() == ENGINE
    again = EngineCache(cache.folder.parent).get(KEY, must_not_build, check=lambda data: None)
    assert again == CachedEngine(engine_file(cache), ENGINE, built=False, reason="")


def test_the_manifest(cache):
    cache.get(KEY, Builder())
    manifest = json.loads(manifest_file(cache).read_text())
    assert manifest["key"] == vars(KEY)
    assert (manifest["format"], manifest["bytes"]) == (1, len(ENGINE))
    assert manifest["sha256"] == hashlib.sha256(ENGINE).hexdigest()
    assert set(manifest) == {"format", "key", "bytes", "sha256", "built", "seconds"}
    (entry,) = cache.entries()
    assert entry.manifest().key == KEY
    assert entry.bytes == len(ENGINE) + manifest_file(cache).stat().st_size


def test_what_is_said_while_building(cache):
    said = []
    cache.get(KEY, lambda report: report("layer 1 of 2") or b"engine", report=said.append)
    assert said == ["layer 1 of 2"]


def test_a_build_that_fails_leaves_nothing(cache):
    def fail(report):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        cache.get(KEY, fail)
    assert cache.entries() == []
    assert cache.get(KEY, Builder()).built  # and the lock is free


def test_a_new_engine_that_cannot_be_loaded_is_the_callers_affair(cache):
    def refuse(data):
        raise InvalidEngine("No.")

    with pytest.raises(InvalidEngine):
        cache.get(KEY, Builder(), refuse)
    assert cache.entries() == []


def test_only_an_invalid_engine_is_built_again(cache):
    cache.get(KEY, Builder())

    def no_memory(data):
        raise MemoryError

    with pytest.raises(MemoryError):
        cache.get(KEY, must_not_build, no_memory)
    assert cache.get(KEY, must_not_build).data == ENGINE


@pytest.mark.parametrize(
    ("environment", "folder"),
    [
        ({"EDGE4D_CACHE": "/data/e4d", "XDG_CACHE_HOME": "/xdg"}, "/data/e4d"),
        ({"EDGE4D_CACHE": "~/e4d"}, "/home/me/e4d"),
        ({"EDGE4D_CACHE": "", "XDG_CACHE_HOME": "/xdg"}, "/xdg/edge4d"),
        ({"XDG_CACHE_HOME": "relative"}, "/home/me/.cache/edge4d"),
        ({}, "/home/me/.cache/edge4d"),
    ],
)
def test_where_the_cache_is(monkeypatch, environment, folder):
    for name in ("EDGE4D_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"HOME": "/home/me", **environment}.items():
        monkeypatch.setenv(name, value)
    assert cache_folder() == Path(folder)
    assert EngineCache().folder == Path(folder, "engines")


def test_a_home_that_nobody_knows(monkeypatch):
    monkeypatch.setenv("EDGE4D_CACHE", "~nobody-has-this-name/cache")
    with pytest.raises(InvalidRequest, match="EDGE4D_CACHE"):
        EngineCache()


# --- altered, truncated and foreign files ----------------------------------------------------------------------------


def truncate(cache):
    engine_file(cache).write_bytes(ENGINE[:10])


def alter(cache):
    engine_file(cache).write_bytes(b"\xff" + ENGINE[1:])


def link_the_engine(cache):
    engine_file(cache).rename(cache.folder / "elsewhere")
    engine_file(cache).symlink_to(cache.folder / "elsewhere")


def pipe_for_an_engine(cache):
    engine_file(cache).unlink()
    os.mkfifo(engine_file(cache))


def pipe_for_a_manifest(cache):
    manifest_file(cache).unlink()
    os.mkfifo(manifest_file(cache))


def large_manifest(cache):
    with open(manifest_file(cache), "ab") as file:
        file.truncate(500_000_000)  # sparse


def foreign_key(cache):
    change_manifest(cache, key={**vars(KEY), "builder": "tensorrt 10.3.0"})


def key_of_more(cache):
    change_manifest(cache, key={**vars(KEY), "more": ""})


DAMAGES = {
    "its size is 10 bytes, the manifest says 10240": truncate,
    "its content was altered": alter,
    "its file is missing": lambda cache: engine_file(cache).unlink(),
    "no manifest": lambda cache: manifest_file(cache).unlink(),
    "another key in its manifest": foreign_key,
    "its file cannot be read: [Errno 40]": link_the_engine,
    "its file cannot be read: [Errno 22] not a regular file": pipe_for_an_engine,
    "the manifest cannot be read: [Errno 22] not a regular file": pipe_for_a_manifest,
    "the manifest cannot be read: it has more than 1048576 bytes": large_manifest,
    "the manifest cannot be read: Expecting value": lambda cache: manifest_file(cache).write_text(""),
    "the manifest cannot be read: 'utf-8' codec": lambda cache: manifest_file(cache).write_bytes(b'{"\xff": 1}'),
    "the manifest cannot be read:": lambda cache: manifest_file(cache).write_text("[" * 500_000),
    "the manifest cannot be read: it is not an object": lambda cache: manifest_file(cache).write_text("[1]"),
    "the manifest cannot be read: its format is not 1": lambda cache: change_manifest(cache, format=2),
    "the manifest cannot be read: it does not hold": key_of_more,
    "the manifest cannot be read: its size of the engine": lambda cache: change_manifest(cache, bytes=-1),
}


@pytest.mark.parametrize("reason", DAMAGES)
def test_what_does_not_fit_is_built_again_and_said(cache, reason):
    cache.get(KEY, Builder(b"older engine"))
    cache.get(KEY, must_not_build)
    engine_file(cache).write_bytes(ENGINE)
    change_manifest(cache, bytes=len(ENGINE), sha256=hashlib.sha256(ENGINE).hexdigest())
    assert cache.get(KEY, must_not_build).data == ENGINE
    DAMAGES[reason](cache)
    engine = cache.get(KEY, Builder(b"a new one"))
    assert (engine.data, engine.built, engine.path) == (b"a new one", True, engine_file(cache))
    assert engine.reason.startswith(reason)
    assert "\n" not in engine.reason
    assert cache.get(KEY, must_not_build).data == b"a new one"


def test_an_engine_that_the_runtime_refuses_is_built_again(cache):
    cache.get(KEY, Builder(b"from another world"))

    def check(data):
        if data != ENGINE:
            raise InvalidEngine("The engine has a wrong tag.", note="It is 1,\nexpected 2.", hint="Build it again.")

    engine = cache.get(KEY, Builder(), check)
    assert (engine.data, engine.built) == (ENGINE, True)
    assert engine.reason == "the engine could not be loaded: The engine has a wrong tag. It is 1, expected 2."
    assert cache.get(KEY, must_not_build, check).data == ENGINE


def test_an_engine_of_another_key_under_this_name(cache):
    other = dataclasses.replace(KEY, onnx="c" * 64)
    cache.get(other, Builder(b"other"))
    shutil.copy(engine_file(cache, other), engine_file(cache))
    shutil.copy(manifest_file(cache, other), manifest_file(cache))
    engine = cache.get(KEY, Builder())
    assert (engine.data, engine.reason) == (ENGINE, "another key in its manifest")


def test_a_link_is_replaced_and_what_it_leads_to_stays(cache, tmp_path):
    cache.folder.mkdir(parents=True)
    (tmp_path / "outside").write_bytes(b"mine")
    for path in (engine_file(cache), manifest_file(cache)):
        path.symlink_to(tmp_path / "outside")
    assert cache.get(KEY, Builder()).built
    assert not engine_file(cache).is_symlink()
    assert (tmp_path / "outside").read_bytes() == b"mine"


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_hostile_manifests(cache, data):
    cache.get(KEY, Builder())
    node = json.loads(manifest_file(cache).read_text())
    part = data.draw(st.sampled_from([node, node["key"]]))
    part[data.draw(st.sampled_from([*part, "more"]))] = data.draw(json_values)
    text = json.dumps(node).encode()
    cut = data.draw(st.integers(0, len(text)))
    manifest_file(cache).write_bytes(data.draw(st.sampled_from([text, text[:cut], text[:cut] + b"\xff" + text[cut:]])))
    cache.entries()[0].manifest()
    engine = cache.get(KEY, Builder())
    assert engine.data == ENGINE
    assert bool(engine.reason) == engine.built
    assert cache.get(KEY, must_not_build).data == ENGINE


# --- folders that cannot be written ----------------------------------------------------------------------------------


def test_a_file_where_the_folder_should_be(tmp_path):
    (tmp_path / "cache").write_text("a file")
    engine = EngineCache(tmp_path / "cache").get(KEY, Builder())
    assert (engine.data, engine.built, engine.path) == (ENGINE, True, None)
    assert "it could not be kept: [Errno" in engine.reason


@pytest.fixture
def not_root():
    """Root may write everywhere; for this test it is nobody."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    yield
    os.seteuid(0)


@pytest.fixture
def read_only(tmp_path: Path, monkeypatch) -> EngineCache:
    """Holds the engine of KEY, and is the current folder: nobody may not pass through those above it."""
    EngineCache(tmp_path / "cache").get(KEY, Builder())
    monkeypatch.chdir(tmp_path / "cache")
    os.chmod(".", 0o755)
    os.chmod("engines", 0o555)
    yield EngineCache(".")
    os.chmod("engines", 0o755)


def test_a_folder_that_may_only_be_read(read_only, not_root):
    assert read_only.get(KEY, must_not_build).data == ENGINE
    engine = read_only.get(dataclasses.replace(KEY, precision="fp32"), Builder())
    assert (engine.data, engine.path) == (ENGINE, None)
    assert engine.reason.startswith("not built before; it could not be kept: [Errno 13]")
    assert len(read_only.entries()) == 1
    with pytest.raises(InvalidRequest, match="EDGE4D_CACHE"):
        read_only.clear()


def test_a_disk_that_is_full(cache):
    """A limit on the size of files stands for it: both fail in the middle of writing."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(ENGINE) // 2, hard))
    try:
        engine = cache.get(KEY, Builder())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (engine.data, engine.built, engine.path) == (ENGINE, True, None)
    assert engine.reason.startswith("not built before; it could not be kept: [Errno 27]")
    assert cache.entries() == []
    assert cache.get(KEY, Builder()).path == engine_file(cache)


def test_a_folder_in_the_way(cache):
    engine_file(cache).mkdir(parents=True)
    engine = cache.get(KEY, Builder())
    assert (engine.data, engine.path) == (ENGINE, None)
    assert "it could not be kept" in engine.reason
    cache.clear()
    assert engine_file(cache).is_dir()


# --- several at once --------------------------------------------------------------------------------------------------


class Program:
    """Python code in a process of its own, with `cache`, `key` and `folder`; lines go in and out."""

    HEAD = """
        import json, os, sys, time
        from pathlib import Path
        from edge4d.runtime.engine_cache import EngineCache, EngineKey

        folder = Path(sys.argv[1])
        cache, key = EngineCache(folder / "cache"), EngineKey(**json.loads(sys.argv[2]))
    """

    def __init__(self, folder: Path, code: str) -> None:
        program = textwrap.dedent(self.HEAD) + textwrap.dedent(code)
        command = [sys.executable, "-P", "-W", "error", "-c", program, str(folder), json.dumps(vars(KEY))]
        # A process that forks must have no other threads, such as those of NumPy's BLAS.
        environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def __enter__(self) -> Program:
        return self

    def __exit__(self, *raised: object) -> None:
        self.process.kill()
        self.process.communicate()

    def line(self) -> str:
        return self.process.stdout.readline().strip()

    def go(self) -> None:
        self.process.stdin.write("\n")
        self.process.stdin.flush()


# Whoever builds goes on until the other has said that it waits: the two meet in every run.
BUILD_ONCE = """
def build(report):
    with open(folder / "builds", "a") as file:
        file.write("one\\n")
    while not (folder / "waiting").exists():
        time.sleep(0.01)
    return b"engine" * 1000

def report(text):
    assert text == "waiting for another build of street.core", text
    (folder / "waiting").touch()

print("ready", flush=True)
sys.stdin.readline()
engine = cache.get(key, build, report=report)
assert engine.data == b"engine" * 1000
print("built" if engine.built else "found", flush=True)
"""


def test_two_processes_one_key_one_build(tmp_path):
    with Program(tmp_path, BUILD_ONCE) as one, Program(tmp_path, BUILD_ONCE) as two:
        assert (one.line(), two.line()) == ("ready", "ready")
        one.go()
        two.go()
        assert {one.line(), two.line()} == {"built", "found"}
    assert (tmp_path / "builds").read_text() == "one\n"


def test_threads_of_one_process_wait_for_each_other(cache):
    """All builds together count one; the builder waits until every other thread has said that it waits."""
    waiting = threading.Semaphore(0)
    builder = Builder()
    engines = []

    def build(report):
        for _ in range(3):
            assert waiting.acquire(timeout=60)
        return builder(report)

    def work():
        engines.append(cache.get(KEY, build, report=lambda text: waiting.release()))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert builder.builds == 1
    assert sorted(engine.built for engine in engines) == [False, False, False, True]
    assert {engine.data for engine in engines} == {ENGINE}


def test_different_keys_do_not_wait(cache):
    other = dataclasses.replace(KEY, precision="fp32")
    inner = []

    def build(report):
        inner.append(cache.get(other, Builder(b"other")))
        return ENGINE

    assert cache.get(KEY, build).data == ENGINE
    assert inner[0].data == b"other"


# Writes engines as fast as it can; each consists of one number, so that parts of two would show.
WRITE_FOREVER = """
print("ready", flush=True)
for number in range(1_000_000):
    cache.get(key, lambda report: number.to_bytes(4, "little") * 100_000)
    with open(cache.folder / key.file_name, "r+b") as file:
        file.truncate(100)
"""


def one_piece(data: bytes) -> bool:
    return len(data) == 400_000 and data == data[:4] * 100_000


def test_readers_never_see_half_an_engine(tmp_path):
    """The writer damages its engine after each build; who reads meanwhile gets a whole one, or builds."""
    cache = EngineCache(tmp_path / "cache")
    with Program(tmp_path, WRITE_FOREVER) as writer:
        assert writer.line() == "ready"
        for _ in range(100):
            assert one_piece(cache.get(KEY, lambda report: bytes(400_000)).data)


def test_a_builder_killed_at_random_moments(tmp_path):
    """What is left after SIGKILL is an engine of one build, or is built again; nothing else stays, and no lock."""
    rng = random.Random(7)
    cache = EngineCache(tmp_path / "cache")
    for _ in range(20):
        with Program(tmp_path, WRITE_FOREVER) as writer:
            assert writer.line() == "ready"
            time.sleep(rng.uniform(0, 0.03))
            writer.process.kill()
        assert one_piece(cache.get(KEY, lambda report: bytes(400_000)).data)
        assert one_piece(cache.get(KEY, must_not_build).data)
        alter(cache)
        assert cache.get(KEY, lambda report: bytes(400_000)).reason
        assert len(os.listdir(cache.folder)) == 3  # engine, manifest and lock; no half-written file


# Kills a child of itself at the n-th line that runs in the cache, for every n until a child comes through.
DIE_AT_EVERY_LINE = """
import shutil, signal

def trace(dies_at):
    count = 0
    def count_lines(frame, event, argument):
        nonlocal count
        if not frame.f_code.co_filename.endswith("engine_cache.py"):
            return None
        if event == "line":
            count += 1
            if count == dies_at:
                os.kill(os.getpid(), signal.SIGKILL)
        return count_lines
    return count_lines

def survives(dies_at):
    child = os.fork()
    if child == 0:
        sys.settrace(trace(dies_at))
        cache.get(key, lambda report: b"new" * 1000)
        os._exit(0)
    return os.waitpid(child, 0)[1] == 0

def fail(report):
    raise AssertionError("built again")

def prepare(before):
    shutil.rmtree(folder / "cache", ignore_errors=True)
    if before != "nothing":
        path = cache.get(key, lambda report: b"old" * 1000).path
        path.write_bytes(b"bad" * 1000)
        if before == "no manifest":
            Path(f"{path}.json").unlink()

deaths = 0
for before in ("nothing", "an engine of other content", "no manifest"):
    for line in range(1, 10_000):
        prepare(before)
        alive = survives(line)
        engine = cache.get(key, lambda report: b"own" * 1000)
        assert engine.data == (b"own" if engine.built else b"new") * 1000, (before, line, engine)
        assert cache.get(key, fail).data == engine.data
        cache.get(EngineKey(**{**vars(key), "name": "next"}), lambda report: b"")
        assert not list(cache.folder.glob("*.partial")), (before, line)
        if alive:
            break
        deaths += 1
print(deaths, flush=True)
"""


def test_a_builder_killed_at_every_line(tmp_path):
    with Program(tmp_path, DIE_AT_EVERY_LINE) as program:
        out, _ = program.process.communicate()
    assert program.process.returncode == 0
    assert int(out) > 100  # deaths


# --- limit and clear --------------------------------------------------------------------------------------------------


def keys(count: int) -> list[EngineKey]:
    return [dataclasses.replace(KEY, name=f"stage{index}") for index in range(count)]


def kept(cache: EngineCache) -> set[str]:
    return {entry.manifest().key.name for entry in cache.entries()}


def limited(cache: EngineCache, engines: float) -> EngineCache:
    """The same folder with room for so many engines of 10,000 bytes, manifests included."""
    return EngineCache(cache.folder.parent, limit_bytes=int(11_000 * engines))


def test_the_least_recently_used_go_first(cache):
    cache = limited(cache, 3)
    a, b, c, d, e = keys(5)
    for key in (a, b, c):
        cache.get(key, Builder(bytes(10_000)))
    cache.get(a, must_not_build)
    cache.get(d, Builder(bytes(10_000)))
    assert kept(cache) == {"stage0", "stage2", "stage3"}
    cache.get(e, Builder(bytes(10_000)))
    assert kept(cache) == {"stage0", "stage3", "stage4"}
    assert [entry.manifest().key.name for entry in cache.entries()] == ["stage4", "stage3", "stage0"]
    assert cache.get(b, Builder()).reason == "not built before"


def test_an_engine_over_the_limit_is_kept_alone(cache):
    small, large = keys(2)
    cache = limited(cache, 1)
    cache.get(small, Builder())
    assert cache.get(large, Builder(bytes(20_000))).path.is_file()
    assert kept(cache) == {"stage1"}


def test_engines_that_are_being_built_are_neither_evicted_nor_cleared(cache):
    """stage0 is there, old, and being built again while stage1 is made and the cache cleared."""
    old, new = keys(2)
    cache = limited(cache, 0)
    cache.get(old, Builder())

    def refuse(data):
        if data == ENGINE:
            raise InvalidEngine("No.")

    def build(report):
        cache.get(new, Builder())
        assert kept(cache) == {"stage0", "stage1"}
        cleared = cache.clear()
        assert (cleared.engines, cleared.busy) == (1, 1)
        assert kept(cache) == {"stage0"}
        return b"rebuilt"

    assert cache.get(old, build, refuse).data == b"rebuilt"
    assert kept(cache) == {"stage0"}


def test_clear(cache):
    assert cache.clear() == (0, 0, 0)
    for key in keys(3):
        cache.get(key, Builder())
    half = cache.folder / f"{KEY.file_name}.json.01234567.partial"
    half.write_bytes(b"half")
    size = sum(entry.bytes for entry in cache.entries())
    assert cache.clear() == (3, size, 0)
    assert os.listdir(cache.folder) == []
    assert cache.entries() == []


def test_clear_leaves_what_is_not_of_the_cache(cache, tmp_path):
    cache.get(KEY, Builder())
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "a.engine").write_text("mine")
    (cache.folder / "link.engine").symlink_to(tmp_path / "outside" / "a.engine")
    (cache.folder / "folder.engine").symlink_to(tmp_path / "outside")
    (cache.folder / "real.engine").mkdir()
    (cache.folder / "notes.txt").write_text("mine")
    (cache.folder / "timing.cache").write_text("mine")
    assert cache.clear().engines == 3
    assert sorted(os.listdir(cache.folder)) == ["notes.txt", "real.engine", "timing.cache"]
    assert (tmp_path / "outside" / "a.engine").read_text() == "mine"


def test_timings_are_of_a_builder_and_a_device(tmp_path) -> None:
    cache = EngineCache(tmp_path)
    first = cache.timings(KEY)
    assert first.parent == tmp_path / "timings"
    assert first != cache.timings(dataclasses.replace(KEY, builder="tensorrt 10.3.0"))
    assert first != cache.timings(dataclasses.replace(KEY, device="sm87 Orin"))
    assert first == cache.timings(dataclasses.replace(KEY, name="other"))
    first.write_bytes(b"")
    cache.clear()
    assert not first.exists()
    (tmp_path / "file").write_text("in the way")
    assert EngineCache(tmp_path / "file").timings(KEY) is None


def test_a_lock_whose_file_is_removed_keeps_nobody_waiting_in_vain(tmp_path):
    """One waits for a lock; who has it removes its file, as clearing does; the one who waited takes the new file."""
    cache = EngineCache(tmp_path / "cache")
    with Program(tmp_path, BUILD_ONCE) as other:
        assert other.line() == "ready"

        def build(report):
            other.go()
            while not (tmp_path / "waiting").exists():
                time.sleep(0.01)
            (cache.folder / f"{KEY.file_name}.lock").unlink()
            return b"engine" * 1000

        assert cache.get(KEY, build).built
        assert other.line() == "found"
    assert (cache.folder / f"{KEY.file_name}.lock").is_file()


def test_a_folder_that_is_a_file_can_be_neither_listed_nor_cleared(tmp_path):
    (tmp_path / "engines").write_text("a file")
    cache = EngineCache(tmp_path)
    for use in (cache.entries, cache.clear):
        with pytest.raises(InvalidRequest, match="EDGE4D_CACHE"):
            use()
