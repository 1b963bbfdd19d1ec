"""The sparse operators on the GPU against gathers and matrix products in torch: results first, then the times.

Voxels are those of a sphere's surface in a grid of 64 or 32 cells a side; sizes are those of GVFDiffusion's canonical
generator. Takes about a minute.

The peer of the convolution gathers all 27 neighbours of each voxel, zeros for nobody, and multiplies once; that of the
attention gathers windows, filled up to the longest, and calls scaled_dot_product_attention with a mask. A time is that
of one call from an idle GPU until its last kernel is done, by CUDA events, ours and the peer in turns.

    python tests/benchmarks/sparse.py [--repeats N]
"""

from __future__ import annotations

import argparse
import math
from typing import Any, Protocol

import numpy as np
import report
import torch
from numpy.typing import NDArray
from rasterize import Prepared, alternating, captured
from torch.nn import functional

from edge4d.kernels import cuda
from edge4d.runtime import voxels

CONVOLUTIONS = [(64, 128, 128), (64, 2048, 128), (32, 128, 1024), (32, 1024, 1024)]  # resolution, inputs, outputs
ATTENTIONS = [(64, 0), (64, 4)]  # resolution, shift; 12 heads of 64 channels in windows of 8 cells a side
DTYPES = (torch.float16, torch.float32)
NOTES = {
    "ours_ms": "called; `graph_ms`: replayed as a CUDA graph",
    "tflops": "of ours replayed, counting products with neighbours, or among the rows of a window, that exist",
    "speedup": "the peer's time over ours, both called; `graph_speedup`: over ours replayed",
    "difference": "greatest difference between ours and the peer's result in float32 over that result's deviation",
}


class Work(Protocol):
    """A call with all its memory; calling it puts the work into torch's current stream."""

    name: str
    peer_name: str
    flops: float
    result: torch.Tensor

    def __call__(self) -> None: ...
    def peer(self) -> torch.Tensor: ...
    def exact(self) -> torch.Tensor: ...


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=20)
    options = parser.parse_args()
    torch.set_grad_enabled(False)
    torch.manual_seed(0)
    rows = []
    for dtype in DTYPES:
        rows += [measure(Convolution(*sizes, dtype), options.repeats) for sizes in CONVOLUTIONS]
        rows += [measure(Attention(*sizes, dtype), options.repeats) for sizes in ATTENTIONS]
    report.write("sparse", rows, on_gpu=True, notes=NOTES)


def measure(ours: Work, repeats: int) -> dict[str, Any]:
    difference = check(ours)
    row: dict[str, Any] = {"name": ours.name, "peer": ours.peer_name, "difference": difference, "repeats": repeats}
    calls = {"ours": ours, "graph": captured(ours), "peer": ours.peer}
    for name, (milliseconds, _) in alternating(calls, repeats).items():
        p5, median, p95 = np.percentile(milliseconds, [5, 50, 95])
        row.update({f"{name}_ms": round(median, 4), f"{name}_ms_p5": round(p5, 4), f"{name}_ms_p95": round(p95, 4)})
    row.update(
        tflops=round(ours.flops / row["graph_ms"] / 1e9, 1),
        speedup=round(row["peer_ms"] / row["ours_ms"], 1),
        graph_speedup=round(row["peer_ms"] / row["graph_ms"], 1),
    )
    print(f"{ours.name}: {row['ours_ms']}, graph {row['graph_ms']}, {ours.peer_name} {row['peer_ms']} ms", flush=True)
    return row


def check(ours: Work) -> float:
    """How far ours is from the peer in float32; no figures when it is farther than float16 explains."""
    ours()
    exact = ours.exact()
    difference = float((ours.result.float() - exact).abs().max() / exact.std())
    # Results of a few deviations, rounded to 11 bits; sums of thousands of float32 products err far less.
    if not difference < (1e-2 if ours.result.dtype == torch.float16 else 1e-3):
        raise SystemExit(f"{ours.name} is {difference} deviations from the peer.")
    return round(difference, 7)


