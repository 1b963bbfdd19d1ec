"""What running a bundle must not need: PyTorch, ONNX, or anything but NumPy until it is used."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src"
COMMANDS = ("generate", "render", "info", "evaluate", "world", "export", "train", "build", "profile", "doctor")
COMMANDS += ("calibrate",)

# Imports the modules named on the command line where only NumPy, the standard library and edge4d exist.
ISOLATED = """
import importlib, sys

allowed = {"edge4d", "numpy", *sys.argv[1].split(",")}

class Nothing:
    def find_spec(self, name, path=None, target=None):
        if "." not in name and name not in allowed and name not in sys.stdlib_module_names:
            raise ImportError(f"{name} is not among the packages of this test")

sys.meta_path.insert(0, Nothing())
for name in sys.argv[2:]:
    importlib.import_module(name)
heavy = [name for name in sys.modules if name.split(".")[0] in ("torch", "onnx") or name.startswith("edge4d.export")]
assert not heavy, heavy
"""


def modules() -> list[str]:
    names = []
    for folder in ("kernels", "runtime", "calib"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            names.append(".".join(("edge4d", *(part for part in parts if part != "__init__"))))
    return [name for name in names if name != "edge4d.runtime.cli"]


def run(*command: object, **environment: str) -> str:
    result = subprocess.run(
        [str(part) for part in command], env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def test_the_runtime_imports_with_numpy_alone():
    assert "edge4d.runtime.renderer" in modules()
    run(sys.executable, "-P", "-c", ISOLATED, "", "edge4d", *modules())


def test_the_command_line_needs_typer_and_rich_too():
    # What these two import themselves, in any of their versions.
    theirs = "typer,rich,click,shellingham,typing_extensions,annotated_doc,pygments,markdown_it,mdurl"
    run(sys.executable, "-P", "-c", ISOLATED, theirs, "edge4d.runtime.cli")


def test_models_are_made_without_the_exporter():
    pytest.importorskip("torch")
    made = "from edge4d.export.models.pixel_to_4d import build; build('tiny')"
    run(sys.executable, "-P", "-c", f"import sys; sys.modules['onnx'] = sys.modules['onnxscript'] = None; {made}")


def test_every_public_name_can_be_had():
    import edge4d

    for name in edge4d.__all__:
        assert getattr(edge4d, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'teleport'"):
        edge4d.teleport  # noqa: B018


def python39() -> str | None:
    """A Python 3.9 that works, on PATH or where pyenv keeps it."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"), "versions")
    for candidate in (shutil.which("python3.9"), *sorted(pyenv.glob("3.9.*/bin/python3.9"))):
        works = candidate and subprocess.run(
            [str(candidate), "-c", "import ensurepip"], capture_output=True, check=False
        )
        if works and works.returncode == 0:
            return str(candidate)
    return None


@pytest.fixture(scope="module")
def old_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Python 3.9 with numpy, typer and rich, and nothing else."""
    found = python39()
    if found is None:
        pytest.skip("there is no Python 3.9 here")
    folder = tmp_path_factory.mktemp("python39") / "venv"
    run(found, "-m", "venv", folder)
    python = folder / "bin" / "python"
    run(python, "-m", "pip", "install", "--quiet", "--no-compile", "numpy", "typer", "rich")
    return python


def test_everything_imports_on_python_39(old_python):
    imports = "import importlib, sys; [importlib.import_module(name) for name in sys.argv[1:]]"
    run(old_python, "-W", "error", "-c", imports, "edge4d", *modules(), PYTHONPATH=str(SOURCE))


def test_help_works_on_python_39(old_python):
    everything = (
        "import contextlib, sys; from edge4d.runtime.cli import main\n"
        "for command in sys.argv[1:]:\n"
        "    with contextlib.suppress(SystemExit): main([command, '--help'])"
    )
    text = run(old_python, "-c", everything, *COMMANDS, PYTHONPATH=str(SOURCE))
    assert text.count("Example: edge4d ") == len(COMMANDS)
    assert text.count("-o, --output") == 7  # options are options, with their own names
    assert "--camera NAME|FILE|DIR" in text
