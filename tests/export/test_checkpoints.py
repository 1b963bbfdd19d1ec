"""Checkpoints are loaded strictly by key name, or not at all."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from hypothesis import HealthCheck, given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from safetensors.torch import save_file  # noqa: E402
from torch import nn  # noqa: E402

from edge4d.export.checkpoints import checkpoint_metadata, load_checkpoint, save_checkpoint  # noqa: E402
from edge4d.runtime.errors import InvalidCheckpoint  # noqa: E402


def network(width: int = 4) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, width, 3), nn.BatchNorm2d(width))


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    saved, loaded = network(), network()
    save_checkpoint(saved, path, metadata={"steps": 3, "name": "é"})
    load_checkpoint(loaded, path)
    assert same(saved, loaded)
    assert checkpoint_metadata(path) == {"steps": 3, "name": "é"}
    assert [file.name for file in tmp_path.iterdir()] == ["a.safetensors"]  # no temporary file is left


def test_the_same_weights_give_the_same_bytes(tmp_path: Path) -> None:
    model = network()
    for name in ("a", "b"):
        save_checkpoint(model, tmp_path / name, metadata={"z": 1, "a": 2})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_weights_that_share_memory_are_saved(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    save_checkpoint(model, tmp_path / "a.safetensors")
    load_checkpoint(model, tmp_path / "a.safetensors")


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".safetensors"])
def test_prefixes_and_other_names(tmp_path: Path, suffix: str) -> None:
    saved, loaded = network(), network()
    path = tmp_path / f"official{suffix}"
    tensors = {f"module.{key}".replace("0.", "conv."): value for key, value in saved.state_dict().items()}
    tensors["ema.step"] = torch.ones(())
    tensors["module.extra"] = torch.ones(())
    save_file(tensors, path) if suffix == ".safetensors" else torch.save(tensors, path)
    load_checkpoint(
        loaded,
        path,
        prefix="module.",
        rename=lambda key: None if key == "extra" else key.replace("conv.", "0."),
    )
    assert same(saved, loaded)


def test_half_weights_fill_a_float32_model(tmp_path: Path) -> None:
    saved, loaded = network(), network()
    save_checkpoint(saved.half(), tmp_path / "a.safetensors")
    load_checkpoint(loaded, tmp_path / "a.safetensors")
    assert loaded[0].weight.dtype == torch.float32
    torch.testing.assert_close(loaded[0].weight, saved[0].weight.float(), rtol=0, atol=0)


def test_differences_are_all_named_and_nothing_is_loaded(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"0.weight": torch.zeros(5, 3, 3, 3), "0.bias": torch.zeros(4), "head.bias": torch.zeros(1)}, path)
    model, before = network(), network()
    before.load_state_dict(model.state_dict())
    with pytest.raises(InvalidCheckpoint) as caught:
        load_checkpoint(model, path)
    assert "Missing: 1.weight, 1.bias" in caught.value.note
    assert "unexpected: head.bias" in caught.value.note
    assert "0.weight [5, 3, 3, 3] instead of [4, 3, 3, 3]" in caught.value.note
    assert same(model, before)


def test_two_keys_may_not_become_one(tmp_path: Path) -> None:
    save_checkpoint(network(), tmp_path / "a.safetensors")
    with pytest.raises(InvalidCheckpoint, match="Two keys"):
        load_checkpoint(network(), tmp_path / "a.safetensors", rename=lambda key: "same")


class Runs:
    """Unpickling it would call a function."""

    def __reduce__(self) -> tuple[object, ...]:
        return (print, ("code was run",))


@pytest.mark.parametrize("content", [{"a": 1}, [torch.ones(1)], {"model": {"a": torch.ones(1)}}, Runs()])
def test_files_that_hold_something_else(tmp_path: Path, content: object, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(InvalidCheckpoint):
        load_checkpoint(network(), tmp_path / "a.pt")
    assert "code was run" not in capsys.readouterr().out


def test_missing_files_and_missing_metadata(tmp_path: Path) -> None:
    for name in ("a.pt", "a.safetensors"):
        with pytest.raises(InvalidCheckpoint, match="cannot be read"):
            load_checkpoint(network(), tmp_path / name)
    save_file({"a": torch.ones(1)}, tmp_path / "a.safetensors")
    for name in ("a.safetensors", "b.safetensors"):
        with pytest.raises(InvalidCheckpoint, match="no description"):
            checkpoint_metadata(tmp_path / name)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(suffix=st.sampled_from([".pt", ".safetensors"]), start=st.integers(0, 3000), junk=st.binary(max_size=30))
def test_any_damage_is_read_or_named(tmp_path: Path, suffix: str, start: int, junk: bytes) -> None:
    path = tmp_path / f"a{suffix}"
    if suffix == ".pt":
        torch.save(network().state_dict(), path)
    else:
        save_checkpoint(network(), path)
    path.write_bytes(path.read_bytes()[:start] + junk)
    with contextlib.suppress(InvalidCheckpoint):  # damage beyond the end, or inside a weight, cannot be seen
        load_checkpoint(network(), path)
