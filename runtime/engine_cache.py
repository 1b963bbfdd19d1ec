"""Engines built from ONNX graphs, kept so that the next process loads what this one built.

    FOLDER/engines/NAME.KEY12.SM.BUILDER.PRECISION.engine   as in street.core.0123456789ab.sm90.trt8.6.0.fp16.engine
    ….engine.json                     its manifest, a JSON object (UTF-8, at most 1 MiB), last touched when it was used:
        format 1, key (all of EngineKey), bytes and sha256 of the engine, built (ISO 8601), seconds that it took
    ….engine.lock                     locked by whoever builds or removes the engine, until it is done or dead
    ….HHHHHHHH.partial                half a file; one that nobody has locked was left by a process that died
    FOLDER/timings/DEVICE.BUILDER.cache   how fast a builder's kernels were: the next build asks less of the GPU

FOLDER is `$EDGE4D_CACHE`, else `$XDG_CACHE_HOME/edge4d`, else `~/.cache/edge4d`.

No file is trusted. An engine is used when its manifest holds the whole key that is wanted, size and SHA-256 agree, and
the caller's own check takes it; else it is built again. Both files are renamed into place complete, the engine first,
so a process may die at any moment: what it leaves has no manifest, or one that does not fit. Therefore readers take no
lock; what vanishes while they read is built again.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import re
import secrets
import shutil
import stat
import time
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO, Callable, NamedTuple, Optional, Union

from edge4d.runtime.errors import InvalidEngine, InvalidRequest

FORMAT = 1
LIMIT_BYTES = 8 << 30
MAX_MANIFEST_BYTES = 1 << 20
MAX_ENGINE_BYTES = 1 << 40

Report = Callable[[str], None]

_FILE = re.compile(r"(?P<engine>.+\.engine)(?:\.json|\.lock|(?:\.json)?\.[0-9a-f]{8}\.partial)?", re.DOTALL)
_UNUSUAL = re.compile(r"[^A-Za-z0-9_.+-]+")


@dataclass(frozen=True)
class EngineKey:
    """All that an engine depends on: two engines of equal keys may stand in for each other.

    Attributes:
        name: of bundle and stage, for people: "street.core".
        onnx: SHA-256 of the ONNX file and its external data.
        plugins: SHA-256 of the plugin library, or "".
        precision: "fp32", "fp16" or "int8".
        profiles: {input: [min, opt, max]}, each a shape.
        options: of the builder, in what JSON can say.
        builder: name and version at run time, with a space between: "tensorrt 8.6.0", "tensorrt_rtx 1.7.1.116".
        device: compute capability, then a space and the device's name where it matters: "sm90 NVIDIA H200", "sm89".
        cuda: its major version.
        platform: operating system and architecture, "linux-x86_64".
    """

    name: str
    onnx: str
    plugins: str
    precision: str
    profiles: dict[str, Any]
    options: dict[str, Any]
    builder: str
    device: str
    cuda: str
    platform: str

    @property
    def digest(self) -> str:
        """SHA-256 of all fields, as JSON with sorted keys."""
        return hashlib.sha256(json.dumps(vars(self), sort_keys=True).encode()).hexdigest()

    @property
    def file_name(self) -> str:
        """NAME.KEY12.SM.BUILDER.PRECISION.engine, without what has a meaning in paths; the key is in the manifest."""
        builder = self.builder.replace("tensorrt_rtx ", "rtx").replace("tensorrt ", "trt")
        capability = self.device.partition(" ")[0]
        parts = (self.name, self.digest[:12], capability, builder, self.precision)
        return ".".join(_plain(part) for part in parts) + ".engine"


@dataclass(frozen=True)
class Manifest:
    """What is known about an engine file. `digest` is that of `key`."""

    key: EngineKey
    digest: str
    bytes: int
    sha256: str
    built: str
    seconds: float


@dataclass(frozen=True)
class CachedEngine:
    """An engine, out of the cache or just built.

    Attributes:
        path: of its file; None when it could not be kept.
        data: the engine, complete and checked.
        built: whether it was built by this call.
        reason: one line, why it was built and, if so, why it could not be kept; "" when it was not built.
    """

    path: Optional[Path]
    data: bytes
    built: bool
    reason: str


@dataclass(frozen=True)
class CacheEntry:
    """The files of one engine, whole or not. `last_used` is in seconds since 1970, `bytes` is what all of them take."""

    path: Path
    files: tuple[Path, ...]
    bytes: int
    last_used: float

    def manifest(self) -> Optional[Manifest]:
        """None when it is missing or cannot be read; reads the file anew."""
        try:
            return _read_manifest(self.path)
        except _Unusable:
            return None


class Cleared(NamedTuple):
    """What `EngineCache.clear` removed, and how many engines it left because someone is building them."""

    engines: int
    bytes: int
    busy: int


class EngineCache:
    """A folder of engines, shared by all processes and threads.

    Args:
        folder: holds the folder `engines`; `cache_folder()` if not given. It is made when the first engine is kept.
        limit_bytes: the least recently used engines are removed when all together are larger.
    """

    def __init__(self, folder: Optional[Union[str, Path]] = None, *, limit_bytes: int = LIMIT_BYTES) -> None:
        self.folder = (cache_folder() if folder is None else Path(folder)) / "engines"
        self.limit_bytes = limit_bytes

    def get(
        self,
        key: EngineKey,
        build: Callable[[Report], bytes],
        check: Callable[[bytes], object] = lambda data: None,
        report: Report = lambda text: None,
    ) -> CachedEngine:
        """The engine of a key, built if need be; of all who ask for it at once, one builds and the others wait.

        An engine is never lost because the folder is not writable, full, or no folder: `reason` then says so.

        Args:
            build: makes the engine; is given `report`.
            check: raises InvalidEngine for an engine that cannot be loaded. One out of the cache is built again; of
                one just built, this error is the caller's. Every other error is the caller's too.
            report: is told, in a line, what takes time.
        """
        path = self.folder / key.file_name
        try:
            return _load(path, key, check)
        except _Unusable as unusable:
            reason = str(unusable)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = _lock(path, lambda: report(f"waiting for another build of {key.name}"))
        except OSError as error:
            data = build(report)
            check(data)
            return _not_kept(data, reason, error)
        with lock:
            engine = self._get_locked(path, key, build, check, report)
        if engine.built:
            self._evict(path)
        return engine

    def timings(self, key: EngineKey) -> Optional[Path]:
        """Where builders of an engine keep what they measured, which is more than the engine's business; None where
        there is no folder for it."""
        folder = self.folder.with_name("timings")
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError:
            return None
        return folder / f"{_plain(key.device)}.{_plain(key.builder)}.cache"

    def entries(self) -> list[CacheEntry]:
        """All engines and what is left of them, the last used first. Raises InvalidRequest for an unusable folder."""
        try:
            entries = self._scan()
        except OSError as error:
            raise _unusable_folder(self.folder, error) from error
        return [entry for entry in reversed(entries) if any(file.suffix != ".lock" for file in entry.files)]

    def clear(self) -> Cleared:
        """Removes everything but engines that are being built. Raises InvalidRequest for an unusable folder."""
        shutil.rmtree(self.folder.with_name("timings"), ignore_errors=True)
        engines = size = busy = 0
        try:
            for entry in self._scan():
                try:
                    _remove(entry)
                except BlockingIOError:
                    busy += 1
                else:
                    engines += entry.path in entry.files
                    size += entry.bytes
        except OSError as error:
            raise _unusable_folder(self.folder, error) from error
        return Cleared(engines, size, busy)

    def _get_locked(
        self,
        path: Path,
        key: EngineKey,
        build: Callable[[Report], bytes],
        check: Callable[[bytes], object],
        report: Report,
    ) -> CachedEngine:
        try:
            return _load(path, key, check)  # whoever had the lock before may have built it
        except _Unusable as unusable:
            reason = str(unusable)
        start = time.monotonic()
        data = build(report)
        seconds = round(time.monotonic() - start, 3)
        check(data)
        try:
            _write(path, data)
            _write(_manifest_path(path), _manifest_text(key, data, seconds))
        except OSError as error:
            return _not_kept(data, reason, error)
        return CachedEngine(path, data, built=True, reason=reason)

    def _evict(self, made: Path) -> None:
        """Removes what dead processes left, and the least recently used engines beyond the limit, but not `made`.

        What is locked stays. What cannot be removed is not worth an error: the engine that was asked for is there.
        """
        with suppress(OSError):
            entries = self._scan()
            for entry in entries:
                _sweep(entry)
            total = sum(entry.bytes for entry in entries)
            for entry in entries:
                if total > self.limit_bytes and entry.path != made:
                    with suppress(OSError):
                        _remove(entry)
                        total -= entry.bytes

    def _scan(self) -> list[CacheEntry]:
        """All that belongs to engines, the last used last; folders and foreign files are none of our business."""
        files: dict[Path, dict[Path, os.stat_result]] = {}
        if not self.folder.exists():
            return []
        with os.scandir(self.folder) as found:
            for file in found:
                match = _FILE.fullmatch(file.name)
                if match is None or file.is_dir(follow_symlinks=False):
                    continue
                with suppress(FileNotFoundError):  # removed by another since
                    status = file.stat(follow_symlinks=False)
                    files.setdefault(self.folder / match["engine"], {})[Path(file.path)] = status
        entries = [
            CacheEntry(
                path,
                tuple(group),
                sum(status.st_size for status in group.values()),
                max(status.st_mtime for status in group.values()),  # a use touches the manifest
            )
            for path, group in files.items()
        ]
        return sorted(entries, key=lambda entry: entry.last_used)


def cache_folder() -> Path:
    """`$EDGE4D_CACHE`, else `$XDG_CACHE_HOME/edge4d`, else `~/.cache/edge4d`.

    Raises InvalidRequest when there is no home folder.
    """
    own, shared = os.environ.get("EDGE4D_CACHE", ""), os.environ.get("XDG_CACHE_HOME", "")
    try:
        if own:
            return Path(own).expanduser()
        # The XDG specification wants a relative path to be ignored.
        return Path(shared if os.path.isabs(shared) else Path.home() / ".cache", "edge4d")
    except RuntimeError as error:
        raise InvalidRequest(
            "There is no folder to keep engines in.", note=str(error), hint="Set EDGE4D_CACHE to a folder."
        ) from error


# --- reading ----------------------------------------------------------------------------------------------------------


class _Unusable(Exception):
    """Why a stored engine cannot be used, in one line."""


def _load(path: Path, key: EngineKey, check: Callable[[bytes], object]) -> CachedEngine:
    manifest = _read_manifest(path)
    if manifest.digest != key.digest:
        raise _Unusable("another key in its manifest")
    data = _read_engine(path, manifest)
    try:
        check(data)
    except InvalidEngine as error:
        raise _Unusable(f"the engine could not be loaded: {_one_line(f'{error.what} {error.note}')}") from error
    now = time.time_ns()  # the kernel's own clock for files is coarser
    with suppress(OSError):
        os.utime(_manifest_path(path), ns=(now, now), follow_symlinks=False)
    return CachedEngine(path, data, built=False, reason="")


def _read_manifest(path: Path) -> Manifest:
    try:
        with _open_regular(_manifest_path(path)) as file:
            text = file.read(MAX_MANIFEST_BYTES + 1)
        if len(text) > MAX_MANIFEST_BYTES:
            raise ValueError(f"it has more than {MAX_MANIFEST_BYTES} bytes")
        return _manifest_of(json.loads(text.decode()))
    except FileNotFoundError:
        raise _Unusable("no manifest" if os.path.lexists(path) else "not built before") from None
    except (OSError, ValueError, RecursionError) as error:  # ValueError covers bad UTF-8 and bad JSON
        raise _Unusable(f"the manifest cannot be read: {_one_line(str(error))}") from error


def _manifest_of(node: object) -> Manifest:
    if type(node) is not dict or type(node.get("format")) is not int:
        raise ValueError("it is not an object with a format number")
    if node["format"] != FORMAT:
        raise ValueError(f"its format is not {FORMAT}")
    if _types(node) != _MANIFEST_TYPES or _types(node["key"]) != _KEY_TYPES:
        raise ValueError(f"it does not hold what format {FORMAT} holds")
    if not 0 <= node["bytes"] <= MAX_ENGINE_BYTES:
        raise ValueError(f"its size of the engine is not between 0 and {MAX_ENGINE_BYTES} bytes")
    key = EngineKey(**node["key"])
    return Manifest(key, key.digest, node["bytes"], node["sha256"], node["built"], node["seconds"])


_MANIFEST_TYPES = {"format": int, "key": dict, "bytes": int, "sha256": str, "built": str, "seconds": float}
_KEY_TYPES = {
    **dict.fromkeys(("name", "onnx", "plugins", "precision", "builder", "device", "cuda", "platform"), str),
    **dict.fromkeys(("profiles", "options"), dict),
}


def _types(node: dict[str, Any]) -> dict[str, type]:
    return {name: type(value) for name, value in node.items()}


def _read_engine(path: Path, manifest: Manifest) -> bytes:
    try:
        with _open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            if size != manifest.bytes:
                raise _Unusable(f"its size is {size} bytes, the manifest says {manifest.bytes}")
            data = file.read(size)
    except FileNotFoundError:
        raise _Unusable("its file is missing") from None
    except OSError as error:
        raise _Unusable(f"its file cannot be read: {_one_line(str(error))}") from error
    if hashlib.sha256(data).hexdigest() != manifest.sha256:
        raise _Unusable("its content was altered")
    return data


def _open_regular(path: Path) -> BinaryIO:
    """A file for reading; neither a link, which may lead elsewhere, nor a pipe, which may never answer."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return os.fdopen(descriptor, "rb")


