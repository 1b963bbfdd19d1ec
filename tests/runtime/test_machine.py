"""What is measured of the machine, as far as that is the same on all of them."""

from __future__ import annotations

import os

from edge4d.runtime import machine


def test_the_machine_has_a_name_cores_and_limits():
    assert machine.processor()
    assert 1 <= machine.cores() <= os.cpu_count()
    peaks = machine.peaks()
    assert peaks.flops["float32"] > 0
    assert peaks.bandwidth > 0
