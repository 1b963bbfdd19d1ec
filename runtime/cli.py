"""The command line, `edge4d`.

Errors of edge4d are printed as they are, three lines without a traceback, and end with exit code 1; wrong usage ends
with 2. Results go to standard output, progress and tables to standard error.
"""

# No `from __future__ import annotations`: on Python 3.9 typer cannot see through annotations that are strings.
import importlib
import inspect
import json
import math
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Callable, Optional

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

import edge4d
from edge4d.runtime.errors import BackendUnavailable, Edge4DError, InvalidRequest
from edge4d.runtime.timings import StageTime, tensor_size

app = typer.Typer(
    name="edge4d",
    help="From one photograph to a camera-controlled 4D video.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode=None,
)
_screen = Console(stderr=True)


def main(arguments: Optional[Sequence[str]] = None) -> None:
    """Runs the command line and exits; `arguments` without the program's name."""
    try:
        app(args=None if arguments is None else list(arguments))
    except Edge4DError as error:
        print(error, file=sys.stderr)
        sys.exit(1)


# --- options ----------------------------------------------------------------------------------------------------------


def _size(text: Optional[str]) -> Optional[tuple[int, int]]:
    if text is None:
        return None
    try:
        width, height = (int(side) for side in text.lower().split("x"))
    except ValueError:
        raise typer.BadParameter(f"'{text}' is not WIDTHxHEIGHT, such as 448x256") from None
    return width, height


