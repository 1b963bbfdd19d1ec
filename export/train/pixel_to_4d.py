"""Trains a Pixel-to-4D network on procedural streets.

One step renders fresh streets: the photograph, a later frame of the same camera, and a view from elsewhere at another
time. The network sees the photograph; its Gaussians, moved and rendered, must look like the other two. Depth, objects
and motion, which the world knows exactly, guide it besides. Half of each batch gets noise from the motion encoder, the
other half zeros, so that temperature 0 is trained and the noise still means something (CVAE with a KL term).
"""

from __future__ import annotations

import copy
import json
import math
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from edge4d.export.checkpoints import checkpoint_metadata, load_checkpoint, save_checkpoint
from edge4d.export.models.pixel_to_4d import gaussians, street, street_config
from edge4d.export.models.pixel_to_4d.motion import move
from edge4d.export.train.loop import ahead, average, descend, learning_rate, resumed, save, training_device
from edge4d.export.train.losses import diagonal_gaussian_kl, ssim
from edge4d.export.train.rasterize import rasterize
from edge4d.export.worlds import street as world
from edge4d.export.worlds.draw import MAX_SEED
from edge4d.export.worlds.rotations import about_x, about_y
from edge4d.runtime.errors import InvalidRequest

CLIP_SECONDS = 2.0  # how far ahead the views go: 24 frames at 12 frames per second
_RENDERS_EVERY = 8  # steps of refining; the others learn motion from photographs alone
_MIN_PIXELS = 20  # an object smaller than this in the photograph teaches nothing about its motion
_VALIDATION_SEED = 1 << 40  # far from any seed a user would give


class Training(nn.Module):
    """The networks that are trained together."""

    def __init__(self, config: street.StreetConfig) -> None:
        super().__init__()
        self.config = config
        self.perceive = street.Perceive(config)
        self.core = street.StreetCore(config)
        self.enc_vae = street.MotionEncoder(config)


@dataclass(frozen=True)
class Sample:
    """B streets: the photograph and two target views, [B,3,H,W] images, [B,1,H,W] depths in metres, [B,H,W] ids.

    `later` is the photograph's camera at `later_time` [B], `other` another camera `other_viewmat` [B,4,4] (photograph's
    camera → other camera) at `other_time` [B]. `motion` [B,64,12] and `visible` [B,64] are the true motions.
    """

    photo: Tensor
    depth: Tensor
    instances: Tensor
    intrinsics: Tensor
    later: Tensor
    later_time: Tensor
    later_moving: Tensor
    other: Tensor
    other_time: Tensor
    other_viewmat: Tensor
    other_moving: Tensor
    motion: Tensor
    visible: Tensor


def random_poses(count: int, generator: torch.Generator) -> Tensor:
    """[count,4,4] poses, camera to world: a few metres ahead of the photograph's camera, a little aside and turned."""

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(count, generator=generator)

    pose = torch.eye(4).repeat(count, 1, 1)
    pose[:, :3, :3] = about_y(uniform(-0.2, 0.2)) @ about_x(uniform(-0.06, 0.06))
    pose[:, :3, 3] = torch.stack([uniform(-1.0, 1.0), uniform(-0.4, 0.3), uniform(-0.8, 4.5)], -1)
    return pose


def make_sample(
    streets: world.Street, generator: torch.Generator, width: int, height: int, device: torch.device
) -> Sample:
    """Renders a batch of streets on `device`."""
    streets = streets.to(device)
    count = len(streets.fov)
    start = torch.zeros(count, device=device)
    later_time, other_time = (CLIP_SECONDS * torch.rand(2, count, generator=generator)).to(device)
    relative = random_poses(count, generator).to(device)
    photo = world.render(streets, start, streets.camera, width, height)
    later = world.render(streets, later_time, streets.camera, width, height)
    other = world.render(streets, other_time, streets.camera @ relative, width, height)
    motion, visible = true_motions(streets, photo)
    moving = functional.pad(streets.objects.moving, (1, 0)).float()

    def moving_pixels(view: world.View) -> Tensor:
        return moving.gather(1, view.objects.flatten(1)).reshape(view.objects.shape)[:, None]

    return Sample(
        photo=photo.image.permute(0, 3, 1, 2).contiguous(),
        depth=photo.depth.clamp_max(street.FAR)[:, None],
        instances=photo.objects.int(),
        intrinsics=streets.intrinsics(width, height),
        later=later.image.permute(0, 3, 1, 2).contiguous(),
        later_time=later_time,
        later_moving=moving_pixels(later),
        other=other.image.permute(0, 3, 1, 2).contiguous(),
        other_time=other_time,
        other_viewmat=torch.linalg.inv(relative),
        other_moving=moving_pixels(other),
        motion=motion,
        visible=visible,
    )


