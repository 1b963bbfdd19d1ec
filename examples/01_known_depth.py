"""A simulator or a depth camera knows more than a photograph: depth in metres, and which pixels can move.

The network then moves what has an id, and puts every pixel at its depth. Here a wall and one box stand in for a sensor.

    python examples/01_known_depth.py
"""

import numpy as np

import edge4d

width, height = 448, 256
image = np.full((height, width, 3), 120, np.uint8)
image[::16] = image[:, ::16] = 90
depth = np.full((height, width), 12.0, np.float32)
instances = np.zeros((height, width), np.int32)
box = (slice(120, 200), slice(180, 260))
image[box], depth[box], instances[box] = (200, 60, 40), 6.0, 1

pipeline = edge4d.load("street")
scene = pipeline.generate(image, depth=depth, instances=instances, intrinsics=(400.0, 400.0, 224.0, 128.0))
print(f"{len(scene)} Gaussians, {(scene.groups == 1).sum()} of them in the box")
edge4d.render(scene, camera="spiral", frames=24, fps=12).save("out/known_depth.mp4", depth="out/known_depth_depth.mp4")
print("out/known_depth.mp4")