def sphere(resolution: int) -> NDArray[np.int32]:
    """The voxels of a sphere's surface."""
    cells = np.stack(np.meshgrid(*[np.arange(resolution)] * 3, indexing="ij"), axis=-1) + 0.5 - resolution / 2
    return np.argwhere(np.abs(np.linalg.norm(cells, axis=-1) - 0.4 * resolution) < 0.6).astype(np.int32)


def precision(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


class Convolution:
    peer_name = "gather + matmul in torch"

    def __init__(self, resolution: int, inputs: int, outputs: int, dtype: torch.dtype) -> None:
        table = voxels.neighbours(sphere(resolution), resolution)
        self.flops = 2.0 * np.count_nonzero(table >= 0) * inputs * outputs
        self.name = f"SubmanifoldConvolution, {len(table):,} voxels, {inputs} to {outputs}, {precision(dtype)}"
        features = torch.randn(len(table), inputs, device="cuda", dtype=dtype)
        weight = (torch.randn(27, inputs, outputs, device="cuda") / math.sqrt(9 * inputs)).to(dtype)
        bias = torch.randn(outputs, device="cuda", dtype=dtype)
        neighbours = torch.from_numpy(table).cuda()
        self.result = features.new_empty(len(table), outputs)
        self._tensors = features, weight, bias
        self._rows = neighbours.long() + 1
        self._inputs = [Prepared(tensor) for tensor in (features, neighbours, weight, bias)]
        self._out = Prepared(self.result)

    def __call__(self) -> None:
        stream = torch.cuda.current_stream().cuda_stream
        cuda.submanifold_convolution(*self._inputs, out=self._out, stream=stream)

    def peer(self) -> torch.Tensor:
        return self._gathered(*self._tensors)

    def exact(self) -> torch.Tensor:
        return self._gathered(*(tensor.float() for tensor in self._tensors))

    def _gathered(self, features: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        padded = torch.cat([torch.zeros_like(features[:1]), features])
        return torch.addmm(bias, functional.embedding(self._rows, padded).flatten(1), weight.flatten(0, 1))


class Attention:
    peer_name = "padded windows in torch"
    heads, channels = 12, 64

    def __init__(self, resolution: int, shift: int, dtype: torch.dtype) -> None:
        coords = sphere(resolution)
        windows = voxels.windows(coords, 8, shift)
        lengths = np.count_nonzero(windows >= 0, axis=1).astype(np.float64)
        self.flops = 4 * float(np.square(lengths).sum()) * self.heads * self.channels
        self.name = f"WindowAttention, {len(coords):,} voxels, {len(lengths)} windows, {precision(dtype)}"
        self._qkv = torch.randn(len(coords), 3, self.heads, self.channels, device="cuda", dtype=dtype)
        table = torch.from_numpy(windows).cuda()
        self._mask = (table >= 0)[:, None, None]
        self._rows, self._places = table.long() + 1, table.flatten().argsort()[-len(coords) :]  # -1 come first
        self.result = torch.empty_like(self._qkv[:, 0])
        self._inputs, self._out = [Prepared(self._qkv), Prepared(table)], Prepared(self.result)

    def __call__(self) -> None:
        cuda.window_attention(*self._inputs, out=self._out, stream=torch.cuda.current_stream().cuda_stream)

    def peer(self) -> torch.Tensor:
        return self._padded(self._qkv)

    def exact(self) -> torch.Tensor:
        return self._padded(self._qkv.float())

    def _padded(self, qkv: torch.Tensor) -> torch.Tensor:
        rows = torch.cat([torch.zeros_like(qkv[:1]), qkv]).flatten(1)
        windows = functional.embedding(self._rows, rows).unflatten(2, (3, self.heads, self.channels))
        queries, keys, values = windows.permute(2, 0, 3, 1, 4)  # [W, heads, K, channels] each
        attended = functional.scaled_dot_product_attention(queries, keys, values, self._mask)
        return attended.transpose(1, 2).flatten(0, 1).index_select(0, self._places)


if __name__ == "__main__":
    main()
