"""Procedural animals that walk, fly, swim, crawl and jump: meshes whose points are followed exactly through time.

Quadrupeds, birds, fish, snakes and blobs (`body_plans`), each in a frame of its own: z up, all that a cycle of motion
reaches within the unit cube from -0.5 to 0.5. Points have constant colours, painted and lit once in the pose of rest,
so that everything that changes in a picture is motion. A cycle repeats: animals stay where they are.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from edge4d.export.worlds.body_plans import PLANS, Beat, Part, Traits
from edge4d.export.worlds.draw import EVALUATION, TRAINING, Draw, scene_key
from edge4d.export.worlds.rotations import about_z
from edge4d.export.worlds.tubes import surface

REACH = 0.48  # half the longest side of what a cycle reaches; phases between those that are looked at get the rest
_PHASES = 24
_ORDER = tuple(PLANS)


@dataclass(frozen=True)
class Animals:
    """S animals of one body plan, whose meshes have the same triangles.

    Attributes:
        plan: a name in `body_plans.PLANS`.
        traits: [S,n] each, see `body_plans`.
        frequency, start: [S,1] cycles per second, and phase at time 0.
        heading: [S] radians, about z; at 0 the animal looks at the camera of azimuth 0.
        scale, shift: [S,1,1,1] and [S,1,1,3] from the animal's own frame, turned, to the unit cube.
        colors: [S,V,3] RGB.
    """

    plan: str
    traits: Traits
    frequency: Tensor
    start: Tensor
    heading: Tensor
    scale: Tensor
    shift: Tensor
    colors: Tensor

    def __len__(self) -> int:
        """S."""
        return len(self.heading)

    @property
    def faces(self) -> Tensor:
        """[F,3] int64, anticlockwise as seen from outside."""
        faces = _faces(self._parts(torch.zeros_like(self.start)))
        return faces.to(self.heading.device)

    def vertices(self, times: Tensor) -> Tensor:
        """[S,T,V,3] at times [S,T], in seconds."""
        phase = self.start + self.frequency * times
        return self.scale * _turned(_vertices(self._parts(phase)), self.heading) + self.shift

    def to(self, device: torch.device) -> Animals:
        """The same animals on `device`."""
        moved = {name: value.to(device) for name, value in vars(self).items() if isinstance(value, Tensor)}
        traits = {name: value.to(device) for name, value in self.traits.items()}
        return Animals(plan=self.plan, traits=traits, **moved)

    def _parts(self, phase: Tensor) -> list[Part]:
        return PLANS[self.plan].parts(self.traits, Beat(phase))


def training_animals(seed: int, step: int, count: int) -> list[Animals]:
    """`count` animals that only training sees, as many of each body plan as can be, those of one plan together."""
    indices = range(step * count, (step + 1) * count)
    groups = ([index for index in indices if index % len(_ORDER) == number] for number in range(len(_ORDER)))
    return [_sample([scene_key(TRAINING, seed, i) for i in group], _plan(group[0])) for group in groups if group]


def evaluation_animals(seed: int, index: int) -> Animals:
    """One animal that no training sees; body plans take turns."""
    return _sample([scene_key(EVALUATION, seed, index)], _plan(index))


def _plan(index: int) -> str:
    return _ORDER[index % len(_ORDER)]


def _sample(keys: list[tuple[int, int]], plan: str) -> Animals:
    draw = Draw(keys, columns=256)
    heading = draw.uniform(-math.radians(115), math.radians(115))
    frequency = draw.uniform(0.6, 1.5, 1)
    start = draw.uniform(0, 1, 1)
    traits = PLANS[plan].traits(draw)
    phases = torch.linspace(0, 1, _PHASES + 1)[:-1].expand(len(keys), -1)
    reached = _turned(_vertices(PLANS[plan].parts(traits, Beat(phases))), heading).flatten(1, 2)
    low, high = reached.amin(1), reached.amax(1)
    scale = 2 * REACH / (high - low).amax(-1)
    shift = -0.5 * scale[:, None] * (low + high)
    scale, shift = scale[:, None, None, None], shift[:, None, None]
    rest = PLANS[plan].parts(traits, Beat(torch.zeros_like(start), strength=0.0))
    return Animals(plan, traits, frequency, start, heading, scale, shift, _painted(rest, traits))


def _vertices(parts: list[Part]) -> Tensor:
    """[S,T,V,3] of all parts, in the animals' own frames."""
    return torch.cat([surface(part.lattice, part.joints, part.half_axes, part.side) for part in parts], 2)


