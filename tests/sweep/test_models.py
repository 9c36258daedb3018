"""Several models in one recipe: a run for each, one table; one that cannot be run is named."""

import pytest

import raysae
from raysae.config import parse_recipe
from raysae.records.tables import read_table
from raysae.sweep.models import print_comparison
from tests.conftest import SMALL

MODELS = {
    "shallow": {"source": {"layers": [0]}},
    "deep": {"source": {"layers": [3]}, "sweep": {"trials": 2}},
}


def recipe(tmp_path, **more):
    source = {"sequences": 200, "positions": [-1], "validation": 0.2}
    return {
        **SMALL, "name": "both", "runs_dir": str(tmp_path / "runs"), "store": str(tmp_path / "store"),
        "source": source, "sweep": {**SMALL["sweep"], "trials": 3}, "models": MODELS,
        "records": {"mlflow": False}, **more,
    }  # fmt: skip


def test_each_model_has_its_run_and_the_table_compares_them(connected_ray, tmp_path, capsys):
    result = raysae.sweep(recipe(tmp_path))
    assert result.failures == []
    rows = read_table(tmp_path / "runs" / "both" / "models.parquet")
    assert [(row["model"], row["trials"], row["atlas.sites"]) for row in rows] == [
        ("shallow", 3, 1), ("deep", 2, 1),
    ]  # fmt: skip
    for row in rows:
        own = result.results[row["model"]]
        assert row["explained_variance"] == own.trials[row["trial"]]["explained_variance"]
        assert own.folder == tmp_path / "runs" / "both" / row["model"]
    print_comparison(result)
    printed = capsys.readouterr().out
    assert "shallow" in printed and "deep" in printed and "models.parquet" in printed
    again = raysae.sweep(tmp_path / "runs" / "both" / "config.yaml")
    assert again.rows == result.rows


def test_a_model_that_cannot_be_run_is_named_before_any_work(tmp_path):
    bad = {"broken": {"source": {"layers": [99]}}}
    with pytest.raises(raysae.UserError, match=r"models.broken: .*99"):
        raysae.sweep(recipe(tmp_path, models={**MODELS, **bad}))
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("models", "words"),
    [
        ({"a": {"name": "b"}}, "cannot be a model's own"),
        ({"a/b": {}}, "no name of a folder"),
        ({"a": {"sweep": {"trails": 3}}}, "trails"),
    ],
)
def test_what_cannot_be_a_models_own_is_refused(models, words):
    with pytest.raises(raysae.UserError, match=words):
        parse_recipe({"models": models})
