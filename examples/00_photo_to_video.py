"""A photograph becomes a scene; the scene is filmed along two camera paths.

python examples/00_photo_to_video.py [PHOTO]
"""

import sys
from pathlib import Path

import edge4d

photo = sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parent / "street.png"
pipeline = edge4d.load("street")
scene = pipeline.generate(photo)
for name in ("drive", "orbit"):
    edge4d.render(scene, camera=name, frames=24, fps=12).save(f"out/{name}.mp4")
    print(f"out/{name}.mp4")