def _numbers(text: Optional[str], names: str) -> Optional[tuple[float, ...]]:
    if text is None:
        return None
    try:
        numbers = tuple(float(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    if len(numbers) != len(names.split(",")):
        raise typer.BadParameter(f"'{text}' is not {names}")
    return numbers


def _colour(text: Optional[str]) -> Any:
    return _numbers(text, "r,g,b")


Output = Annotated[Path, typer.Option("--output", "-o", metavar="OUT", help="A .mp4 file, or a folder for PNG frames.")]
Bundle = Annotated[str, typer.Option(metavar="NAME|DIR", help="A bundle that comes with edge4d, or the folder of one.")]
Backend = Annotated[
    str,
    typer.Option(
        metavar="auto|onnxruntime|cuda|tensorrt",
        help="onnxruntime: all on the CPU; cuda: the GPU draws; tensorrt: networks run there too.",
    ),
]
RenderEngine = Annotated[
    bool, typer.Option("--render-engine", help="Draw by a TensorRT engine, with our rasterizer as a plugin.")
]
Precision = Annotated[
    Optional[str], typer.Option(metavar="fp32|fp16|int8", help="The bundle's variant; its first one if not given.")
]
Size = Annotated[Optional[str], typer.Option(metavar="WxH", help="Width and height in pixels.")]
Frames = Annotated[
    Optional[int], typer.Option(metavar="N", help="Frames of the video; as long as the scene, or all of a camera file.")
]
Fps = Annotated[Optional[float], typer.Option(metavar="F", help="Frames per second; the scene's own if not given.")]
Background = Annotated[Optional[str], typer.Option(metavar="R,G,B", help="Colour behind the scene, parts from 0 to 1.")]
CameraName = Annotated[
    str,
    typer.Option(
        "--camera",
        metavar="NAME|FILE|DIR",
        help="static, drive, orbit, turntable, dolly, pan or spiral, or poses: KITTI, TUM, COLMAP, RealEstate10K, "
        "nerfstudio.",
    ),
]
SceneCamera = Annotated[
    Optional[str],
    typer.Option(
        "--camera",
        metavar="NAME|FILE|DIR",
        help="As in `edge4d render`; drive after a photograph and static after a video if not given.",
    ),
]
CameraFormat = Annotated[
    Optional[str], typer.Option(metavar="FORMAT", help="Of the poses; found out from the file if not given.")
]
CameraScale = Annotated[float, typer.Option(metavar="S", help="Metres per unit of the poses' positions.")]
DepthVideo = Annotated[
    Optional[Path], typer.Option(metavar="OUT", help="Also write the depth in colours: a .mp4 file or a folder.")
]

_SYSTEMS = {"pixel_to_4d": "street", "gvf_diffusion": "animals"}
"""What can be exported and trained, each with its configuration if none is named."""
_SYSTEM_NAMES = " or ".join(_SYSTEMS).replace("_", "-")

_SHOWN_TENSORS = 9  # of a stage; some give dozens of one kind


# --- commands ---------------------------------------------------------------------------------------------------------


@app.command(epilog="Example: edge4d generate photo.jpg --camera orbit --frames 48 -o out.mp4")
def generate(
    output: Output,
    source: Annotated[
        Optional[Path],
        typer.Argument(
            metavar="PHOTO|VIDEO",
            help="A photograph: JPEG, PNG, WebP, TIFF, BMP, GIF, PPM; or, for bundles of gvf_diffusion, a video or a "
            "folder of frames.",
        ),
    ] = None,
    bundle: Bundle = "street",
    camera: SceneCamera = None,
    camera_format: CameraFormat = None,
    camera_scale: CameraScale = 1.0,
    frames: Frames = None,
    fps: Fps = None,
    size: Size = None,
    seed: Annotated[
        Optional[int], typer.Option(metavar="N", help="Which plausible motion; the most likely if not given.")
    ] = None,
    save_scene: Annotated[
        Optional[Path],
        typer.Option(metavar="FILE", help="Also save the scene: .safetensors, .ply, or a folder of .ply."),
    ] = None,
    depth_video: DepthVideo = None,
    backend: Backend = "auto",
    precision: Precision = None,
    render_engine: RenderEngine = False,
    background: Background = None,
    depth: Annotated[
        Optional[Path], typer.Option(metavar="FILE", help="Photograph: known depth, .npy in metres or a 16-bit PNG.")
    ] = None,
    depth_scale: Annotated[
        Optional[float], typer.Option(metavar="S", help="Photograph: metres per unit of --depth.")
    ] = None,
    instances: Annotated[
        Optional[Path], typer.Option(metavar="FILE", help="Photograph: known ids of what can move, PNG or .npy.")
    ] = None,
    intrinsics: Annotated[
        Optional[str], typer.Option(metavar="FX,FY,CX,CY", help="Photograph: of the whole of it, in pixels.")
    ] = None,
    fov: Annotated[Optional[float], typer.Option(metavar="DEG", help="Photograph: degrees across it, instead.")] = None,
    temperature: Annotated[
        Optional[float], typer.Option(metavar="T", help="Photograph: how far seeds may differ; 1 with a seed.")
    ] = None,
    canonical: Annotated[
        Optional[Path], typer.Option(metavar="FILE", help="Video: a .ply of the subject as the first frame shows it.")
    ] = None,
    up: Annotated[Optional[str], typer.Option(metavar="z|y|-y", help="Video: which axis points up in it; z.")] = None,
    azimuth: Annotated[
        Optional[float], typer.Option(metavar="DEG", help="Video: where it sees the .ply from; found if not given.")
    ] = None,
    masks: Annotated[
        Optional[Path],
        typer.Option(metavar="DIR|FILE", help="Video: white where the subject is; else its background is plain."),
    ] = None,
    seconds: Annotated[
        Optional[float], typer.Option(metavar="S", help="Video: how much of it; all if not given.")
    ] = None,
    source_fps: Annotated[
        Optional[float], typer.Option(metavar="F", help="Video: of a folder of frames or meshes.")
    ] = None,
    mesh: Annotated[
        Optional[Path],
        typer.Option(metavar="FILE.glb|DIR", help="Instead of a video: a mesh that moves, or .ply files."),
    ] = None,
    anchors: Annotated[
        Optional[int], typer.Option(metavar="N", help="Video: decode so many Gaussians, interpolate the others.")
    ] = None,
    steps: Annotated[
        Optional[int], typer.Option(metavar="N", help="Video: of the sampler, such as 16; as it needs if not given.")
    ] = None,
) -> None:
    """Make a scene, and a video of it along a camera path.

    Of a photograph: its middle is cropped to the aspect of --size. The focal length is taken from
    --intrinsics, --fov or EXIF; without any of them 60 degrees across are assumed, and said.

    Of a video (bundles of gvf_diffusion): Gaussians of its subject move as the subject does, or as a mesh does
    (--mesh). They are given (--canonical), or made of the first frame by bundles that can.
    """
    _check_targets(output, depth_video)
    if render_engine:
        from edge4d.runtime.render_engine import check

        check(backend)  # before the network runs
    if (source is None) == (mesh is None):
        raise typer.BadParameter("give a photograph or a video, or --mesh, one of them")
    _check_path(camera, frames, fps)
    pipeline = edge4d.load(bundle, backend=backend, precision=precision)
    make = pipeline.animate if mesh is not None and hasattr(pipeline, "animate") else pipeline.generate
    options = _taken_options(
        pipeline,
        make,
        depth=depth,
        depth_scale=depth_scale,
        instances=instances,
        intrinsics=_numbers(intrinsics, "fx,fy,cx,cy"),
        fov=fov,
        temperature=temperature,
        canonical=canonical,
        up=up,
        azimuth=azimuth,
        masks=masks,
        seconds=seconds,
        source_fps=source_fps,
        mesh=mesh,
        anchors=anchors,
        steps=steps,
        seed=seed,
        size=_size(size),
        background=_colour(background),
    )
    with _progress("Making the scene"):
        scene = make(*filter(None, [source]), **options)
    video = edge4d.render(
        scene,
        camera or pipeline.trajectory,
        frames=frames,
        fps=fps,
        camera_format=camera_format,
        camera_scale=camera_scale,
        backend=backend,
        as_engine=render_engine,
    )
    if save_scene is not None:
        _save_scene(scene, save_scene, video.path.times)
    stages = pipeline.timings.stages + _save(video, output, depth_video)
    _screen.print(_times_table(stages, len(video)))
    fx, fy, cx, cy = scene.camera.intrinsics
    _screen.print(f"Camera: fx {fx:.1f}, fy {fy:.1f}, cx {cx:.1f}, cy {cy:.1f} ({pipeline.camera_source})")
    if scene.t1 == scene.t0:
        _screen.print("The scene stands still: it was made of one frame.")
    for path in (output, depth_video, save_scene):
        if path is not None:
            print(path)


def _check_path(camera: Optional[str], frames: Optional[int], fps: Optional[float]) -> None:
    """Refuses what no video can be filmed along, before networks run for minutes."""
    from edge4d.runtime.renderer import check_camera
    from edge4d.runtime.trajectories import check_times

    if camera is not None:
        check_camera(camera)
    if frames is not None:
        check_times(frames=frames)
    if fps is not None:
        check_times(fps=fps)


def _taken_options(pipeline: Any, make: Callable[..., Any], **options: Any) -> dict[str, Any]:
    """The options that were given, once it is certain that this method of the pipeline takes them."""
    given = {name: value for name, value in options.items() if value is not None}
    takes = [name for name in inspect.signature(make).parameters if name in options]
    for name in given:
        if name not in takes:
            raise InvalidRequest(
                f"{_flag(name)} means nothing to the bundle '{pipeline.bundle.name}' here.",
                note=f"Its system, {pipeline.bundle.system}, takes {', '.join(map(_flag, takes))}.",
                hint="Leave it out, or use another --bundle.",
            )
    return given


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


@app.command(epilog="Example: edge4d render scene.safetensors --camera spiral --size 896x512 -o out.mp4")
def render(
    scene: Annotated[Path, typer.Argument(metavar="SCENE", help="A scene.safetensors of edge4d, or a 3DGS .ply.")],
    output: Output,
    camera: CameraName = "drive",
    camera_format: CameraFormat = None,
    camera_scale: CameraScale = 1.0,
    frames: Frames = None,
    fps: Fps = None,
    size: Size = None,
    depth_video: DepthVideo = None,
    backend: Backend = "auto",
    render_engine: RenderEngine = False,
    background: Background = None,
) -> None:
    """Make a video of a scene along a camera path."""
    _check_targets(output, depth_video)
    video = edge4d.render(
        _read_scene(scene),
        camera,
        frames=frames,
        fps=fps,
        size=_size(size),
        background=_colour(background),
        camera_format=camera_format,
        camera_scale=camera_scale,
        backend=backend,
        as_engine=render_engine,
    )
    _screen.print(_times_table(_save(video, output, depth_video), len(video)))
    for path in (output, depth_video):
        if path is not None:
            print(path)


@app.command(epilog="Example: edge4d info street")
def info(
    what: Annotated[str, typer.Argument(metavar="WHAT", help="A bundle's name or folder, a scene, or a .ply.")],
) -> None:
    """Say what is in a bundle or a scene."""
    scene = what.endswith((".safetensors", ".ply"))
    for line in _scene_lines(Path(what)) if scene else _bundle_lines(what):
        print(line)


@app.command(epilog="Example: edge4d evaluate street --world street --count 16 --seed 7 --json -")
def evaluate(
    bundle: Annotated[str, typer.Argument(metavar="BUNDLE", help="A bundle's name or folder.")] = "street",
    world: Annotated[
        Optional[str],
        typer.Option(
            metavar="NAME", help="Make this world first (needs edge4d[export]); the bundle's own if not given."
        ),
    ] = None,
    count: Annotated[int, typer.Option(metavar="N", help="How many photographs or animals of that world.")] = 16,
    seed: Annotated[int, typer.Option(metavar="N", help="Which ones.")] = 7,
    data: Annotated[
        Optional[Path], typer.Option(metavar="DIR", help="Read a world that `edge4d world` wrote, instead.")
    ] = None,
    json_to: Annotated[
        Optional[str], typer.Option("--json", metavar="FILE|-", help="Write the figures as one object.")
    ] = None,
    frames: Annotated[Optional[int], typer.Option(metavar="N", help="Frames of each, a photograph included.")] = None,
    fps: Annotated[Optional[float], typer.Option(metavar="F", help="Of the world that is made.")] = None,
    size: Annotated[Optional[str], typer.Option(metavar="WxH", help="Of the world that is made.")] = None,
    background: Background = None,
    backend: Backend = "auto",
    precision: Precision = None,
) -> None:
    """Compare what a bundle foresees with what a world it never saw then shows.

    Of photographs, along a camera's path; of objects (bundles of gvf_diffusion), from four sides at each time.
    """
    if world is not None and data is not None:
        raise typer.BadParameter("give --world NAME or --data DIR, not both")
    if data is not None and (fps is not None or size is not None):
        raise typer.BadParameter("--fps and --size belong to --world; a folder of --data has its own")
    pipeline = edge4d.load(bundle, backend=backend, precision=precision)
    with tempfile.TemporaryDirectory(prefix="edge4d-") as temporary:
        folder = data or Path(temporary, "world")
        if data is None:
            config = pipeline.bundle.config
            world = world or _own_world(pipeline.bundle)
            made_size = _size(size) or tuple(config["size"])
            _write_world(world, folder, count, seed, made_size, frames or config["frames"], fps or config["fps"])
        figures = _scores(pipeline, folder, frames, _colour(background), backend)
    _screen.print(_figures_table(figures))
    if json_to is not None:
        _write_json(figures, json_to)


@app.command(epilog="Example: edge4d world street --count 4 --seed 7 -o worlds/street")
def world(
    name: Annotated[str, typer.Argument(metavar="NAME", help="street or animals")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="A new folder.")],
    count: Annotated[int, typer.Option(metavar="N", help="How many photographs, or animals.")] = 16,
    seed: Annotated[int, typer.Option(metavar="N", help="Which ones.")] = 7,
    size: Annotated[
        Optional[str], typer.Option(metavar="WxH", help="Width and height in pixels; the world's own if not given.")
    ] = None,
    frames: Annotated[int, typer.Option(metavar="N", help="Frames of each, a photograph included.")] = 24,
    fps: Annotated[float, typer.Option(metavar="F", help="Frames per second.")] = 12.0,
) -> None:
    """Write a procedural world, and what is truly seen of it. Needs edge4d[export].

    Of streets there are photographs, and what is seen later; of animals videos from the front, what other cameras see,
    meshes, and the Gaussians of the first frame.
    """
    _write_world(name, output, count, seed, _size(size), frames, fps)
    print(output)


@app.command(epilog="Example: edge4d export gvf-diffusion --config paper --checkpoint weights -o paper.e4d")
def export(
    system: Annotated[str, typer.Argument(metavar="SYSTEM", help=_SYSTEM_NAMES)],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="The bundle's folder, NAME.e4d.")],
    config: Annotated[
        Optional[str],
        typer.Option(metavar="NAME", help=f"Sizes of the networks; {' or '.join(_SYSTEMS.values())} if not given."),
    ] = None,
    checkpoint: Annotated[
        Optional[Path], typer.Option(metavar="FILE|DIR", help="The weights; random ones if not given.")
    ] = None,
) -> None:
    """Turn a PyTorch model into a bundle. Needs edge4d[export].

    Configurations of pixel-to-4d: street, tiny, paper; of gvf-diffusion: animals, animals-tiny, paper, tiny.

    The official weights of gvf-diffusion's paper are files in one folder, as published: ema_diffusion_*,
    ema_deformation_*, static_* and deformation_* of GVFDiffusion, dinov2_vitl14_reg4_pretrain.pth of DINOv2; and, for
    bundles that make Gaussians of a picture, ema_static_vae_* and the folder ckpts of TRELLIS-image-large.
    """
    name = _module_name(system)
    with _progress("Exporting"):
        model = _export_module(f"models.{name}").build(config or _SYSTEMS[name], checkpoint)
        _export_module("bundle_from_model").bundle_from_model(model, output, **model.description())
    print(output)


