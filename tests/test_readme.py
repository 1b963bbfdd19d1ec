"""README shows nothing that is not there: links, commands, options, make targets, Python names; the examples run."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

import edge4d
from edge4d.runtime import cli
from edge4d.runtime.bundle import shipped_bundles

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
EXAMPLES = sorted((ROOT / "examples").glob("[0-9][0-9]_*.py"))

needs_tensorrt = pytest.mark.skipif(find_spec("tensorrt") is None, reason="TensorRT is not installed")


def help_of(command: str, capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as stop:
        cli.main([command, "--help"])
    assert stop.value.code == 0, command
    return capsys.readouterr().out


def marked(example: Path) -> object:
    """With what it needs."""
    needs = [pytest.mark.gpu, needs_tensorrt] if 'backend="tensorrt"' in example.read_text() else []
    return pytest.param(example, id=example.stem, marks=needs)


def test_links_are_alive():
    links = re.findall(r"\]\(([^)#]+)\)", README)
    assert links
    for link in links:
        assert link.startswith("https://") or (ROOT / link).exists(), link


def test_commands_and_their_options_exist(capsys):
    commands = re.findall(r"(?:^|`)edge4d ([a-z]+)((?: [^`\n#]*)?)", README, re.MULTILINE)
    assert len(commands) > 8
    for command, rest in commands:
        text = help_of(command, capsys)
        for option in re.findall(r"(?<=\s)--?[a-z][a-z-]*", rest):
            assert re.search(rf"(?<![\w-]){option}(?![\w-])", text), f"{command} {option}"


def test_options_in_the_text_exist(capsys):
    known = "".join(help_of(command, capsys) for command in ("generate", "render", "evaluate", "world", "calibrate"))
    for option in re.findall(r"`(--[a-z-]+)", README):
        assert option in known, option


def test_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"\bmake ([a-z]+)\b", README):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_python_names_exist():
    for block in [*re.findall(r"```python\n(.*?)```", README, re.DOTALL), *(path.read_text() for path in EXAMPLES)]:
        names = [
            node.attr
            for node in ast.walk(ast.parse(block))
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "edge4d"
        ]
        assert names
        assert all(hasattr(edge4d, name) for name in names)


@pytest.mark.skipif("street" not in shipped_bundles(), reason="the bundle 'street' is not there")
@pytest.mark.parametrize("example", [marked(path) for path in EXAMPLES])
def test_examples_run(example, tmp_path):
    package = str(Path(edge4d.__file__).parents[1])  # as a full path: the example runs in another folder
    result = subprocess.run(
        [sys.executable, "-P", example],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": package},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    for written in re.findall(r"out/\w+\.mp4", result.stdout):
        assert (tmp_path / written).stat().st_size > 1000
