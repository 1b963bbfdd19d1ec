"""GVFDiffusion: from a video of a subject, and Gaussians of it, to a scene in which they move as the subject does.

video  → frames, cut out → image (or dino) → features
asset, or first frame (`gvf_canonical`) → canonical Gaussians, turned to where the first frame sees them from
both   → dit_cond, then dit_step again and again → latents of every frame
latents, Gaussians → vae_latent, vae_query, vae_attend → changes of every Gaussian in every frame
       → Scene4D

Clips longer than those of the training are followed in segments, which all start from the canonical Gaussians and fade
into each other. A mesh that moves takes the place of a video: vae_encode makes its latents.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, Optional, Union

import numpy as np
from numpy.typing import NDArray

from edge4d.kernels import cpu
from edge4d.runtime.alignment import best_azimuth
from edge4d.runtime.backends import Backend
from edge4d.runtime.backends.tensorrt import TensorRtBackend
from edge4d.runtime.bundle import Bundle
from edge4d.runtime.camera import Camera
from edge4d.runtime.canonical import (
    Placement,
    raw_from_gaussians,
    rotated,
    turned,
    up_rotation,
)
from edge4d.runtime.clip import Clip, Video, close_up, read_clip
from edge4d.runtime.errors import InvalidRequest, InvalidScene, SamplingDiverged, StageNotInBundle
from edge4d.runtime.example_inputs import ball, sliding_octahedron, swinging_ball
from edge4d.runtime.gaussians import Float32Array, Gaussians
from edge4d.runtime.mesh import read_moving_mesh, sample_surface, surface_gaussians, values_at
from edge4d.runtime.object_views import object_camera
from edge4d.runtime.ply import read_ply
from edge4d.runtime.samplers import (
    CosineSchedule,
    Step,
    log_snr_uniform,
    multistep_plan,
    sample_adaptive,
    sample_multistep,
)
from edge4d.runtime.scene import Scene4D
from edge4d.runtime.systems.gvf_canonical import check_generates, gaussians_of_picture, generates, run_each_once
from edge4d.runtime.systems.pipeline import Pipeline, Tensors
from edge4d.runtime.timings import Timings
from edge4d.runtime.variation_field import ACTIVATION, CHANNELS, motion_from_changes, query_from_gaussians
from edge4d.runtime.variation_field_on_device import VariationFieldOnDevice

PathLike = Union[str, "os.PathLike[str]"]
Float16Array = NDArray[np.float16]

FEATURES = ("image", "dino")
"""Stages that make features of pictures; a bundle has one of them."""

NEIGHBOURS = 8
"""Anchors that the change of a Gaussian is interpolated from."""

OVERLAP = 3
"""Frames that neighbouring segments of a long clip share."""

_EXAMPLE_STEPS = 16  # of the sampler

_EPS2D, _ANTIALIASED = 0.1, True  # how the Gaussians of GVFDiffusion and TRELLIS are drawn


class Sampling(NamedTuple):
    """How latents are sampled.

    Attributes:
        random: where noise comes from.
        steps: of the sampler; None lets it choose them.
    """

    random: np.random.Generator
    steps: Optional[int]


class GvfDiffusion(Pipeline):
    """A bundle of this system, ready to generate. Its attributes are those of every `Pipeline`."""

    def __init__(self, bundle: Bundle, backend: Backend, precision: str) -> None:
        super().__init__(bundle, backend, precision)
        bundle.stage("dit_step").graph(precision)  # a precision that is not there is said at once
        self._latents = int(bundle.stage("dit_step").input("positions").shape[0])
        self._static_points = int(bundle.stage("dit_cond").input("static").shape[0])
        self._frames = bundle.stage("dit_step").axes["T"].opt
        self._fields: dict[tuple[int, int, int], VariationFieldOnDevice] = {}  # by frames, Gaussians, steps

    def generate(
        self,
        video: Video,
        *,
        canonical: Union[PathLike, Scene4D, None] = None,
        up: str = "z",
        azimuth: Optional[float] = None,
        masks: Optional[Video] = None,
        seconds: Optional[float] = None,
        anchors: Optional[int] = None,
        steps: Optional[int] = None,
        seed: int = 0,
        source_fps: Optional[float] = None,
        size: Optional[tuple[int, int]] = None,
        background: tuple[float, float, float] = (1.0, 1.0, 1.0),
    ) -> Scene4D:
        """The Gaussians of an asset, or of what the first frame shows, moving as the subject of a video does.

        The scene is in the object's frame (`edge4d.runtime.object_views`), turned so that what sees the video's first
        frame, its camera, is at azimuth 0. t = 0 is that frame. Lengths are known up to a factor.

        Args:
            video, masks, seconds: see `edge4d.runtime.clip.read_clip`.
            canonical: the subject as the first frame shows it, from all sides: a .ply, or a scene at t = 0. What
                depends on the direction in its colours is left out; see `Placement` for its size. Without it, networks
                make one of that frame.
            up: the axis that points up in it: "z", "y", or "-y".
            azimuth: degrees, where the first frame sees it from; found by comparing pictures without it.
            anchors: how many Gaussians' changes are decoded, to be interpolated for the others; all without it.
            steps: of the sampler, evenly far apart in log SNR; without it, it chooses them by their errors, which the
                host must look at after each. With it, TensorRT runs from features to changes on the GPU alone.
            seed: which of the plausible motions, and shapes where they are generated.
            source_fps: frames per second of a folder or an array; the bundle's default without it.
            size: (width, height) of the scene's camera; the bundle's default without it.
            background: RGB in 0..1 behind the scene.

        Raises:
            InvalidVideo, NoSubject: the video cannot be used.
            InvalidPly, InvalidScene: the asset cannot be used.
            InvalidRequest: another argument cannot be used.
            StageNotInBundle: the bundle lacks a network for this.
            NothingGenerated, CapacityExceeded: the first frame shows too little, or too much, to generate.
            SamplingDiverged, EngineFailed: a network could not be run.
        """
        self.timings = Timings()
        sampling = _sampling(seed, steps)
        _check_anchors(anchors)
        _check_azimuth(azimuth)
        camera = self._camera(size)
        if canonical is None:
            check_generates(self.bundle)
        with self.timings.stage("read") as stage:
            asset = None if canonical is None else self._asset(canonical, up)
            pixels = self._pixels()
            clip = read_clip(video, pixels, masks=masks, seconds=seconds, fps=self._fps(source_fps))
            stage.record({"pictures": clip.pictures})
        if asset is None:
            picture = _network_pictures(close_up(clip.first, pixels)[None])
            asset = gaussians_of_picture(self.bundle, self._run, picture, sampling.random, self._static_points)
        gaussians = self._aligned(Placement(asset.means).gaussians(asset), clip, azimuth)
        raw = raw_from_gaussians(gaussians)
        changes = self._followed(clip.pictures, raw, sampling, anchors)
        return self._scene(raw, changes, clip.fps, camera, background)

    def animate(
        self,
        mesh: PathLike,
        *,
        canonical: Union[PathLike, Scene4D, None] = None,
        up: str = "z",
        anchors: Optional[int] = None,
        source_fps: Optional[float] = None,
        size: Optional[tuple[int, int]] = None,
        background: tuple[float, float, float] = (1.0, 1.0, 1.0),
    ) -> Scene4D:
        """The Gaussians of an asset, moving as a mesh does that has its shape in the first frame.

        Args:
            mesh: see `edge4d.runtime.mesh.read_moving_mesh`.
            canonical: as in `generate`, in the mesh's frame; without it, Gaussians are spread over the mesh.
            up: the axis that points up in .ply files, of mesh and asset; in GLB it is y.
            source_fps: frames per second; the bundle's default without it.
            anchors, size, background: as in `generate`.

        Raises:
            InvalidMesh, InvalidPly, InvalidScene, InvalidRequest: what was given cannot be used.
            StageNotInBundle: the bundle has no encoder of meshes.
            SamplingDiverged, EngineFailed: a network could not be run.
        """
        self.timings = Timings()
        _check_anchors(anchors)
        self._check_encodes()
        camera, fps = self._camera(size), self._fps(source_fps)
        with self.timings.stage("read") as stage:
            moving = read_moving_mesh(mesh, up=up, fps=fps)
            asset = surface_gaussians(moving) if canonical is None else self._asset(canonical, up)
            place = Placement(asset.means)
            gaussians, vertices = place.gaussians(asset), place.points(moving.vertices)
            stage.record({"vertices": vertices, "means": gaussians.means})
        self.camera_source = "azimuth 0° of the mesh"
        latents = self._encoded(vertices, moving.faces, gaussians)
        parts = range(0, len(latents), self._frames)
        changes = [self._decoded(latents[i : i + self._frames], gaussians, anchors).astype(np.float16) for i in parts]
        return self._scene(raw_from_gaussians(gaussians), np.concatenate(changes), fps, camera, background)

    def example_scene(self, size: Optional[tuple[int, int]] = None) -> Scene4D:
        self.timings = Timings()
        video = swinging_ball(self._frames, self._pixels())
        together = self.bundle.stage("vae_attend").axes["N"].opt
        asset = ball(together * -(-self._static_points // together))
        if generates(self.bundle):
            run_each_once(self.bundle, self._run, _network_pictures(video[:1, ..., :3]), np.random.default_rng(0))
        if "vae_encode" in self.bundle.stages:
            self._encoded(*sliding_octahedron(frames=2), asset)
        canonical = Scene4D(**asset._asdict(), groups=np.zeros(len(asset.means), np.int32), camera=object_camera(64))
        return self.generate(video, canonical=canonical, azimuth=0.0, steps=_EXAMPLE_STEPS, size=size)

    def _scene(
        self, raw: Gaussians, changes: Float16Array, fps: float, camera: Camera, background: tuple[float, float, float]
    ) -> Scene4D:
        times = np.arange(len(changes)) / fps
        return Scene4D(
            **raw._asdict(),
            groups=np.zeros(len(raw.means), np.int32),
            camera=camera,
            activation=ACTIVATION,
            motion=(motion_from_changes(changes, times),),
            t1=float(times[-1]),
            fps=fps,
            metric=False,
            background=background,
            source=self.bundle.name,
            eps2d=_EPS2D,
            antialiased=_ANTIALIASED,
        )

    def close(self) -> None:
        super().close()
        self._fields.clear()

    # --- the chain ----------------------------------------------------------------------------------------------------

    def _asset(self, asset: Union[PathLike, Scene4D], up: str) -> Gaussians:
        """A user's Gaussians, activated, z up."""
        scene = asset if isinstance(asset, Scene4D) else read_ply(Path(asset))
        if len(scene) < self._static_points:
            raise InvalidScene(
                "The asset has too few Gaussians.",
                note=f"{len(scene)}; the network sees {self._static_points} of them.",
                hint="Export it with more, or use a smaller bundle.",
            )
        return rotated(scene.evaluate(0.0), up_rotation(up))

    def _aligned(self, gaussians: Gaussians, clip: Clip, azimuth: Optional[float]) -> Gaussians:
        """The Gaussians, turned so that the camera of the first frame is at azimuth 0."""
        self.camera_source = f"given azimuth, {azimuth:g}°" if azimuth is not None else ""
        if azimuth is None:
            with self.timings.stage("align"):
                found = best_azimuth(gaussians, clip.pictures[0], clip.mask)
            azimuth = found.degrees
            self.camera_source = f"azimuth {azimuth:g}°, where the asset looks most like the video, {found.psnr:.1f} dB"
        return turned(gaussians, -azimuth)

    def _followed(
        self, pictures: NDArray[np.uint8], raw: Gaussians, sampling: Sampling, anchors: Optional[int]
    ) -> Float16Array:
        """Changes [T,N,14] of canonical Gaussians that follow pictures [T,S,S,3], segment by segment.

        Every segment changes the canonical Gaussians, and sees the first frame, which they show, among its own, as in
        training. Going on from the last frame of the segment before adds up errors, which cost 2 dB over 120 frames of
        animals. Frames that two segments share have the same noise in both, and fade from one to the other.
        """
        gaussians = ACTIVATION.apply(raw)
        given = self._points(gaussians)
        channels = int(self.bundle.stage("dit_step").input("x").shape[2])
        noise = sampling.random.standard_normal((len(pictures), self._latents, channels), np.float32)
        changes = np.empty((len(pictures), len(raw.means), CHANNELS), np.float16)
        known = 0
        for start, stop in segments(len(pictures), self._frames):
            seen = np.r_[: min(start, 1), start:stop]
            images = self._run(self._features(), {"pictures": _network_pictures(pictures[seen])})["images"]
            inputs = {**given, "images": images, "noise": noise[seen]}
            found = self._changed(inputs, gaussians, sampling.steps, anchors)[min(start, 1) :]
            shared = known - start
            found[:shared] -= _fading(shared) * (found[:shared] - changes[start:known])
            changes[start:stop] = found
            known = stop
        return changes

    def _points(self, gaussians: Gaussians) -> Tensors:
        """What networks see of canonical Gaussians: their farthest points."""
        with self.timings.stage("points"):
            # The farthest of fewer are the first of these.
            farthest = cpu.farthest_point_sample(gaussians.means, count=max(self._latents, self._static_points))
        return {
            "static": query_from_gaussians(gaussians)[farthest[: self._static_points]],
            "positions": gaussians.means[farthest[: self._latents]],
        }

    def _changed(
        self, inputs: Tensors, gaussians: Gaussians, steps: Optional[int], anchors: Optional[int]
    ) -> Float32Array:
        """Changes [T,N,14] of Gaussians, from features of T pictures, noise, and what networks see of them."""
        backend = self.backend
        if steps is None or not isinstance(backend, TensorRtBackend):
            return self._decoded(self._sampled(inputs, steps), gaussians, anchors)
        plan = _plan(steps)
        return self._interpolated(lambda query: self._on_device(backend, inputs, query, plan), gaussians, anchors)

    def _sampled(self, inputs: Tensors, steps: Optional[int]) -> Float32Array:
        """Latents [T,L,C] of how Gaussians move in pictures."""
        contexts = self._run("dit_cond", inputs)
        engine = self._engine("dit_step")

        def velocity(x: NDArray[Any], t: float) -> NDArray[Any]:
            given = {"x": x, "t": np.array([t], np.float32), "positions": inputs["positions"], **contexts}
            return engine.run(given)["v"]

        with self.timings.stage("sample") as stage:
            if steps is None:
                latents = sample_adaptive(velocity, inputs["noise"], CosineSchedule())
            else:
                latents = sample_multistep(velocity, inputs["noise"], _plan(steps))
            stage.record({"latents": latents})
        return latents

    def _on_device(
        self, backend: TensorRtBackend, inputs: Tensors, query: Float32Array, plan: list[Step]
    ) -> Float32Array:
        """Changes [T,n,14] of Gaussians [n,14] that follow the pictures, with nothing on the host between."""
        frames, count = len(inputs["images"]), len(query)
        key = (frames, count, len(plan))
        if key not in self._fields:
            with self.timings.stage("load variation field"):
                # Those of other lengths of segments stay; those of another asset or plan would only fill the memory.
                self._fields = {known: field for known, field in self._fields.items() if known[1:] == key[1:]}
                self._fields[key] = VariationFieldOnDevice(
                    backend, self.bundle, self.precision, frames=frames, gaussians=count, plan=plan
                )
        with self.timings.stage("variation field") as stage:
            changes = self._fields[key].run({**inputs, "gaussians": query})
            stage.record({"changes": changes})
        _check_finite(changes)
        return changes

    def _encoded(self, vertices: Float32Array, faces: NDArray[np.int32], gaussians: Gaussians) -> Float32Array:
        """Latents [T,L,C] of how Gaussians move with a mesh [T,V,3]."""
        count = int(self.bundle.stage("vae_encode").input("points").shape[0])
        points = values_at(sample_surface(vertices[0], faces, count), faces, vertices)
        with self.timings.stage("points"):
            anchors = gaussians.means[cpu.farthest_point_sample(gaussians.means, count=self._latents)]
        engine = self._engine("vae_encode")
        with self.timings.stage("encode") as stage:
            latents = np.concatenate(
                [
                    engine.run({"points": points[0], "motion": frame[None], "anchors": anchors})["samples"]
                    for frame in points - points[0]
                ]
            )
            stage.record({"latents": latents})
        return latents

    def _decoded(self, latents: Float32Array, gaussians: Gaussians, anchors: Optional[int]) -> Float32Array:
        """Changes [T,N,14] of Gaussians."""
        keys_values = self._run("vae_latent", {"samples": latents})
        return self._interpolated(lambda query: self._attended(keys_values, query), gaussians, anchors)

    def _interpolated(
        self, decode: Callable[[Float32Array], Float32Array], gaussians: Gaussians, anchors: Optional[int]
    ) -> Float32Array:
        """Changes [T,N,14] of Gaussians, decoded of all or of anchors alone."""
        means, query = gaussians.means, query_from_gaussians(gaussians)
        if anchors is None or anchors >= len(means):
            return decode(query)
        with self.timings.stage("points"):
            chosen = cpu.farthest_point_sample(means, count=anchors)
        changes = decode(query[chosen])
        with self.timings.stage("interpolate"):
            return cpu.knn_interpolate(means, means[chosen], changes, k=NEIGHBOURS).values

    def _attended(self, keys_values: Tensors, query: Float32Array) -> Float32Array:
        """Changes [T,n,14] of Gaussians [n,14], so many at once as the networks like."""
        keys, values = keys_values["keys"], keys_values["values"]
        changes = np.empty((len(keys), len(query), CHANNELS), np.float32)
        engines = self._engine("vae_query"), self._engine("vae_attend")
        together = self.bundle.stage("vae_attend").axes["N"].opt
        with self.timings.stage("decode") as stage:
            for start in range(0, len(query), together):
                part = slice(start, start + together)
                queries = engines[0].run({"gaussians": query[part]})["queries"]
                for frame in range(len(keys)):
                    inputs = {"queries": queries, "keys": keys[frame, None], "values": values[frame, None]}
                    changes[frame, part] = engines[1].run(inputs)["changes"][0]
            stage.record({"changes": changes})
        _check_finite(changes)
        return changes

    # --- pieces -------------------------------------------------------------------------------------------------------

    def _features(self) -> str:
        """The stage that makes features of pictures."""
        found = [name for name in FEATURES if name in self.bundle.stages]
        if not found:
            raise StageNotInBundle(
                f"The bundle '{self.bundle.name}' cannot see pictures.",
                note=f"Its stages are {', '.join(self.bundle.stages)}; {' or '.join(FEATURES)} is needed.",
                hint="Use a bundle that was exported with one of them.",
            )
        return found[0]

    def _pixels(self) -> int:
        """Sides of the pictures that networks see."""
        return int(self.bundle.stage(self._features()).input("pictures").shape[2])

    def _check_encodes(self) -> None:
        if "vae_encode" not in self.bundle.stages:
            raise StageNotInBundle(
                f"The bundle '{self.bundle.name}' cannot encode meshes.",
                note=f"Its stages are {', '.join(self.bundle.stages)}; vae_encode is needed.",
                hint="Use a bundle that was exported with it, or give a video.",
            )

    def _fps(self, given: Optional[float]) -> float:
        fps = float(self.bundle.config["fps"]) if given is None else given
        if not 0.1 <= fps <= 1000.0:
            raise InvalidRequest(
                "That is no frame rate.",
                note=f"{fps:g} frames per second, from 0.1 to 1000.",
                hint="12, 24 and 30 are usual.",
            )
        return fps

    def _camera(self, size: Optional[tuple[int, int]]) -> Camera:
        """The camera at azimuth 0; the shorter side of its picture sees what a square picture would."""
        width, height = size or (self.bundle.camera.width, self.bundle.camera.height)
        square = object_camera(min(width, height))
        focal = square.intrinsics[0]
        whole = Camera.from_intrinsics(width, height, focal, focal, 0.5 * width, 0.5 * height)
        return whole.with_pose(square.c2w)