@app.command(epilog="Example: edge4d train pixel-to-4d --config tiny --device cpu --steps 2 -o out/train")
def train(
    system: Annotated[str, typer.Argument(metavar="SYSTEM", help=_SYSTEM_NAMES)],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="Folder for checkpoint and log.")],
    config: Annotated[
        Optional[str],
        typer.Option(metavar="NAME", help=f"Sizes of the network; {' or '.join(_SYSTEMS.values())} if not given."),
    ] = None,
    device: Annotated[str, typer.Option(metavar="cuda|cpu", help="cpu is slow, and good for a try.")] = "cuda",
    steps: Annotated[int, typer.Option(metavar="N", help="Length of the training.")] = 10_000,
    minutes: Annotated[
        Optional[float], typer.Option(metavar="M", help="Leave off after so long; --resume goes on.")
    ] = None,
    batch: Annotated[
        Optional[int], typer.Option(metavar="N", help="Scenes per step: 16 streets or 30 animals if not given.")
    ] = None,
    seed: Annotated[int, typer.Option(metavar="N", help="Of weights and data.")] = 0,
    resume: Annotated[Optional[Path], typer.Option(metavar="FILE", help="Go on from this training.pt.")] = None,
    refine: Annotated[
        Optional[Path],
        typer.Option(
            metavar="FILE",
            help="Start from this checkpoint; keep how it sees (pixel-to-4d) or codes (gvf-diffusion), learn motion.",
        ),
    ] = None,
) -> None:
    """Train a network on its world. Needs edge4d[export], and edge4d[train] for CUDA."""
    name = _module_name(system)
    trainer = _export_module(f"train.{name}")
    trainer.train(
        config or _SYSTEMS[name],
        out=output,
        device=device,
        steps=steps,
        minutes=math.inf if minutes is None else minutes,
        **({} if batch is None else {"batch": batch}),
        seed=seed,
        resume=resume,
        refine=refine,
    )
    print(output)


