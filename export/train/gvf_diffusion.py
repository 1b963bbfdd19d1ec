"""Trains the small GVFDiffusion on procedural animals, in one run: first its motion VAE, then its transformer.

One step makes fresh animals. Canonical Gaussians lie on their meshes at the first of T times, so how they truly change
is known without any picture: the VAE learns to code that. The transformer learns to say the VAE's latents from noise,
the canonical Gaussians, and pictures from the front, cut out as those of a user's video are.
"""

from __future__ import annotations

import copy
import itertools
import json
import math
import multiprocessing
import os
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from edge4d.export.checkpoints import checkpoint_metadata, load_checkpoint, save_checkpoint
from edge4d.export.models.gvf_diffusion.animals import Animals, animals_config
from edge4d.export.models.gvf_diffusion.fast import Standardise
from edge4d.export.train.loop import ahead, average, descend, learning_rate, resumed, save, training_device
from edge4d.export.train.losses import diagonal_gaussian_kl
from edge4d.export.worlds import mesh_render
from edge4d.export.worlds.animals import training_animals
from edge4d.export.worlds.draw import MAX_SEED
from edge4d.export.worlds.surface_gaussians import (
    OPACITY,
    SurfacePoints,
    gaussians_at,
    sample_points,
)
from edge4d.runtime.clip import SHARE
from edge4d.runtime.errors import InvalidRequest
from edge4d.runtime.object_views import object_camera
from edge4d.runtime.ply import C0
from edge4d.runtime.samplers import (
    END,
    START,
    CosineSchedule,
    log_snr_uniform,
    multistep_plan,
    sample_multistep,
)
from edge4d.runtime.variation_field import ACTIVATION, DELTA

CLIP_SECONDS = 2.0  # 24 frames at 12 frames per second
TIMES = 12  # of an animal in a step, the canonical one included: the network does not care how many there are
VAE_SHARE = 0.25  # of the steps
LEVELS = 4  # of noise, at which the transformer sees a clip in a step: drawing and seeing it costs more than they do
GAUSSIANS = 4096  # of an animal, of which QUERIES are decoded in a step
QUERIES = 512
_SMALLEST_DEVIATION = 0.05  # some channels hardly vary here, and will in the assets of users
_WEIGHTS = {"means": 10.0, "scales": 0.2, "quats": 1.0, "colors": 0.5, "opacities": 0.2}
_KL_WEIGHT = 2e-5
_VALIDATION_SEED = 1 << 40  # far from any seed a user would give
_VIEWS = ((45.0, 0.0), (135.0, 20.0), (225.0, 0.0), (315.0, 20.0))


# ---- data ------------------------------------------------------------------------------------------------------------


class Herd(NamedTuple):
    """S animals of one body plan at T times, the first of which is canonical.

    Attributes:
        vertices: [S,T,V,3]. faces: [F,3]. colors: [S,V,3].
        uniform: [S,N,3] random numbers that choose points on the surface.
        jitter: [S,4] random numbers from 0 to 1: of the picture's square, and of how large Gaussians are.
    """

    vertices: Tensor
    faces: Tensor
    colors: Tensor
    uniform: Tensor
    jitter: Tensor


@dataclass(frozen=True)
class Herds:
    """The animals of each step; what a step has depends on its number and the seed alone.

    Attributes:
        batch: animals of a step. gaussians: N. times: T.
    """

    seed: int
    batch: int
    gaussians: int
    times: int

    def __call__(self, step: int) -> list[Herd]:
        """What one step has."""
        generator = torch.Generator().manual_seed((1_000_003 * self.seed + step) % (1 << 63))
        return [self._herd(animals, generator) for animals in training_animals(self.seed, step, self.batch)]

    def _herd(self, animals: Any, generator: torch.Generator) -> Herd:
        count = len(animals)
        times = CLIP_SECONDS * torch.rand(count, self.times, generator=generator)
        times[:, 0] = 0
        return Herd(
            animals.vertices(times),
            animals.faces,
            animals.colors,
            torch.rand(count, self.gaussians, 3, generator=generator),
            torch.rand(count, 4, generator=generator),
        )


class Clips(NamedTuple):
    """B animals at T times.

    Attributes:
        gaussians: [B,N,14] canonical, activated, in query order; the first ones are the farthest from each other.
        changes: [B,T,N,14] true ones, in delta order.
        pictures: [B,T,3,S,S] in 0..1, on white; S is 0 where none were asked for.
    """

    gaussians: Tensor
    changes: Tensor
    pictures: Tensor


