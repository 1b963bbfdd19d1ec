"""Programs in interpreters of their own that make the same film in turns: one asks over pipes, the others answer.

A request is a line of JSON on a worker's standard input, its answer a line on its standard output. What libraries
print there meanwhile goes to standard error.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from report import ROOT


class Variant(Protocol):
    """One way to make the film. Its inputs are ready in the host's memory.

    Attributes:
        about: what a report says of it.
    """

    about: Mapping[str, Any]

    def generate(self) -> None:
        """Makes the scene, and waits until it is there."""

    def film(self) -> NDArray[np.uint8]:
        """Makes the scene and all frames [T,H,W,3]; when it returns they are in the host's memory."""

    def outputs(self) -> Mapping[str, NDArray[Any]]:
        """The network's outputs by name."""


# ---- who asks -------------------------------------------------------------------------------------------------------


class Failed(Exception):
    """A worker could not do what it was asked; it can be asked for something else."""


class Worker:
    """A program that calls `serve`.

    Args:
        name: for errors.
        interpreter: what runs it; where that is not this very one, what a wrapper of either set for itself
            (PYTHONHOME, PYTHONPATH, LD_LIBRARY_PATH) does not reach the other.
        script: with its arguments.
    """

    def __init__(self, name: str, interpreter: str, script: Sequence[object]) -> None:
        self.name = name
        command = [interpreter, *(str(part) for part in script)]
        try:
            self._process = subprocess.Popen(
                command, env=_environment(interpreter), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
        except OSError as error:
            raise SystemExit(f"{name} cannot be started: {error}.") from error

    def prepare(self, variant: str) -> dict[str, Any]:
        """Makes a variant ready, which can take minutes; what it is. Raises Failed."""
        about: dict[str, Any] = self._ask("prepare", variant=variant)
        print(f"{self.name}: {variant} ready, {about}", file=sys.stderr, flush=True)
        return about

    def save(self, variant: str, path: object) -> None:
        """Writes frames and the network's outputs as `.npz`."""
        self._ask("save", variant=variant, path=str(path))

    def time(self, variant: str, repeats: int) -> dict[str, list[float]]:
        """Milliseconds of so many films, and of so many scenes without frames."""
        times: dict[str, list[float]] = self._ask("time", variant=variant, repeats=repeats)
        return times

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def _ask(self, task: str, **arguments: Any) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            print(json.dumps({"task": task, **arguments}), file=self._process.stdin, flush=True)
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise SystemExit(f"{self.name} ended with status {self._process.wait()} at '{task}': see above.")
        answer = json.loads(line)
        if "error" in answer:
            raise Failed(f"{self.name} could not {task} {arguments}: {answer['error']}")
        return answer["result"]


def _environment(interpreter: str) -> dict[str, str]:
    if interpreter == sys.executable:
        return dict(os.environ)
    own = ("PYTHONHOME", "PYTHONPATH", "LD_LIBRARY_PATH")
    return {**{name: value for name, value in os.environ.items() if name not in own}, "PYTHONPATH": str(ROOT / "src")}


# ---- who answers ----------------------------------------------------------------------------------------------------


def serve(make: Callable[[str], Variant]) -> None:
    """Answers until nobody asks any more.

    Args:
        make: the variant of a name.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    tasks = _Tasks(make)
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = {"result": getattr(tasks, request.pop("task"))(**request)}
        except Exception as error:
            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers, flush=True)


class _Tasks:
    """What can be asked for."""

    def __init__(self, make: Callable[[str], Variant]) -> None:
        self._make = make
        self._variants: dict[str, Variant] = {}

    def prepare(self, variant: str) -> dict[str, Any]:
        begin = time.perf_counter()
        self._variants[variant] = made = self._make(variant)
        made.film()
        return {**made.about, "prepared_in_s": round(time.perf_counter() - begin, 1)}

    def save(self, variant: str, path: str) -> None:
        made = self._variants[variant]
        np.savez(path, frames=made.film(), **made.outputs())

    def time(self, variant: str, repeats: int) -> dict[str, list[float]]:
        made = self._variants[variant]
        calls: dict[str, Callable[[], Any]] = {"film": made.film, "scene": made.generate}
        return {name: [milliseconds(call) for _ in range(repeats)] for name, call in calls.items()}


def milliseconds(call: Callable[[], Any]) -> float:
    begin = time.perf_counter()
    call()
    return (time.perf_counter() - begin) * 1e3