def _faces(parts: list[Part]) -> Tensor:
    faces, first = [], 0
    for part in parts:
        faces.append(part.lattice.faces + first)
        first += part.lattice.points
    return torch.cat(faces)


def _turned(vertices: Tensor, heading: Tensor) -> Tensor:
    """From the animal's own frame, x ahead, to the object's, where heading 0 is along -y."""
    return vertices @ about_z(heading - 0.5 * math.pi).mT[:, None]


# ---- colours ---------------------------------------------------------------------------------------------------------


def _painted(rest: list[Part], traits: Traits) -> Tensor:
    """[S,V,3] colours of parts in the pose of rest: paint or coat, lit from above."""
    vertices = _vertices(rest)[:, 0]
    normals = vertex_normals(vertices, _faces(rest))
    colors, first = [], 0
    for part in rest:
        rows = slice(first, first + part.lattice.points)
        first = rows.stop
        color = _coat(vertices[:, rows], normals[:, rows], traits) if part.paint is None else part.paint[:, None]
        color = color.expand(-1, part.lattice.points, -1)
        if part.tip is not None:
            color = torch.lerp(color, part.tip[:, None], _smooth(part.lattice.places, 0.6, 0.72)[:, None])
        colors.append(color)
    light = 0.72 + 0.28 * normals[..., 2:] + 0.06 * normals[..., 1:2]
    return (torch.cat(colors, 1) * light).clamp(0, 1)


def vertex_normals(vertices: Tensor, faces: Tensor) -> Tensor:
    """[S,V,3] of length one: of the triangles around each vertex [S,V,3], by area."""
    a, b, c = vertices[:, faces].unbind(2)
    across = torch.linalg.cross(b - a, c - a)
    sums = torch.zeros_like(vertices)
    for corner in range(3):
        sums.index_add_(1, faces[:, corner], across)
    return torch.nn.functional.normalize(sums, dim=-1)


def _coat(points: Tensor, normals: Tensor, traits: Traits) -> Tensor:
    """Colours [S,V,3] of the pattern that a coat has at points [S,V,3] of the animals' own frames."""
    base, belly, accent = (traits[name][:, None] for name in ("base", "belly", "accent"))
    x, y, z = points.unbind(-1)
    a, b, c = traits["offsets"][:, None].unbind(-1)
    pitch = traits["pitch"]
    stripes = torch.sin(math.tau * 4.5 * pitch * (x + 0.035 * torch.sin(11 * z + a) + 0.03 * torch.sin(9 * y + b)) + c)
    spots = torch.sin(25 * pitch * x + a) * torch.sin(25 * pitch * z + b) + 0.35 * torch.sin(19 * y + c)
    patches = torch.sin(6 * pitch * x + a) + torch.sin(7 * z + b) + torch.sin(6 * y + c)
    up = normals[..., 2]
    marks = torch.stack(
        [
            torch.zeros_like(x),
            _smooth(stripes, 0.15, 0.5),
            _smooth(spots, 0.3, 0.5),
            _smooth(patches, 0.5, 0.8),
            0.8 * _smooth(up, 0.25, 0.7),
        ],
        -1,
    )
    mark = marks.gather(-1, traits["pattern"][..., None].expand(-1, x.shape[1], -1))
    return torch.lerp(torch.lerp(base, belly, _smooth(-up, 0.35, 0.8)[..., None]), accent, mark)


def _smooth(value: Tensor, low: float, high: float) -> Tensor:
    """0 below `low`, 1 above `high`, an S between."""
    t = ((value - low) / (high - low)).clamp(0, 1)
    return t * t * (3 - 2 * t)
