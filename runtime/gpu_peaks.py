"""What GPUs do at best, by NVIDIA's own figures: without sparsity, at the highest clocks and power."""

from __future__ import annotations

from edge4d.runtime.profile import Peaks

# By CUDA's name and the number of multiprocessors: every Jetson of a generation has the same name.
_SHEETS = {
    ("NVIDIA H200", 132): Peaks(
        {"float32": 67e12, "float16": 989.5e12, "int8": 1979e12}, 4.8e12, "data sheet of the H200 SXM"
    ),
    # Half precision with half-precision sums; with sums in float32 it is 165.2e12.
    ("NVIDIA GeForce RTX 4090", 128): Peaks(
        {"float32": 82.6e12, "float16": 330.3e12, "int8": 660.6e12}, 1.008e12, "Ada GPU architecture, white paper"
    ),
    # 170e12 with sparsity in int8, of which half without it, and half of that in half precision.
    ("Orin", 16): Peaks(
        {"float32": 5.3e12, "float16": 42.5e12, "int8": 85e12}, 204.8e9, "technical brief of the Jetson AGX Orin, 64 GB"
    ),
    # 2070e12 with sparsity in FP4; each step to twice the bits, and to no sparsity, halves it.
    ("NVIDIA Thor", 20): Peaks({"float32": 8.06e12, "float16": 258.8e12}, 273e9, "data sheet of the Jetson T5000"),
}


def gpu_peaks(name: str, multiprocessors: int) -> Peaks:
    """Of the GPU that CUDA calls `name`; empty where its sheet is not here."""
    return _SHEETS.get((name, multiprocessors), Peaks())
