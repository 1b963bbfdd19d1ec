"""Systems by name: each is the chain of stages that makes a scene with one kind of bundle."""

from __future__ import annotations

import importlib
from typing import Any

from edge4d.runtime.errors import InvalidBundle

SYSTEMS = {
    "gvf_diffusion": ("edge4d.runtime.systems.gvf_diffusion", "GvfDiffusion"),
    "pixel_to_4d": ("edge4d.runtime.systems.pixel_to_4d", "PixelTo4D"),
}


def system(name: str) -> Any:
    """The class that runs bundles of this system. Raises InvalidBundle for an unknown one."""
    if name not in SYSTEMS:
        raise InvalidBundle(
            f"This version of edge4d cannot run the system '{name}'.",
            note=f"It runs {', '.join(SYSTEMS)}.",
            hint="Use a newer edge4d.",
        )
    module, cls = SYSTEMS[name]
    return getattr(importlib.import_module(module), cls)
