"""Live recipes: what they cost by config.json alone, what is refused before any work, what is told."""

import json
import shutil

import pytest
import ray

from raysae.activations.synthetic import SuperpositionWorld, write_synthetic_store
from raysae.cluster.placement import Placement
from raysae.config import load_recipe
from raysae.errors import UserError
from raysae.pipeline import dry_run, estimate, live_checks, live_forecast
from raysae.pipeline.extraction_forecast import ExtractionSpeed
from raysae.pipeline.live_checks import check_live_rows
from raysae.pipeline.live_cost import Layers, ModelSize, Passes, Texts, choices, model_size, passes
from raysae.pipeline.live_forecast import live_row, live_share
from raysae.pipeline.preflight import preflight
from raysae.records.products import shared_settings
from raysae.transformer.model_spec import ModelSpec
from tests.extraction.local_pool import extracted_here, live_recipe

TWO = Placement(cpus=1, gpus=0, workers=2)
SPEED = ExtractionSpeed(1.0, 2.0, 40_000.0, 4_000.0, 10_000.0)


@pytest.mark.parametrize(
    ("trials", "at_once", "epochs", "sites", "together", "keep", "expected"),
    [
        (8, 4, 1, 24, 24, False, Passes(2, 1)),
        (8, 8, 1, 24, 24, False, Passes(1, 1)),
        (9, 4, 2, 24, 10, False, Passes(6, 6)),
        (1, 4, 3, 0, 1, False, Passes(3, 0)),
        (9, 4, 2, 24, 10, True, Passes(1, 0)),
        (0, 4, 20, 24, 24, True, Passes(0, 1)),
        (0, 4, 20, 24, 24, False, Passes(0, 20)),
    ],
)
def test_a_pass_for_each_wave_and_epoch_and_one_for_the_atlas(
    trials, at_once, epochs, sites, together, keep, expected
):
    assert passes(trials, at_once, epochs, sites, together, keep) == expected
    assert expected.total == expected.sweep + expected.atlas


def test_the_size_of_gpt2_medium_follows_from_its_config_alone(tmp_path):
    config = {
        "model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "n_layer": 24, "n_embd": 1024,
        "n_head": 16,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    model = model_size(ModelSpec(str(tmp_path), None, "float32", False))
    assert model.blocks == (12_596_224,) * 24
    texts = Texts(10_005_776, 10_005_776, 1, 0.98, 1024, "float32", 24)
    first, live, kept = choices(
        model,
        texts,
        Layers(12, 23, 23),
        passes(8, 4, 1, 24, 24, False),
        passes(8, 4, 1, 24, 24, True),
    )
    assert first.flop == pytest.approx(2 * 302_309_376 * 10_005_776)
    assert (first.passes, live.passes, kept.passes) == (1, 3, 1)
    train, before = 0.98 * 10_005_776, texts.before * 10_005_776
    blocks = 2 * 13 * train + 24 * train + 24 * before
    assert live.flop == pytest.approx(2 * 12_596_224 * blocks)
    assert 980e9 < first.bytes == kept.bytes < 990e9 and live.bytes < 0.1 * first.bytes
    assert "3 forward passes" in live.line(3e12) and "hours" in live.line(3e12)
    assert "1 forward pass," in kept.line(None) and "hours" not in kept.line(None)


def test_a_pass_costs_up_to_its_highest_layer():
    model = ModelSize((10, 20, 30))
    assert (model.flop(5), model.flop(5, 0), model.flop(5, 1)) == (600, 100, 300)


def dry(tmp_path, *overrides):
    return live_recipe(tmp_path / "store", f"runs_dir={tmp_path}", "training.epochs=1", *overrides)


def test_the_dry_run_says_what_each_choice_costs(tmp_path, monkeypatch):
    monkeypatch.setattr(live_forecast, "free_bytes", lambda _: 2**40)
    plan = preflight(
        dry(tmp_path, "training.epochs=2", "sweep.trials=8", "resources.max_concurrent=2")
    )
    assert plan.live is not None and plan.live == plan.extraction
    first, live, kept, measured = live_row(plan, TWO, SPEED).splitlines()
    assert first.startswith("store first: 1 forward pass, ")
    assert live.startswith(
        "live: 10 forward passes, "
    )  # 8 trials, 2 at once, 2 epochs; the atlas's 2
    assert kept.startswith("live with keep: 1 forward pass, ")
    assert (
        all(unit in first for unit in ("FLOP", "seconds", "MB on disk")) and "measured" in measured
    )
    assert not list(tmp_path.glob("store*"))
    monkeypatch.setattr(live_forecast, "free_bytes", lambda _: 1)
    assert live_row(plan, TWO, SPEED).splitlines()[1].startswith("live: 20 forward passes")
    assert 0.25 < live_share(plan.live) < 0.35


def test_the_dry_run_counts_the_trials_that_fit_beside_the_workers_that_compute(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(live_forecast, "free_bytes", lambda _: 2**40)
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 16.0})
    wanted = "training.epochs=1", "sweep.trials=8", "sweep.proposal_lag=8"
    plan = preflight(dry(tmp_path, *wanted, "resources.cpus_per_trial=2"))
    told = dry_run._live(plan, Placement(cpus=2, gpus=0, workers=8), SPEED)
    assert "live: 3 forward passes, " in told  # four at once, in two waves; the atlas's one


