"""What trials read together: how many, in which waves, what is told of it."""

import contextlib

import pytest
import ray

import raysae
import raysae.sweep.trials.opening as module
from raysae.activations.synthetic import SuperpositionWorld, write_synthetic_store
from raysae.cluster.placement import Placement
from raysae.config import parse_recipe
from raysae.errors import UserError
from raysae.sweep.trials.opening import Demand, opened

FOUR = Placement(cpus=1, gpus=0, workers=4)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("opening") / "s"
    write_synthetic_store(folder, SuperpositionWorld(d_in=8, atoms=16), 1000, sites=2)
    return raysae.open_store(folder)


def demand(store, placement=FOUR, lag=4, trials=8, sites=1, **sections):
    recipe = parse_recipe({"sweep": {"trials": trials}, "source": None, "store": "s", **sections})
    return Demand(recipe, store, store.sites[:sites], placement, lag, trials)


@pytest.mark.parametrize(
    ("lag", "trials", "gang", "workers", "together", "gangs"),
    [
        (4, 8, 1, 4, 4, 8), (3, 8, 1, 4, 3, 8), (4, 2, 1, 4, 2, 2), (8, 8, 2, 4, 4, 4),
        (8, 7, 4, 4, 2, 2), (1, 8, 2, 4, 1, 4), (99, 8, 1, 1, 1, 8),
    ],
)  # fmt: skip
def test_how_many_read_together(store, lag, trials, gang, workers, together, gangs):
    placement = Placement(1, 0, workers)
    sections = {"resources": {"gang": gang}, "sweep": {"trials": trials, "proposal_lag": gang}}
    one = demand(store, placement, lag, trials, **sections)
    assert (one.together(placement), one.gangs) == (together, gangs)


def test_trainings_epochs_and_rows(store):
    one = demand(store, sites=2, training={"epochs": 3}, sweep={"trials": 8, "seeds_per_trial": 2})
    assert (one.trainings, one.epochs) == (4, 3)
    assert one.rows == store.entry(store.sites[0]).rows.train
    searched = {"trials": 8, "space": {"training.epochs": {"choices": [2, 5]}}}
    assert demand(store, sweep=searched).epochs == 1, "an epoch count that is searched is not known"
    assert demand(store, training={"epochs": 3, "tokens": one.rows}).epochs in (1, 3)


@pytest.fixture
def told(store, monkeypatch):
    """What a scanned sweep prints, and what it asks the service for."""
    lines, asked = [], []

    class Service:
        class expect:
            @staticmethod
            def remote(*arguments):
                asked.append(arguments)

    @contextlib.contextmanager
    def serving(memory, workers, each, patience):
        asked.append((workers, each, patience))
        yield Service

    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 5.0, "memory": 1e9})
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True}])
    monkeypatch.setattr(module, "serving", serving)
    monkeypatch.setattr(module, "scanned_sites", lambda *arguments: {})
    monkeypatch.setattr(module, "scans_in_words", lambda service: "")
    monkeypatch.setattr(module.console, "print", lambda line="": lines.append(str(line)))
    return lines, asked


SMALL = {"reading": "scan", "memory": 200_000}


def test_a_wave_is_told_with_what_it_costs(store, told):
    lines, asked = told
    with opened(demand(store, resources=SMALL)) as rows:
        assert rows.wave == 4 and rows.placement == FOUR
        rows.expect(3)
    (waves,) = (line for line in lines if line.startswith("Waves: "))
    assert waves.startswith("Waves: 4 at a time share one scan of 0.00 GB an epoch, so 8 trainings")
    assert "cost 2 scans; a wave begins when the slowest of the one before has ended" in waves
    assert asked == [(4, 1, None), (3, 1, 1)]


def test_a_larger_lag_is_told_where_it_would_help(store, told):
    lines, _ = told
    with opened(demand(store, lag=2, resources=SMALL)) as rows:
        assert rows.wave == 2
    assert any("2 at a time" in line and "a larger sweep.proposal_lag" in line for line in lines)


def test_what_need_not_be_reproducible_does_not_wait(store, told):
    lines, asked = told
    one = demand(store, resources=SMALL, sweep={"trials": 8, "reproducible": False})
    with opened(one) as rows:
        assert rows.wave is None
    assert not any(line.startswith("Waves") for line in lines)
    assert asked == [(4, 1, module.PATIENCE)]


def test_no_cpu_left_for_reading_is_told_before_the_start(store, told, monkeypatch):
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 1.0, "memory": 1e9})
    expected = r"reading takes 1 of the 1 CPUs .* raise resources.cpus, or set resources.reading to"
    with pytest.raises(UserError, match=expected), opened(demand(store, resources=SMALL)):
        pass


def test_windows_larger_than_the_memory_are_told_before_the_start(store, told):
    small = demand(store, resources={"reading": "scan", "memory": 1_000})
    expected = r"2 shuffle windows of .* lower training.shuffle_rows, or"
    with pytest.raises(UserError, match=expected), opened(small):
        pass
