"""What a bundle is measured on: inputs that its stages take, of a system that is known and of others."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from edge4d.runtime.backends import backend
from edge4d.runtime.bundle import Bundle
from edge4d.runtime.engine import check_inputs
from edge4d.runtime.errors import InvalidRequest
from edge4d.runtime.profile_inputs import sample


@pytest.fixture
def bundle(tiny_bundle) -> Bundle:
    return Bundle.load(tiny_bundle)


def check(bundle, inputs) -> list[dict[str, int]]:
    assert list(inputs) == list(bundle.stages)
    return [check_inputs(stage, inputs[name]) for name, stage in bundle.stages.items()]


@pytest.mark.parametrize(("asked", "size"), [(None, (64, 32)), ((96, 64), (96, 64))])
def test_each_stage_gets_what_the_one_before_makes(bundle, asked, size):
    sampled = sample(bundle, backend("onnxruntime"), "fp32", asked)
    assert check(bundle, sampled.inputs) == [{"W": size[0], "H": size[1]}] * 2
    assert sampled.size == size
    perceive, core = sampled.inputs["perceive"], sampled.inputs["core"]
    np.testing.assert_array_equal(core["image"], perceive["image"])
    np.testing.assert_array_equal(core["depth"], 6.0)  # what the tiny bundle sees; rounding at most in the last bit
    assert not core["noise"].any()
    assert len(sampled.scene) > 0


def test_a_bundle_that_cannot_see_is_told(bundle):
    core = {name: stage for name, stage in bundle.stages.items() if name == "core"}
    sampled = sample(replace(bundle, stages=core), backend("onnxruntime"), "fp32")
    check(replace(bundle, stages=core), sampled.inputs)
    np.testing.assert_array_equal(sampled.inputs["core"]["depth"], 8.0)
    assert set(np.unique(sampled.inputs["core"]["instances"])) == {0, 1}


def test_other_systems_get_numbers(bundle):
    other = replace(bundle, system="another")
    sampled = sample(other, backend("onnxruntime"), "fp32", (96, 64))
    assert check(other, sampled.inputs) == [{"W": 96, "H": 64}] * 2
    assert (sampled.scene, sampled.size) == (None, (96, 64))
    again = sample(other, backend("onnxruntime"), "fp32", (96, 64))
    for stage, inputs in sampled.inputs.items():
        for name, array in inputs.items():
            np.testing.assert_array_equal(array, again.inputs[stage][name])
            assert array.min() >= 0
            assert array.max() <= 1
    assert sample(other, backend("onnxruntime"), "fp32").size == (64, 32)


def test_a_size_that_no_stage_takes_is_refused(bundle):
    with pytest.raises(InvalidRequest, match="size"):
        sample(bundle, backend("onnxruntime"), "fp32", (100, 60))


@pytest.mark.parametrize(("asked", "size"), [(None, (64, 64)), ((50, 40), (50, 40))])
def test_a_field_of_variation_follows_its_example(random_gvf_bundle, asked, size):
    bundle = Bundle.load(random_gvf_bundle)
    sampled = sample(bundle, backend("onnxruntime"), "fp32", asked)
    best = {name: bundle.stage(stage).axes[name].opt for stage, name in (("dit_step", "T"), ("vae_attend", "N"))}
    for name, sizes in zip(bundle.stages, check(bundle, sampled.inputs)):
        assert sizes == {axis: best[axis] for axis in bundle.stage(name).axes}
    assert (sampled.size, sampled.trajectory) == (size, "static")
    assert len(sampled.scene) == best["N"]
    assert 0 < sampled.inputs["dit_step"]["t"][0] < 100  # of 1000: the last of the sampler's evaluations
    assert sampled.inputs["dit_step"]["x"].any()
    assert sampled.inputs["vae_encode"]["motion"].any()


def test_all_that_makes_gaussians_of_a_picture_runs_whatever_it_sees(tiny_gvf_bundle):
    bundle = Bundle.load(tiny_gvf_bundle)
    sampled = sample(bundle, backend("onnxruntime"), "fp32")
    sizes = dict(zip(bundle.stages, check(bundle, sampled.inputs)))
    best = bundle.stage("slat_flow").axes["V"].opt
    assert sizes["slat_flow"]["V"] == sizes["gs_dec"]["V"] == best
    tables = sampled.inputs["slat_flow"]
    np.testing.assert_array_equal(tables["neighbours"][:, 13], np.arange(best))  # no random numbers
    assert sizes["dino"] == {"T": bundle.stage("dit_step").axes["T"].opt}