def true_motions(streets: world.Street, photo: world.View) -> tuple[Tensor, Tensor]:
    """Motion of each object about the centre of what is seen of it, in the photograph's camera frame.

    Returns:
        [B,64,12] v, a, ω, α, and [B,64] bool: the object is present with at least 20 pixels.
    """
    objects = streets.objects
    intrinsics = streets.intrinsics(photo.objects.shape[2], photo.objects.shape[1])
    depth = photo.depth.clamp_max(street.FAR)[:, None]
    points = gaussians.unproject(depth, intrinsics).permute(0, 1, 4, 2, 3)
    seen = gaussians.instance_mean(points, photo.objects.int())[:, 1 : 1 + world.OBJECTS]
    to_camera = streets.camera[:, :3, :3]  # row vectors times this are camera coordinates
    true_centre = (objects.centres - streets.camera[:, None, :3, 3]) @ to_camera
    spin = torch.zeros_like(objects.velocity)
    spin[..., 1] = objects.yaw_rate
    spin = spin @ to_camera
    arm = seen - true_centre
    # A rigid motion about another centre: v' = v + ω × r, a' = a + ω × (ω × r).
    swing = torch.linalg.cross(spin, arm)
    velocity = objects.velocity @ to_camera + swing
    acceleration = objects.acceleration @ to_camera + torch.linalg.cross(spin, swing)
    motion = torch.cat([velocity, acceleration, spin, torch.zeros_like(spin)], -1)
    ids = functional.one_hot(photo.objects.flatten(1), world.OBJECTS + 1).sum(1)[:, 1:]
    visible = objects.present & (ids >= _MIN_PIXELS)
    rest = gaussians.GROUPS - 1 - world.OBJECTS
    return functional.pad(motion, (0, 0, 1, rest)), functional.pad(visible, (1, rest))


def perception_loss(maps: tuple[Tensor, Tensor, Tensor, Tensor], sample: Sample) -> dict[str, Tensor]:
    """Log depth with its gradients, object mask, centres, offsets."""
    log_depth, objects, centres, offsets = maps
    target = sample.depth.log()
    mask = (sample.instances > 0).float()[:, None]
    heat, offset, inside = centre_targets(sample.instances, centres.shape[-2:], offsets.shape[-2:])
    error = log_depth - target
    edges = (error[..., 1:] - error[..., :-1]).abs().mean() + (error[..., 1:, :] - error[..., :-1, :]).abs().mean()
    centre_loss = functional.binary_cross_entropy_with_logits(centres, heat, reduction="none") * (1 + 9 * heat)
    offset_loss = ((offsets - offset / street.CENTRE_UNIT).abs() * inside).sum() / inside.sum().clamp_min(1)
    return {
        "depth": error.abs().mean() + 0.5 * edges,
        "objects": functional.binary_cross_entropy_with_logits(objects, mask),
        "centres": 2 * centre_loss.mean(),
        "offsets": 0.2 * offset_loss,
    }


