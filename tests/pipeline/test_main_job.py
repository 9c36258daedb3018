"""The main job, run for real on the pocket GPT-2: what it leaves, repeats, resumes and refuses."""

import html
import json
import os
import shutil
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file

import raysae
from raysae.errors import UserError
from raysae.pipeline.summary import print_summary
from raysae.records.commit import VOLATILE_COLUMNS
from raysae.records.tables import read_table
from raysae.sae.metrics import evaluate
from tests.conftest import SMALL
from tests.report.pages import assert_whole


def stable(rows):
    return [{k: v for k, v in row.items() if k not in VOLATILE_COLUMNS} for row in rows]


def weights(folder):
    return {
        file.parent.relative_to(folder).as_posix(): file.read_bytes()
        for file in sorted(folder.rglob("sae.safetensors"))
    }


def mlflow_runs(result):
    from mlflow import MlflowClient

    client = MlflowClient(result.tracking_uri)
    return client.search_runs([client.get_experiment_by_name("raysae").experiment_id])


def test_the_run_folder_holds_everything(small_run):
    names = {path.name for path in small_run.folder.iterdir()}
    assert names >= {
        "config.yaml", "environment.json", "status.json", "trials.parquet", "selection.json",
        "sweet_spot", "atlas", "report", "trials", "controls.json", "scaling.json",
    }  # fmt: skip
    stages = json.loads((small_run.folder / "status.json").read_text())["stages"]
    assert {name: stage["state"] for name, stage in stages.items()} == dict.fromkeys(
        ["extract", "sweep", "select", "controls", "scaling", "atlas", "analyze", "report"], "done"
    )
    assert small_run.failures == []


def test_every_trial_has_its_row(small_run):
    rows = read_table(small_run.folder / "trials.parquet")
    assert [row["trial"] for row in rows] == list(range(5))
    assert len({(row["sae.d_sae"], row["sae.k"]) for row in rows}) == 5
    for row in rows:
        assert row["state"] == "done"
        assert 0 < row["l0"] <= row["sae.k"] <= row["sae.d_sae"]
        assert row["explained_variance"] == pytest.approx(1 - row["fvu"]) and row["fvu"] > 0
        assert row["dead_window_tokens"] == row["tokens"]  # the run is shorter than the window


def test_the_atlas_covers_every_site(small_run):
    assert {(row["layer"], row["position"]) for row in small_run.atlas} == {
        (1, "-3"), (1, "-1"), (2, "-3"), (2, "-1")
    }  # fmt: skip
    for row in small_run.atlas:
        folder = (
            small_run.folder / f"atlas/layer=0{row['layer']}/position={int(row['position']):02d}"
        )
        assert {file.name for file in folder.iterdir()} == {
            "cfg.json", "sae.safetensors", "metrics.json"
        }  # fmt: skip


def test_metrics_can_be_had_again_from_the_saved_sae_and_the_store(small_run):
    store = raysae.open_store(small_run.run.recipe.store_folder)
    for site in store.sites:
        folder = small_run.folder / "atlas" / site.folder
        sae = raysae.load_sae(folder)
        said = json.loads((folder / "metrics.json").read_text())["metrics"]
        again = evaluate(lambda x: sae(x)[:2], [store.validation(site).float()]).metrics()  # noqa: B023
        assert again["explained_variance"] == pytest.approx(said["explained_variance"], abs=1e-5)
        assert again["l0"] == pytest.approx(said["l0"])
        reconstruction, features, metrics = sae(store.validation(site).float())
        assert metrics["explained_variance"] == pytest.approx(said["explained_variance"], abs=1e-5)
        assert int((features > 0).sum(dim=1).max()) <= sae.config.k
        assert reconstruction.shape == store.validation(site).shape


def test_the_sweet_spot_is_the_chosen_trial_and_its_sites_sae(small_run):
    chosen = small_run.selection["choice"]["trial"]
    sweet = load_file(small_run.folder / "sweet_spot" / "sae.safetensors")
    trial = load_file(small_run.folder / f"trials/{chosen:03d}" / "sae.safetensors")
    site = load_file(small_run.folder / "atlas/layer=01/position=-1/sae.safetensors")
    for name, tensor in sweet.items():
        assert torch.equal(tensor, trial[name])
        assert torch.equal(tensor, site[name])  # same config, seed and rows: the same bits
    assert small_run.sae.config.d_sae == small_run.trials[chosen]["sae.d_sae"]


