"""Data sheets of GPUs against what their clocks, multiprocessors and memory can do."""

from __future__ import annotations

import pytest

from edge4d.runtime.gpu_peaks import gpu_peaks
from edge4d.runtime.profile import Peaks

# Multiprocessors, GHz, FP16 operations of one multiprocessor's tensor cores in a cycle, bits and Gbit/s of the memory.
GPUS = [
    ("NVIDIA H200", 132, 1.83, 4096, 6144, 6.25),  # tensor cores run slower than the 1.98 GHz of the others
    ("NVIDIA GeForce RTX 4090", 128, 2.52, 1024, 384, 21.0),
    ("Orin", 16, 1.3, 2048, 256, 6.4),
    ("NVIDIA Thor", 20, 1.575, 8192, 256, 8.533),
]


@pytest.mark.parametrize(("name", "multiprocessors", "ghz", "per_cycle", "bits", "gigabits"), GPUS)
def test_sheets_are_what_the_hardware_comes_to(name, multiprocessors, ghz, per_cycle, bits, gigabits):
    peaks = gpu_peaks(name, multiprocessors)
    # Sheets round to two or three digits.
    assert peaks.flops["float16"] == pytest.approx(1e9 * ghz * multiprocessors * per_cycle, rel=0.02)
    assert peaks.bandwidth == pytest.approx(1e9 * bits / 8 * gigabits, rel=0.02)
    # 128 lanes, a multiplication and an addition each; the H200's run at 1.98 GHz.
    assert peaks.flops["float32"] == pytest.approx(1e9 * ghz * multiprocessors * 128 * 2, rel=0.1)
    assert peaks.source


@pytest.mark.parametrize(("name", "multiprocessors"), [("NVIDIA GeForce GT 710", 1), ("Orin", 8), ("", 0)])
def test_other_gpus_are_not_guessed(name, multiprocessors):
    assert gpu_peaks(name, multiprocessors) == Peaks()
