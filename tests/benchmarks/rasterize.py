"""GaussianRasterize on the GPU against gsplat 1.5.3: the pictures first, then the times. Takes about a minute.

Every variant draws the same scene on the same GPU, in blocks that alternate, after a warm-up. A time is that of one
drawing from an idle GPU until its last kernel is done, by CUDA events; frames follow each other without flushing the
L2 cache, as in a video. `ours` and `graph` are float32 in and out, image and alpha, as gsplat gives them; `fast` and
`fast16` give a float16 image alone, from float32 and float16 Gaussians.

    python tests/benchmarks/rasterize.py [--only NAME ...] [--street SCENE.safetensors] [--quick] [--no-peer]
    ncu --clock-control none python tests/benchmarks/rasterize.py --only "pixels 448x256" --profile fast

Needs torch, and gsplat 1.5.3, which compiles itself when it is first imported.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Optional

import numpy as np
import report
import torch
from numpy.typing import NDArray
from workloads import Workload, workloads

from edge4d.kernels import cpu, cuda
from edge4d.kernels.ops import ALPHA, IMAGE
from edge4d.kernels.reference import Rasterization
from edge4d.runtime.scene import Scene4D

Array = NDArray[Any]
BANDWIDTHS = {"NVIDIA H200": 4.8e12}  # bytes per second, by the vendor's data sheet
PEER = "gsplat 1.5.3"
VIEWS = 8
VARIANTS: dict[str, dict[str, Any]] = {
    "ours": {},
    "fast": {"fast": True, "out_dtype": "float16", "outputs": IMAGE},
    "fast16": {"fast": True, "out_dtype": "float16", "outputs": IMAGE, "dtype": torch.float16},
}
LEAST_DB = {"psnr_db": 60, "cpu_psnr_db": 60, "fast_psnr_db": 45, "fast16_parity_db": 45}  # CONVENTIONS.md
NOTES = {
    "speedup": f"{PEER}'s time over ours, both called; `graph_speedup`: over ours replayed as a CUDA graph",
    "higs_ms": "published for HiGS of gsplat 1.6.0 on another GPU of this kind (static scene, packed beforehand, "
    "float16 but for the means, float16 image); it took no part in this run",
    "fast_moving_graph_ms": "the scene's motion evaluated and drawn in one graph; the peers draw what stands still",
    "views8_over_single": f"one call for {VIEWS} cameras, in calls for one camera; `views8_graph_over_single`: as CUDA "
    "graphs, which cost the host nothing",
    "bound_ms": "every attribute read once, 8 bytes per pair written and read once, image and alpha written once, at "
    "the data sheet's bandwidth; `bound_share`: of `graph_ms`",
    "fast16_psnr_db": "against our float32 picture of the Gaussians before they were rounded to float16; "
    "`fast16_parity_db`: of the rounded ones",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="of workloads.py")
    parser.add_argument("--street", type=Path, help="a saved scene for the photograph's, instead of the bundle")
    parser.add_argument("--repeats", type=int, default=60)
    parser.add_argument("--quick", action="store_true", help="a third of the repeats, and no report")
    parser.add_argument("--no-peer", action="store_true")
    parser.add_argument(
        "--profile", choices=VARIANTS, help="draw this five times, moving, and measure nothing: for ncu"
    )
    options = parser.parse_args()
    torch.set_grad_enabled(False)
    if options.profile:
        for workload in workloads(options.only, options.street):
            profiled(Moving(workload.scene, **VARIANTS[options.profile]))
        return
    peer = None if options.no_peer else gsplat_rasterization()
    repeats = options.repeats // 3 if options.quick else options.repeats
    rows = [measure(workload, peer, repeats) for workload in workloads(options.only, options.street)]
    if not options.quick:
        report.write("rasterize", rows, on_gpu=True, notes=NOTES)
    if any(row["wrong"] for row in rows):
        raise SystemExit("Some pictures are wrong; their rows say by which measure.")


def profiled(call: Callable[[], None]) -> None:
    for _ in range(5):
        call()
    torch.cuda.synchronize()


def gsplat_rasterization() -> Callable[..., Any]:
    from gsplat import rasterization  # here, for it compiles itself if nobody has

    return rasterization


def measure(workload: Workload, peer: Optional[Callable[..., Any]], repeats: int) -> dict[str, Any]:
    """One row. `wrong` names the measures of quality that are missed; the times then say nothing."""
    scene = workload.scene
    drawings = {name: Drawing(scene, **settings) for name, settings in VARIANTS.items()}
    peer_call = partial(peer, *drawings["ours"].peer_arguments, **peer_attributes(scene)) if peer else None
    row = {
        "name": workload.name,
        "gaussians": len(scene),
        "size": f"{scene.camera.width}x{scene.camera.height}",
        **drawings["ours"].counts(),
        **qualities(scene, drawings, peer_call),
    }
    row["wrong"] = [name for name, least in LEAST_DB.items() if not row.get(name, math.inf) >= least]
    row.update(timed(scene, drawings, peer_call, repeats))
    row.update(comparisons(row, workload, drawings["ours"].least_bytes()))
    print(line(row), flush=True)
    return row


# ---- what is measured -----------------------------------------------------------------------------------------------


class Prepared:
    """A tensor that says where it lies without looking again: asking torch takes longer than checking an argument."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor
        self.__cuda_array_interface__ = tensor.__cuda_array_interface__