@app.command(epilog="Example: edge4d calibrate street --data world:street --samples 32 -o street-int8.e4d")
def calibrate(
    bundle: Annotated[str, typer.Argument(metavar="BUNDLE", help="A bundle's name, or the folder of one.")],
    data: Annotated[
        str,
        typer.Option(
            metavar="DIR|world:NAME",
            help="Photographs, or what `edge4d world` wrote; world:street makes one (needs edge4d[export]).",
        ),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="The bundle's folder, NAME.e4d; it may be BUNDLE's.")
    ],
    samples: Annotated[int, typer.Option(metavar="N", min=1, help="How many photographs.")] = 128,
    method: Annotated[
        str, typer.Option(metavar="minmax|entropy|percentile", help="How ranges are chosen.")
    ] = "percentile",
    smooth: Annotated[
        Optional[float],
        typer.Option(metavar="A", help="SmoothQuant's alpha, 0 to 1, for matrix products; off if not given."),
    ] = None,
    keep_above: Annotated[
        str, typer.Option(metavar="DB", help="How near the video stays to fp32's; layers stay float for it.")
    ] = "40dB",
    seed: Annotated[int, typer.Option(metavar="N", help="Of the world that is made.")] = 1234,
) -> None:
    """Make a bundle's int8 variant, and report what it costs.

    Ranges come from running the whole pipeline on photographs. Each layer is tried alone, and scored by the rendered
    video; those that cost too much stay float. A calibration that is interrupted goes on where it was. The report is
    NAME.calibration.html, beside the bundle.
    """
    from edge4d.calib.calibrate import calibrate as make
    from edge4d.calib.calibrate import check_system
    from edge4d.calib.photos import read_photos
    from edge4d.calib.report import html, truth_of
    from edge4d.calib.speed import speeds, tensorrt_backend
    from edge4d.runtime.backends import backend as backend_by_name
    from edge4d.runtime.bundle import Bundle as BundleFolder
    from edge4d.runtime.profile_files import write_text
    from edge4d.runtime.systems.pixel_to_4d import perceives

    found = BundleFolder.load(bundle)
    check_system(found)
    gpu = tensorrt_backend()
    with tempfile.TemporaryDirectory(prefix="edge4d-") as temporary:
        folder, size = Path(data), tuple(found.config["size"])
        if data.startswith("world:"):
            folder = Path(temporary, "world")
            _write_world(data.partition(":")[2], folder, samples, seed, size, 2, found.config["fps"])
        photos = read_photos(folder, samples, size, with_maps=not perceives(found))
        with _progress("Calibrating") as progress:
            made = make(
                found,
                photos,
                output,
                method=method,
                smooth=smooth,
                keep_above=_decibels(keep_above),
                tensorrt=gpu,
                report=progress,
            )
        with _progress("Measuring what it gives"):
            times = [
                speed
                for backend in (backend_by_name("onnxruntime"), gpu)
                if backend is not None
                for speed in speeds(made.bundle, backend, photos.size)
            ]
            page = html(made, times, truth_of(made, photos.world))
    report = output.with_name(f"{output.stem}.calibration.html")
    write_text(report, page)
    for warning in made.results.warnings:
        _screen.print(f"Warning: {warning}", highlight=False)
    for line in _bundle_lines(str(made.bundle.folder)):
        if line.startswith("int8"):
            _screen.print(line, highlight=False)
    print(output)
    print(report)


