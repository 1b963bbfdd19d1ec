"""Inside a control loop: one camera frame in, the views that candidate movements would give, as arrays.

python examples/02_views_in_a_loop.py [PHOTO]
"""

import sys
from pathlib import Path

import numpy as np

import edge4d

photo = sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parent / "street.png"
with edge4d.load("street") as pipeline:
    scene = pipeline.generate(photo)
renderer = edge4d.Renderer(scene, outputs=("image", "depth"))
for sideways in (-0.5, 0.0, 0.5):
    pose = np.eye(4)  # camera to world, relative to the photograph's camera: x right, y down, z forward
    pose[:3, 3] = (sideways, 0.0, 1.0)
    frame = renderer.render(scene.camera.with_pose(pose), t=0.5)
    height, width = frame.depth.shape
    ahead = frame.depth[height // 3 : 2 * height // 3, width // 3 : 2 * width // 3]
    print(f"half a second on, {sideways:+.1f} m to the right: {np.median(ahead):.1f} m of free space ahead")
