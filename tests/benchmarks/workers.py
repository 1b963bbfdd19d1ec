"""Programs in interpreters of their own that do the same in turns: one asks over pipes, the others answer.

A request is a line of JSON on a worker's standard input, its answer a line on its standard output. What libraries
print there meanwhile goes to standard error.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from report import ROOT

BLOCKS = 5  # in which all are measured in turns


class Variant(Protocol):
    """One way to do it. Its inputs are ready.

    Attributes:
        about: what a report says of it.
        calls: what is timed, by name; each returns when its work is done.
    """

    about: Mapping[str, Any]
    calls: Mapping[str, Callable[[], object]]

    def outputs(self) -> Mapping[str, NDArray[Any]]:
        """What it makes, by name, to be compared with what others make."""


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

    def outputs(self, variant: str) -> dict[str, NDArray[Any]]:
        """What the variant makes."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "outputs.npz"
            self._ask("save", variant=variant, path=str(path))
            return dict(np.load(path))

    def time(self, variant: str, repeats: int) -> dict[str, list[float]]:
        """Milliseconds of each of the variant's calls, so many times."""
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


class Contender(NamedTuple):
    """A variant that a worker has made ready."""

    worker: Worker
    variant: str
    about: dict[str, Any]


def contender(worker: Worker, variant: str) -> Contender:
    """Raises Failed."""
    return Contender(worker, variant, worker.prepare(variant))


def contenders(worker: Worker, variants: Sequence[str]) -> list[Contender]:
    """Those that can be made ready: minutes of measuring are not thrown away for one that cannot."""
    made = []
    for variant in variants:
        try:
            made.append(contender(worker, variant))
        except Failed as error:
            print(error, file=sys.stderr, flush=True)
    return made


def alternating(made: Sequence[Contender], repeats: int) -> dict[str, dict[str, list[float]]]:
    """Milliseconds by variant and call, of all in turns."""
    times: dict[str, dict[str, list[float]]] = {one.variant: {} for one in made}
    for block in range(-1, BLOCKS):  # the first warms up
        for one in made:
            for name, taken in one.worker.time(one.variant, -(-repeats // BLOCKS)).items():
                if block >= 0:
                    times[one.variant].setdefault(name, []).extend(taken)
    return times


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
        made.outputs()
        return {**made.about, "prepared_in_s": round(time.perf_counter() - begin, 1)}

    def save(self, variant: str, path: str) -> None:
        np.savez(path, **self._variants[variant].outputs())

    def time(self, variant: str, repeats: int) -> dict[str, list[float]]:
        calls = self._variants[variant].calls
        return {name: [milliseconds(call) for _ in range(repeats)] for name, call in calls.items()}


def fastest(calls: Mapping[Any, Callable[[], Any]], repeats: int = 5) -> Any:
    """The key of the call that takes the least time, in the middle of several after a warm-up."""
    taken = {}
    for key, call in calls.items():
        milliseconds(call)
        milliseconds(call)
        taken[key] = statistics.median(milliseconds(call) for _ in range(repeats))
    return min(taken, key=taken.__getitem__)


def milliseconds(call: Callable[[], Any]) -> float:
    begin = time.perf_counter()
    call()
    return (time.perf_counter() - begin) * 1e3
