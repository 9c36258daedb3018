"""The engine around the trials: seeds, sites, bad trials, early stopping, budgets, choosing anew."""

import dataclasses
import json
import os
import shutil
import signal
import sys
import time

import pytest
import ray
import yaml
from ray.tune.execution import class_cache

import raysae
from raysae.activations.synthetic import SuperpositionWorld, write_synthetic_store
from raysae.console.board import set_log
from raysae.pipeline import stages
from raysae.pipeline.sweep_command import main
from raysae.records.commit import VOLATILE_COLUMNS
from raysae.records.tables import read_table
from raysae.storage.files import read_json, write_json
from raysae.sweep.trials import opening
from raysae.training.rows import Rows

WORLD = SuperpositionWorld(d_in=16, atoms=24, p=0.08)
BASE = {
    "source": None,
    "training": {"epochs": 6, "batch_size": 64, "lr": 3e-3, "evaluations": 6},
    "atlas": {"enabled": False},
    "records": {"mlflow": False},
}
CONFIGS = [{"sae.d_sae": d_sae, "sae.k": k} for d_sae in (16, 24) for k in (1, 2)]


@pytest.fixture(scope="module")
def store(connected_ray, tmp_path_factory):
    folder = tmp_path_factory.mktemp("planted") / "store"
    write_synthetic_store(folder, WORLD, 1500, sites=2, validation=0.2, test=0.0)
    return folder


def recipe(store, runs, sweep=None, resources=None, **settings):
    """A sweep of four configs, one after another: the start of an actor is most of its time."""
    return {
        **BASE, "name": "engine", "store": str(store), "runs_dir": str(runs), **settings,
        "sweep": {"sampler": "list", "configs": CONFIGS, **(sweep or {})},
        "resources": {"max_concurrent": 1, **(resources or {})},
    }  # fmt: skip


def sweep(*args, **settings):
    return raysae.sweep(recipe(*args, **settings))


@pytest.fixture(scope="module")
def finished(store, tmp_path_factory):
    """A finished run; tests that change one take a copy."""
    return sweep(store, tmp_path_factory.mktemp("finished"))


def copied(finished, tmp_path):
    shutil.copytree(finished.folder, tmp_path / "engine")
    return tmp_path / "engine"


def test_seeds_and_sites_are_trained_together(store, tmp_path):
    sites = [{"layer": 0, "position": "all"}, {"layer": 1, "position": "all"}]
    result = sweep(store, tmp_path, sweep={"seeds_per_trial": 2, "sites": sites})
    assert result.failures == []
    for row in result.trials:
        members = result.run.trial(row["trial"]).with_suffix(".members")
        evs = [
            raysae.load_sae(folder.parent).metadata["metrics"]["explained_variance"]
            for folder in [*members.rglob("cfg.json"), result.run.trial(row["trial"]) / "cfg.json"]
        ]
        assert len(evs) == 4
        assert row["explained_variance"] == pytest.approx(sum(evs) / 4)
        assert row["explained_variance_worst"] < row["explained_variance"]
        assert 0 < row["stability"] < 1
        assert row["tokens_trained"] == 4 * row["tokens"]


def test_processes_get_ready_for_the_atlas_once_a_place_is_free(store, tmp_path, monkeypatch):
    before, left = stages._before_atlas, []

    def noted(attempt):
        done = len(list((attempt.run.path / "trials").glob("*/metrics.json")))
        left.append(len(CONFIGS) - done)
        before(attempt)

    monkeypatch.setattr(stages, "_before_atlas", noted)
    made = {"atlas": {"layers": [0]}, "resources": {"max_concurrent": 2}}
    result = sweep(store, tmp_path, sweep={"controls": "none"}, **made)
    assert left == [1] and result.failures == [] and len(result.atlas) == 1


def test_a_gang_of_trials_comes_to_the_same_table(finished, store, tmp_path):
    bad = {**CONFIGS[1], "training.lr": 1e38}
    gang = sweep(store, tmp_path, sweep={"configs": [*CONFIGS, bad]}, resources={"gang": 3})
    assert [row["state"] for row in gang.trials] == ["done"] * 4 + ["failed"]
    for row, expected in zip(gang.trials, finished.trials, strict=False):
        for column in expected.keys() - set(VOLATILE_COLUMNS):
            assert row[column] == expected[column], column
    weights = [(r.folder / "trials/003/sae.safetensors").read_bytes() for r in (gang, finished)]
    assert weights[0] == weights[1]
    again = raysae.sweep(gang.run.recipe, force=True)
    assert again.trials == gang.trials


