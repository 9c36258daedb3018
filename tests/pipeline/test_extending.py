"""A run that has less than its recipe asks for is extended: only what is missing is made."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest

import raysae
from raysae.activations.synthetic import SuperpositionWorld, write_synthetic_store
from raysae.pipeline import run as main_job
from raysae.records.commit import VOLATILE_COLUMNS
from raysae.storage.files import read_json, write_json

EARLIER = Path(__file__).parent / "run_of_version_0_1_0"
WORLD = SuperpositionWorld(d_in=16, atoms=24, p=0.08)


@pytest.fixture(scope="module")
def store(connected_ray, tmp_path_factory):
    folder = tmp_path_factory.mktemp("extending") / "store"
    write_synthetic_store(folder, WORLD, 900, sites=3, validation=0.2, test=0.0)
    return folder


BASE = {
    "name": "extended",
    "source": None,
    "training": {"epochs": 3, "batch_size": 64, "lr": 3e-3, "evaluations": 2},
    "sweep": {
        "trials": 4, "startup_trials": 2, "layer": 0, "controls": "none",
        "space": {"sae.d_sae": {"choices": [8, 16, 24, 32]}, "sae.k": {"choices": [1, 2, 3, 4]}},
    },
    "select": {"rule": "max_ev"},
    "atlas": {"layers": [0]},
    "records": {"mlflow": False},
}  # fmt: skip
MORE_TRIALS = {"sweep": {"trials": 7}}
MORE_LAYERS = {"atlas": {"layers": [0, 1, 2]}}
ANOTHER_RULE = {"select": {"rule": "parsimonious", "tolerance": 0.95}}
ANOTHER_OBJECTIVE = {
    "sweep": {"objectives": [{"metric": "explained_variance", "goal": "maximize"}]}
}


def recipe(store, runs, *changes):
    made = {**BASE, "store": str(store), "runs_dir": str(runs)}
    for change in changes:
        for section, keys in change.items():
            made[section] = {**made.get(section, {}), **keys}
    return made


@pytest.fixture(scope="module")
def begun(store, tmp_path_factory):
    """A finished run of four trials and one site; tests that extend it take a copy."""
    runs = tmp_path_factory.mktemp("begun")
    raysae.sweep(recipe(store, runs))
    return runs


def copied(begun, tmp_path):
    return Path(shutil.copytree(begun, tmp_path / "runs"))


def hashes(run):
    """The weights of every trial and site, by the hash of their bytes."""
    return {
        file.parent.relative_to(run).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in [*run.glob("trials/**/sae.safetensors"), *run.glob("atlas/**/sae.safetensors")]
    }


def written(run):
    """When each trial and site was written: a file that is moved keeps its time."""
    markers = [*run.glob("trials/**/metrics.json"), *run.glob("atlas/**/metrics.json")]
    return sorted(marker.stat().st_mtime_ns for marker in markers)


def stable(rows):
    return [{key: row[key] for key in row if key not in VOLATILE_COLUMNS} for row in rows]


@pytest.mark.parametrize(
    ("change", "trained"),
    [
        (MORE_TRIALS, None),
        pytest.param(MORE_LAYERS, 2, marks=pytest.mark.long),
        pytest.param(ANOTHER_RULE, None, marks=pytest.mark.long),
        pytest.param(ANOTHER_OBJECTIVE, None, marks=pytest.mark.long),
    ],
    ids=["trials", "layers", "rule", "objective"],
)
def test_only_the_new_is_made_and_equals_a_run_that_asked_for_all(
    store, begun, tmp_path, change, trained
):
    runs = copied(begun, tmp_path)
    run = runs / "extended"
    before, times = hashes(run), written(run)
    extended = raysae.sweep(recipe(store, runs, change))
    at_once = raysae.sweep(recipe(store, tmp_path / "at_once", change))
    assert extended.failures == at_once.failures == []
    assert stable(extended.trials) == stable(at_once.trials)
    assert stable(extended.atlas) == stable(at_once.atlas)
    assert extended.selection == at_once.selection
    wanted = hashes(at_once.folder)
    assert {place: hashes(run)[place] for place in wanted} == wanted
    assert set(before.values()) <= set(hashes(run).values()), "nothing earned was lost"
    again = [time for time in written(run) if time not in times]
    had = {(place.split("/")[0], text) for place, text in before.items()}
    new = sum((place.split("/")[0], text) not in had for place, text in wanted.items())
    assert len(again) == new and (trained is None or new == trained)
    assert set(times) <= set(written(run)), "what was there was not written again"


def test_one_goes_back_to_an_earlier_rule_without_training(store, begun, tmp_path):
    runs = copied(begun, tmp_path)
    run = runs / "extended"
    there = {place: text for place, text in hashes(run).items() if "aside" not in place}
    raysae.sweep(recipe(store, runs, ANOTHER_RULE))
    changed = {place: text for place, text in hashes(run).items() if "aside" not in place}
    assert changed.keys() == there.keys() and changed != there
    times = written(run)
    back = raysae.sweep(recipe(store, runs))
    assert {p: text for p, text in hashes(run).items() if "aside" not in p} == there
    assert written(run) == times and len(back.atlas) == 1


def test_a_finished_run_starts_no_ray_and_writes_nothing(store, begun, tmp_path, monkeypatch):
    runs = copied(begun, tmp_path)
    monkeypatch.setattr(main_job, "trial_session", None)
    before = {file: file.stat().st_mtime_ns for file in runs.rglob("*.json")}
    result = raysae.sweep(recipe(store, runs))
    assert len(result.trials) == 4 and len(result.atlas) == 1 and result.failures == []
    assert before == {file: file.stat().st_mtime_ns for file in runs.rglob("*.json")}
    (runs / "extended/report/index.html").unlink()
    raysae.sweep(recipe(store, runs))
    assert (runs / "extended/report/index.html").is_file(), "only the page was missing"


@pytest.mark.parametrize(
    ("change", "both_sides"),
    [
        ({"training": {"epochs": 4}}, r"-training.epochs: 3\n  \+training.epochs: 4"),
        ({"sae": {"aux_coefficient": 0.5}}, r"-sae.aux_coefficient: 0.03125.*\+sae.aux_coefficient: 0.5"),
        ({"sweep": {"layer": 1}}, r"-sites: \[\"layer=00/position=all\"\]\n  \+sites: .*layer=01"),
        ({"sweep": {"seeds_per_trial": 2}}, r"-seeds_per_trial: 1\n  \+seeds_per_trial: 2"),
    ],
)  # fmt: skip
def test_other_settings_under_the_same_name_are_refused(store, begun, change, both_sides):
    before = written(begun / "extended")
    with pytest.raises(raysae.UserError, match=f"(?s)--force.*{both_sides}"):
        raysae.sweep(recipe(store, begun, change))
    assert written(begun / "extended") == before


def test_another_store_is_refused(begun, tmp_path):
    write_synthetic_store(tmp_path / "other", WORLD, 800, sites=3, validation=0.2, test=0.0)
    with pytest.raises(raysae.UserError, match=r'(?s)-store: "\w+"\n  \+store: "\w+"'):
        raysae.sweep(recipe(tmp_path / "other", begun))


def test_places_resources_and_records_never_count(store, begun, tmp_path, monkeypatch):
    runs = copied(begun, tmp_path)
    moved = shutil.copytree(store, tmp_path / "elsewhere")
    monkeypatch.setattr(main_job, "trial_session", None)
    changed = recipe(moved, runs, {"resources": {"max_concurrent": 1, "gang": 2}})
    assert len(raysae.sweep(changed).trials) == 4


def without_setting(tree, key):
    """``tree`` as it was before the setting ``key`` existed."""
    if isinstance(tree, dict):
        return {k: without_setting(v, key) for k, v in tree.items() if k != key}
    return [without_setting(one, key) for one in tree] if isinstance(tree, list) else tree


@pytest.mark.parametrize("key", ["gradient_clip", "grace"])
def test_a_setting_that_did_not_exist_counts_as_its_default(store, begun, tmp_path, key):
    runs = copied(begun, tmp_path)
    files = [runs / "extended/status.json", *runs.glob("extended/*/**/metrics.json")]
    for file in files:
        old = without_setting(read_json(file), key)
        for dotted in (f"training.{key}", f"sweep.{key}"):
            old = without_setting(old, dotted)
        write_json(file, old)
    times = written(runs / "extended")
    extended = raysae.sweep(recipe(store, runs, MORE_LAYERS))
    assert set(times) <= set(written(runs / "extended")) and len(extended.atlas) == 3
    if key == "gradient_clip":
        with pytest.raises(raysae.UserError, match="training.gradient_clip: 0.1"):
            raysae.sweep(recipe(store, runs, MORE_LAYERS, {"training": {"gradient_clip": 1.0}}))


def earlier(tmp_path, name, *overrides):
    """A run of version 0.1.0, and its recipe, in a folder of this test."""
    shutil.copytree(EARLIER, tmp_path / "earlier")
    runs, stored = tmp_path / "earlier/runs", tmp_path / "earlier/stores/small"
    given = [f"runs_dir={runs}", f"store={stored}", *overrides]
    return runs / name, raysae.load_recipe(runs / name / "config.yaml", given)


def test_a_finished_run_of_an_earlier_version_is_complete(tmp_path, monkeypatch):
    run, made = earlier(tmp_path, "finished")
    monkeypatch.setattr(main_job, "trial_session", None)
    before = hashes(run)
    result = raysae.sweep(made)
    assert (len(result.trials), len(result.atlas), result.failures) == (3, 2, [])
    assert hashes(run) == before


@pytest.mark.long
def test_a_finished_run_of_an_earlier_version_is_extended(connected_ray, tmp_path):
    run, made = earlier(tmp_path, "finished", "sweep.trials=5", "atlas.layers=[1,2]")
    before, times = hashes(run), written(run)
    result = raysae.sweep(made)
    assert (len(result.trials), len(result.atlas), result.failures) == (5, 4, [])
    assert before.items() <= hashes(run).items() and set(times) <= set(written(run))
    assert len(written(run)) == len(times) + 2 + 2
    changed = raysae.load_recipe(run / "config.yaml", ["training.epochs=4"])
    with pytest.raises(raysae.UserError, match=r"(?s)-training.epochs: 3.*\+training.epochs: 4"):
        raysae.sweep(changed)


@pytest.mark.long
def test_an_interrupted_run_of_an_earlier_version_goes_on(connected_ray, tmp_path):
    run, made = earlier(tmp_path, "interrupted", "resources.checkpoint_seconds=60")
    state = json.loads(next(run.glob("trials/001.training/*/training.json")).read_text())
    committed = written(run)
    result = raysae.sweep(made)
    assert result.failures == [] and len(result.trials) == 3 and len(result.atlas) == 2
    assert set(committed) <= set(written(run))
    history = read_json(run / "trials/001/metrics.json")["history"]
    resumed = history[: len(state["history"])]
    assert state["step"] > 0 and resumed == state["history"], "it went on from its checkpoint"
    assert not list(run.glob("trials/*.training"))