def make_clips(herds: list[Herd], points: int, side: int, device: torch.device) -> Clips:
    """What is learned from, made on `device`.

    Args:
        points: how many Gaussians come first, in the order in which farthest point sampling finds them.
        side: pixels of a picture; none with 0.
    """
    clips = [_clips_of_herd(Herd(*(tensor.to(device, non_blocking=True) for tensor in herd)), side) for herd in herds]
    gaussians, changes, pictures = (torch.cat(parts) for parts in zip(*clips))
    order = farthest_first(gaussians[..., :3], points)
    gaussians = gaussians.gather(1, order[..., None].expand(-1, -1, gaussians.shape[-1]))
    changes = changes.gather(2, order[:, None, :, None].expand(-1, changes.shape[1], -1, changes.shape[-1]))
    return Clips(gaussians, changes, pictures)


def _clips_of_herd(herd: Herd, side: int) -> Clips:
    points = sample_points(herd.vertices[:, 0], herd.faces, herd.uniform)
    order = herd.uniform[..., 0].argsort(1)  # they come in the order of the triangles; any part shall be one of all
    points = SurfacePoints(
        points.triangles.gather(1, order), points.weights.gather(1, order[..., None].expand(-1, -1, 3))
    )
    gaussians, changes = query_and_changes(points, herd)
    size = (len(herd.vertices), herd.vertices.shape[1], 3, side, side)
    return Clips(gaussians, changes, front_pictures(herd, side) if side else gaussians.new_zeros(size))


def query_and_changes(points: SurfacePoints, herd: Herd) -> tuple[Tensor, Tensor]:
    """Canonical Gaussians [S,N,14] in query order, and how they change [S,T,N,14] in delta order."""
    found = gaussians_at(points, herd.faces, herd.vertices, herd.colors)
    scales = found.scales * (0.6 + 0.8 * herd.jitter[:, 3, None, None, None])  # as if there were more or fewer
    harmonics = (found.colors - 0.5) / C0
    opacity = torch.full_like(harmonics[..., :1], OPACITY)
    query = torch.cat([found.means[:, 0], harmonics, opacity, scales[:, 0], found.quats[:, 0]], -1)
    moving = {"means": found.means, "scales": raw_scales(scales), "quats": found.quats}
    changes = query.new_zeros(*found.means.shape[:3], query.shape[-1])
    for name, values in moving.items():
        changes[..., slice(*DELTA[name])] = values - values[:, :1]
    return query, changes


def raw_scales(scales: Tensor) -> Tensor:
    """What `ACTIVATION` makes scales of, without its bias."""
    soft = (scales.square() - ACTIVATION.scale_floor**2).clamp_min(1e-10).sqrt()
    return soft + torch.log(-torch.expm1(-soft))


def farthest_first(points: Tensor, count: int) -> Tensor:
    """[B,N] an order of points [B,N,3] whose first `count` are found by farthest point sampling from point 0."""
    distance = torch.full_like(points[..., 0], torch.inf)
    chosen = torch.zeros(len(points), 1, dtype=torch.int64, device=points.device)
    order = [chosen]
    for _ in range(count - 1):
        last = points.gather(1, chosen[..., None].expand(-1, -1, 3))
        distance = torch.minimum(distance, (points - last).square().sum(-1))
        chosen = distance.argmax(1, keepdim=True)
        order.append(chosen)
    first = torch.cat(order, 1)
    taken = torch.zeros_like(distance, dtype=torch.bool).scatter(1, first, True)
    rest = taken.int().argsort(dim=1, stable=True)[:, : points.shape[1] - count]
    return torch.cat([first, rest], 1)


def front_pictures(herd: Herd, side: int) -> Tensor:
    """[S,T,3,side,side] on white, from azimuth 0, in the square that `edge4d.runtime.clip` would cut out."""
    S, T = herd.vertices.shape[:2]
    camera = object_camera(side)
    viewmat, K = (
        torch.tensor(matrix, dtype=torch.float32, device=herd.vertices.device) for matrix in (camera.viewmat, camera.K)
    )
    square = _square_intrinsics(herd, viewmat, K, side)
    drawn = mesh_render.render(
        herd.vertices.flatten(0, 1),
        herd.faces,
        herd.colors.repeat_interleave(T, 0),
        viewmat.expand(S * T, -1, -1),
        square.repeat_interleave(T, 0),
        side,
    )
    return torch.unflatten(on_white(drawn).permute(0, 3, 1, 2), 0, (S, T))


