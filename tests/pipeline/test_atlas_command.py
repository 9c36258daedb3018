"""``python -m raysae.atlas``: a given config, a sweep's choice, more sites, and what is refused."""

import json

import pytest
import torch

import raysae
from raysae.activations.writer import write_store
from raysae.config import parse_recipe
from raysae.pipeline.atlas_command import main
from raysae.pipeline.preflight import preflight
from raysae.records.tables import read_sites, read_table
from raysae.report.report_command import write_page
from raysae.sites import Site

QUICK = ["training.epochs=2", "training.batch_size=64", "records.mlflow=false", "source=null"]
CONFIG = ["sae.d_sae=16", "sae.k=2"]


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with a store of four sites; at the third one all rows are the same."""
    generator = torch.Generator().manual_seed(0)
    sites = {Site(layer, "all"): torch.randn(200, 8, generator=generator) for layer in range(4)}
    sites[Site(2, "all")] = torch.ones(200, 8)
    split = {"validation": 0.2, "test": 0.0}
    write_store(tmp_path / "s", sites, provenance="imported", source={}, split=split)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def atlas(*words):
    return main(["store=s", "name=given", *QUICK, *CONFIG, *words])


def test_a_given_config_is_trained_and_its_atlas_grows(connected_ray, place, capsys):
    """Without trials; the report and the records work; a site that cannot be trained fails alone."""
    assert atlas("atlas.layers=[0,1]") == 0
    run = place / "runs" / "given"
    names = {path.name for path in run.iterdir()}
    assert not names & {"trials", "trials.parquet", "selection.json", "sweet_spot", "study.db"}
    first = {file: file.read_bytes() for file in run.rglob("sae.safetensors")}
    assert len(first) == 2
    page = (run / "report" / "index.html").read_text()
    assert "there was no search" in page and "d_sae 16" in page and "The sweep" not in page
    assert "Training topk, d_sae 16, k 2 at 2 sites" in capsys.readouterr().out
    assert atlas("atlas.layers=[0,1]") == 0
    assert "Training topk" not in capsys.readouterr().out  # the same command only reads
    assert main(["--run", "runs/given", "atlas.layers=[2,3]"]) == 1
    rows = read_sites(run / "atlas" / "metrics.parquet")
    assert [(row.layer, row.state) for row in rows] == [
        (0, "done"), (1, "done"), (2, "failed"), (3, "done"),
    ]  # fmt: skip
    assert "are the same" in rows[2].reason and rows[2].figures.get("explained_variance") is None
    assert {file: file.read_bytes() for file in first} == first
    assert write_page(str(run)) == str(run / "report" / "index.html")
    assert "are the same" in (run / "report" / "index.html").read_text()


@pytest.mark.long
def test_more_sites_of_a_choice_go_into_the_runs_own_atlas(connected_ray, place, capsys):
    from raysae.pipeline.sweep_command import main as sweep

    configs = "sweep.configs=[{sae.d_sae: 16, sae.k: 1},{sae.d_sae: 16, sae.k: 2}]"
    words = ["store=s", "name=searched", *QUICK, "sweep.sampler=list", configs, "sweep.layer=0"]
    assert sweep([*words, "atlas.layers=[0]"]) == 0
    run = place / "runs" / "searched"
    assert main(["--run", str(run), "atlas.layers=[1]"]) == 0
    assert [row.layer for row in read_sites(run / "atlas" / "metrics.parquet")] == [0, 1]
    assert main(["--run", str(run), "atlas.layers=[1]", "atlas.seeds_per_site=2"]) == 0
    (row,) = read_sites(run / "atlas" / "metrics.parquet")
    assert row.layer == 1 and 0 < row.stability <= 1
    assert "2 sites of other settings set aside" in capsys.readouterr().out
    assert len(list((run / "atlas" / "layer=01").glob("*.members/*/*/sae.safetensors"))) == 1
    with pytest.raises(raysae.UserError, match="holds a run with a search"):
        main(["store=s", "name=searched", *QUICK, *CONFIG])
    selection = json.loads((run / "selection.json").read_text())
    selection["choice"] = {"trial": None, "reason": "none was good enough"}
    (run / "selection.json").write_text(json.dumps(selection))
    with pytest.raises(raysae.UserError, match="none was good enough"):
        main(["--run", str(run)])
    (run / "selection.json").unlink()
    with pytest.raises(raysae.UserError, match="has not chosen a config yet"):
        main(["--run", str(run)])


@pytest.mark.long
def test_failed_trials_of_the_sweep_are_not_tried_again(connected_ray, place):
    from raysae.pipeline.sweep_command import main as sweep

    configs = "sweep.configs=[{training.lr: 0.001},{training.lr: 1.0e+38}]"
    words = [
        "store=s",
        "name=half",
        *QUICK,
        *CONFIG,
        "sweep.sampler=list",
        configs,
        "sweep.layer=0",
    ]
    assert sweep([*words, "atlas.layers=[0]"]) == 1
    run = place / "runs" / "half"
    (failure,) = (run / "trials").glob("*.failure.txt")
    before = failure.stat().st_mtime_ns, (run / "trials.parquet").read_bytes()
    assert main(["--run", str(run), "atlas.layers=[1,3]"]) == 1
    assert [row.layer for row in read_sites(run / "atlas" / "metrics.parquet")] == [0, 1, 3]
    assert before == (failure.stat().st_mtime_ns, (run / "trials.parquet").read_bytes())


def test_what_is_no_finished_sweep_is_refused(place):
    with pytest.raises(raysae.UserError, match="not a run folder"):
        main(["--run", "runs/nothing"])
    with pytest.raises(raysae.UserError, match=r"sae\.k: the config of an atlas with --run"):
        main(["--run", "runs/nothing", "sae.k=3"])
    with pytest.raises(raysae.UserError, match="nothing is left to train"):
        parse_recipe({"sweep": {"enabled": False}, "atlas": {"enabled": False}})


def test_a_search_that_is_off_has_no_effect_but_its_mistakes_are_named():
    sweep = {"enabled": False, "seeds_per_trial": 3, "space": {"sae.k": {"choices": [64]}}}
    recipe = parse_recipe({"sweep": sweep, "sae": {"d_sae": 32, "k": 4}})
    assert recipe.sweep.seeds_per_trial == 1 and recipe.with_parameters({})[0].k == 4
    with pytest.raises(raysae.UserError, match="trails"):
        parse_recipe({"sweep": {"enabled": False, "trails": 3}})
    with pytest.raises(raysae.UserError, match="per_layer stands instead of layer"):
        parse_recipe({"sweep": {"per_layer": "all", "layer": 1}})


def test_the_disk_is_asked_for_every_seed_of_every_site(place, monkeypatch):
    data = {"store": "s", "source": None, "sweep": {"enabled": False}, "sae": {"d_sae": 16, "k": 2}}
    one, three = (
        preflight(parse_recipe({**data, "atlas": {"seeds_per_site": seeds}})).needs
        for seeds in (1, 3)
    )
    sae = 2 * 8 * 16 * 4
    assert one.run_bytes == sae * (4 + 1 + 4) and three.run_bytes == sae * (3 * 4 + 1 + 3 * 4)
    assert (one.trained_together, three.trained_together, three.seeds) == (1, 3, 3)
    full = type("Usage", (), {"free": 100})
    monkeypatch.setattr("shutil.disk_usage", lambda path: full)
    with pytest.raises(raysae.UserError, match="are free; free some space"):
        preflight(parse_recipe(data))


@pytest.mark.long
def test_each_layer_has_its_own_sweet_spot(connected_ray, place):
    sweep = {
        "sampler": "list", "configs": [{"sae.d_sae": 16, "sae.k": k} for k in (1, 2)],
        "per_layer": [0, 3],
    }  # fmt: skip
    data = {"name": "layers", "store": "s", "source": None, "sweep": sweep,
            "training": {"epochs": 2, "batch_size": 64}, "records": {"mlflow": False}}  # fmt: skip
    result = raysae.sweep(data)
    assert result.failures == []
    rows = read_table(place / "runs" / "layers" / "layers.parquet")
    assert [(row["layer"], row["atlas.sites"]) for row in rows] == [
        ("layer-00", 1),
        ("layer-03", 1),
    ]
    for name, layer in (("layer-00", 0), ("layer-03", 3)):
        own = result.results[name]
        assert [row.layer for row in own.atlas] == [layer]
        assert own.atlas[0].explained_variance == max(row.explained_variance for row in own.trials)
    page = result.page.read_text()
    assert "2 layers, one recipe" in page and "layers.parquet" in page
    again = raysae.sweep(place / "runs" / "layers" / "config.yaml")
    assert again.rows == result.rows