@pytest.mark.long
@pytest.mark.parametrize("sampler", ["list", "tpe"])
def test_a_tune_that_fails_with_what_is_left_out_runs_plainly(
    store, tmp_path, monkeypatch, caplog, sampler
):
    asked = {"sampler": sampler, "trials": 4, "configs": CONFIGS if sampler == "list" else []}
    space = {"sae.d_sae": {"choices": [16, 24]}, "sae.k": {"choices": [1, 2]}}
    asked |= {"space": space, "startup_trials": 2}
    plain = sweep(store, tmp_path / "plain", sweep=asked, resources={"lean": False})
    get = class_cache._ActorClassCache.get

    def get_with_variable(cache, trainable):  # raises once Tune has asked for the first trial
        class_cache.DEFAULT_ENV_VARS["PL_DISABLE_FORK"]
        return get(cache, trainable)

    monkeypatch.setattr(class_cache._ActorClassCache, "get", get_with_variable)
    repeated = sweep(store, tmp_path / "repeated", sweep=asked)
    (note,) = [one.getMessage() for one in caplog.records if "plainly" in one.getMessage()]
    assert note.startswith("Tune was started plainly") and "PL_DISABLE_FORK" in note
    assert [row["state"] for row in repeated.trials] == ["done"] * 4
    for row, expected in zip(repeated.trials, plain.trials, strict=True):
        for column in expected.keys() - set(VOLATILE_COLUMNS):
            assert row[column] == expected[column], column


class BadRows(Rows):
    """Rows that come to grief in their own way at certain batch sizes, from the second epoch on."""

    scratch = ""

    def taken(self, order, batch_size):
        self.epochs = getattr(self, "epochs", 0) + 1
        trouble = {50: "raise", 51: "memory", 52: "nan", 53: "hang", 54: "die"}.get(batch_size)
        if trouble and self.epochs % 7 > 1:
            if trouble == "raise":
                raise OSError("the disk is gone")
            if trouble == "memory":
                raise MemoryError("can't allocate memory")
            if trouble == "hang":
                time.sleep(1000)
            if trouble == "die" and not os.path.exists(self.scratch):
                open(self.scratch, "w").close()
                os.kill(os.getpid(), signal.SIGKILL)
        for batch_BD in super().taken(order, batch_size):
            yield batch_BD * float("nan") if trouble == "nan" and self.epochs % 7 > 1 else batch_BD


@dataclasses.dataclass
class BadSite:
    """A site whose training rows are ``BadRows``."""

    site: object
    scratch: str

    def rows(self, split):
        rows = self.site.rows(split)
        if split == "validation":
            return rows
        bad = BadRows(rows.blocks)
        bad.scratch = self.scratch
        return bad


@pytest.mark.long
def test_bad_trials_end_with_their_reasons_and_the_other_nine_are_done(
    store, tmp_path, monkeypatch, capsys
):
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    whole = opening.open_site
    scratch = str(tmp_path / "has_died")
    monkeypatch.setattr(opening, "open_site", lambda *args: BadSite(whole(*args), scratch))
    bad = [{"sae.d_sae": 16, "sae.k": 1, "training.batch_size": size} for size in range(50, 55)]
    nine = [bad.pop(), *CONFIGS, *({**config, "training.lr": 1e-3} for config in CONFIGS)]
    written = recipe(
        store, tmp_path / "runs", sweep={"configs": [*bad, *nine], "trials": 13},
        resources={"hang_seconds": 25, "checkpoint_seconds": 0, "max_concurrent": 3},
    )  # fmt: skip
    (tmp_path / "bad.yaml").write_text(yaml.safe_dump(written))
    assert main([str(tmp_path / "bad.yaml")]) == 1
    ray.cloudpickle.unregister_pickle_by_value(sys.modules[__name__])
    folder = tmp_path / "runs" / "engine"
    rows = read_table(folder / "trials.parquet")
    assert [row["state"] for row in rows] == ["failed"] * 4 + ["done"] * 9
    reasons = [row["reason"] for row in rows[:4]]
    for reason, words in zip(
        reasons,
        ["the disk is gone", "lower d_sae", "verify the store", "hung: no step for 25 s"],
        strict=True,
    ):
        assert words in reason
    printed = capsys.readouterr().out
    table = printed[printed.index("Not done") :]
    cells = [line.split("  ")[:2] for line in table.splitlines() if line.startswith("trial ")]
    assert [cell for cell, _ in cells] == [f"trial {number}" for number in range(4)]
    assert all(
        reason.startswith(cell[1].strip()) for reason, cell in zip(reasons, cells, strict=True)
    )
    for hint in ("000.failure.txt", "lower d_sae", "verify the store"):
        assert hint in table
    trace = next((folder / "trials").glob("003.hung-*.txt")).read_text()
    assert "taken" in trace
    # the one whose worker was killed went on from where it was kept, to the same bits
    monkeypatch.setattr(opening, "open_site", whole)
    alone = sweep(store, tmp_path / "alone", sweep={"configs": nine[:1]})
    for name in ("explained_variance", "mse", "l0"):
        assert alone.trials[0][name] == rows[4][name]
    kept = {path.name[:3] for path in (folder / "trials").glob("*.training")}
    assert kept <= {"000", "001", "002", "003"}


