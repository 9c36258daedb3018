"""Records of new SAEs reach MLflow's database in one transaction, and are those of single calls."""

from contextlib import nullcontext

from mlflow import MlflowClient

import raysae
from raysae.records import mlflow_wait
from raysae.records.events import Committed, Item
from raysae.records.folder import open_run
from raysae.records.mlflow_listener import MLflowRecorder
from raysae.records.mlflow_session import TransactionClient

FIGURES = {"explained_variance": 0.5, "l0": 2.0, "dead_fraction": 0.0, "loss": 1.0}
RECORD = {
    "metrics": FIGURES, "history": [{**FIGURES, "step": 5}, {**FIGURES, "step": 10, "l0": 3.0}],
    "steps": 10, "started": 1.0, "seconds": 2.0, "parameters": {"sae.k": 4, "sae.d_sae": 8},
}  # fmt: skip
SITES = [Item(f"site/{n}", f"layer {n}", {"sae.k": 4}) for n in range(2)]


def records(folder):
    """What MLflow holds of two sites that a run committed, without ids and times of writing."""
    sae = folder / "sae"
    sae.mkdir(parents=True)
    (sae / "cfg.json").write_text("{}")
    with open_run(raysae.load_recipe(None, [f"runs_dir={folder}/runs", "name=one"])) as run:
        recorder = MLflowRecorder(run)
        for item in SITES:
            recorder.hear(Committed(item, RECORD, sae))
        assert recorder.close() == 0, recorder.reason
    client = MlflowClient(recorder.uri)
    found = client.search_runs([one.experiment_id for one in client.search_experiments()])
    return {one.info.run_name: _told(client, one) for one in found}


def _told(client, run):
    histories = {
        key: sorted(
            (one.step, one.value) for one in client.get_metric_history(run.info.run_id, key)
        )
        for key in run.data.metrics
    }
    tags = {key for key in run.data.tags if key != "mlflow.parentRunId"}
    data = [(one.dataset.name, one.dataset.source_type) for one in run.inputs.dataset_inputs]
    child = "mlflow.parentRunId" in run.data.tags
    times = (run.info.start_time, run.info.end_time) if child else ()
    files = [one.path for one in client.list_artifacts(run.info.run_id, "sae")]
    info = run.info.user_id, run.info.status, run.info.lifecycle_stage
    return run.data.metrics, run.data.params, histories, tags, data, times, files, info


def test_one_transaction_writes_what_single_calls_write(tmp_path, monkeypatch):
    together = records(tmp_path / "together")
    assert len(together) == 3 and together["layer 1"][0]["l0"] == 2.0
    assert together["layer 1"][6] == ["sae/cfg.json"]
    monkeypatch.setattr(mlflow_wait, "one_transaction", lambda client: nullcontext())
    assert records(tmp_path / "apart") == together


def test_a_transaction_that_fails_leaves_nothing_and_is_tried_again(tmp_path, monkeypatch):
    log, failed = TransactionClient.log_batch, []

    def once(self, *arguments, **more):
        if not failed:
            failed.append(1)
            raise OSError("database is locked")
        log(self, *arguments, **more)

    monkeypatch.setattr(TransactionClient, "log_batch", once)
    monkeypatch.setattr("raysae.records.mlflow_listener.RETRY_SECONDS", 0.0)
    assert sorted(records(tmp_path)) == ["layer 0", "layer 1", "one"] and failed


def test_a_record_of_many_figures_is_cut():
    class Store:
        sizes = []  # noqa: RUF012

        def log_batch(self, run, metrics, params, tags):
            self.sizes.append((len(metrics), len(params)))

    TransactionClient(Store()).log_batch("run", list(range(1000)), list(range(100)))
    assert Store.sizes == [(900, 100), (100, 0)]
