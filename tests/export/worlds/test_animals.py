"""Animals: which they are, that their meshes are closed and stay in the cube, and that they move."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from edge4d.export.worlds import animals  # noqa: E402
from edge4d.export.worlds.body_plans import PLANS  # noqa: E402
from edge4d.export.worlds.mesh_render import render  # noqa: E402
from edge4d.runtime.object_views import object_camera  # noqa: E402

ORDER = tuple(PLANS)


def cycle(animal: animals.Animals, frames: int) -> torch.Tensor:
    """[S,T,V,3] at equal parts of one cycle."""
    return animal.vertices(torch.arange(frames) / frames / animal.frequency)


def assert_same(first: animals.Animals, second: animals.Animals, row: int = 0) -> None:
    assert first.plan == second.plan
    times = torch.tensor([[0.0, 0.4]])
    # Sines of a batch may be computed four at a time.
    torch.testing.assert_close(first.vertices(times)[row], second.vertices(times)[0], rtol=0, atol=1e-6)
    torch.testing.assert_close(first.colors[row], second.colors[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("number", range(len(ORDER)))
def test_the_same_seed_gives_the_same_animal(number):
    animal = animals.evaluation_animals(5, number)
    assert animal.plan == ORDER[number]
    again = animals.evaluation_animals(5, number)
    assert torch.equal(animal.vertices(torch.tensor([[0.3]])), again.vertices(torch.tensor([[0.3]])))
    assert torch.equal(animal.colors, again.colors)
    others = [animals.evaluation_animals(6, number), animals.evaluation_animals(5, number + len(ORDER))]
    others += [group for group in animals.training_animals(5, 0, 10) if group.plan == animal.plan]
    for other in others:
        assert other.plan == animal.plan
        for row in range(len(other)):
            assert not torch.equal(other.traits["base"][row], animal.traits["base"][0])


def test_steps_of_training_have_animals_of_their_own():
    groups = [group for step in range(2) for group in animals.training_animals(1, step, 7)]
    assert sum(map(len, groups)) == 14
    starts = torch.cat([group.start for group in groups])
    assert len(starts.unique()) == 14
    # Body plans take turns, whatever the number of animals of a step.
    assert sorted(len(group) for group in animals.training_animals(1, 0, 7)) == [1, 1, 1, 2, 2]
    assert [group.plan for group in animals.training_animals(1, 0, 2)] == list(ORDER[:2])


def test_animals_of_a_batch_do_not_depend_on_each_other():
    for group in animals.training_animals(3, 0, 10):
        number = ORDER.index(group.plan)
        alone = animals._sample([animals.scene_key(animals.TRAINING, 3, number + len(ORDER))], group.plan)
        assert_same(group, alone, row=1)


@pytest.mark.parametrize("number", range(len(ORDER)))
def test_meshes_are_closed_and_the_right_way_out(number):
    animal = animals.evaluation_animals(2, number)
    faces = animal.faces
    edges = torch.cat([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]]).tolist()
    directed = {tuple(edge) for edge in edges}
    assert len(directed) == len(edges)
    assert directed == {(b, a) for a, b in directed}
    vertices = cycle(animal, 4)[0].double()
    a, b, c = vertices[:, faces].unbind(2)
    assert ((a * torch.linalg.cross(b, c)).sum((1, 2)) > 0).all()
    assert set(faces.flatten().tolist()) == set(range(vertices.shape[1]))


@pytest.mark.parametrize("step", range(4))
def test_a_cycle_fills_the_cube_and_stays_in_it(step):
    for group in animals.training_animals(8, step, 15):
        reached = cycle(group, 41).flatten(1, 2)
        low, high = reached.amin(1), reached.amax(1)
        assert (reached.abs().amax((1, 2)) <= 0.5).all()
        np.testing.assert_allclose((high - low).amax(-1), 2 * animals.REACH, rtol=0.03)
        np.testing.assert_allclose(low + high, 0, atol=0.03)  # centred, but for phases between those looked at


@pytest.mark.parametrize("number", range(len(ORDER)))
def test_they_move_and_come_back(number):
    animal = animals.evaluation_animals(4, number)
    vertices = cycle(animal, 8)[0]
    moved = (vertices[1:] - vertices[:1]).norm(dim=-1)
    assert moved.amax() > 0.03
    steps = animal.vertices(torch.linspace(0, 1, 101)[None] / animal.frequency)[0].diff(dim=0).norm(dim=-1)
    assert steps.amax() < 0.12  # nothing jumps within a hundredth of a cycle
    period = animal.vertices(torch.tensor([[0.25, 1.25]]) / animal.frequency)[0]
    torch.testing.assert_close(period[0], period[1], rtol=0, atol=1e-4)  # float32 phases


@pytest.mark.parametrize("number", range(len(ORDER)))
def test_colours_and_pictures(number):
    animal = animals.evaluation_animals(1, number)
    assert ((animal.colors >= 0) & (animal.colors <= 1)).all()
    assert animal.colors.std(1).amax() > 0.03
    camera = object_camera(64)
    viewmat, K = (torch.tensor(m).float() for m in (camera.viewmat, camera.K))
    image = render(animal.vertices(torch.zeros(1, 1))[0], animal.faces, animal.colors, viewmat[None], K, 64)[0]
    area = image[..., 3].mean()
    assert 0.01 < area < 0.4
    border = torch.cat([image[0], image[-1], image[:, 0], image[:, -1]])
    assert (border == 0).all()


def test_headings_turn_animals_about_z():
    """A fish swims along its heading: its eyes, small and white, are on the side that it is headed to."""
    for index in range(2, 32, 5):
        fish = animals.evaluation_animals(9, index)
        vertices = fish.vertices(torch.zeros(1, 1))[0, 0]
        nose = vertices[0]  # the first end of the body's tube
        tail = vertices[:, :2].mean(0)
        ahead = torch.stack([fish.heading.sin(), -fish.heading.cos()], -1)[0]
        assert float((nose[:2] - tail) @ ahead) > 0.1


def test_they_can_be_moved_to_a_device():
    animal = animals.evaluation_animals(3, 0)
    moved = animal.to(torch.device("meta"))
    assert moved.vertices(torch.zeros(1, 2, device="meta")).shape == animal.vertices(torch.zeros(1, 2)).shape
    assert moved.faces.device.type == "meta"
