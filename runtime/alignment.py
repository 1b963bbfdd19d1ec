"""From where a picture shows an object: its azimuth, found by drawing the object from all sides, coarse to fine."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from edge4d.runtime.clip import on_white, subject_square
from edge4d.runtime.errors import InvalidScene, NoSubject
from edge4d.runtime.gaussians import Gaussians
from edge4d.runtime.object_views import object_camera
from edge4d.runtime.renderer import Renderer
from edge4d.runtime.scene import Scene4D
from edge4d.runtime.video_frames import Pixels

COARSE, FINE = 15, 1
"""Degrees between azimuths that are tried, at first all around and then between the best one's neighbours."""

_DRAWN, _COMPARED = 160, 96  # pixels a side: of what is drawn, and of the subject's square in it
_WHITE = (1.0, 1.0, 1.0)


class Azimuth(NamedTuple):
    """Where a camera stands, and how well the object looks like the picture from there.

    Attributes:
        degrees: -180 to 179, see `edge4d.runtime.object_views`.
        psnr: in dB, of colours and alpha where either has the subject.
    """

    degrees: float
    psnr: float


def best_azimuth(gaussians: Gaussians, picture: Pixels, mask: Pixels, backend: str = "auto") -> Azimuth:
    """The azimuth from which Gaussians look most like a picture, seen from their own height.

    Both are compared in the square around the subject, so that neither size nor place in the picture matters.

    Args:
        gaussians: activated, in the object's frame.
        picture, mask: [S,S,3] on white and [S,S], as `edge4d.runtime.clip` makes them.
        backend: what draws; see `Renderer`.

    Raises:
        InvalidScene: the object cannot be seen.
    """
    target = _square_of(picture, mask)
    scene = Scene4D(
        **gaussians._asdict(), groups=np.zeros(len(gaussians.means), np.int32), camera=object_camera(_DRAWN)
    )
    renderer = Renderer(scene, background=_WHITE, outputs=("image", "alpha"), backend=backend)

    def best(azimuths: Iterable[int]) -> Azimuth:
        return max((Azimuth(a, _psnr(_drawn(renderer, a), target)) for a in azimuths), key=lambda found: found.psnr)

    coarse = int(best(range(-180, 180, COARSE)).degrees)
    fine = best(range(coarse - COARSE // 2, coarse + COARSE // 2 + 1, FINE))
    return fine._replace(degrees=(fine.degrees + 180.0) % 360.0 - 180.0)


def _drawn(renderer: Renderer, azimuth: float) -> Pixels:
    frame = renderer.render(object_camera(_DRAWN, azimuth), 0.0)
    try:
        return _square_of(frame.image, np.rint(255.0 * frame.alpha).astype(np.uint8))
    except NoSubject as error:
        raise InvalidScene(
            "The object cannot be seen.",
            note=f"From azimuth {azimuth:g} hardly a pixel shows it.",
            hint="Is the right axis up (--up), and are its Gaussians opaque?",
        ) from error


def _square_of(picture: Pixels, mask: Pixels) -> Pixels:
    """The subject's square in a picture that is on white already: colours and alpha [_COMPARED,_COMPARED,4]."""
    square = subject_square(mask)
    colours = on_white(picture, np.full_like(mask, 255), square, _COMPARED)[0]
    alpha = on_white(picture, mask, square, _COMPARED)[1]
    return np.concatenate([colours, alpha[..., None]], axis=2)


def _psnr(a: Pixels, b: Pixels) -> float:
    seen = (a[..., 3] > 0) | (b[..., 3] > 0)
    error = float(np.mean((a[seen].astype(np.float32) / 255.0 - b[seen].astype(np.float32) / 255.0) ** 2))
    return -10.0 * math.log10(max(error, 1e-10))