# --- writing and removing ---------------------------------------------------------------------------------------------


def _write(path: Path, content: bytes) -> None:
    """Puts a complete file in place, on the disk before it has its name."""
    partial = path.with_name(f"{path.name}.{secrets.token_hex(4)}.partial")
    try:
        with open(partial, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _manifest_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")


def _manifest_text(key: EngineKey, data: bytes, seconds: float) -> bytes:
    manifest = {
        "format": FORMAT,
        "key": vars(key),
        "bytes": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
        "built": datetime.now().astimezone().isoformat(timespec="seconds"),
        "seconds": seconds,
    }
    return json.dumps(manifest, indent=2).encode()


def _lock(path: Path, wait: Optional[Callable[[], None]] = None) -> BinaryIO:
    """The lock of an engine, held until the file that is returned is closed or the process dies.

    `wait` is called before waiting for whoever has it; without `wait`, BlockingIOError is raised. Every call opens the
    file anew, so threads exclude each other like processes. Who has the lock may remove its file.
    """
    lock_path = path.with_name(f"{path.name}.lock")
    while True:
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        file = open(os.open(lock_path, flags, 0o666), "rb+", buffering=0)  # noqa: SIM115
        try:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if wait is None:
                    raise
                wait()
                fcntl.flock(file, fcntl.LOCK_EX)
            with suppress(FileNotFoundError):
                # Otherwise the one before has removed the file: this lock would keep nobody out.
                if os.path.samestat(os.fstat(file.fileno()), os.lstat(lock_path)):
                    return file
        except BaseException:
            file.close()
            raise
        file.close()


def _remove(entry: CacheEntry) -> None:
    """Removes all files of an engine, links themselves and not what they lead to; BlockingIOError when it is locked."""
    with _lock(entry.path):
        # An engine without a manifest is used by nobody; a manifest without an engine is not even counted.
        for file in sorted(entry.files, key=lambda file: file.suffix != ".json"):
            file.unlink(missing_ok=True)
        entry.path.with_name(f"{entry.path.name}.lock").unlink(missing_ok=True)


def _sweep(entry: CacheEntry) -> None:
    """Removes half-written files that nobody is writing."""
    partials = [file for file in entry.files if file.suffix == ".partial"]
    if partials:
        with suppress(OSError), _lock(entry.path):
            for file in partials:
                file.unlink(missing_ok=True)


def _not_kept(data: bytes, reason: str, error: OSError) -> CachedEngine:
    return CachedEngine(None, data, built=True, reason=f"{reason}; it could not be kept: {_one_line(str(error))}")


def _unusable_folder(folder: Path, error: OSError) -> InvalidRequest:
    return InvalidRequest(
        f"The engine cache {folder} cannot be used.", note=str(error), hint="Set EDGE4D_CACHE to a folder of your own."
    )


def _plain(text: str) -> str:
    """Short, and without anything that leads to another folder or hides a file."""
    return _UNUSUAL.sub("_", text)[:48].lstrip(".") or "_"


def _one_line(text: str) -> str:
    return " ".join(text.split())[:300]
