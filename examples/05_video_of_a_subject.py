"""A video of one subject, and Gaussians of it as the first frame shows it, become an object to be seen from all sides.

python examples/05_video_of_a_subject.py [VIDEO GAUSSIANS.ply]
"""

import sys
from pathlib import Path

import edge4d

folder = Path(__file__).parent
video, gaussians = sys.argv[1:] or (folder / "bird.mp4", folder / "bird.ply")
with edge4d.load("animals") as pipeline:
    scene = pipeline.generate(video, canonical=gaussians, steps=16)
    print(pipeline.camera_source)
edge4d.render(scene, camera="turntable").save("out/bird.mp4")
print("out/bird.mp4")
