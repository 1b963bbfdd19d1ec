"""Stages as ranges of NVTX, by a stand-in for its package: what arrives in a tool cannot be seen without one."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest

from edge4d.runtime import nvtx_ranges
from edge4d.runtime.bundle import Stage, TensorSpec
from edge4d.runtime.engine import StageEngine
from edge4d.runtime.errors import InvalidTensor

X = TensorSpec("x", "float32", (1,))


@pytest.fixture
def ranges(monkeypatch):
    """What is pushed and popped."""
    seen = []

    @contextmanager
    def annotate(message, domain):
        seen.append((domain, message))
        yield
        seen.append("end")

    monkeypatch.setitem(sys.modules, "nvtx", SimpleNamespace(annotate=annotate))
    nvtx_ranges._annotate.cache_clear()
    yield seen
    nvtx_ranges._annotate.cache_clear()


def test_a_run_is_a_range_with_the_stages_name(ranges):
    class Copy(StageEngine):
        def _run(self, inputs):
            ranges.append("work")
            return inputs

    with Copy(Stage("core", {}, (X,), (X,), {})) as engine:
        engine.run({"x": np.zeros(1, np.float32)})
        with pytest.raises(InvalidTensor):
            engine.run({})
    assert ranges == [("edge4d", "core"), "work", "end"]


def test_without_the_package_nothing_happens(monkeypatch):
    monkeypatch.setitem(sys.modules, "nvtx", None)
    nvtx_ranges._annotate.cache_clear()
    with nvtx_ranges.nvtx_range("core"):
        pass
    assert nvtx_ranges.nvtx_range("a") is nvtx_ranges.nvtx_range("b")
    nvtx_ranges._annotate.cache_clear()