def test_costs_are_known_by_the_budget_of_tokens_alone(tmp_path):
    plan = preflight(dry(tmp_path, "source.sequences=null", "source.max_tokens=5000"))
    assert live_row(plan, TWO, None).count("forward pass") == 3
    unknown = preflight(dry(tmp_path, "source.sequences=null"))
    assert "not known" in live_row(unknown, TWO, None)


def test_given_stores_are_refused(tmp_path):
    write_synthetic_store(tmp_path / "store", SuperpositionWorld(d_in=8, atoms=16), 100)
    with pytest.raises(UserError, match=r"source.live: .* holds a given store \(synthetic\)"):
        preflight(dry(tmp_path))
    with pytest.raises(UserError, match=r"source.live: store=s3://bucket/store is a given store"):
        preflight(dry(tmp_path, "store=s3://bucket/store"))


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (
            ["training.epochs=3", "training.tokens=150", "sweep.position=-1"],
            r"3 passes of about 112 rows, .* holds 1\.3",
        ),
        (
            [
                "training.epochs=2",
                "source.sequences=null",
                "source.max_tokens=900",
                "source.keep=no",
            ],
            r"1,800 in all, and source.max_tokens=900 holds 1",
        ),
    ],
)
def test_a_budget_that_does_not_hold_the_epochs_is_refused(tmp_path, overrides, expected):
    with pytest.raises(UserError, match=expected):
        preflight(dry(tmp_path, *overrides))


def test_windows_that_memory_does_not_hold_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(live_checks, "free_bytes", lambda _: 1000)
    with pytest.raises(UserError, match=r"source.live: 2 shuffle windows of up to 262,144 rows"):
        preflight(dry(tmp_path))


def test_a_disk_that_cannot_keep_what_is_to_be_kept_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(live_checks, "whole_store_bytes", lambda _: 2**60)
    with pytest.raises(UserError, match="source.keep=yes: the disk"):
        preflight(dry(tmp_path, "source.keep=yes"))
    preflight(dry(tmp_path, "source.keep=auto"))


def test_an_epoch_over_live_data_is_a_second_pass_and_says_so(tmp_path, capsys):
    preflight(dry(tmp_path, "training.epochs=3", "source.keep=no"))
    out = " ".join(capsys.readouterr().out.split())
    assert "an epoch over live data is a second pass; 3 epochs are 3 forward passes" in out
    assert "FLOP a token" in out and "source.keep=yes would write the rows" in out
    preflight(dry(tmp_path))
    assert "second pass" not in capsys.readouterr().out


def test_a_live_store_takes_the_disk_of_what_is_written(tmp_path):
    whole = estimate._store_bytes(preflight(dry(tmp_path, "source.live=false")).extraction)
    part = estimate._store_bytes(preflight(dry(tmp_path)).live)
    kept = estimate._store_bytes(preflight(dry(tmp_path, "source.keep=yes")).live)
    assert 0.3 * whole < part < 0.4 * whole and kept == whole


def test_keep_is_no_part_of_a_run_and_live_is(tmp_path):
    plain, live, kept = (
        shared_settings(dry(tmp_path, *more), None, [])
        for more in (["source.live=false"], [], ["source.keep=yes"])
    )
    assert live == kept and "source.keep" not in live
    assert plain["source.live"] is False and live["source.live"] is True


def test_the_plan_of_a_live_store_that_is_there(tmp_path, monkeypatch, capsys):
    recipe = dry(tmp_path)
    store, plan = extracted_here(monkeypatch, recipe)
    told = preflight(recipe)
    assert told.store is not None and told.extraction is None and told.live == plan
    assert told.store.digest == store.digest
    assert live_row(told, TWO, SPEED).count("forward pass") == 3
    check_live_rows(recipe, store, told.sites)
    assert "Live: the training rows are kept: " in capsys.readouterr().out
    with pytest.raises(UserError, match="is a live store, .* source is null"):
        preflight(recipe.model_copy(update={"source": None}))
    rows = store.entry(told.sites[0]).rows.train
    short = dry(tmp_path, "training.epochs=3", f"training.tokens={2 * rows}")
    with pytest.raises(UserError, match=r"3 passes .* holds 2\.0"):
        check_live_rows(short, store, told.sites)
    shutil.rmtree(store.path)


@pytest.mark.parametrize(
    ("text", "value"), [("yes", "yes"), ("no", "no"), ("true", "yes"), ("auto", "auto")]
)
def test_yes_and_no_may_be_written_as_yaml_means_them(text, value):
    recipe = load_recipe(None, ["source.live=true", f"source.keep={text}"])
    assert recipe.source.keep == value
    with pytest.raises(UserError, match="keep is yes, but live is false"):
        load_recipe(None, ["source.keep=yes"])