def test_asha_stops_poor_trials_for_good(store, tmp_path):
    objective = [{"metric": "explained_variance", "goal": "maximize"}]
    search = {
        "sampler": "random", "configs": [], "trials": 9, "objectives": objective,
        "early_stopping": "asha",
        "space": {"sae.d_sae": {"choices": [4, 8, 16, 24]}, "sae.k": {"choices": [1, 2, 3]}},
    }  # fmt: skip
    result = sweep(store, tmp_path, sweep=search)
    states = [row["state"] for row in result.trials]
    assert len(states) == 9 and set(states) == {"done", "stopped"}
    assert result.failures == []
    full = max(row["tokens_trained"] for row in result.trials)
    assert sum(row["tokens_trained"] for row in result.trials) < 0.9 * 9 * full
    stopped = next(row for row in result.trials if row["state"] == "stopped")
    assert "early stopping, at step" in stopped["reason"]
    (result.folder / "trials.parquet").unlink()
    status = result.run.status
    status["stages"]["sweep"] = {"state": "running"}
    result.run._write()
    again = sweep(store, tmp_path, sweep=search)
    assert [row["state"] for row in again.trials] == states
    assert [row["reason"] for row in again.trials] == [row["reason"] for row in result.trials]


def test_budgets_end_a_sweep_and_a_trial(store, tmp_path):
    few = sweep(
        store, tmp_path / "tokens", sweep={"max_tokens": 1000}, resources={"max_concurrent": 1}
    )
    assert len(few.trials) == 1 and few.failures == []
    brief = sweep(store, tmp_path / "seconds", sweep={"max_seconds_per_trial": 1e-6})
    assert {row["state"] for row in brief.trials} == {"stopped"}
    reason = brief.trials[0]["reason"]
    assert reason.startswith("at step") and "it had trained for" in reason


def test_choosing_anew_trains_nothing(finished, tmp_path, capsys):
    folder = copied(finished, tmp_path)
    weights = {p: p.stat().st_mtime_ns for p in folder.glob("trials/*/sae.safetensors")}
    for rule in ("max_ev", "parsimonious"):
        assert main(["--select", rule, "--run", str(folder)]) == 0
        assert f"Rule {rule}" in capsys.readouterr().out
    assert main(["--select", "pareto", "--run", str(folder), "select.trial=0"]) == 0
    assert "chosen by hand" in capsys.readouterr().out
    chosen = raysae.load_sae(folder / "sweet_spot")
    assert chosen.config.d_sae == 16 and chosen.config.k == 1
    assert weights == {p: p.stat().st_mtime_ns for p in weights}
    assert (folder / "config.yaml").read_text().count("rule: pareto") == 1


def test_a_json_log_is_a_line_an_event(finished, tmp_path, capsys):
    folder = copied(finished, tmp_path)
    (folder / "trials.parquet").unlink()
    status = read_json(folder / "status.json")
    status["stages"]["sweep"] = {"state": "running"}
    write_json(folder / "status.json", status)
    capsys.readouterr()
    assert main(["--resume", str(folder), "--log", "json"]) == 0
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {event["event"] for event in events} == {
        "message", "progress", "outcome", "health",
    }  # fmt: skip
    ended = [event for event in events if event["event"] == "progress" and event["done"] == 1]
    assert sorted(event["key"] for event in ended) == [f"trial {n}" for n in range(4)]
    assert all(0 < event["explained_variance"] < 1 for event in ended)
    assert main(["--resume", str(folder), "--log", "quiet"]) == 0
    quiet = capsys.readouterr().out.splitlines()
    assert len(quiet) == 2 and quiet[0].startswith("Rule auto")
    set_log("auto")


def test_a_changed_config_is_refused_unless_forced(finished, tmp_path):
    folder = copied(finished, tmp_path)
    changed = ["--resume", str(folder), "training.epochs=9"]
    both_sides = r"(?s)--force.*-training.epochs: 6.*\+training.epochs: 9"
    with pytest.raises(raysae.UserError, match=both_sides):
        main(changed)
    assert main([*changed, "--force"]) == 0
    assert main(["--resume", str(folder)]) == 0, "forced once is enough"
    forced = read_json(folder / "status.json")["forced"]
    assert len(forced) == 1 and "training.epochs: 9" in forced[0]["change"]


def test_a_dry_run_says_what_the_run_would_do_and_writes_nothing(store, tmp_path, capsys):
    from raysae.pipeline.dry_run import dry_run

    recipe = raysae.Recipe.model_validate(
        {**BASE, "name": "dry", "store": str(store), "runs_dir": str(tmp_path / "runs")}
    )
    dry_run(recipe)
    printed = capsys.readouterr().out
    for words in (
        "8 by tpe",
        "sae.d_sae 32, 64, 128, 256",
        "no atlas",
        "at once",
        "shared",
        "tokens/s",
    ):
        assert words in printed
    assert "Data" in printed and "rows at each of 1 site" in " ".join(printed.split())
    assert not (tmp_path / "runs").exists()
