"""GVFDiffusion from features to changes of Gaussians, at the size of the paper: TensorRT against PyTorch, one run.

Two programs take the same tensors in turns, each in the interpreter that has its libraries. A time begins with features
of 32 frames, 160,000 canonical Gaussians and noise in the GPU's memory, and ends with the Gaussians' changes there.
PyTorch computes the plain form, eager under fp16 autocast with its own fused attention, or compiled. First all are
compared with PyTorch in float32.

    python tests/benchmarks/variation_field_bundle.py -o out/field.e4d
    python tests/benchmarks/variation_field.py --bundle out/field.e4d [--tensorrt-python FILE] [--modes MODE ...]

This interpreter needs torch. Engines are built first, which takes minutes; those that are in the cache are not.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import report
from numpy.typing import NDArray
from workers import Contender, Worker, alternating, contender, contenders
from workloads import FIELD_EVALUATIONS, FIELD_FRAMES, FIELD_GAUSSIANS, field_inputs

from edge4d.runtime.bundle import Bundle

HERE = Path(__file__).resolve().parent
MOST_ERROR = 0.01  # of an output's 2-norm: 18 evaluations of a network that each add up roundings to half, 5e-4
REFERENCE = "float32"
PARTS = {
    "conditioning": "keys and values of the clip",
    "sampling": f"{FIELD_EVALUATIONS} evaluations",
    "conditioning and sampling": f"keys and values, {FIELD_EVALUATIONS} evaluations",
    "decoding": "latents to changes",
    "whole": "features to changes",
}
NOTES = {
    "ours_ms": "median, from tensors in the GPU's memory to tensors there; `peer_ms`: the peer's, which computes keys "
    "and values of the clip anew in each evaluation, so that its sampling is our conditioning and sampling",
    "speedup": "the peer's time over ours, in the same run",
    "changes_error": "distance of the Gaussians' changes from those of PyTorch in float32, as part of their 2-norm; "
    f"at most {MOST_ERROR}. `latents_error`: of what was sampled; `peer_…`: the peer's",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", type=Path, required=True, help="NAME.e4d, made by variation_field_bundle.py")
    parser.add_argument(
        "--tensorrt-python", default=sys.executable, metavar="FILE", help="has TensorRT; this one if not given"
    )
    parser.add_argument("--modes", nargs="*", default=["default"], help="of torch.compile, besides eager")
    parser.add_argument("--precision", default="fp16", help="of the engines")
    parser.add_argument("--frames", type=int, default=FIELD_FRAMES)
    parser.add_argument("--gaussians", type=int, default=FIELD_GAUSSIANS)
    parser.add_argument("--repeats", type=int, default=10)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(options, Path(folder))
    report.write("variation_field", rows, on_gpu=True, notes=NOTES)
    if any(row["wrong"] for row in rows):
        raise SystemExit("Some changes are wrong; their rows say by which measure.")
    if len(rows) < len(PARTS) * (1 + len(options.modes)):
        raise SystemExit("Some modes could not be compiled: see above.")


def measure(options: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """A row for each part and variant of the peer's."""
    bundle, inputs = Bundle.load(options.bundle), folder / "inputs.npz"
    np.savez(inputs, **field_inputs(bundle, options.frames, options.gaussians))
    networks = bundle.config["networks"]
    tensorrt = Worker(
        "TensorRT", options.tensorrt_python, [HERE / "variation_field_tensorrt.py", options.bundle, inputs]
    )
    torch = Worker("PyTorch", sys.executable, [HERE / "variation_field_torch.py", networks, inputs])
    # One after the other: engines and compiled code are chosen by measuring.
    ours = contender(tensorrt, options.precision)
    contender(torch, REFERENCE)
    peers = [contender(torch, "eager"), *contenders(torch, options.modes)]
    expected = torch.outputs(REFERENCE)
    errors = {made.variant: errors_of(made.worker.outputs(made.variant), expected) for made in (ours, *peers)}
    print(errors, flush=True)
    times = alternating([ours, *peers], options.repeats)
    for worker in (tensorrt, torch):
        worker.close()
    rows = [row(name, ours, peer, times, errors) for peer in peers for name in PARTS]
    for figures in rows:
        figures.update(frames=options.frames, gaussians=options.gaussians, repeats=options.repeats)
        print(figures, flush=True)
    return rows


def errors_of(found: dict[str, NDArray[Any]], expected: dict[str, NDArray[Any]]) -> dict[str, float]:
    """How far outputs are from those expected; NaN where they are not numbers."""
    norms = {name: (np.linalg.norm(found[name] - expected[name]), np.linalg.norm(expected[name])) for name in expected}
    return {f"{name}_error": round(float(distance / whole), 5) for name, (distance, whole) in norms.items()}


def row(
    name: str,
    ours: Contender,
    peer: Contender,
    times: dict[str, dict[str, list[float]]],
    errors: dict[str, dict[str, float]],
) -> dict[str, Any]:
    """One part of both."""
    figures: dict[str, Any] = {"name": f"{name}: {PARTS[name]}"}
    mine, theirs = times[ours.variant], times[peer.variant]
    if name == "conditioning and sampling":
        taken = {"ours": np.add(mine["conditioning"], mine["sampling"]), "peer": theirs["sampling"]}
    else:
        taken = {"ours": mine[name], "peer": theirs.get(name, [])}
    for side, made in (("ours", ours), ("peer", peer)):
        figures[side] = made.about["by"]
        if len(taken[side]):
            p5, median, p95 = np.percentile(taken[side], [5, 50, 95]).round(3).tolist()
            figures.update({f"{side}_ms": median, f"{side}_ms_p5": p5, f"{side}_ms_p95": p95})
    if "peer_ms" in figures:
        figures["speedup"] = round(figures["peer_ms"] / figures["ours_ms"], 2)
    figures.update(errors[ours.variant])
    figures.update({f"peer_{measure}": error for measure, error in errors[peer.variant].items()})
    figures.update({key: value for key, value in peer.about.items() if key != "by"})
    figures["wrong"] = [
        f"{side}changes_error" for side in ("", "peer_") if not figures[f"{side}changes_error"] <= MOST_ERROR
    ]
    return figures


if __name__ == "__main__":
    main()