def centre_targets(instances: Tensor, coarse: torch.Size, fine: torch.Size) -> tuple[Tensor, Tensor, Tensor]:
    """Heat of object centres [B,1,h4,w4], offsets to them [B,2,h2,w2] in pixels, and where those count [B,1,h2,w2]."""
    grid = street.pixel_grid(instances[:, None].float(), 1.0)[0]  # [2,H,W]
    centres = gaussians.instance_mean(grid[None, None].expand(len(instances), 1, -1, -1, -1).contiguous(), instances)
    area = functional.one_hot(instances.long().flatten(1), gaussians.GROUPS).sum(1).float()
    cells = functional.interpolate(grid[None], size=coarse, mode="area").flatten(2)  # [1,2,h4·w4]
    distance = (cells[:, :, None] - centres.transpose(1, 2)[..., None]).square().sum(1)  # [B,64,h4·w4]
    sigma = (0.15 * area.sqrt()).clamp(4.0, 16.0)[..., None]
    present = (area >= 8)[..., None].float()
    present[:, 0] = 0
    heat = (torch.exp(-0.5 * distance / sigma.square()) * present).amax(1).reshape(-1, 1, *coarse)
    ids = instances[:, 1::2, 1::2].long()
    goal = centres.gather(1, ids.flatten(1)[..., None].expand(-1, -1, 2)).transpose(1, 2).reshape(-1, 2, *fine)
    return heat, goal - functional.interpolate(grid[None], size=fine, mode="area"), (ids > 0).float()[:, None]


def motion_loss(motion: Tensor, photographs: Photographs) -> Tensor:
    """Distance in metres between predicted and true places at the middle and the end of the clip, softened with depth.

    Only distance along the ground counts: that is how objects are moved in the end.

    Args:
        motion: [B,12,H,W] per pixel; averaged over the true objects, to which the true motions belong.
    """
    per_pixel = torch.cat([photographs.depth, motion], 1)[:, None]
    depth, predicted = torch.split(gaussians.instance_mean(per_pixel, photographs.instances), [1, 12], -1)
    error = predicted - photographs.motion
    normal = gaussians.ground_normal(photographs.depth, photographs.seen, photographs.intrinsics)
    velocity, acceleration = (gaussians.along_ground(part, normal) for part in (error[..., :3], error[..., 3:6]))
    places = [velocity * t + 0.5 * acceleration * t * t for t in (0.5 * CLIP_SECONDS, CLIP_SECONDS)]
    miss = sum(functional.smooth_l1_loss(p, torch.zeros_like(p), reduction="none").sum(-1) for p in places)
    turn = error[..., 6:].abs().sum(-1)
    weight = photographs.visible.float() / (1 + 0.1 * depth[..., 0])
    return ((miss + 2 * turn) * weight).sum() / weight.sum().clamp_min(1)


def image_loss(rendered: Tensor, target: Tensor, moving: Tensor) -> Tensor:
    """L1, squared error (what PSNR counts) and SSIM; moving objects count three times. Images [B,3,H,W]."""
    weight = 1 + 2 * moving
    difference = rendered - target
    pixels = ((difference.abs() + 4 * difference.square()) * weight).mean()
    return pixels + 0.15 * (1 - ssim(rendered, target).mean())


def render_views(scene: gaussians.DynamicGaussians, sample: Sample) -> tuple[Tensor, Tensor]:
    """The target views as the Gaussians show them, `later`, then `other`: [2B,3,H,W], and depths [2B,1,H,W]."""
    count = len(sample.photo)
    height, width = sample.photo.shape[2:]
    moved = [move(scene, t) for t in (sample.later_time, sample.other_time)]
    means, quats = (torch.cat(parts) for parts in zip(*moved))
    K = torch.zeros(count, 3, 3, device=means.device)
    K[:, 0, 0], K[:, 1, 1], K[:, 0, 2], K[:, 1, 2] = sample.intrinsics.unbind(-1)
    K[:, 2, 2] = 1
    still = torch.eye(4, device=means.device).expand(count, 4, 4)
    viewmats = torch.cat([still, sample.other_viewmat])
    scales, opacities, colors = (torch.cat([value, value]) for value in (scene.scales, scene.opacities, scene.colors))
    Ks = torch.cat([K, K])
    image, _, depth = rasterize(means, quats, scales, opacities, colors, viewmats[:, None], Ks[:, None], width, height)
    return image[:, 0].permute(0, 3, 1, 2), depth[:, 0].permute(0, 3, 1, 2)


