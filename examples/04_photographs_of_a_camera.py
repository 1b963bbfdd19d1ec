"""Photographs that follow each other, as a camera gives them: each becomes a scene that never leaves the GPU, and is
seen half a second on, one metre ahead. Needs a GPU with TensorRT.

python examples/04_photographs_of_a_camera.py [PHOTO ...]
"""

import sys
import time
from pathlib import Path

import numpy as np

import edge4d

photos = sys.argv[1:] or [Path(__file__).parent / "street.png"] * 3
with edge4d.load("street", backend="tensorrt", precision="fp16") as pipeline:
    live = pipeline.live()  # engines, memory and CUDA graphs, made once
    renderer = edge4d.Renderer(live.scene, outputs=("image",))
    ahead = np.eye(4)  # camera to world, relative to the photograph's camera: x right, y down, z forward
    ahead[2, 3] = 1.0
    for photo in photos:
        begin = time.perf_counter()
        scene = live.generate(photo)
        frame = renderer.render(scene.camera.with_pose(ahead), t=0.5)
        print(f"{photo}: {1e3 * (time.perf_counter() - begin):.1f} ms to {frame.image.shape}")