def test_the_features_of_every_site_have_a_page(small_run):
    pages = small_run.folder / "report" / "features"
    sites = {file.parent.name for file in pages.glob("*/index.html")}
    assert (
        sites
        == {f"layer=0{layer},position={position}" for layer in (1, 2) for position in (-3, -1)}
        and (pages / "index.html").is_file()
    )


def test_the_report_is_one_page_that_needs_nothing_else(small_run):
    page = (small_run.folder / "report/index.html").read_text()
    assert_whole(small_run.folder / "report/index.html")
    plots = ["atlas_profiles.png", *small_run.folder.glob("analysis/*/result/*.png")]
    assert page.count('<img src="data:image/png;base64,') == len(plots) > 1, "the others are charts"
    assert {file.name for file in (small_run.folder / "report").glob("*.png")} == {
        "ev_against_l0.png", "training_curves.png", "atlas_explained_variance.png",
        "atlas_dead_fraction.png", "atlas_l0.png", "atlas_mse.png", "atlas_profiles.png",
        "atlas_decoder_cosine_mean_abs.png",
        "atlas_curves.png", "scaling.png",
    }  # fmt: skip
    assert small_run.controls["words"] in html.unescape(page)
    assert f"No law of scaling: {small_run.scaling['refused']}" in html.unescape(page)
    assert small_run.selection["choice"]["reason"] in page
    assert "Health of the data" in page and "at each of 4 sites" in page
    assert "Swept at layer 1, position -1 with tpe. 5 of 5 trials finished" in page
    for row in small_run.trials:
        assert f"{row['explained_variance']:.4f}" in page


def test_mlflow_has_a_parent_with_a_child_a_trial_and_a_site(small_run):
    from mlflow import MlflowClient

    client, runs = MlflowClient(small_run.tracking_uri), mlflow_runs(small_run)
    (parent,) = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    children = [
        run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id
    ]
    assert len(children) == 5 + 4 == len(runs) - 1
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert parent.data.params["source.model"] == "pocket"
    by_name = {run.info.run_name: run for run in children}
    for row in small_run.trials:
        run = by_name[f"trial {row['trial']}"]
        assert run.data.params["sae.k"] == str(row["sae.k"])
        assert run.data.metrics["explained_variance"] == row["explained_variance"]
        history = client.get_metric_history(run.info.run_id, "explained_variance")
        assert len({point.step for point in history}) == 3
        assert {file.path for file in client.list_artifacts(run.info.run_id, "sae")} >= {
            "sae/sae.safetensors", "sae/cfg.json"
        }  # fmt: skip
    there = {file.path for file in client.list_artifacts(parent.info.run_id)}
    assert there >= {"config.yaml", "selection.json", "report", "trials.parquet"}
    assert "sweet_spot" not in there, "it lies with its trial"
    assert small_run.records_lost == 0


def test_mlflow_filters_trials_and_sites_by_what_they_are(small_run):
    from mlflow import MlflowClient

    client, runs = MlflowClient(small_run.tracking_uri), mlflow_runs(small_run)
    (parent,) = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    mine = f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'"

    def found(query):
        experiment = [parent.info.experiment_id]
        return {run.info.run_name for run in client.search_runs(experiment, f"{mine} and {query}")}

    assert parent.data.tags["kind"] == "sweep"
    assert found("tags.kind = 'trial'") == {f"trial {row['trial']}" for row in small_run.trials}
    assert len(found("tags.kind = 'site'")) == 4
    assert found("tags.kind = 'site' and params.layer = '1'") == {
        str(row.site) for row in small_run.atlas if row.layer == 1
    }
    assert len(found("params.position = '-1' and params.`sae.variant` = 'topk'")) == 2
    assert len(found("params.seed = '0' and params.`training.lr` = '0.003'")) == 9
    best = max(row.explained_variance for row in small_run.trials)
    query = f"tags.kind = 'trial' and metrics.explained_variance >= {best}"
    assert len(found(f"{query} and metrics.l0 < 32")) >= 1
    models = {
        one.tags["kind"]: one
        for one in client.search_logged_models([parent.info.experiment_id])
        if one.source_run_id == parent.info.run_id
    }
    by_number = {f"runs:/{run.info.run_id}/sae": run.info.run_name for run in runs}
    chosen = f"trial {small_run.selection['choice']['trial']}"
    assert by_number[models["sweet spot"].params["sae"]] == chosen
    assert models["atlas"].params["sites"] == "4"
    experiment = client.get_experiment(parent.info.experiment_id)
    assert experiment.tags["mlflow.experimentKind"] == "custom_model_development"


