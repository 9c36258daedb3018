"""MLflow's models of a run: found by their figures, made once, made anew where the figures differ."""

import pytest
from mlflow import MlflowClient

import raysae
from raysae.records.events import Committed, Item, Result, RunEnded
from raysae.records.folder import open_run
from raysae.records.mlflow_listener import MLflowRecorder

FIGURES = {"explained_variance": 0.9, "l0": 8.0}
RECORD = {
    "metrics": FIGURES, "history": [], "steps": 10, "started": 1.0, "seconds": 2.0, "parameters": {},
}  # fmt: skip
TRIAL = Item("trial/0", "trial 0", {})
MEANS = {"atlas_explained_variance": 0.8, "atlas_l0": 7.5}


@pytest.fixture
def told(tmp_path):
    """Ends a run with a chosen SAE of some explained variance, and gives MLflow's client."""

    def tell(explained_variance: float = 0.9, name: str = "one") -> MlflowClient:
        sae = tmp_path / "sae"
        sae.mkdir(exist_ok=True)
        (sae / "cfg.json").write_text("{}")
        figures = {**FIGURES, "explained_variance": explained_variance}
        chosen = Result("a/b sweet spot", {"sae.k": 8}, figures, "trial/0")
        results = [chosen, Result("a/b atlas", {"sites": 2}, MEANS)]
        recipe = raysae.load_recipe(None, [f"runs_dir={tmp_path}/runs", f"name={name}"])
        with open_run(recipe) as run:
            recorder = MLflowRecorder(run)
            recorder.hear(Committed(TRIAL, RECORD, sae))
            recorder.hear(RunEnded(figures, {}, [], results))
            assert recorder.close() == 0, recorder.reason
        return MlflowClient(recorder.uri)

    return tell


def found(client: MlflowClient, asked: str | None = None):
    experiment = client.get_experiment_by_name("raysae")
    assert experiment is not None
    return client.search_logged_models([experiment.experiment_id], filter_string=asked)


def test_a_model_is_found_by_its_figures_and_names_its_sae(told):
    client = told()
    (model,) = found(client, "metrics.explained_variance > 0.85")
    assert (model.name, model.tags["kind"], model.status.value) == (
        "a_b sweet spot",
        "sweet spot",
        "READY",
    )
    assert model.params["sae.k"] == "8"
    run = model.params["sae"].split("/")[1]
    assert [one.path for one in client.list_artifacts(run, "sae")] == ["sae/cfg.json"]
    (atlas,) = found(client, "metrics.atlas_explained_variance > 0.75")
    assert atlas.params["sites"] == "2"
    assert not found(client, "metrics.explained_variance > 0.95")


def test_the_same_end_makes_no_second_model_and_writes_no_figure_twice(told):
    first = {one.model_id for one in found(told())}
    client = told()
    assert {one.model_id for one in found(client)} == first and len(first) == 2
    for key in ("explained_variance", "atlas_l0"):
        parent = next(iter(found(client))).source_run_id
        assert len(client.get_metric_history(parent, key)) == 1


def test_other_figures_make_the_model_anew(told):
    told()
    client = told(0.95)
    values = [
        one.value for model in found(client, "tags.kind = 'sweet spot'") for one in model.metrics
        if one.key == "explained_variance"
    ]  # fmt: skip
    assert values == [0.95]


def test_each_run_has_its_own_models(told):
    told()
    assert len(found(told(name="two"))) == 4