class Drawing:
    """A call of GaussianRasterize with all its memory; calling it puts the work into torch's current stream.

    Args:
        shifts: metres to the right of the scene's camera, one per view.
    """

    def __init__(
        self,
        scene: Scene4D,
        *,
        shifts: Sequence[float] = (0.0,),
        dtype: torch.dtype = torch.float32,
        out_dtype: str = "float32",
        outputs: int = IMAGE | ALPHA,
        fast: bool = False,
    ) -> None:
        self.gaussians = [torch.from_numpy(array).cuda().to(dtype) for array in scene.evaluate(0)]
        viewmats = np.stack([scene.camera.viewmat] * len(shifts)).astype(np.float32)
        viewmats[:, 0, 3] -= np.asarray(shifts)
        Ks = np.stack([scene.camera.K] * len(shifts)).astype(np.float32)
        self.cameras = [torch.from_numpy(array).cuda() for array in (viewmats, Ks)]
        inputs = [*(array[None] for array in (*self.gaussians, *self.cameras)), torch.zeros(3, device="cuda")]
        self.inputs = [Prepared(array) for array in inputs]
        self.attributes = {
            "width": scene.camera.width,
            "height": scene.camera.height,
            "eps2d": scene.eps2d,
            "antialiased": scene.antialiased,
            "outputs": outputs,
            "out_dtype": out_dtype,
            "fast": fast,
        }
        self.allocate(max_pairs=1)
        self()
        self.allocate(max_pairs=int(1.25 * self.stats[:, 2].max()))  # some room, as a renderer leaves
        self()
        self.counts()

    def allocate(self, max_pairs: int) -> None:
        a, views = self.attributes, len(self.cameras[0])
        a["max_pairs"] = max_pairs
        shape, dtype = (1, views, a["height"], a["width"]), getattr(torch, a["out_dtype"])
        self.image = torch.empty(*shape, 3, dtype=dtype, device="cuda")
        self.alpha = torch.empty(*shape, 1, dtype=dtype, device="cuda")
        stats = torch.empty(1, views, 5, dtype=torch.int32, device="cuda")
        self.stats = stats[0]
        self.out = Rasterization(Prepared(self.image), Prepared(self.alpha), None, Prepared(stats))
        nbytes = cuda.gaussian_rasterize_workspace(
            cameras=views,
            gaussians=len(self.gaussians[0]),
            dtype=str(self.gaussians[0].dtype).removeprefix("torch."),
            **{name: a[name] for name in ("width", "height", "max_pairs", "outputs", "out_dtype", "fast")},
        )
        self.workspace = Prepared(torch.empty(nbytes, dtype=torch.uint8, device="cuda"))

    def __call__(self) -> None:
        stream = torch.cuda.current_stream().cuda_stream
        cuda.gaussian_rasterize(*self.inputs, out=self.out, workspace=self.workspace, stream=stream, **self.attributes)

    def picture(self) -> Array:
        """[H, W, 3] of the first view."""
        self()
        return self.image[0, 0].cpu().numpy().astype(np.float64)

    @property
    def peer_arguments(self) -> list[torch.Tensor]:
        return [*self.gaussians, *self.cameras]

    def counts(self) -> dict[str, int]:
        """Of the first view; ends the program if any did not have the room that it needs."""
        stats = self.stats.tolist()
        if any(overflow for *_, overflow in stats):
            raise SystemExit(f"Some pictures are empty: {stats}.")
        visible, _, needed, capacity, _ = stats[0]
        return {"visible": visible, "pairs": needed, "max_pairs": capacity}

    def least_bytes(self) -> int:
        """What must pass through the memory, as NOTES has it."""
        tensors = (*self.gaussians, self.image, self.alpha)
        return sum(tensor.nbytes for tensor in tensors) + 2 * 8 * int(self.stats[:, 2].sum())


