"""How memory is divided between held-out rows and scans, and what is refused before the start."""

import pytest

import raysae
from raysae.activations.synthetic import SuperpositionWorld, write_synthetic_store
from raysae.cluster.scan.opening import LARGEST_PIECE, PIECES_HELD, ScanPlan, divide, plan_scans
from raysae.config import ResourcesConfig, parse_recipe
from raysae.errors import UserError


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Two sites, of 1,000 rows of 32 bytes each."""
    folder = tmp_path_factory.mktemp("opening") / "s"
    write_synthetic_store(folder, SuperpositionWorld(d_in=8, atoms=16), 1000, sites=2)
    return raysae.open_store(folder)


def held_out_bytes(store):
    return [store.entry(site).rows.validation * store.row_bytes for site in store.sites]


def test_held_out_rows_take_up_to_half_of_the_memory(store):
    one, other = held_out_bytes(store)
    plan = divide(store, store.sites, ResourcesConfig(memory=2 * (one + other)))
    assert plan.held_out == tuple(store.sites) and plan.memory == one + other
    plan = divide(store, store.sites, ResourcesConfig(memory=2 * one))
    assert plan.held_out == (store.sites[0],) and plan.memory == one
    plan = divide(store, store.sites, ResourcesConfig(memory=2 * min(one, other) - 2))
    assert plan.held_out == () and plan.memory == 2 * min(one, other) - 2


@pytest.mark.parametrize(
    ("memory", "piece"),
    [(10**12, LARGEST_PIECE), (PIECES_HELD * 1000, 1000), (1, 1), (0, 1)],
)
def test_pieces_are_small_where_memory_is(memory, piece):
    assert ScanPlan((), memory).piece_bytes == piece


def recipe(memory, shuffle_rows, seeds=1):
    return parse_recipe(
        {
            "source": None, "store": "s", "resources": {"memory": memory},
            "training": {"shuffle_rows": shuffle_rows}, "sweep": {"seeds_per_trial": seeds},
        }
    )  # fmt: skip


@pytest.mark.parametrize(("sites", "seeds"), [(1, 1), (2, 1), (1, 3), (2, 3)])
def test_every_site_and_seed_has_windows_of_its_own(store, sites, seeds):
    chosen, windows = store.sites[:sites], 2 * 100 * store.row_bytes * sites * seeds
    kept = sum(held_out_bytes(store)[:sites])
    enough = windows + kept if windows > kept else 2 * kept
    plan = plan_scans(store, chosen, recipe(enough, 100, seeds))
    assert plan.held_out == tuple(chosen)
    with pytest.raises(
        UserError, match=rf"for {sites * seeds} sites and seeds, but resources.memory"
    ):
        plan_scans(store, chosen, recipe(windows - 1, 100, seeds))


def test_a_window_is_no_larger_than_the_site(store):
    rows = max(store.entry(site).rows.train for site in store.sites)
    enough = 2 * rows * store.row_bytes + sum(held_out_bytes(store))
    plan_scans(store, store.sites[:1], recipe(enough, 10**9))
    with pytest.raises(UserError, match="lower training.shuffle_rows, or raise resources.memory"):
        plan_scans(store, store.sites[:1], recipe(2 * rows * store.row_bytes - 1, 10**9))
