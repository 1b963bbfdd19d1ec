"""Canonical Gaussians of a picture: the part of GVFDiffusion that is TRELLIS (arXiv 2412.01506).

picture → dino → condition
noise, condition → ss_flow → ss_dec → occupied voxels
noise, condition, voxels → slat_flow → gs_dec → Gaussians

How many voxels there are is known on the host alone. The chain stops there to make the tables of
`edge4d.runtime.voxels`.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from edge4d.runtime.bundle import Bundle, factors
from edge4d.runtime.errors import CapacityExceeded, NothingGenerated, SamplingDiverged, StageNotInBundle
from edge4d.runtime.example_inputs import shell
from edge4d.runtime.gaussians import Float32Array, Gaussians
from edge4d.runtime.samplers import Velocity, flow_times, sample_flow
from edge4d.runtime.systems.pipeline import Tensors
from edge4d.runtime.variation_field import ACTIVATION
from edge4d.runtime.voxels import Int32Array, coarse, neighbours, voxels_from_logits, windows

STAGES = ("dino", "ss_flow", "ss_dec", "slat_flow", "gs_dec")

TIMES = flow_times(12, rescale_t=3.0)
GUIDED = (0.5, 1.0)
"""Smallest and largest t with guidance: 10 of 12 steps."""
STRUCTURE_GUIDANCE, LATENT_GUIDANCE = 7.5, 3.0
"""How the official script samples."""

WINDOW, SHIFT = 8, 4
"""Voxels along a side of the decoder's windows, and how far every other block shifts them."""

Run = Callable[[str, Tensors], Tensors]
"""Runs a stage by its name on those of the tensors that it takes."""


def generates(bundle: Bundle) -> bool:
    """Whether it can make Gaussians of a picture."""
    return not _missing(bundle)


def check_generates(bundle: Bundle) -> None:
    """Raises StageNotInBundle for a bundle that cannot make Gaussians of a picture."""
    missing = _missing(bundle)
    if missing:
        raise StageNotInBundle(
            f"The bundle '{bundle.name}' cannot make Gaussians of a picture.",
            note=f"It lacks {', '.join(missing)}; its stages are {', '.join(bundle.stages)}.",
            hint="Give Gaussians of the video's first frame: --canonical FILE.ply.",
        )


def gaussians_of_picture(
    bundle: Bundle, run: Run, picture: Float32Array, random: np.random.Generator, least: int
) -> Gaussians:
    """Activated Gaussians, z up, of what a picture shows.

    Args:
        picture: [1,3,S,S] in 0..1, as `edge4d.runtime.clip.close_up` cuts it out.
        random: where noise comes from.
        least: how many Gaussians are needed.

    Raises:
        NothingGenerated: the networks see no object, or one of fewer Gaussians.
        CapacityExceeded: it fills more voxels than the bundle has room for.
        SamplingDiverged, EngineFailed: a network could not be run.
    """
    condition = run("dino", {"pictures": picture})["condition"]
    grid = _noise(bundle, "ss_flow", random)
    latent = _sampled(run, "ss_flow", grid, {}, condition, STRUCTURE_GUIDANCE)
    logits = run("ss_dec", {"latent": latent})["logits"][0, 0]
    coords = voxels_from_logits(logits)
    _check_voxels(bundle, len(coords), least)
    noise = _noise(bundle, "slat_flow", random, V=len(coords))
    samples = _sampled(run, "slat_flow", noise, _tables(coords, len(logits)), condition, LATENT_GUIDANCE)
    return ACTIVATION.apply(Gaussians(**_decoded(run, samples, coords)))


def run_each_once(bundle: Bundle, run: Run, picture: Float32Array, random: np.random.Generator) -> None:
    """Runs every stage on what it would take, for as many voxels as it is best at: whatever the networks see.

    Args:
        picture, random: as in `gaussians_of_picture`.
    """
    start = {"t": np.ones(1, np.float32), "condition": run("dino", {"pictures": picture})["condition"]}
    latent = run("ss_flow", {"x": _noise(bundle, "ss_flow", random), **start})["v"]
    resolution = run("ss_dec", {"latent": latent})["logits"].shape[-1]
    coords = shell(bundle.stage("slat_flow").axes["V"].opt, resolution)
    noise = _noise(bundle, "slat_flow", random, V=len(coords))
    _decoded(run, run("slat_flow", {"x": noise, **_tables(coords, resolution), **start})["v"], coords)


def _missing(bundle: Bundle) -> list[str]:
    return [name for name in STAGES if name not in bundle.stages]


def _noise(bundle: Bundle, stage: str, random: np.random.Generator, **sizes: int) -> Float32Array:
    return random.standard_normal(bundle.stage(stage).input("x").shape_at(sizes), np.float32)


def _sampled(
    run: Run, stage: str, noise: Float32Array, tables: Tensors, condition: Float32Array, guidance: float
) -> Float32Array:
    """What a flow makes of noise, guided away from what it makes without the picture: all features are then 0."""

    def velocity(seen: Float32Array) -> Velocity:
        return lambda x, t: run(stage, {**tables, "x": x, "t": np.array([t], np.float32), "condition": seen})["v"]

    made = sample_flow(
        velocity(condition),
        noise,
        TIMES,
        unconditional=velocity(np.zeros_like(condition)),
        guidance=guidance,
        interval=GUIDED,
    )
    if not np.isfinite(made).all():
        raise SamplingDiverged(
            f"The network {stage} gave values that are not finite.",
            note=f"{np.count_nonzero(~np.isfinite(made))} of {made.size} are not.",
            hint="fp16 overflows above 65504: use --precision fp32.",
        )
    return made


def _tables(coords: Int32Array, resolution: int) -> Tensors:
    """Who is near whom, for the flow of voxels' latents."""
    above = coarse(coords, resolution)
    return {
        "neighbours": neighbours(coords, resolution),
        "parents": above.parents,
        "children": above.children,
        "coarse_neighbours": neighbours(above.coords, resolution // 2),
        "coarse_coords": above.coords,
    }


def _decoded(run: Run, samples: Float32Array, coords: Int32Array) -> Tensors:
    """Raw Gaussians of voxels' latents."""
    tables = {"windows": windows(coords, WINDOW), "shifted_windows": windows(coords, WINDOW, SHIFT)}
    return run("gs_dec", {"samples": samples, "coords": coords, **tables})


def _check_voxels(bundle: Bundle, count: int, least: int) -> None:
    means = next(tensor for tensor in bundle.stage("gs_dec").outputs if tensor.name == "means")
    gaussians = count * factors(str(means.shape[0]))[0]
    if gaussians < least:
        raise NothingGenerated(
            "The networks see hardly an object in the first frame.",
            note=f"It fills {count} voxels, of {gaussians} Gaussians; {least} are needed.",
            hint="Check the masks, try another --seed, or give Gaussians: --canonical FILE.ply.",
        )
    capacity = bundle.stage("slat_flow").axes["V"].max
    if count > capacity:
        raise CapacityExceeded(
            "The object is too large for the bundle's networks.",
            note=f"It fills {count} voxels, there is room for {capacity}.",
            hint="Try another --seed, export the bundle for more voxels, or give Gaussians: --canonical FILE.ply.",
        )