def test_a_finished_run_is_only_read(small_run):
    before = {f: f.stat().st_mtime_ns for f in small_run.folder.rglob("*") if f.is_file()}
    again = raysae.sweep(small_run.run.recipe)
    assert again.trials == read_table(small_run.folder / "trials.parquet")
    after = {f: f.stat().st_mtime_ns for f in small_run.folder.rglob("*") if f.is_file()}
    lock = small_run.folder / ".lock"
    assert {k: v for k, v in before.items() if k != lock} == {
        k: v for k, v in after.items() if k != lock
    }


def test_a_folder_that_holds_another_run_is_refused(small_run):
    before = weights(small_run.folder)
    other = small_run.run.recipe.model_copy(update={"seed": 1, "store": None})
    other = other.model_copy(update={"store": str(small_run.folder.parent / "other_store")})
    with pytest.raises(UserError, match="holds another run") as refusal:
        raysae.sweep(other)
    assert "-seed: 0" in str(refusal.value) and "+seed: 1" in str(refusal.value)
    assert weights(small_run.folder) == before
    assert not (small_run.folder.parent / "other_store").exists()


def test_a_store_made_from_another_source_is_refused(small_run, tmp_path):
    source = small_run.run.recipe.source.model_copy(update={"sequences": 699})
    recipe = small_run.run.recipe.model_copy(update={"source": source, "runs_dir": str(tmp_path)})
    with pytest.raises(UserError, match="sequences: there 700, asked for 699"):
        raysae.sweep(recipe)
    assert not list(tmp_path.iterdir())


def test_an_interrupted_run_goes_on_and_ends_the_same(small_run, tmp_path):
    """Trials 3 and 4 lost, one site lost, every later stage undone: as after a kill."""
    shutil.copytree(small_run.folder.parent, tmp_path / "runs")
    folder = tmp_path / "runs" / "small"
    for lost in ("trials/003", "trials/004", "atlas/layer=02/position=-3"):
        shutil.rmtree(folder / lost)
    (folder / "trials.parquet").unlink()
    status = json.loads((folder / "status.json").read_text())
    for stage in ("sweep", "select", "atlas", "report"):
        status["stages"][stage] = {"state": "running"}
    (folder / "status.json").write_text(json.dumps(status))
    kept = (folder / "trials/000/sae.safetensors").stat().st_mtime_ns
    recipe = small_run.run.recipe.model_copy(update={"runs_dir": str(tmp_path / "runs")})
    again = raysae.sweep(recipe)
    assert stable(again.trials) == stable(small_run.trials)
    assert stable(again.atlas) == stable(small_run.atlas)
    assert weights(folder) == weights(small_run.folder)
    assert (folder / "trials/000/sae.safetensors").stat().st_mtime_ns == kept


