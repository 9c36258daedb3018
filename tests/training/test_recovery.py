"""The quick rows of ``scripts/recovery.py``: known dictionaries are found, and what must not be found
is not."""

import importlib.util
from pathlib import Path

import pytest
import torch

from raysae.activations.synthetic import HierarchicalWorld

SCRIPT = Path(__file__).parents[2] / "scripts" / "recovery.py"


@pytest.fixture(scope="module")
def table():
    spec = importlib.util.spec_from_file_location("recovery", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def nothing_short(table):
    """Each test runs rows of the table; none may fall short of what is asked."""
    table.short.clear()
    yield
    assert table.short == []


def test_two_seeds_find_the_dictionary_and_agree(table, capsys):
    world, k, steps, least, stable = table.RECOVERY[0]
    assert (world.atoms, steps, least, stable) == (128, 1000, 0.97, 0.9)
    table.recovery(world, k, steps, least, stable, seeds=2)
    assert capsys.readouterr().out.count("mmcs 0.9") == 2


def test_a_larger_dictionary_is_found(table):
    world, k, steps, least, stable = table.RECOVERY[3]
    assert (world.atoms, steps, least) == (512, 1000, 0.97)
    table.recovery(world, k, steps, least, stable, seeds=1)


def test_white_noise_holds_no_dictionary(table):
    table.white_noise()


@pytest.mark.long
def test_matryoshka_keeps_the_parents(table):
    table.hierarchy(seeds=1)


@pytest.mark.long
def test_l1_shrinks_and_gated_does_not(table):
    table.shrinkage(seeds=1)


def test_the_hierarchical_world_has_no_child_without_its_parent():
    world = HierarchicalWorld(d_in=120, parents=4, children=3, p=0.3, child_p=0.5)
    truth = world.truth()
    assert truth.shape == (4, 4, 120) and torch.allclose(truth.norm(dim=2), torch.ones(4, 4))
    rows, parents = world.draw(2000)
    found = torch.linalg.lstsq(truth.flatten(0, 1).T, rows.T).solution.T.view(-1, 4, 4)
    on = found > 0.4
    assert torch.equal(on[:, :, 0], parents)
    assert not (on[:, :, 1:].any(dim=2) & ~parents).any() and on[:, :, 1:].sum(dim=2).max() == 1
    assert float(parents.double().mean()) == pytest.approx(0.3, abs=0.03)
    assert not torch.equal(world.draw(2000, part=1)[1], parents)