@dataclass(frozen=True)
class Photographs:
    """R photographs whose motion is known: what the motion decoder learns from without rendering anything.

    `depth` [R,1,H,W] and `seen` [R,H,W] are what the core is given, `instances` [R,H,W] the true ids.
    """

    image: Tensor
    depth: Tensor
    seen: Tensor
    instances: Tensor
    intrinsics: Tensor
    motion: Tensor
    visible: Tensor

    def select(self, rows: Tensor) -> Photographs:
        """Only these rows."""
        return Photographs(**{name: value[rows] for name, value in vars(self).items()})


class Replay:
    """The last photographs that were rendered, to learn their motion more than once."""

    def __init__(self, capacity: int) -> None:
        self.capacity, self.next, self.filled = capacity, 0, 0
        self.kept: Photographs | None = None

    def add(self, new: Photographs) -> None:
        """Keeps a batch, in place of the oldest."""
        if self.kept is None:
            self.kept = Photographs(
                **{name: value.new_zeros(self.capacity, *value.shape[1:]) for name, value in vars(new).items()}
            )
        count = len(new.image)
        rows = (torch.arange(count, device=new.image.device) + self.next) % self.capacity
        for name, value in vars(new).items():
            getattr(self.kept, name)[rows] = value
        self.next = (self.next + count) % self.capacity
        self.filled = min(self.filled + count, self.capacity)

    def mixed(self, new: Photographs, generator: torch.Generator) -> Photographs:
        """The new photographs and as many of those before them at random; keeps the new ones."""
        self.add(new)
        assert self.kept is not None
        rows = torch.randint(self.filled, (len(new.image),), generator=generator).to(new.image.device)
        old = self.kept.select(rows)
        return Photographs(**{name: torch.cat([value, getattr(old, name)]) for name, value in vars(new).items()})


def losses(
    model: Training, sample: Sample, generator: torch.Generator, *, perception: bool = True
) -> dict[str, Tensor]:
    """All terms of the loss, weighted; only the networks run in half precision.

    Args:
        perception: whether perception is trained too.
    """
    half = torch.autocast(sample.photo.device.type, torch.bfloat16, enabled=sample.photo.is_cuda)
    with half, torch.set_grad_enabled(perception):
        maps = model.perceive.perception(sample.photo, sample.intrinsics)
    with half:
        mean, log_variance = model.enc_vae(sample.photo, sample.later, sample.depth)
    maps = tuple(value.float() for value in maps)
    mean, log_variance = mean.float(), log_variance.float()
    terms = perception_loss(maps, sample) if perception else {}
    depth, seen = model.perceive.readout(*maps)
    count = len(sample.photo)
    own = torch.rand(count, generator=generator).to(depth.device)
    seen = torch.where((own < 0.5)[:, None, None], seen, sample.instances)
    depth = torch.where((own < 0.8)[:, None, None, None], depth, sample.depth)
    drawn = mean + torch.exp(0.5 * log_variance) * torch.randn(mean.shape, generator=generator).to(mean.device)
    likely = (torch.arange(count, device=mean.device) % 2 == 0)[:, None, None, None]
    noise = torch.where(likely, 0.0, drawn)
    with half:
        raw, motion = model.core(sample.photo, depth, seen, noise, sample.intrinsics)
    raw, motion = raw.float(), motion.float()
    scene = model.core.lift(raw, motion, sample.photo, depth, seen, sample.intrinsics)
    image, _ = render_views(scene, sample)
    target = torch.cat([sample.later, sample.other])
    terms["image"] = 5 * image_loss(image, target, torch.cat([sample.later_moving, sample.other_moving]))
    terms["kl"] = 3e-3 * diagonal_gaussian_kl(mean, log_variance)
    terms["motion"] = 0.5 * motion_loss(
        model.core.lift.metric_motion(motion),
        Photographs(sample.photo, depth, seen, sample.instances, sample.intrinsics, sample.motion, sample.visible),
    )
    return terms