def _square_intrinsics(herd: Herd, viewmat: Tensor, K: Tensor, side: int) -> Tensor:
    """[S,3,3] of the square around what the first time shows, a little off as masks of users are."""
    points = herd.vertices[:, 0] @ viewmat[:3, :3].mT + viewmat[:3, 3]
    pixels = (points @ K.mT)[..., :2] / points[..., 2:]
    low, high = pixels.amin(1), pixels.amax(1)
    off = 2 * herd.jitter[:, :3] - 1
    extent = (high - low).amax(-1, keepdim=True) / SHARE * (1 + 0.03 * off[:, 2:])
    corner = 0.5 * (low + high) + 0.01 * extent * off[:, :2] - 0.5 * extent
    zoom = side / extent
    square = K.repeat(len(low), 1, 1)
    square[:, 0, 0], square[:, 1, 1] = K[0, 0] * zoom[:, 0], K[1, 1] * zoom[:, 0]
    square[:, :2, 2] = (K[:2, 2] - corner) * zoom
    return square


def on_white(drawn: Tensor) -> Tensor:
    """[...,4] multiplied by alpha → [...,3]."""
    return drawn[..., :3] + 1 - drawn[..., 3:]


# ---- what is learned -------------------------------------------------------------------------------------------------


def interpolated(anchors: Tensor, points: Tensor, motion: Tensor) -> Tensor:
    """Motion at anchors, as `KnnInterpolate` has it with K = 8, β = 7 and its mask (CONVENTIONS.md).

    Args:
        anchors: [B,L,3]. points: [B,M,3]. motion: [B,T,M,3].

    Returns:
        [B,T,L,3].
    """
    squared, nearest = (anchors[:, :, None] - points[:, None]).square().sum(-1).topk(8, largest=False)
    radius = squared.mean(-1, keepdim=True).sqrt() + 1e-6
    weights = torch.exp(-7 * squared / radius.square()) * (squared <= radius.square())
    weights = weights / (weights.sum(-1, keepdim=True) + 1e-8)
    rows = nearest.flatten(1)[:, None, :, None].expand(-1, motion.shape[1], -1, 3)
    around = torch.unflatten(motion.gather(2, rows), 2, nearest.shape[1:])
    return (around * weights[:, None, ..., None]).sum(3)


def encode(model: Animals, clips: Clips) -> tuple[Tensor, Tensor]:
    """Mean and log variance [B·T,L,C] of the latents, from how the last Gaussians move, in place of a mesh's points."""
    config = model.config
    T = clips.changes.shape[1]
    points = clips.gaussians[:, -config.mesh_points :, :3]
    motion = clips.changes[:, :, -config.mesh_points :, slice(*DELTA["means"])]
    anchors = clips.gaussians[:, : config.latents, :3]
    anchor_motion = interpolated(anchors, points, motion)
    repeated = (value.repeat_interleave(T, 0) for value in (points, anchors))
    points, anchors = repeated
    return model.vae.encode(motion.flatten(0, 1), points, anchor_motion.flatten(0, 1), anchors)


def drawn_latents(mean: Tensor, log_variance: Tensor) -> Tensor:
    """One draw of them."""
    return mean + torch.exp(0.5 * log_variance) * torch.randn_like(mean)


def vae_losses(model: Animals, clips: Clips) -> dict[str, Tensor]:
    """How far decoded changes are from the true ones, for each of their parts, and what the latents hold."""
    mean, log_variance = encode(model, clips)
    chosen = torch.randint(clips.gaussians.shape[1], (QUERIES,), device=mean.device)
    T = clips.changes.shape[1]
    gaussians = clips.gaussians[:, chosen].repeat_interleave(T, 0)
    error = model.vae.decode(drawn_latents(mean, log_variance), gaussians) - clips.changes[:, :, chosen].flatten(0, 1)
    terms = {name: _WEIGHTS[name] * error[..., slice(*rows)].abs().mean() for name, rows in DELTA.items()}
    terms["kl"] = _KL_WEIGHT * diagonal_gaussian_kl(mean.transpose(1, 2), log_variance.transpose(1, 2))
    return terms


