"""The dry run's forecast: it follows from what was measured, and knows what a recipe bounds."""

import math
from dataclasses import replace

import pytest
import torch

from raysae.activations.synthetic import SuperpositionWorld, write_synthetic_store
from raysae.cluster.placement import Placement, place_extraction
from raysae.config import load_recipe, parse_recipe
from raysae.extraction.plan import plan_extraction
from raysae.pipeline import forecast as forecasting
from raysae.pipeline.calibration import Calibration, Cost, calibrate
from raysae.pipeline.extraction_forecast import extraction_seconds
from raysae.pipeline.forecast import OVERHEADS, forecast
from raysae.pipeline.preflight import preflight

CHEAP = Cost(begin=0.1, tokens_per_second=1000.0, evaluation=0.01, commit=0.2)
DEAR = Cost(begin=0.3, tokens_per_second=250.0, evaluation=0.03, commit=0.4)
MEASURED = Calibration(worker_start=2.0, warm_up=0.5, costs=[CHEAP, DEAR])
TWO = Placement(cpus=1, gpus=0, workers=2)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("forecast") / "store"
    write_synthetic_store(folder, SuperpositionWorld(d_in=8, atoms=16), 1000, sites=4)
    return folder


@pytest.fixture
def told(store, tmp_path, monkeypatch):
    """The forecast of a recipe with changed keys, from the measurements above."""
    monkeypatch.setattr(forecasting, "calibrate", lambda *args, **kwargs: MEASURED)

    def tell(sweep=None, **changes):
        recipe = {
            "source": None, "store": str(store), "runs_dir": str(tmp_path),
            "sae": {"d_sae": 16, "k": 2}, "training": {"epochs": 2, "batch_size": 64},
            "sweep": {
                "trials": 8, "sampler": "random", **(sweep or {}),
                "space": {"sae.d_sae": {"choices": [16, 32]}, "sae.k": {"choices": [1, 2]}},
            },
            **changes,
        }  # fmt: skip
        return forecast(preflight(parse_recipe(recipe)), TWO, 3.0)[0]

    return tell


def test_a_training_costs_what_its_parts_cost():
    assert CHEAP.seconds(2000, 10) == pytest.approx(0.1 + 2.0 + 0.1 + 0.2)
    assert CHEAP.between(DEAR, 0) == CHEAP and CHEAP.between(DEAR, 1) == DEAR
    half = CHEAP.between(DEAR, 0.5)
    assert half.seconds(2000, 10) == pytest.approx(
        (CHEAP.seconds(2000, 10) + DEAR.seconds(2000, 10)) / 2
    )


def test_stages_add_up_from_the_measurements(told, store):
    import raysae

    first = raysae.open_store(store)
    tokens = 2 * first.entry(first.sites[0]).rows.train
    seconds = told()
    middle = CHEAP.between(DEAR, 0.5).seconds(tokens, 10)
    beside = 2.0 * (OVERHEADS.sweep + 8 * (OVERHEADS.trial + 10 * OVERHEADS.evaluation))
    assert seconds.sweep == pytest.approx(0.5 + beside + 8 * middle / 2)
    upper = CHEAP.between(DEAR, 0.75).seconds(tokens, 10)
    assert seconds.atlas == pytest.approx(
        0.5 + 2.0 * (1 + OVERHEADS.atlas + 4 * OVERHEADS.site) + 2 * upper
    )
    assert seconds.start == 3.0 and seconds.report > 0
    assert seconds.total == pytest.approx(
        seconds.start + seconds.sweep + seconds.controls + seconds.atlas + seconds.report
    )


def test_controls_are_counted(told):
    cheap, none = told(), told({"controls": "none"})
    assert none.controls == 0 and cheap.total == pytest.approx(none.total + cheap.controls)
    pca, two = told({"controls": ["pca"]}), told({"seeds_per_trial": 2})
    assert 0 < pca.controls < cheap.controls < two.controls


def test_more_of_anything_takes_longer_and_budgets_bound_it(told):
    base = told()
    assert told({"trials": 12}).sweep > base.sweep
    assert told({"seeds_per_trial": 2}).sweep > base.sweep
    assert told(training={"epochs": 4, "batch_size": 64}).sweep > base.sweep
    assert told({"max_seconds": 1.0}).sweep < base.sweep
    assert told({"max_seconds_per_trial": 0.1}).sweep < base.sweep
    assert told({"max_tokens": 2000}).sweep < base.sweep
    assert told(atlas={"enabled": False}).atlas == 0
    assert told(atlas={"layers": [0]}).atlas < base.atlas


def test_the_mean_size_follows_the_space(told):
    def mean(values):
        recipe = parse_recipe({"sweep": {"space": {"sae.d_sae": values}}, "sae": {"k": 1}})
        return forecasting._mean_d_sae(recipe, [])

    assert mean({"choices": [32, 64, 128]}) == pytest.approx(224 / 3)
    assert mean({"low": 16, "high": 48}) == 32
    assert mean({"low": 16, "high": 64, "powers_of_two": True}) == pytest.approx(112 / 3)
    assert mean({"low": 10, "high": 1000, "log": True}) == pytest.approx(990 / math.log(100))


def test_the_store_need_not_be_there(tmp_path, monkeypatch):
    monkeypatch.setattr(forecasting, "calibrate", lambda *args, **kwargs: MEASURED)
    monkeypatch.chdir(tmp_path)
    plan = preflight(parse_recipe({}))
    told, basis = forecast(plan, TWO, 1.0)
    assert plan.store is None and told.sweep > 0 and "noise" in basis.rows
    unknown = preflight(parse_recipe({"source": {"sequences": None}}))
    assert forecast(unknown, TWO, 1.0) is None
    assert not list(tmp_path.iterdir())


def test_workers_measure_what_a_training_costs(connected_ray):
    recipe = parse_recipe({"sae": {"d_sae": 16, "k": 2}})
    small = recipe.with_parameters({})
    large = recipe.with_parameters({"sae.d_sae": 512})
    rows = torch.randn(500, 8), torch.randn(100, 8)
    measured = calibrate([small, large], *rows, 3.0, replace(TWO, workers=1), 1)
    assert measured is not None and measured.worker_start > 0 and measured.warm_up >= 0
    assert len(measured.costs) == 2
    for cost in measured.costs:
        assert min(cost.begin, cost.tokens_per_second, cost.evaluation, cost.commit) > 0


def test_nothing_is_said_where_no_worker_is_free(connected_ray, monkeypatch):
    monkeypatch.setattr("raysae.pipeline.calibration.WAIT_SECONDS", 0.5)
    recipe = parse_recipe({"sae": {"d_sae": 16, "k": 2}})
    greedy = Placement(cpus=1000, gpus=0, workers=1)
    rows = torch.randn(50, 8), torch.randn(50, 8)
    assert calibrate([recipe.with_parameters({})], *rows, 1.0, greedy, 1) is None


@pytest.mark.long
def test_an_extraction_is_measured_by_extracting(connected_ray, tmp_path):
    """The forecast of a small extraction; nothing is written to its place."""
    recipe = load_recipe(None, [f"store={tmp_path / 's'}", "source.sequences=400"])
    plan, placement = plan_extraction(recipe), place_extraction(recipe.resources)
    told = extraction_seconds(plan, placement)
    assert told is not None and 0.1 < told < 120
    assert not (tmp_path / "s").exists()
    unknown = load_recipe(None, ["source.max_tokens=1000"])
    assert extraction_seconds(plan_extraction(unknown), placement) is None
