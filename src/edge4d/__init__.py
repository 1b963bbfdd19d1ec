"""edge4d: feed-forward 4D Gaussian scenes from a photograph, on the machine in front of you.

    import edge4d
    pipeline = edge4d.load("street")
    scene = pipeline.generate("photo.jpg")
    edge4d.render(scene, camera="drive", frames=24, fps=12).save("out.mp4")

Everything is imported when it is first used: `import edge4d` needs NumPy alone.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from edge4d.runtime.camera import Camera as Camera
    from edge4d.runtime.errors import Edge4DError as Edge4DError
    from edge4d.runtime.load import load as load
    from edge4d.runtime.player import Player as Player
    from edge4d.runtime.renderer import Renderer as Renderer
    from edge4d.runtime.renderer import render as render
    from edge4d.runtime.scene import Scene4D as Scene4D
    from edge4d.runtime.trajectories import CameraPath as CameraPath
    from edge4d.runtime.trajectories import Keyframes as Keyframes
    from edge4d.runtime.trajectories import trajectory as trajectory

_MODULES = {
    "Camera": "camera",
    "CameraPath": "trajectories",
    "Edge4DError": "errors",
    "Keyframes": "trajectories",
    "Player": "player",
    "Renderer": "renderer",
    "Scene4D": "scene",
    "load": "load",
    "render": "renderer",
    "trajectory": "trajectories",
}

__all__ = [*_MODULES, "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'edge4d' has no attribute '{name}'")
    return getattr(importlib.import_module(f"edge4d.runtime.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
