"""Several models in one recipe: a run for each, one table; one that cannot be run is named."""

import re

import pytest

import raysae
from raysae.activations.synthetic import SuperpositionWorld, write_synthetic_store
from raysae.config import parse_recipe
from raysae.pipeline.several_models import print_comparison
from raysae.records.tables import read_table
from tests.report.pages import assert_whole

SEARCH = {"sampler": "list", "configs": [{"sae.d_sae": 16, "sae.k": k} for k in (1, 2)]}


def recipe(tmp_path, **more):
    """Two models of unlike widths, their activations there already."""
    for name, d_in in (("narrow", 8), ("wide", 12)):
        if not (tmp_path / name).exists():
            world = SuperpositionWorld(d_in=d_in, atoms=16)
            write_synthetic_store(tmp_path / name, world, 600, validation=0.2, test=0.0)
    return {
        "name": "both", "runs_dir": str(tmp_path / "runs"), "source": None,
        "store": str(tmp_path / "unused"), "training": {"epochs": 2, "batch_size": 64},
        "sweep": SEARCH, "records": {"mlflow": False}, "resources": {"max_concurrent": 1},
        "models": {
            "narrow": {"store": str(tmp_path / "narrow")},
            "wide": {"store": str(tmp_path / "wide"), "select": {"rule": "max_ev"}},
        },
        **more,
    }  # fmt: skip


@pytest.mark.long
def test_each_model_has_its_run_and_the_table_compares_them(connected_ray, tmp_path, capsys):
    result = raysae.sweep(recipe(tmp_path))
    assert result.failures == []
    rows = read_table(tmp_path / "runs" / "both" / "models.parquet")
    assert [(row["model"], row["d_in"], row["trials"], row["atlas.sites"]) for row in rows] == [
        ("narrow", 8, 2, 1), ("wide", 12, 2, 1),
    ]  # fmt: skip
    for row in rows:
        own = result.results[row["model"]]
        assert row["explained_variance"] == own.trials[row["trial"]]["explained_variance"]
        assert own.folder == tmp_path / "runs" / "both" / row["model"]
    print_comparison(result)
    printed = capsys.readouterr().out
    assert "narrow" in printed and "wide" in printed and "models.parquet" in printed
    page = result.page.read_text()
    assert_whole(result.page)
    links = re.findall('<td><a href="([^"]+)">', page)
    assert len(links) == 2 and page.count('class="plot"') >= 1
    for link, row in zip(links, rows, strict=True):
        assert (result.page.parent / link).resolve() == result.results[row["model"]].run.report_page
        assert f"{row['explained_variance']:.4f}" in page and row["reason"] in page
    again = raysae.sweep(tmp_path / "runs" / "both" / "config.yaml")
    assert again.rows == result.rows


def test_a_model_that_cannot_be_run_is_named_before_any_work(tmp_path):
    models = {**recipe(tmp_path)["models"], "broken": {"sweep": {"layer": 99}}}
    with pytest.raises(raysae.UserError, match=r"models.broken: .*(unused|99)"):
        raysae.sweep(recipe(tmp_path, models=models))
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
