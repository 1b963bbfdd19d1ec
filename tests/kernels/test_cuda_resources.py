"""Nothing spills, and no kernel takes more or fewer registers than we know: either changes its speed."""

from __future__ import annotations

import json
import shutil

import cuda_resources
import pytest
from cuda_resources import Resources

FILES = [source.name for source in cuda_resources.sources()]


@pytest.fixture(scope="module", params=FILES)
def built(request) -> tuple[str, str]:
    """A file's name, and what nvcc says of it."""
    if shutil.which("nvcc") is None:
        pytest.skip("there is no nvcc here")
    source = next(source for source in cuda_resources.sources() if source.name == request.param)
    return source.name, cuda_resources.compiled(source)


def test_kernels_compile_without_warnings(built) -> None:
    assert "warning" not in built[1]


def test_nothing_spills(built) -> None:
    kernels = cuda_resources.resources(built[1])
    assert kernels
    assert [name for name, kernel in kernels.items() if kernel.spilled] == []


def test_resources_are_as_they_were(built) -> None:
    name, report = built
    if cuda_resources.compiler() != cuda_resources.kept_compiler():
        pytest.skip(f"nvcc here is {cuda_resources.compiler()}; kept are figures of {cuda_resources.kept_compiler()}")
    # If a change is meant: python tests/kernels/cuda_resources.py
    assert cuda_resources.resources(report) == cuda_resources.kept()[name]


def test_every_file_is_kept() -> None:
    assert sorted(cuda_resources.kept()) == FILES


def test_the_report_is_understood() -> None:
    report = """
ptxas info    : Compiling entry function '_ZN6edge4d37_GLOBAL__N__0f3_4_x_cu_1a4blurIfLi3EEEvPKfi' for 'sm_90'
ptxas info    : Function properties for _ZN6edge4d37_GLOBAL__N__0f3_4_x_cu_1a4blurIfLi3EEEvPKfi
    16 bytes stack frame, 8 bytes spill stores, 4 bytes spill loads
ptxas info    : Used 40 registers, used 1 barriers, 16 bytes cumulative stack size, 2048 bytes smem
ptxas info    : Compile time = 3.1 ms
ptxas info    : Function properties for helper
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Compiling entry function '_Z4fillPf' for 'sm_90'
ptxas info    : Function properties for _Z4fillPf
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 8 registers, used 0 barriers
"""
    if shutil.which("c++filt") is None:
        pytest.skip("there is no c++filt here")
    found = cuda_resources.resources(report)
    assert list(found.values()) == [Resources(40, 16, 12, 2048), Resources(8, 0, 0, 0)]
    assert list(found)[1] == "fill"
    assert json.loads(json.dumps(found["fill"]._asdict())) == {"registers": 8, "stack": 0, "spilled": 0, "shared": 0}