class Moving:
    """The same after a tenth of a second: means and quats are evaluated, the rest stands still, as in a video."""

    def __init__(self, scene: Scene4D, **settings: Any) -> None:
        self.drawing = Drawing(scene, **settings)
        means, quats = (Prepared(array) for array in self.drawing.gaussians[:2])
        self.moved = cuda.StoredGaussians(means=means, quats=quats)
        self.stored = cuda.StoredGaussians(means=on_gpu(scene.means), quats=on_gpu(scene.quats))
        self.groups, self.time = on_gpu(scene.groups), on_gpu(np.array([0.1]))
        (poly,) = scene.motion
        self.terms = (cuda.PolyTerm(on_gpu(poly.centres), on_gpu(poly.linear), on_gpu(poly.angular)),)
        self()
        self.drawing.counts()

    def __call__(self) -> None:
        cuda.move_gaussians(
            self.stored,
            time=self.time,
            out=self.moved,
            groups=self.groups,
            terms=self.terms,
            stream=torch.cuda.current_stream().cuda_stream,
        )
        self.drawing()


def on_gpu(array: Array) -> Prepared:
    return Prepared(torch.from_numpy(array).cuda())


def peer_attributes(scene: Scene4D) -> dict[str, Any]:
    camera, mode = scene.camera, "antialiased" if scene.antialiased else "classic"
    return {
        "width": camera.width,
        "height": camera.height,
        "eps2d": scene.eps2d,
        "rasterize_mode": mode,
        "packed": False,
    }


def captured(*calls: Callable[[], None]) -> Callable[[], None]:
    """The calls as one CUDA graph, ready to be replayed; it keeps their memory alive."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()

    def replay(kept: object = calls) -> None:
        graph.replay()

    return replay


# ---- quality --------------------------------------------------------------------------------------------------------


def qualities(scene: Scene4D, drawings: dict[str, Drawing], peer_call: Optional[Callable[[], Any]]) -> dict[str, float]:
    """Decibels of our pictures against the CPU kernel's, the peer's, and each other."""
    pictures = {name: drawing.picture() for name, drawing in drawings.items()}
    rounded = [array.float().cpu().numpy() for array in drawings["fast16"].gaussians]
    found = {
        "cpu_psnr_db": psnr(pictures["ours"], on_cpu(scene, scene.evaluate(0))),
        "fast_psnr_db": psnr(pictures["fast"], pictures["ours"]),
        "fast16_psnr_db": psnr(pictures["fast16"], pictures["ours"]),
        "fast16_parity_db": psnr(pictures["fast16"], on_cpu(scene, rounded)),
    }
    if peer_call:
        found["psnr_db"] = psnr(pictures["ours"], peer_call()[0][0].cpu().numpy().astype(np.float64))
    return found


def on_cpu(scene: Scene4D, gaussians: Sequence[Array]) -> Array:
    camera = scene.camera
    cameras = (array[None, None].astype(np.float32) for array in (camera.viewmat, camera.K))
    inputs = (*(array[None] for array in gaussians), *cameras, np.zeros(3, np.float32))
    attributes = {"eps2d": scene.eps2d, "antialiased": scene.antialiased, "outputs": IMAGE}
    return cpu.gaussian_rasterize(*inputs, width=camera.width, height=camera.height, **attributes).image[0, 0]


def psnr(picture: Array, expected: Array) -> float:
    return round(-10 * math.log10(max(float(np.mean((picture - expected) ** 2)), 1e-20)), 1)


# ---- time -----------------------------------------------------------------------------------------------------------


def timed(
    scene: Scene4D, drawings: dict[str, Drawing], peer_call: Optional[Callable[[], Any]], repeats: int
) -> dict[str, float]:
    """Milliseconds of every variant, called and as graphs, of moving scenes, of many views, and of the peer."""
    calls: dict[str, Callable[[], Any]] = dict(drawings)
    if peer_call:
        calls["peer"] = peer_call
    for name, settings in VARIANTS.items():
        prefix = "" if name == "ours" else f"{name}_"
        calls[f"{prefix}graph"] = captured(drawings[name])
        calls[f"{prefix}moving_graph"] = captured(Moving(scene, **settings))
    shifts = np.linspace(-0.2, 0.2, VIEWS)
    calls["views8"] = Drawing(scene, shifts=shifts)
    calls["views8_graph"] = captured(calls["views8"])
    calls["views8_single_graph"] = captured(*(Drawing(scene, shifts=[shift]) for shift in shifts))

    samples = alternating(calls, repeats)
    figures = {}
    for name, (gpu, wall) in samples.items():
        p5, median, p95 = np.percentile(gpu, [5, 50, 95])
        figures.update({f"{name}_ms": median, f"{name}_ms_p5": p5, f"{name}_ms_p95": p95})
        figures[f"{name}_wall_ms"] = np.median(wall)
    for name in ("graph", "fast_graph", "fast16_graph"):
        figures[f"{name}_queued_ms"] = queued(calls[name], repeats)
    return {name: round(float(figure), 4) for name, figure in figures.items()} | {"repeats": repeats}


def alternating(
    calls: dict[str, Callable[[], Any]], repeats: int, blocks: int = 5
) -> dict[str, tuple[list[float], list[float]]]:
    """Milliseconds by CUDA events and by the clock on the wall, each call begun on an idle GPU."""
    samples: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in calls}
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    for block in range(-1, blocks):  # the first warms up
        for name, call in calls.items():
            for _ in range(math.ceil(repeats / blocks)):
                torch.cuda.synchronize()
                start = time.perf_counter()
                begin.record()
                call()
                end.record()
                end.synchronize()
                wall = (time.perf_counter() - start) * 1e3
                if block >= 0:
                    samples[name][0].append(begin.elapsed_time(end))
                    samples[name][1].append(wall)
    return samples


def queued(call: Callable[[], Any], repeats: int) -> float:
    """Milliseconds per call of many in a row, none of which is waited for: what a video takes per frame."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(repeats):
        call()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / repeats