@pytest.mark.long
def test_a_driver_killed_in_mid_sweep_loses_nothing(small_run, tmp_path):
    recipe = small_run.run.recipe.model_copy(update={"runs_dir": str(tmp_path)})
    (tmp_path / "recipe.yaml").write_text(recipe.to_yaml())
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    driver = subprocess.Popen(
        [sys.executable, "-m", "raysae.sweep", str(tmp_path / "recipe.yaml"), "resources.cpus=1"],
        env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    first_trial = tmp_path / "small" / "trials" / "000"
    deadline = time.time() + 600
    while not first_trial.exists() and time.time() < deadline:
        time.sleep(0.02)
    driver.kill()
    driver.wait()
    assert first_trial.exists()
    assert not (tmp_path / "small" / "trials.parquet").exists()
    kept = (first_trial / "sae.safetensors").stat().st_mtime_ns
    again = raysae.sweep(recipe)
    assert stable(again.trials) == stable(small_run.trials)
    assert weights(again.folder) == weights(small_run.folder)
    assert (first_trial / "sae.safetensors").stat().st_mtime_ns == kept
    names = [run.info.run_name for run in mlflow_runs(again)]
    assert len(names) == len(set(names)) == 1 + 5 + 4


def test_one_and_two_trials_at_once_give_the_same_bits(small_run, tmp_path):
    """The small run has had two at once."""
    result = raysae.sweep(
        {
            **small_run.run.recipe.dump(),
            "runs_dir": str(tmp_path),
            "resources": {"max_concurrent": 1},
            "atlas": {"enabled": False},
            "records": {"mlflow": False},
        }
    )
    assert stable(result.trials) == stable(small_run.trials)
    assert weights(result.folder / "trials") == weights(small_run.folder / "trials")


@pytest.mark.long
def test_bad_trials_leave_the_others_alone_and_variants_share_a_sweep(small_run, tmp_path):
    configs = [
        {"sae.d_sae": 16, "sae.k": 2},
        {"sae.d_sae": 16, "sae.k": 3, "training.lr": 1e38},
        {"sae.variant": "batch_topk", "sae.d_sae": 32, "sae.k": 2},
        {"sae.variant": "jumprelu", "sae.d_sae": 32, "sae.initial_threshold": 1e6},
        {"sae.variant": "gated", "sae.d_sae": 32, "sae.l1_coefficient": 0.5},
    ]
    recipe = {
        **small_run.run.recipe.dump(),
        "runs_dir": str(tmp_path),
        "sweep": {"sampler": "list", "configs": configs},
        "atlas": {"enabled": False},
    }
    result = raysae.sweep(recipe)
    states = [row["state"] for row in result.trials]
    assert states == ["done", "failed", "done", "degenerate", "done"]
    assert result.trials[3]["explained_variance"] is None and result.trials[3]["l0"] == 0
    assert "loss" in result.trials[1]["reason"] or "gradient" in result.trials[1]["reason"]
    assert result.failures == [
        f"trial 1: {result.trials[1]['reason']}",
        f"trial 3: degenerate: {result.trials[3]['reason']}",
    ]
    assert result.selection["choice"]["trial"] in (0, 2, 4)
    assert "there is no K in gated" in result.selection["choices"]["knee"]["reason"]
    assert result.run.state("sweep") == "partial"
    page = (result.folder / "report/index.html").read_text()
    assert "failed" in page and "degenerate" in page and "L1 coefficient 0.5" in page
    loaded = raysae.load_sae(result.run.trial(4))
    assert loaded.config.variant == "gated" and loaded.metadata["training"]["steps"] > 0
    print_summary(result, 1.0)


def test_a_rule_that_chooses_nothing_leaves_the_atlas_out_and_says_so(small_run, tmp_path):
    recipe = {
        **small_run.run.recipe.dump(),
        "runs_dir": str(tmp_path),
        "select": {"rule": "ev_floor_then_min_dead", "ev_floor": 0.9999},
        "records": {"mlflow": False},
    }
    result = raysae.sweep(recipe)
    assert result.selection["choice"]["trial"] is None
    assert "no trial reaches" in result.failures[0]
    assert result.atlas == [] and not (result.folder / "sweet_spot").exists()
    assert "nothing was chosen" in (result.folder / "report/index.html").read_text()


def test_synthetic_data_is_called_synthetic_and_swept_like_any_other(connected_ray, tmp_path):
    from raysae.activations.synthetic import SuperpositionWorld, write_synthetic_store

    write_synthetic_store(tmp_path / "store", SuperpositionWorld(d_in=8, atoms=16), 600, sites=2)
    result = raysae.sweep(
        {
            **SMALL, "name": "world", "runs_dir": str(tmp_path / "runs"), "source": None,
            "store": str(tmp_path / "store"), "records": {"mlflow": False},
            "resources": {"cpus_per_trial": 0.5},
        }
    )  # fmt: skip
    assert len(result.atlas) == 2
    for row in [*result.trials, *result.atlas]:
        assert 0 < row["mmcs"] <= 1 and 0 <= row["recovered"] <= 1
    page = (result.folder / "report/index.html").read_text()
    assert "The data is synthetic" in page and "SYNTHETIC" in page


def test_a_dead_tracking_server_does_not_stop_the_sweep(small_run, tmp_path):
    recipe = {
        **small_run.run.recipe.dump(),
        "runs_dir": str(tmp_path),
        "sweep": {"sampler": "list", "configs": [{"sae.d_sae": 16, "sae.k": 2}]},
        "atlas": {"enabled": False},
        "records": {"tracking_uri": f"sqlite:///{tmp_path}/no/such\0folder/x.db"},
    }
    result = raysae.sweep(recipe)
    assert result.failures == []
    assert result.records_lost > 0
