"""What this machine is called, and how fast its processor can compute and copy at best."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from edge4d.runtime.profile import Peaks

_SECONDS = 0.15  # for each measurement
_SIDE = 1024  # of the matrices
_COPIED = 1 << 26  # bytes: more than caches hold


def processor() -> str:
    """The processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def cores() -> int:
    """Cores that this process may use: in a container they may be fewer than the machine's."""
    affinity = getattr(os, "sched_getaffinity", None)  # Linux
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def peaks() -> Peaks:
    """Of the processor, measured."""
    return Peaks({"float32": _flops()}, _bandwidth(), "measured on this machine")


def _flops() -> float:
    """float32 operations per second of NumPy's matrix product, where it was fastest."""
    a = np.ones((_SIDE, _SIDE), np.float32)
    out = np.empty_like(a)
    return 2 * _SIDE**3 / _fastest(lambda: np.matmul(a, a, out=out))


def _bandwidth() -> float:
    """Bytes per second that all cores together read and write while they copy, where it was fastest."""
    source = np.ones((cores(), _COPIED // cores()), np.uint8)
    copy = np.empty_like(source)
    with ThreadPoolExecutor(cores()) as threads:  # NumPy copies without holding the interpreter
        return 2 * source.nbytes / _fastest(lambda: list(threads.map(np.copyto, copy, source)))


def _fastest(work: Callable[[], object]) -> float:
    """Seconds of its fastest run, of those that fit in some time after the first."""
    work()
    fastest, begin = float("inf"), time.perf_counter()
    start = begin
    while start - begin < _SECONDS:
        work()
        end = time.perf_counter()
        fastest, start = min(fastest, end - start), end
    return fastest
