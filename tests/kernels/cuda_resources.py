"""Registers, spills and shared memory of every CUDA kernel on sm_90, as nvcc reports them.

cuda_resources.json beside this keeps what they were. After a change that is meant, write it anew:

    python tests/kernels/cuda_resources.py
"""

from __future__ import annotations

import json
import re
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
KEPT = Path(__file__).with_suffix(".json")
OPTIONS = (
    "-arch=sm_90",
    "-std=c++17",
    "-O3",
    "-lineinfo",
    "-Xptxas=-v",
    "-Xcompiler=-Wall,-Wextra",
)  # CMakeLists.txt's
INCLUDES = [f"-I{ROOT / 'kernels' / folder}" for folder in ("include", "cpu")]
KERNEL = re.compile(
    r"Compiling entry function '(?P<name>\w+)'"
    r".*?Function properties for (?P=name)\n"
    r"\s*(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads\n"
    r".*?Used (?P<registers>\d+) registers(?P<rest>[^\n]*)",
    re.DOTALL,
)


class Resources(NamedTuple):
    """Of one kernel; memory in bytes. Shared memory that is sized at launch is not among it."""

    registers: int
    stack: int
    spilled: int
    shared: int


def sources() -> list[Path]:
    return sorted((ROOT / "kernels" / "cuda").glob("*.cu"))


def compiler() -> str:
    """nvcc's release, such as "13.0". Raises FileNotFoundError where there is none."""
    version = subprocess.run(["nvcc", "--version"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"release ([\d.]+)", version)
    return found[1] if found else version


def compiled(source: Path) -> str:
    """What nvcc says while it compiles a file."""
    with tempfile.TemporaryDirectory() as folder:
        command = ["nvcc", "--cubin", *OPTIONS, *INCLUDES, "-o", f"{folder}/kernels.cubin", str(source)]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        raise RuntimeError(f"{source.name} does not compile:\n{result.stderr}")
    return result.stdout + result.stderr


def resources(report: str) -> dict[str, Resources]:
    """By kernel, with its template's arguments, from nvcc's report."""
    found = list(KERNEL.finditer(report))
    names = demangled([match["name"] for match in found])
    kernels = {}
    for name, match in zip(names, found):
        shared = re.search(r"(\d+) bytes smem", match["rest"])
        spilled = int(match["stores"]) + int(match["loads"])
        kernels[name] = Resources(
            int(match["registers"]), int(match["stack"]), spilled, int(shared[1]) if shared else 0
        )
    return dict(sorted(kernels.items()))


def demangled(names: list[str]) -> list[str]:
    """Without namespaces and parameters: nvcc numbers unnamed namespaces by the file's path."""
    result = subprocess.run(["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True)
    plain = re.sub(r"edge4d::|\(anonymous namespace\)::", "", result.stdout)
    return [re.sub(r"^void |\([^()]*\)$", "", line) for line in plain.splitlines()]


def kept() -> dict[str, dict[str, Resources]]:
    files = json.loads(KEPT.read_text())["kernels"]
    return {file: {name: Resources(**numbers) for name, numbers in kernels.items()} for file, kernels in files.items()}


def kept_compiler() -> str:
    return str(json.loads(KEPT.read_text())["nvcc"])


def main() -> None:
    files = {
        source.name: {name: kernel._asdict() for name, kernel in resources(compiled(source)).items()}
        for source in sources()
    }
    text = json.dumps({"nvcc": compiler(), "kernels": files}, indent=1)
    a_line_each = re.sub(r"\{\s*([^{}]*?)\s*\}", lambda numbers: "{" + re.sub(r"\s+", " ", numbers[1]) + "}", text)
    KEPT.write_text(a_line_each + "\n")
    print(KEPT.relative_to(ROOT))


if __name__ == "__main__":
    main()
