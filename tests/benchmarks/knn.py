"""KnnInterpolate on the GPU against torch.cdist and topk: the neighbours first, then the times. Takes about 20 seconds.

Points and queries are uniform in a cube, or near a sphere's surface, in no order. Ours also weighs the neighbours and
interpolates three channels of one frame, which the peer does not; it builds its search tree in every call. A time is
that of one call from an idle GPU until its last kernel is done, by CUDA events, ours and the peer in turns.

    python tests/benchmarks/knn.py [--repeats N]
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
import report
import torch
from numpy.typing import NDArray
from rasterize import Prepared, alternating, captured

from edge4d.kernels import cpu, cuda
from edge4d.kernels.reference import KnnInterpolation

PEER = "torch.cdist + topk"
K = 8
SIZES = [  # queries, points, where they are
    *((queries, 8192, "uniform") for queries in (1_000, 10_000, 100_000, 200_000, 400_000)),
    (200_000, 8192, "sphere"),
    (10_000, 65_536, "uniform"),
    (200_000, 65_536, "uniform"),
]
CHECKED = 2000  # queries
AT_ONCE = 2**31  # numbers of the peer's matrix of distances: 8 GiB
NOTES = {
    "ours_ms": "neighbours, weights and values; `graph_ms`: replayed as a CUDA graph",
    "peer_ms": "indices and distances of the neighbours alone",
    "speedup": "the peer's time over ours, both called; `graph_speedup`: over ours replayed",
    "peer_agreement": "share of queries for which the peer finds the same neighbours; ours are exact (compared with "
    f"the CPU kernel for {CHECKED} queries), the peer's distances are |p|^2 - 2 p q + |q|^2 in float32",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=20)
    options = parser.parse_args()
    torch.set_grad_enabled(False)
    rows = [measure(*size, options.repeats) for size in SIZES]
    report.write("knn", rows, on_gpu=True, notes=NOTES)


def measure(queries: int, points: int, kind: str, repeats: int) -> dict[str, Any]:
    ours = Interpolation(cloud(kind, queries, 1), cloud(kind, points, 0))
    agreement = ours.check()
    calls = {"ours": ours, "graph": captured(ours), "peer": ours.peer}
    row = {
        "name": f"KnnInterpolate, {queries:,} queries, {points:,} points, {kind}",
        "queries": queries,
        "points": points,
        "k": K,
    }
    for name, (milliseconds, _) in alternating(calls, repeats).items():
        p5, median, p95 = np.percentile(milliseconds, [5, 50, 95])
        row.update({f"{name}_ms": round(median, 4), f"{name}_ms_p5": round(p5, 4), f"{name}_ms_p95": round(p95, 4)})
    row.update(
        peer=PEER,
        speedup=round(row["peer_ms"] / row["ours_ms"], 1),
        graph_speedup=round(row["peer_ms"] / row["graph_ms"], 1),
        peer_agreement=agreement,
        repeats=repeats,
    )
    print(f"{row['name']}: {row['ours_ms']}, graph {row['graph_ms']}, {PEER} {row['peer_ms']} ms", flush=True)
    return row


def cloud(kind: str, count: int, seed: int) -> NDArray[np.float32]:
    rng = np.random.default_rng(seed)
    if kind == "uniform":
        return rng.uniform(-0.5, 0.5, (count, 3)).astype(np.float32)
    points = rng.normal(size=(count, 3))
    radii = 0.5 + 0.005 * rng.normal(size=(count, 1))
    return np.float32(radii * points / np.linalg.norm(points, axis=1, keepdims=True))


class Interpolation:
    """A call with all its memory; calling it puts the work into torch's current stream."""

    def __init__(self, queries: NDArray[np.float32], points: NDArray[np.float32]) -> None:
        self.arrays = (queries, points, np.sin(9 * points)[None])
        self.inputs = [torch.from_numpy(array).cuda() for array in self.arrays]
        shape = (len(queries), K)
        self.out = KnnInterpolation(
            torch.empty(1, len(queries), 3, device="cuda"),
            torch.empty(shape, dtype=torch.int32, device="cuda"),
            torch.empty(shape, device="cuda"),
        )
        nbytes = cuda.knn_interpolate_workspace(queries=len(queries), points=len(points), frames=1, channels=3, k=K)
        workspace = torch.empty(nbytes, dtype=torch.uint8, device="cuda")
        self._inputs, self._workspace = [Prepared(tensor) for tensor in self.inputs], Prepared(workspace)
        self._out = KnnInterpolation(*(Prepared(tensor) for tensor in self.out))

    def __call__(self) -> None:
        stream = torch.cuda.current_stream().cuda_stream
        cuda.knn_interpolate(*self._inputs, out=self._out, workspace=self._workspace, stream=stream, k=K)

    def peer(self) -> list[torch.Tensor]:
        queries, points, _ = self.inputs
        chunks = queries.split(AT_ONCE // len(points))
        return [torch.cdist(chunk, points).topk(K, dim=1, largest=False).indices for chunk in chunks]

    def check(self) -> float:
        """The share of queries for which the peer agrees. Ours must be those of the CPU kernel, or no figures."""
        self()
        queries, points, values = self.arrays
        expected = cpu.knn_interpolate(queries[:CHECKED], points, values, k=K)
        interpolated, indices, weights = (tensor.cpu().numpy() for tensor in self.out)
        wrong = np.count_nonzero((indices[:CHECKED] != expected.indices).any(1))
        error = max(
            np.abs(interpolated[:, :CHECKED] - expected.values).max(),
            np.abs(weights[:CHECKED] - expected.weights).max(),
        )
        if wrong or not error <= 2e-6:  # values are at most 1
            raise SystemExit(f"{wrong} of {CHECKED} queries have wrong neighbours; the largest error is {error:.3g}.")
        same = torch.cat(self.peer()).sort(1).values == self.out.indices.sort(1).values
        return round(float(same.all(1).float().mean()), 5)


if __name__ == "__main__":
    main()
