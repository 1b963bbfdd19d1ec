"""FarthestPointSample on the GPU against a loop in torch: the samples first, then the times. Takes about 15 seconds.

Points are uniform in a cube. The loop is the plain one: it keeps every point's distance in float32, launches a few
kernels per step and never waits for the GPU. A time is that of one call from an idle GPU until its last kernel is done,
by CUDA events, ours and the loop in turns.

    python tests/benchmarks/fps.py [--repeats N]
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
import report
import torch
from rasterize import Prepared, alternating, captured

from edge4d.kernels import cpu, cuda

PEER = "a loop in torch"
SIZES = [(160_000, 4096), (160_000, 512), (1_000_000, 4096)]  # points, samples
NOTES = {
    "ours_ms": "called; `graph_ms`: replayed as a CUDA graph; `step_us`: of the latter, per sample",
    "speedup": "the peer's time over ours, both called; `graph_speedup`: over ours replayed",
    "peer_agreement": "share of our samples, which are the CPU kernel's, that the loop takes too: float32 errs between "
    "points that are almost equally far, and all that follows depends on it",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    torch.set_grad_enabled(False)
    rows = [measure(*size, options.repeats) for size in SIZES]
    report.write("fps", rows, on_gpu=True, notes=NOTES)


def measure(points: int, count: int, repeats: int) -> dict[str, Any]:
    ours = Sampling(points, count)
    agreement = ours.check()
    calls = {"ours": ours, "graph": captured(ours), "peer": ours.peer}
    row = {"name": f"FarthestPointSample, {count:,} of {points:,} points", "points": points, "count": count}
    for name, (milliseconds, _) in alternating(calls, repeats).items():
        p5, median, p95 = np.percentile(milliseconds, [5, 50, 95])
        row.update({f"{name}_ms": round(median, 3), f"{name}_ms_p5": round(p5, 3), f"{name}_ms_p95": round(p95, 3)})
    row.update(
        step_us=round(1e3 * row["graph_ms"] / count, 3),
        peer=PEER,
        speedup=round(row["peer_ms"] / row["ours_ms"], 1),
        graph_speedup=round(row["peer_ms"] / row["graph_ms"], 1),
        peer_agreement=agreement,
        repeats=repeats,
    )
    print(f"{row['name']}: {row['ours_ms']}, graph {row['graph_ms']}, {PEER} {row['peer_ms']} ms", flush=True)
    return row


class Sampling:
    """A call with all its memory; calling it puts the work into torch's current stream."""

    def __init__(self, points: int, count: int) -> None:
        self.array = np.random.default_rng(0).uniform(-0.5, 0.5, (points, 3)).astype(np.float32)
        self.points, self.count = torch.from_numpy(self.array).cuda(), count
        self.indices = torch.empty(count, dtype=torch.int32, device="cuda")
        nbytes = cuda.farthest_point_sample_workspace(points=points, count=count)
        workspace = torch.empty(nbytes, dtype=torch.uint8, device="cuda")
        self._points, self._out, self._workspace = (Prepared(t) for t in (self.points, self.indices, workspace))

    def __call__(self) -> None:
        stream = torch.cuda.current_stream().cuda_stream
        cuda.farthest_point_sample(
            self._points, count=self.count, out=self._out, workspace=self._workspace, stream=stream
        )

    def peer(self) -> torch.Tensor:
        indices = torch.zeros(self.count, dtype=torch.int64, device="cuda")
        distances = torch.full((len(self.points),), torch.inf, device="cuda")
        for step in range(1, self.count):
            offsets = self.points - self.points.index_select(0, indices[step - 1 : step])
            torch.minimum(distances, offsets.square_().sum(1), out=distances)
            torch.argmax(distances, 0, keepdim=True, out=indices[step : step + 1])
        return indices

    def check(self) -> float:
        """The share of our samples that the peer takes too. Ours must be those of the CPU kernel, or no figures."""
        self()
        expected = cpu.farthest_point_sample(self.array, count=self.count)
        wrong = np.count_nonzero(self.indices.cpu().numpy() != expected)
        if wrong:
            raise SystemExit(f"{wrong} of {self.count} samples are not those of the CPU kernel.")
        return round(float(np.isin(expected, self.peer().cpu().numpy()).mean()), 4)


if __name__ == "__main__":
    main()