def comparisons(row: dict[str, Any], workload: Workload, least_bytes: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    found["views8_over_single"] = round(row["views8_ms"] / row["ours_ms"], 2)
    found["views8_graph_over_single"] = round(VIEWS * row["views8_graph_ms"] / row["views8_single_graph_ms"], 2)
    if "peer_ms" in row:
        found["peer"] = PEER
        found["speedup"] = round(row["peer_ms"] / row["ours_ms"], 2)
        found["graph_speedup"] = round(row["peer_ms"] / row["graph_ms"], 2)
    if workload.higs_ms:
        found["higs_ms"] = workload.higs_ms
    bandwidth = BANDWIDTHS.get(torch.cuda.get_device_name())
    if bandwidth:
        found["bound_ms"] = round(least_bytes / bandwidth * 1e3, 4)
        found["bound_share"] = round(found["bound_ms"] / row["graph_ms"], 3)
    return found


def line(row: dict[str, Any]) -> str:
    """A row for the eye, in milliseconds."""
    get = row.get
    parts = [
        f"{row['name']:15} {row['pairs'] / 1e6:.2f}M",
        f"gsplat {get('peer_ms', '-')} | ours {row['ours_ms']} ({get('speedup', '-')}x) graph {row['graph_ms']} "
        f"({get('graph_speedup', '-')}x) queued {row['graph_queued_ms']}",
        f"fast {row['fast_ms']} graph {row['fast_graph_ms']} queued {row['fast_graph_queued_ms']} f16 "
        f"{row['fast16_graph_ms']} HiGS {get('higs_ms', '-')}",
        f"moving {row['moving_graph_ms']} fast {row['fast_moving_graph_ms']} f16 {row['fast16_moving_graph_ms']}",
        f"{VIEWS} views {row['views8_ms']} = {row['views8_over_single']} singles, graph {row['views8_graph_ms']} = "
        f"{row['views8_graph_over_single']}",
        f"dB {get('psnr_db', '-')} cpu {row['cpu_psnr_db']} fast {row['fast_psnr_db']} f16 {row['fast16_psnr_db']}/"
        f"{row['fast16_parity_db']}",
        f"bound {get('bound_share', '-')}",
    ]
    return " | ".join(parts) + (f" | WRONG {row['wrong']}" if row["wrong"] else "")


if __name__ == "__main__":
    main()