def segments(count: int, length: int) -> Iterator[tuple[int, int]]:
    """(start, stop) of the parts of a clip of `count` frames that networks see one after the other.

    All that they see at once is as long, at most `length` > 1 frames: the first part, and each other one beside the
    clip's first frame. Neighbours share at least OVERLAP frames, or as many as `length` leaves room for.
    """
    overlap = min(OVERLAP, length - 2)
    parts = 1 + max(0, -(-(count - length) // (length - 1 - overlap)))
    length = -(-(count + (parts - 1) * (1 + overlap)) // parts)
    for stop in np.linspace(length, count, parts).round().astype(int).tolist():
        yield max(0, stop - length + (stop > length)), stop


def _fading(count: int) -> Float32Array:
    """[T,1,1] from 1 to 0, both left out: how much counts what a segment says of frames that the next one shares."""
    return np.linspace(1.0, 0.0, count + 2, dtype=np.float32)[1:-1, None, None]


def _network_pictures(pictures: NDArray[np.uint8]) -> Float32Array:
    """[T,S,S,3] as [T,3,S,S] in 0..1."""
    planes: Float32Array = np.ascontiguousarray(pictures.transpose(0, 3, 1, 2), np.float32)
    planes /= 255.0
    return planes


def _plan(steps: int) -> list[Step]:
    """Evenly far apart in log SNR."""
    schedule = CosineSchedule()
    return multistep_plan(schedule, log_snr_uniform(schedule, steps))


def _sampling(seed: int, steps: Optional[int]) -> Sampling:
    if not 0 <= seed < 2**63:
        raise InvalidRequest(
            "The seed cannot be used.",
            note=f"It is {seed}, a whole number from 0 to 2^63 - 1.",
            hint="Give another: each is another plausible motion.",
        )
    if steps is not None and not 1 <= steps <= 1000:
        raise InvalidRequest(
            "The sampler cannot take that many steps.",
            note=f"{steps}, from 1 to 1000.",
            hint="16 are usual; without --steps it chooses them by their errors.",
        )
    return Sampling(np.random.default_rng(seed), steps)


def _check_anchors(anchors: Optional[int]) -> None:
    if anchors is not None and anchors < NEIGHBOURS:
        raise InvalidRequest(
            "There are too few anchors.",
            note=f"{anchors}; changes are interpolated from {NEIGHBOURS} of them.",
            hint="Some thousands are usual; without --anchors every Gaussian is decoded.",
        )


def _check_azimuth(azimuth: Optional[float]) -> None:
    if azimuth is not None and not -360.0 <= azimuth <= 360.0:
        raise InvalidRequest(
            "That is no azimuth.",
            note=f"{azimuth:g} degrees, from -360 to 360.",
            hint="90 sees what is to the right of the asset's front; without --azimuth it is found.",
        )


def _check_finite(changes: Float32Array) -> None:
    largest = float(np.abs(changes).max())
    if not largest < float(np.finfo(np.float16).max):
        raise SamplingDiverged(
            "The decoder gave changes that are not finite.",
            note=f"The largest is {largest:g}.",
            hint="fp16 overflows above 65504: use --precision fp32.",
        )