class NoiseLevels:
    """The sampler's schedule as tables: what the network is trained on is what it will be asked."""

    def __init__(self, device: torch.device) -> None:
        schedule = CosineSchedule()
        times = torch.linspace(END, START, 1000, dtype=torch.float64).tolist()
        columns = [(schedule.alpha(t), schedule.sigma(t), schedule.model_time(t)) for t in times]
        self.alpha, self.sigma, self.time = torch.tensor(columns, dtype=torch.float32, device=device).unbind(1)


def dit_losses(model: Animals, clips: Clips, levels: NoiseLevels) -> dict[str, Tensor]:
    """The mean squared error of v = α noise − σ x₀, at noise levels spread evenly over each animal's clip."""
    B, T = clips.changes.shape[:2]
    with torch.no_grad():
        data = model.latents(drawn_latents(*encode(model, clips))).unflatten(0, (B, T)).repeat(LEVELS, 1, 1, 1)
    level = evenly(len(levels.time), B).to(data.device)
    alpha, sigma = (table[level][:, None, None, None] for table in (levels.alpha, levels.sigma))
    noise = torch.randn_like(data)
    with torch.autocast(data.device.type, torch.bfloat16, enabled=data.is_cuda):
        v = velocity(model, alpha * data + sigma * noise, levels.time[level], clips)
    return {"v": functional.mse_loss(v.float(), alpha * noise - sigma * data)}


def evenly(count: int, animals: int) -> Tensor:
    """Indices [LEVELS·animals] of noise levels, for each animal one in each of LEVELS equal parts of `count`."""
    part = torch.arange(LEVELS)[:, None]
    within = torch.rand(LEVELS, animals)
    return ((part + within) * (count / LEVELS)).long().clamp_max(count - 1).flatten()


def velocity(model: Animals, x: Tensor, t: Tensor, clips: Clips) -> Tensor:
    """v of noisy latents [R·B,T,L,C] at times [R·B], of B clips R times one after the other."""
    config, times = model.config, len(x) // len(clips.gaussians)
    images = model.image(clips.pictures.flatten(0, 1))
    static = model.static(clips.gaussians[:, : config.static_points])
    anchors = positions_standardised(model.static, clips.gaussians[:, : config.latents, :3])
    images, static, anchors = (tensor.repeat(times, 1, 1) for tensor in (images, static, anchors))
    return model.dit.velocity(x, t, anchors, model.dit.keys_values(images, static))


def positions_standardised(static: Standardise, places: Tensor) -> Tensor:
    """As `position_norm` "static" has them."""
    return (places - static.mean[:3]) / static.deviation[:3]


@torch.no_grad()
def settle(model: Animals, herds: Iterator[list[Herd]], device: torch.device, batches: int = 8) -> None:
    """Measures what the transformer's inputs are standardised by; the VAE does not change any more."""
    latents, static = [], []
    for _ in range(batches):
        clips = make_clips(next(herds), model.config.static_points, 0, device)
        latents.append(drawn_latents(*encode(model, clips)).flatten(0, 1))
        static.append(clips.gaussians[:, : model.config.static_points].flatten(0, 1))
    for standardise, values, smallest in (
        (model.latents, torch.cat(latents), 1e-3),
        (model.static, torch.cat(static), _SMALLEST_DEVIATION),
    ):
        standardise.mean.copy_(values.mean(0))
        standardise.deviation.copy_(values.std(0).clamp_min(smallest))


# ---- validation ------------------------------------------------------------------------------------------------------