def _decibels(text: str) -> float:
    try:
        return float(text.lower().removesuffix("db"))
    except ValueError:
        raise typer.BadParameter(f"'{text}' is not a number of decibels, such as 40dB") from None


@app.command(epilog="Example: edge4d doctor")
def doctor() -> None:
    """Say what is installed, what works on this machine, and why the rest does not."""
    from edge4d.runtime.doctor import examine

    findings = examine()
    marks = {True: "ok", False: "MISSING", None: "-"}
    for finding in findings:
        print(f"{marks[finding.works]:8}{finding.topic:22}{finding.text}")
    if any(finding.works is False for finding in findings):
        raise typer.Exit(1)


@app.callback(invoke_without_command=True)
def _version(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        print(edge4d.__version__)
        raise typer.Exit


@app.command(epilog="Example: edge4d build street --backend tensorrt_rtx --device sm_89 --precision fp16")
def build(
    bundle: Annotated[str, typer.Argument(metavar="BUNDLE", help="A bundle's name, or the folder of one.")],
    precision: Precision = None,
    backend: Annotated[str, typer.Option(metavar="tensorrt|tensorrt_rtx", help="Who builds.")] = "tensorrt",
    device: Annotated[
        Optional[str],
        typer.Option(metavar="sm_N", help="The GPU's compute capability, if it is not here; tensorrt_rtx alone."),
    ] = None,
    level: Annotated[Optional[int], typer.Option(min=0, max=5, help="How long to look for fast kernels.")] = None,
    workspace: Annotated[
        Optional[int], typer.Option(metavar="MIB", min=1, help="Memory that layers may use on the side.")
    ] = None,
    hardware_compatible: Annotated[
        bool, typer.Option("--hardware-compatible", help="For every GPU from Ampere on; slower.")
    ] = False,
) -> None:
    """Build a bundle's engines ahead of time, into the engine cache."""
    from edge4d.runtime.bundle import Bundle as BundleFolder
    from edge4d.runtime.bundle_engines import engines, target
    from edge4d.runtime.engine_cache import EngineCache
    from edge4d.runtime.engine_from_onnx import LIBRARIES, BuildOptions

    if backend not in LIBRARIES:
        raise InvalidRequest(f"'{backend}' builds no engines.", hint=f"Use --backend {' or '.join(LIBRARIES)}.")
    found = BundleFolder.load(bundle)
    options = BuildOptions(level, workspace, hardware_compatible)
    with _progress("Building") as progress:
        made = engines(
            found,
            precision or found.precisions[0],
            target(backend, device),
            EngineCache(),
            options=options,
            report=lambda part, now: progress(now.step, now.steps),
        )
        for name, engine in made:
            told = f"built: {engine.reason}" if engine.built else "in the cache"
            _screen.print(f"{name}  {_megabytes(len(engine.data))}  {told}", highlight=False)
            if engine.path is not None:
                print(engine.path)


# --- profile ----------------------------------------------------------------------------------------------------------


@app.command(
    epilog="Example: edge4d profile street --precision fp16 --runs 100 -o profile-now --against profile-before"
)
def profile(
    bundle: Annotated[str, typer.Argument(metavar="BUNDLE", help="A bundle's name, or the folder of one.")],
    output: Annotated[
        Optional[Path], typer.Option("--output", "-o", metavar="DIR", help="Where to; profile-BUNDLE if not given.")
    ] = None,
    backend: Backend = "auto",
    precision: Annotated[
        Optional[str], typer.Option(metavar="fp32|fp16|int8", help="The bundle's variant; all of them if not given.")
    ] = None,
    size: Size = None,
    runs: Annotated[int, typer.Option(metavar="N", min=1, help="Measured runs of each stage.")] = 30,
    frames: Annotated[int, typer.Option(metavar="N", min=0, help="Frames to draw afterwards.")] = 24,
    against: Annotated[
        Optional[Path], typer.Option(metavar="DIR", help="An older profile's folder, to compare with.")
    ] = None,
) -> None:
    """Measure every stage and layer of a bundle, and how fast its scene is drawn.

    The folder then holds a report to look at (report.html), a trace for Perfetto or Chrome (trace.json), and the files
    of trtexec's --exportTimes, --exportProfile and --exportLayerInfo for every stage and precision.
    """
    from edge4d.runtime.bundle import Bundle as BundleFolder
    from edge4d.runtime.profile_files import check_folder, read_profile, write_profile, write_text
    from edge4d.runtime.profile_report import html
    from edge4d.runtime.profiler import profile_bundle

    found = BundleFolder.load(bundle)
    folder = output or Path(f"profile-{found.name}")
    check_folder(folder)
    older = None if against is None else read_profile(against)
    precisions = None if precision is None else (precision,)
    with _progress("Measuring") as progress:
        measured = profile_bundle(
            found,
            backend,
            precisions=precisions,
            size=_size(size),
            runs=runs,
            frames=frames,
            report=progress,
        )
    write_profile(measured, folder)
    write_text(folder / "report.html", html(measured, older))
    _screen.print(_profile_table(measured, older))
    if measured.render_ms:
        _screen.print(_frames_line(measured, older), highlight=False)
    print(folder)
    print(folder / "report.html")


def _profile_table(profile: Any, older: Any) -> Table:
    """A row for each stage and precision; the ratio is to the older profile's P50, below 1 is faster."""
    from edge4d.runtime.profile_statistics import percentile

    on_gpu = any(stage.gpu_runs for stage in profile.stages)
    columns = ["P50 ms", "P95 ms", "P99 ms", *(["GPU ms", "engine MB"] if on_gpu else ["weights MB"])]
    table = Table("stage", "", *columns, box=None, pad_edge=False)
    for column in table.columns[2:]:
        column.justify = "right"
    if older is not None:
        table.add_column("ratio", justify="right")
    table.add_column("longest layers")
    before = {} if older is None else {(stage.name, stage.precision): stage.runs_ms for stage in older.stages}
    for stage in profile.stages:
        cells = [stage.name, stage.precision, *(f"{percentile(stage.runs_ms, p):.2f}" for p in (50, 95, 99))]
        if on_gpu:
            cells.append(f"{statistics.median(run.compute_ms for run in stage.gpu_runs):.2f}")
        cells.append(f"{(stage.engine_bytes if on_gpu else stage.weights_bytes) / 1e6:.1f}")
        if older is not None:
            cells.append(_ratio(stage.runs_ms, before.get((stage.name, stage.precision), ())))
        table.add_row(*cells, _longest_layers(stage.layers))
    return table


def _longest_layers(layers: Any) -> Text:
    """The three that take most, with their shares of all; of long names the end, which tells layers apart."""
    total = sum(layer.ms for layer in layers) or 1.0
    longest = sorted(layers, key=lambda layer: layer.ms, reverse=True)[:3]
    names = (layer.name if len(layer.name) <= 16 else f"…{layer.name[-15:]}" for layer in longest)
    lines = (f"{100 * layer.ms / total:2.0f} % {_printable(name)}" for name, layer in zip(names, longest))
    return Text("\n".join(lines))


def _frames_line(profile: Any, older: Any) -> str:
    ratio = "" if older is None else f", ratio {_ratio(profile.render_ms, older.render_ms)}"
    return f"Frames: {1e3 / statistics.median(profile.render_ms):.1f} frames/s{ratio}"


def _ratio(times: Sequence[float], before: Sequence[float]) -> str:
    """Of the medians; - where there was nothing to compare with."""
    median = statistics.median(before) if before else 0.0
    return f"{statistics.median(times) / median:.2f}" if median else "-"


# --- the engine cache -------------------------------------------------------------------------------------------------

_cache_commands = typer.Typer(
    help="Engines that were built for this machine, kept in $EDGE4D_CACHE (or ~/.cache/edge4d).",
    no_args_is_help=True,
    rich_markup_mode=None,
)
app.add_typer(_cache_commands, name="cache")


@_cache_commands.command("list", epilog="Example: edge4d cache list")
def cache_list() -> None:
    """List the engines, the last used first."""
    from edge4d.runtime.engine_cache import EngineCache

    cache = EngineCache()
    entries = cache.entries()
    rows = [("name", "precision", "builder", "device", "size", "last used", "built"), *map(_cache_row, entries)]
    if entries:
        widths = [max(map(len, column)) for column in zip(*rows)]
        for row in rows:
            print("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())
    print(f"{_count(len(entries))}, {_megabytes(sum(entry.bytes for entry in entries))}, in {cache.folder}")


@_cache_commands.command("clear", epilog="Example: edge4d cache clear")
def cache_clear() -> None:
    """Remove all engines; they are built again when they are needed."""
    from edge4d.runtime.engine_cache import EngineCache

    cache = EngineCache()
    cleared = cache.clear()
    print(f"Removed {_count(cleared.engines)}, {_megabytes(cleared.bytes)}, from {cache.folder}")
    if cleared.busy:
        print(f"Left {_count(cleared.busy)} that another process is building.")


def _cache_row(entry: Any) -> tuple[str, ...]:
    manifest = entry.manifest()
    if manifest is None:
        told, built = (entry.path.name, "-", "-", "-"), "-"
    else:
        key = manifest.key
        told, built = (key.name, key.precision, key.builder, key.device), manifest.built[:16].replace("T", " ")
    try:
        used = datetime.fromtimestamp(entry.last_used).isoformat(" ", "minutes")
    except (OverflowError, ValueError):  # a file's date may be any number
        used = "-"
    return tuple(map(_printable, (*told, _megabytes(entry.bytes), used, built)))


def _printable(text: str) -> str:
    """Without what moves a terminal's cursor or has no place in a line: the text may be anybody's."""
    return "".join(letter if letter.isprintable() else "?" for letter in text[:120])


def _printable_line(text: str) -> str:
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def _count(engines: int) -> str:
    return f"{engines} engine{'s' * (engines != 1)}"


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB"


# --- what commands share ----------------------------------------------------------------------------------------------


@contextmanager
def _progress(text: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on a terminal; gives a function of (done, total)."""
    columns = (SpinnerColumn(), TextColumn(text), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=_screen, transient=True, disable=not _screen.is_terminal) as progress:
        task = progress.add_task(text, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


def _check_targets(*paths: Optional[Path]) -> None:
    """Refuses outputs that cannot be written before any work is done for them."""
    from edge4d.runtime.video import check_target

    for path in paths:
        if path is not None:
            check_target(path)


def _save(video: Any, output: Path, depth_video: Optional[Path]) -> list[StageTime]:
    with _progress("Rendering") as progress:
        times = video.save(output, depth=depth_video, progress=progress)
    width, height = video.size
    frames = {"frames": tensor_size((len(video), height, width, 3), "uint8")}
    return [StageTime("render", times.render, frames), StageTime("write", times.write)]


def _times_table(stages: Sequence[StageTime], frames: int) -> Table:
    table = Table("stage", "seconds", "tensors", box=None, pad_edge=False)
    table.columns[1].justify = "right"
    for stage in stages:
        tensors = [f"{name} {size}" for name, size in stage.tensors.items()]
        more = len(tensors) - _SHOWN_TENSORS
        if more > 0:
            tensors[_SHOWN_TENSORS:] = [f"{more} more"]
        table.add_row(stage.name, f"{stage.seconds:.2f}", ", ".join(tensors))
    rendering = next(stage.seconds for stage in stages if stage.name == "render")
    table.add_row(
        "total", f"{sum(stage.seconds for stage in stages):.2f}", f"{frames / rendering:.1f} frames/s rendered"
    )
    return table


def _figures_table(figures: dict[str, Any]) -> Table:
    table = Table("figure", "value", box=None, pad_edge=False)
    for name, value in figures.items():
        table.add_row(name, str(value))
    return table


def _read_scene(path: Path) -> Any:
    if path.suffix == ".ply":
        from edge4d.runtime.ply import read_ply

        return read_ply(path)
    return edge4d.Scene4D.load(path)


def _save_scene(scene: Any, path: Path, times: Any) -> None:
    """One lossless file, a PLY of the photograph's moment, or a PLY for every frame."""
    from edge4d.runtime.ply import write_ply, write_ply_sequence

    if path.suffix == ".safetensors":
        scene.save(path)
    elif path.suffix == ".ply":
        write_ply(path, scene.evaluate(0.0))
    elif not path.suffix:
        write_ply_sequence(path, scene, times)
    else:
        raise InvalidRequest(
            f"Scenes are not saved as {path.suffix}.", note=f"The file is {path}.", hint="Use .safetensors or .ply."
        )


def _scene_lines(path: Path) -> Iterator[str]:
    scene = _read_scene(path)
    colours = "RGB" if scene.sh_degree < 0 else f"spherical harmonics of degree {scene.sh_degree}"
    moving = len(set(scene.groups[scene.groups > 0].tolist()))
    yield f"scene       {path}, made by {scene.source or 'unknown'}"
    yield f"Gaussians   {len(scene)}, {colours}"
    yield f"motion      {', '.join(term.kind for term in scene.motion) or 'none'}; {moving} moving groups"
    yield f"time        {scene.t0:g} to {scene.t1:g} s, made for {scene.fps:g} frames per second"
    fx, fy, cx, cy = scene.camera.intrinsics
    yield f"camera      {scene.camera.width}x{scene.camera.height}, fx {fx:.1f}, fy {fy:.1f}, cx {cx:.1f}, cy {cy:.1f}"
    yield f"lengths     {'metres' if scene.metric else 'up to an unknown factor'}"


def _bundle_lines(name: str) -> Iterator[str]:
    from edge4d.runtime.bundle import Bundle

    bundle = Bundle.load(name)
    size = sum(entry.bytes for entry in bundle.files.values())
    yield f"bundle      {bundle.name}, {bundle.folder}"
    yield f"system      {bundle.system}, {json.dumps(dict(bundle.config))}"
    yield f"precisions  {', '.join(bundle.precisions)}; {size / 1e6:.1f} MB in {len(bundle.files)} files"
    for stage in bundle.stages.values():
        for word, tensors in (("takes", stage.inputs), ("gives", stage.outputs)):
            shapes = ", ".join(f"{tensor.name} {list(tensor.shape)} {tensor.dtype}" for tensor in tensors)
            yield f"stage       {stage.name} {word} {shapes}"
    if "int8" in bundle.precisions:
        from edge4d.runtime.calibration_file import summary_lines

        yield from map(_printable_line, summary_lines(bundle))
    yield f"licence     {bundle.licence}"
    yield f"provenance  {json.dumps(dict(bundle.provenance))}"


def _write_json(figures: dict[str, Any], path: str) -> None:
    text = json.dumps(figures, indent=2)
    if path == "-":
        print(text)
        return
    try:
        Path(path).write_text(text + "\n")
    except OSError as error:
        raise InvalidRequest(f"Cannot write {path}.", note=str(error), hint="Choose a folder that exists.") from error


def _scores(
    pipeline: Any, folder: Path, frames: Optional[int], background: Optional[tuple[float, float, float]], backend: str
) -> dict[str, Any]:
    """What the evaluation of the bundle's system finds on a world."""
    from edge4d.runtime.evaluate import evaluate as evaluate_photographs
    from edge4d.runtime.evaluate_objects import evaluate_objects
    from edge4d.runtime.object_world_files import ObjectWorld
    from edge4d.runtime.world_files import World

    with _progress("Evaluating") as progress:
        if pipeline.bundle.system == "gvf_diffusion":
            if background is not None:
                raise typer.BadParameter("objects are compared on white; --background belongs to photographs")
            return evaluate_objects(
                pipeline, ObjectWorld.load(folder), frames=frames, backend=backend, progress=progress
            )
        return evaluate_photographs(
            pipeline,
            World.load(folder),
            frames=frames,
            background=background or (0.0, 0.0, 0.0),
            backend=backend,
            progress=progress,
        )


def _own_world(bundle: Any) -> str:
    """The world that a bundle was trained on."""
    world = bundle.provenance.get("world")
    if not isinstance(world, str):
        raise InvalidRequest(
            f"The bundle '{bundle.name}' names no world that it was trained on.",
            hint="Give --world street or --data DIR.",
        )
    return world


def _write_world(name: str, folder: Path, count: int, seed: int, size: Any, frames: int, fps: float) -> None:
    with _progress(f"Making the world '{name}'") as progress:
        _export_module("worlds").write_world(
            name, folder, count=count, seed=seed, size=size, frames=frames, fps=fps, progress=progress
        )


def _module_name(system: str) -> str:
    name = system.replace("-", "_")
    if name not in _SYSTEMS:
        raise InvalidRequest(f"There is no system '{system}'.", hint=f"Use {_SYSTEM_NAMES}.")
    return name


def _export_module(name: str) -> Any:
    """A module of `edge4d.export`, the only part that needs PyTorch."""
    try:
        return importlib.import_module(f"edge4d.export.{name}")
    except ImportError as error:
        if (error.name or "").startswith("edge4d"):
            raise
        raise BackendUnavailable(
            "This command needs PyTorch.", note=str(error), hint="pip install 'edge4d[export]'"
        ) from error


if __name__ == "__main__":
    main()