@torch.no_grad()
def take_photographs(
    model: Training, streets: world.Street, width: int, height: int, device: torch.device
) -> Photographs:
    """Photographs of streets on `device`, with the depth and the objects that the network sees in them."""
    streets = streets.to(device)
    photo = world.render(streets, torch.zeros(len(streets.fov), device=device), streets.camera, width, height)
    motion, visible = true_motions(streets, photo)
    image = photo.image.permute(0, 3, 1, 2).contiguous()
    intrinsics = streets.intrinsics(width, height)
    with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
        maps = model.perceive.perception(image, intrinsics)
    depth, seen = model.perceive.readout(*(value.float() for value in maps))
    return Photographs(image, depth, seen, photo.objects.int(), intrinsics, motion, visible)


def motion_losses(model: Training, photographs: Photographs) -> dict[str, Tensor]:
    """The loss of the likeliest motion alone, weighted as in `losses`."""
    image = photographs.image
    count, _, height, width = image.shape
    noise = image.new_zeros(count, model.config.noise_channels, height // 16, width // 16)
    with torch.autocast(image.device.type, torch.bfloat16, enabled=image.is_cuda):
        motion = model.core.motion_map(image, photographs.depth, photographs.seen, noise, photographs.intrinsics)
    return {"motion": 0.5 * motion_loss(model.core.lift.metric_motion(motion.float()), photographs)}


@torch.no_grad()
def validate(
    model: Training, device: torch.device, width: int, height: int, *, batches: int = 8
) -> dict[str, float | None]:
    """What `edge4d evaluate` measures, in short, on streets that neither training nor evaluation sees (dB)."""
    generator = torch.Generator().manual_seed(0)
    was_training = model.training
    model.eval()
    rows = []
    for batch in range(batches):
        sample = make_sample(world.training_streets(_VALIDATION_SEED, batch, 4), generator, width, height, device)
        depth, instances = model.perceive(sample.photo, sample.intrinsics)
        noise = torch.zeros(len(depth), model.config.noise_channels, height // 16, width // 16, device=device)
        scene = model.core.scene(sample.photo, depth, instances, noise, sample.intrinsics)
        held = scene._replace(groups=torch.zeros_like(scene.groups))
        target = torch.cat([sample.later, sample.other])
        moving = torch.cat([sample.later_moving, sample.other_moving])
        views = {"": render_views(scene, sample)[0], "_static": render_views(held, sample)[0]}
        views["_copy"] = torch.cat([sample.photo, sample.photo])
        row = {}
        for name, image in views.items():
            error = (image.clamp(0, 1) - target).square().mean(1, keepdim=True)
            row["psnr" + name] = -10 * error.mean((1, 2, 3)).log10()
            inside = moving.sum((1, 2, 3))
            per_object = -10 * ((error * moving).sum((1, 2, 3)) / inside.clamp_min(1)).clamp_min(1e-6).log10()
            row[f"psnr{name}_moving"] = torch.where(inside >= 50, per_object, torch.nan)
        near = sample.depth < street.FAR
        relative = ((depth - sample.depth).abs() / sample.depth)[near].mean()
        row["depth_abs_rel"] = relative.reshape(1)
        rows.append(row)
    model.train(was_training)
    means = {name: torch.cat([row[name] for row in rows]).nanmean().item() for name in rows[0]}
    return {name: None if math.isnan(mean) else round(mean, 4) for name, mean in means.items()}


def streets_ahead(seed: int, start: int, steps: int, batch: int) -> Iterator[world.Street]:
    """The streets of each step, sampled while the step before is computed."""
    with ThreadPoolExecutor(2) as pool:
        yield from ahead(pool, lambda step: world.training_streets(seed, step, batch), range(start, steps), 4)


def train(
    name: str,
    *,
    out: Path,
    device: str = "cuda",
    steps: int = 10_000,
    minutes: float = math.inf,
    batch: int = 16,
    seed: int = 0,
    size: tuple[int, int] = (448, 256),
    peak_rate: float = 1.8e-3,
    resume: Path | None = None,
    refine: Path | None = None,
    log_every: int = 100,
) -> Path:
    """Trains and writes `checkpoint.safetensors`, `training.pt` (to resume from) and `log.jsonl`.

    Args:
        name: "street" or "tiny".
        out: folder, made when missing.
        device: "cuda" renders with gsplat, "cpu" with the slow rasterizer. Sets PyTorch's float32 matrix products to
            "high" and lets cuDNN search, for the whole process.
        steps: length of the schedule. minutes: leaves off after so long; `resume` goes on.
        batch: streets per step. size: width and height of the pictures, multiples of 32.
        seed: of weights, streets and views.
        resume: a `training.pt`.
        refine: a checkpoint to start from; its perception is kept, and the time goes into motion: seven steps of eight
            learn from photographs alone, a new and a replayed one for each street of the batch.

    Returns:
        The path of the checkpoint: the moving average of the weights.

    Raises:
        InvalidRequest: no such network, or sizes and lengths that cannot be used.
        InvalidCheckpoint: `refine` or `resume` cannot be read or does not fit. A run that refines is resumed with the
            same `refine`; its replayed photographs are gathered anew.
        BackendUnavailable: there is no GPU, or no gsplat beside it.
    """
    _check(steps, batch, seed, size)
    target = training_device(device)
    torch.manual_seed(seed)
    out.mkdir(parents=True, exist_ok=True)
    model = _networks(name, refine, target)
    replay = None if refine is None else Replay(64 * batch)
    shadow: Training = copy.deepcopy(model).eval().requires_grad_(False)
    learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learned, lr=peak_rate, weight_decay=1e-4)
    about: dict[str, Any] = {"world": "street", "cues": list(world.CUES), "network": name}
    about.update({"seed": seed, "batch": batch, "size": list(size), "schedule": steps})
    if refine is not None:
        about["refined_from"] = checkpoint_metadata(refine)
    first = 0 if resume is None else resumed(resume, model, shadow, optimizer, target, steps)
    generator = torch.Generator().manual_seed(seed + first)
    began = time.monotonic()
    with (out / "log.jsonl").open("a") as log:
        for step, streets in enumerate(streets_ahead(seed, first, steps, batch), start=first):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, steps, peak_rate)
            if replay is None or step % _RENDERS_EVERY == 0:
                sample = make_sample(streets, generator, *size, target)
                terms = losses(model, sample, generator, perception=replay is None)
            else:
                new = take_photographs(model, streets, *size, target)
                terms = motion_losses(model, replay.mixed(new, generator))
            descend(optimizer, terms, learned)
            average(shadow, model)
            late = time.monotonic() - began > 60 * minutes
            done = late or step == steps - 1
            if done or step % log_every == log_every - 1:
                entry: dict[str, Any] = {"step": step + 1, "seconds": round(time.monotonic() - began, 1)}
                entry.update({name: round(value.item(), 4) for name, value in terms.items()})
                if done or (step + 1) % (10 * log_every) == 0:
                    entry.update(validate(shadow, target, *size))
                    save(out, model, shadow, optimizer, step + 1)
                    about["steps"] = step + 1
                    save_checkpoint(shadow, out / "checkpoint.safetensors", metadata=about)
                log.write(json.dumps(entry) + "\n")
                log.flush()
                print(json.dumps(entry), flush=True)
            if late:
                break
    return out / "checkpoint.safetensors"


def _networks(name: str, refine: Path | None, device: torch.device) -> Training:
    """Fresh networks, or those of a checkpoint whose perception stays as it is, its batch statistics too."""
    model = Training(street_config(name))
    if refine is not None:
        load_checkpoint(model, refine)
        model.perceive.requires_grad_(False).eval()
    moved: Training = model.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return moved


def _check(steps: int, batch: int, seed: int, size: tuple[int, int]) -> None:
    if any(side % 32 or side < 32 for side in size):
        raise InvalidRequest(
            "Pictures of that size cannot be trained on.", note=f"{size}; both must be multiples of 32."
        )
    if steps < 1 or batch < 1 or not 0 <= seed <= MAX_SEED:
        raise InvalidRequest(
            "Training needs at least one step and one street, and a seed that fits.",
            note=f"{steps} steps of {batch} streets, seed {seed}; seeds go from 0 to {MAX_SEED}.",
        )