@torch.no_grad()
def validate(model: Animals, device: torch.device, *, transformer: bool, batch: int = 10) -> dict[str, float]:
    """What `edge4d evaluate` measures, in short, on animals that neither training nor evaluation sees.

    Meshes are moved by what is decoded at their vertices, and drawn as four cameras see them that no network saw: by
    true latents ("_vae"), by sampled ones, and not at all ("_static").

    Returns:
        PSNR in dB, and by how much vertices miss their places.
    """
    herds = Herds(_VALIDATION_SEED, batch, GAUSSIANS, TIMES)(0)
    scores: dict[str, list[Tensor]] = {}
    for herd in herds:
        herd = Herd(*(tensor.to(device) for tensor in herd))
        clips = make_clips([herd], model.config.static_points, model.image.side if transformer else 0, device)
        S, T = clips.changes.shape[:2]
        query, truth = query_and_changes(vertex_points(herd), herd)
        repeated = query.repeat_interleave(T, 0)
        latents = {"_vae": encode(model, clips)[0]}
        if transformer:
            latents[""] = model.latents.restored(sampled(model, clips)).flatten(0, 1)
        decoded = {name: model.vae.decode(value, repeated)[..., :3] for name, value in latents.items()}
        moves = {name: torch.unflatten(move, 0, (S, T)) for name, move in decoded.items()}
        moves["_static"] = torch.zeros_like(truth[..., :3])
        true = truth[:, 1:, :, :3]  # at the first time, what stands still is right
        target = _seen(herd, true)
        for name, move in moves.items():
            error = (_seen(herd, move[:, 1:]) - target).square().mean((1, 2, 3))
            scores.setdefault("psnr" + name, []).append(-10 * error.clamp_min(1e-10).log10())
            scores.setdefault("miss" + name, []).append((move[:, 1:] - true).norm(dim=-1).flatten())
    return {name: round(torch.cat(values).mean().item(), 4) for name, values in scores.items()}


def vertex_points(herd: Herd) -> SurfacePoints:
    """The vertices, each as a corner of one of its triangles."""
    S, count, faces = len(herd.vertices), herd.vertices.shape[2], herd.faces
    numbers = torch.arange(len(faces), device=faces.device).repeat_interleave(3)
    triangles = torch.zeros(count, dtype=torch.int64, device=faces.device).scatter_reduce(
        0, faces.flatten(), numbers, "amax"
    )
    corner = faces[triangles] == torch.arange(count, device=faces.device)[:, None]
    return SurfacePoints(triangles.expand(S, -1), corner.float().expand(S, -1, -1))


def sampled(model: Animals, clips: Clips, steps: int = 16) -> Tensor:
    """Latents [B,T,L,C] by the fixed sampler, always from the same noise."""
    schedule = CosineSchedule()
    plan = multistep_plan(schedule, log_snr_uniform(schedule, steps))
    shape = (*clips.changes.shape[:2], model.config.latents, model.config.dit.latent_channels)
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(0)).numpy()
    device = clips.changes.device

    def ask(x: Any, t: float) -> Any:
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            v = velocity(model, torch.from_numpy(x).float().to(device), torch.full((len(x),), t, device=device), clips)
        return v.float().cpu().numpy()

    return torch.from_numpy(sample_multistep(ask, noise, plan)).float().to(device)


def _seen(herd: Herd, moves: Tensor, size: int = 96) -> Tensor:
    """[S·T·4,size,size,3] on white: meshes at their first time, moved by [S,T,V,3], from four sides."""
    vertices = herd.vertices[:, :1] + moves
    S, T = moves.shape[:2]
    cameras = [object_camera(size, *angles) for angles in _VIEWS]
    pictures = []
    for camera in cameras:
        viewmat, K = (
            torch.tensor(matrix, dtype=torch.float32, device=moves.device) for matrix in (camera.viewmat, camera.K)
        )
        colors = herd.colors.repeat_interleave(T, 0)
        drawn = mesh_render.render(vertices.flatten(0, 1), herd.faces, colors, viewmat.expand(S * T, -1, -1), K, size)
        pictures.append(on_white(drawn))
    return torch.cat(pictures)


# ---- the run ---------------------------------------------------------------------------------------------------------


