"""One exception class per cause. Every message says what happened, gives both numbers, and says what to do."""

from __future__ import annotations


class Edge4DError(Exception):
    """Base of every error that edge4d raises on purpose.

    Args:
        what: what happened, in one sentence.
        note: the facts: what was found and what was expected.
        hint: the call, flag or file that fixes it.
    """

    def __init__(self, what: str, *, note: str = "", hint: str = "") -> None:
        self.what, self.note, self.hint = what, note, hint
        lines = [what]
        if note:
            lines.append(f"Note: {note}")
        if hint:
            lines.append(f"Hint: {hint}")
        super().__init__("\n".join(lines))


class InvalidTensor(Edge4DError):
    """An array has the wrong shape, dtype, device or memory layout."""


class InvalidCamera(Edge4DError):
    """A camera's size, intrinsics or pose cannot be used."""


class InvalidCameraPath(Edge4DError):
    """A trajectory's name or parameters, or a file of poses, cannot be used."""


class InvalidScene(Edge4DError):
    """A scene, or the file that should hold one, cannot be used."""


class InvalidPly(Edge4DError):
    """A PLY file is not a readable 3D Gaussian splatting file."""


class InvalidPicture(Edge4DError):
    """A photograph, depth map or instance map cannot be used."""


class InvalidVideo(Edge4DError):
    """A video, a folder of frames, or the masks that belong to one cannot be used."""


class NoSubject(Edge4DError):
    """A frame shows nothing that could be cut out."""


class InvalidMesh(Edge4DError):
    """A mesh, or the sequence of its shapes, cannot be used."""


class InvalidBundle(Edge4DError):
    """A bundle's description or files are missing, altered, too new or escape their folder."""


class InvalidWorld(Edge4DError):
    """A folder of world frames is incomplete or inconsistent."""


class InvalidCalibration(Edge4DError):
    """What an int8 variant should be calibrated on, or what came of it, cannot be used."""


class InvalidCheckpoint(Edge4DError):
    """A checkpoint's tensors do not match the model they are loaded into."""


class InvalidRequest(Edge4DError):
    """An option has a value that cannot work, alone or together with the others."""


class PrecisionNotInBundle(Edge4DError):
    """The bundle has no graph of the precision that was asked for."""


class StageNotInBundle(Edge4DError):
    """The bundle has no network for a part of the work that was asked for."""


class NothingGenerated(Edge4DError):
    """Networks see no object in a picture, or hardly one."""


class CapacityExceeded(Edge4DError):
    """What networks found in a picture is more than the bundle's engines have room for."""


class BackendUnavailable(Edge4DError):
    """A backend, or a package or library that it needs, is not on this machine."""


class EngineFailed(Edge4DError):
    """A backend stopped while it ran a stage, or the engine was closed before."""


class InvalidEngine(Edge4DError):
    """A built engine is refused by the runtime that should load it."""


class EngineNotBuilt(Edge4DError):
    """TensorRT could not make an engine from a graph."""


class LibraryNotFound(Edge4DError):
    """The native kernel library is missing or of another version."""


class SamplingDiverged(Edge4DError):
    """A network's answers cannot be integrated: they are not finite, or change too abruptly."""


class ExportFailed(Edge4DError):
    """A model could not be turned into ONNX graphs that compute the same."""


class PairOverflow(Edge4DError):
    """More Gaussian-tile pairs than `max_pairs` allows, and the caller asked for fixed memory."""


class CudaError(Edge4DError):
    """The CUDA driver refused a call, or a GPU operator could not be launched."""
