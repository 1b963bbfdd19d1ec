"""Random numbers of worlds: keys that never meet, and what is drawn from them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from edge4d.export.worlds.draw import EVALUATION, TRAINING, Draw, scene_key  # noqa: E402

SEEDS = st.integers(0, (1 << 63) - 1)
INDICES = st.integers(0, (1 << 64) - 1)


@given(SEEDS, INDICES, SEEDS, INDICES)
def test_training_and_evaluation_never_meet(seed, index, other_seed, other_index):
    training = scene_key(TRAINING, seed, index)
    evaluation = scene_key(EVALUATION, other_seed, other_index)
    # A bit of its own tells them apart, so that no pair of seeds and indices can be equal.
    assert (training[0] >> 63, evaluation[0] >> 63) == (TRAINING, EVALUATION)
    assert training[0] >> 63 != evaluation[0] >> 63
    assert all(0 <= word < 2**64 for word in (*training, *evaluation))  # what Philox takes


@given(SEEDS, INDICES, SEEDS, INDICES)
def test_keys_of_a_domain_are_its_seeds_and_indices(seed, index, other_seed, other_index):
    equal = scene_key(0, seed, index) == scene_key(0, other_seed, other_index)
    assert equal == ((seed, index) == (other_seed, other_index))


def test_scenes_do_not_depend_on_each_other():
    keys = [scene_key(TRAINING, 3, index) for index in range(3)]
    together, alone = Draw(keys), Draw(keys[1:2])
    for name, arguments in (("uniform", (2.0, 5.0, 4)), ("chance", (0.5, 9)), ("index", (7, 3))):
        first, second = (getattr(draw, name)(*arguments) for draw in (together, alone))
        assert torch.equal(first[1:2], second)


def test_what_is_drawn_lies_within_its_bounds():
    draw = Draw([scene_key(EVALUATION, 1, index) for index in range(50)])
    values = draw.uniform(-2, 3, 10)
    assert values.shape == (50, 10)
    assert -2 <= values.min() < -1.5
    assert 2.5 < values.max() < 3
    assert set(draw.index(3, 10).unique().tolist()) == {0, 1, 2}
    assert set(draw.sign(10).unique().tolist()) == {-1, 1}
    assert ((draw.pick([[0.5, 0.5, 0.5]], 4, spread=0.1) - 0.5).abs() <= 0.1).all()
