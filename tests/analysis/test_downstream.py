"""The model's loss as an objective of the search: the figures of the phase ``loss``, and its refusals."""

import pickle

import pytest

from raysae import Site
from raysae.analysis.downstream import DownstreamLoss, check_head
from raysae.config import load_recipe
from raysae.errors import UserError
from raysae.pipeline.in_model import check_in_model, judge_of
from raysae.pipeline.preflight import preflight
from tests.analysis.test_loss import result_of, row_of

OBJECTIVE = "sweep.objectives=[{metric: ce_recovered, goal: maximize}]"


def recipe_on(run, *overrides):
    store = [f"store={run.store.path}", "source=null", "sweep.layer=1", "sweep.position=-1"]
    return load_recipe(None, [f"runs_dir={run.folder.parent}", "name=other", *store, *overrides])


@pytest.fixture(scope="module")
def judge(pocket_run) -> DownstreamLoss:
    recipe = recipe_on(pocket_run, OBJECTIVE)
    found = judge_of(recipe, pocket_run.store, [Site(1, -1), Site(2, -1)])
    found.check()
    return found


def test_its_figures_are_those_of_the_phase(judge, pocket, tmp_path):
    result = result_of(pocket, tmp_path)
    for layer in (1, 2):
        row = row_of(result, layer, -1)
        found = judge.figures({(Site(layer, -1), 0): pocket.atlas[layer, -1]}, lambda: None)
        names = (
            "ce_recovered",
            "ce_recovered_low",
            "ce_recovered_high",
            "kl_recovered",
            "ce_increase",
        )
        assert {name: found[name] for name in names} == pytest.approx(
            {name: row[name] for name in names}
        )
        assert found["in_model_texts"] == row["texts"]


def test_several_saes_have_means_and_no_interval(judge, pocket):
    saes = {(Site(layer, -1), 0): pocket.atlas[layer, -1] for layer in (1, 2)}
    alone = [judge.figures({key: sae}, lambda: None)["ce_recovered"] for key, sae in saes.items()]
    found = judge.figures(saes, lambda: None)
    assert found["ce_recovered"] == pytest.approx(sum(alone) / 2)
    assert "ce_recovered_low" not in found


def test_it_is_sent_small_to_workers(judge):
    sent = pickle.dumps(judge.opened("cpu"))
    assert len(sent) < 20_000 and judge.model_bytes > 100_000


def test_without_the_objective_there_is_none(pocket_run):
    recipe = recipe_on(pocket_run)
    assert judge_of(recipe, pocket_run.store, [Site(1, -1)]) is None
    assert check_in_model(recipe, pocket_run.store, [Site(1, -1)]) == 0


def test_a_metric_of_another_kind_of_model_is_refused():
    check_head(True, ["ce_recovered", "l0"], "gpt2")
    with pytest.raises(
        UserError, match="final_cosine_recovered of gpt2, which has a language-model"
    ):
        check_head(True, ["final_cosine_recovered"], "gpt2")
    with pytest.raises(
        UserError, match=r"ce_recovered of e5, which has no .* final_cosine_recovered"
    ):
        check_head(False, ["ce_recovered"], "e5")


def test_a_model_that_is_not_there_or_not_the_stores_is_refused(pocket_run, tmp_path, monkeypatch):
    recipe = recipe_on(pocket_run, OBJECTIVE)
    monkeypatch.setattr("raysae.transformer.capture.weights_hash", lambda model: "0" * 64)
    with pytest.raises(UserError, match="weights of 'pocket' have the sha256 000000000000"):
        check_in_model(recipe, pocket_run.store, [Site(1, -1)])


def test_a_store_without_a_model_is_refused(tmp_path):
    from raysae.activations.synthetic import SuperpositionWorld, write_synthetic_store

    write_synthetic_store(tmp_path / "store", SuperpositionWorld(d_in=16, atoms=24, p=0.1), 200)
    recipe = load_recipe(None, [f"store={tmp_path / 'store'}", "source=null", OBJECTIVE])
    with pytest.raises(
        UserError, match="needs the model behind the rows, and those of .* synthetic"
    ):
        preflight(recipe)


def test_where_nothing_follows_the_rows_it_is_refused_before_the_extraction(tmp_path):
    source = ["source.text={prompt}{answer}", "source.sequences=60", "source.positions=[-1, all]"]
    recipe = load_recipe(
        None, [f"store={tmp_path / 'store'}", *source, OBJECTIVE, "sweep.position=-1"]
    )
    with pytest.raises(UserError, match="nothing follows the rows of layer"):
        preflight(recipe)
    assert not (tmp_path / "store").exists()
    plan = preflight(load_recipe(None, [f"store={tmp_path / 'store'}", *source, OBJECTIVE,
                                        "sweep.position=all"]))  # fmt: skip
    assert plan.needs.model_bytes > 100_000


@pytest.mark.long
def test_a_search_by_it(connected_ray, tmp_path):
    import raysae
    from raysae.records.tables import read_table

    recipe = load_recipe(None, [
        f"runs_dir={tmp_path / 'runs'}", f"store={tmp_path / 'store'}", "source.sequences=200",
        "source.layers=[1]", "sweep.trials=3", "training.epochs=1", "records.mlflow=false", OBJECTIVE,
        "sweep.controls=none", "analyze.phases=[]", "sweep.loss_texts=20",
    ])  # fmt: skip
    result = raysae.sweep(recipe)
    rows = read_table(result.run.trials_file)
    assert [row["state"] for row in rows] == ["done"] * 3
    assert all(row["ce_recovered"] <= 1 and row["in_model_texts"] > 5 for row in rows)
    assert all(row["ce_recovered_low"] <= row["ce_recovered_high"] for row in rows)
    before = [row["ce_recovered"] for row in rows]
    more = recipe.model_copy(update={"sweep": recipe.sweep.model_copy(update={"trials": 4})})
    again = read_table(raysae.sweep(more).run.trials_file)
    assert [row["ce_recovered"] for row in again[:3]] == before