def train(
    name: str,
    *,
    out: Path,
    device: str = "cuda",
    steps: int = 10_000,
    minutes: float = math.inf,
    batch: int = 30,
    seed: int = 0,
    peak_rate: float = 1e-3,
    workers: int | None = None,
    resume: Path | None = None,
    refine: Path | None = None,
    log_every: int = 100,
) -> Path:
    """Trains and writes `checkpoint.safetensors`, `training.pt` (to resume from) and `log.jsonl`.

    Args:
        name: a configuration of `edge4d.export.models.gvf_diffusion.animals`.
        out: folder, made when missing.
        device: "cuda" or "cpu". Sets PyTorch's float32 matrix products to "high" and lets cuDNN search, for the whole
            process.
        steps: length of the schedule, of which VAE_SHARE goes to the VAE. minutes: leaves off after so long; `resume`
            goes on.
        batch: animals per step.
        seed: of weights and animals.
        workers: processes that make animals ahead of time; 0 makes them in this one, which is what "cpu" does by
            default. "cuda" uses as many as there are processors, but for two, and at most 14.
        resume: a `training.pt`.
        refine: a checkpoint to start from; its VAE is kept, and all the steps are the transformer's.

    Returns:
        The path of the checkpoint: the moving average of the weights.

    Raises:
        InvalidRequest: no such network, or lengths that cannot be used.
        InvalidCheckpoint: `refine` or `resume` cannot be read or does not fit.
        BackendUnavailable: there is no GPU.
    """
    _check(steps, batch, seed)
    target = training_device(device)
    torch.manual_seed(seed)
    out.mkdir(parents=True, exist_ok=True)
    model = Animals(animals_config(name)).to(target)
    if refine is not None:
        load_checkpoint(model, refine)
    shadow = copy.deepcopy(model).eval().requires_grad_(False)
    learned = list(model.parameters())
    optimizer = torch.optim.AdamW(learned, lr=peak_rate, weight_decay=1e-4)
    about: dict[str, Any] = {"world": "animals", "network": name, "seed": seed, "batch": batch, "schedule": steps}
    if refine is not None:
        about["refined_from"] = checkpoint_metadata(refine)
    first = 0 if resume is None else resumed(resume, model, shadow, optimizer, target, steps)
    torch.manual_seed(seed + first)
    switch = 0 if refine is not None else max(1, round(VAE_SHARE * steps))
    levels = NoiseLevels(target)
    began = time.monotonic()
    herds = Herds(seed, batch, GAUSSIANS, TIMES)
    if workers is None:
        workers = min(14, max(1, len(os.sched_getaffinity(0)) - 2)) if target.type == "cuda" else 0
    with (out / "log.jsonl").open("a") as log:
        for step, made in enumerate(herds_ahead(herds, range(first, steps), workers), start=first):
            transformer = step >= switch
            if step == switch and refine is None:
                model.vae.load_state_dict(shadow.vae.state_dict())
                settle(model, map(herds, itertools.count(steps)), target)
                shadow.load_state_dict(model.state_dict())
            clips = make_clips(made, model.config.static_points, model.image.side * transformer, target)
            phase = (step - switch, steps - switch) if transformer else (step, switch)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(*phase, peak_rate)
            terms = dit_losses(model, clips, levels) if transformer else vae_losses(model, clips)
            descend(optimizer, terms, learned)
            average(shadow, model, max(0.002, 9 / (10 + phase[0])))
            late = time.monotonic() - began > 60 * minutes
            done = late or step == steps - 1
            if done or step % log_every == log_every - 1:
                entry: dict[str, Any] = {"step": step + 1, "seconds": round(time.monotonic() - began, 1)}
                entry.update({name: round(value.item(), 5) for name, value in terms.items()})
                if done or (step + 1) % (10 * log_every) == 0:
                    entry.update(validate(shadow, target, transformer=transformer))
                    save(out, model, shadow, optimizer, step + 1)
                    save_checkpoint(shadow, out / "checkpoint.safetensors", metadata={**about, "steps": step + 1})
                log.write(json.dumps(entry) + "\n")
                log.flush()
                print(json.dumps(entry), flush=True)
            if late:
                break
    return out / "checkpoint.safetensors"


def herds_ahead(herds: Herds, steps: range, workers: int) -> Iterator[list[Herd]]:
    """The animals of steps, made while the step before is computed."""
    if workers == 0:
        yield from map(herds, steps)
        return
    # Processes, since what makes animals is many small operations; not copies of this one, which holds the GPU.
    context = multiprocessing.get_context("forkserver")
    with ProcessPoolExecutor(workers, context, torch.set_num_threads, (1,)) as pool:
        for arrays in ahead(pool, partial(_arrays, herds), steps, 2 * workers):
            yield [Herd(*map(torch.from_numpy, herd)) for herd in arrays]


def _arrays(herds: Herds, step: int) -> list[list[NDArray[Any]]]:
    """As NumPy arrays, which travel between processes by value: shared memory may be scarce."""
    return [[tensor.numpy() for tensor in herd] for herd in herds(step)]


def _check(steps: int, batch: int, seed: int) -> None:
    if steps < 2 or batch < 1 or not 0 <= seed <= MAX_SEED:
        raise InvalidRequest(
            "Training needs two steps, an animal and a seed that fits.",
            note=f"{steps} steps of {batch} animals, seed {seed}; seeds go from 0 to {MAX_SEED}.",
        )
