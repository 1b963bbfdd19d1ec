"""A camera path of one's own: smooth through keyframes, at constant speed.

python examples/03_steer_through_keyframes.py [PHOTO]
"""

import sys
from pathlib import Path

import numpy as np

import edge4d

photo = sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parent / "street.png"
scene = edge4d.load("street").generate(photo)
poses = np.tile(np.eye(4), (4, 1, 1))
poses[:, :3, 3] = [(0, 0, 0), (0.5, 0, 1), (-0.5, -0.2, 2), (0, 0, 3)]
path = edge4d.Keyframes(poses).path(scene.camera, frames=36, fps=12)
edge4d.render(scene, camera=path, fps=12).save("out/keyframes.mp4")
print("out/keyframes.mp4")
