"""A whole run over a store of two hookpoints: its atlas is those of two runs of one hookpoint each."""

import json

import pytest

import raysae
from raysae.records.commit import VOLATILE_COLUMNS
from raysae.records.tables import read_table
from raysae.report.report_command import write_page
from raysae.sites import Site
from tests.conftest import SMALL

SMALLER = {
    **SMALL,
    "training": {"epochs": 1, "batch_size": 64, "evaluations": 1},
    "sweep": {"sampler": "list", "configs": [{"sae.d_sae": 32, "sae.k": 4}]},
    "records": {"mlflow": False},
}


def swept(folder, taken, **sweep):
    source = {**SMALL["source"], "sequences": 200, "hookpoint": taken}
    places = {"runs_dir": str(folder / "runs"), "store": str(folder / "store")}
    return raysae.sweep(
        {**SMALLER, "source": source, "sweep": {**SMALLER["sweep"], **sweep}, **places}
    )


def figures(row):
    return {key: value for key, value in row.items() if key not in {*VOLATILE_COLUMNS, "hookpoint"}}


@pytest.mark.long
def test_the_atlas_of_two_hookpoints_is_those_of_each(connected_ray, tmp_path, capsys):
    both = swept(tmp_path / "both", ["resid_post", "mlp_out"], hookpoint="mlp_out")
    assert "mlp_out, layer 1, position -1" in " ".join(capsys.readouterr().out.split())
    one = swept(tmp_path / "one", "mlp_out")
    assert [figures(row) for row in both.trials] == [figures(row) for row in one.trials]
    named = [row for row in both.atlas if row.hookpoint == "mlp_out"]
    assert [figures(row) for row in named] == [figures(row) for row in one.atlas]
    assert len(both.atlas) == 8 and not both.failures
    for row in named:
        plain = Site(row.site.layer, row.site.position)
        files = [run.run.atlas_site(site) for run, site in ((both, row.site), (one, plain))]
        assert len({(file / "sae.safetensors").read_bytes() for file in files}) == 1
        origin = [json.loads((file / "cfg.json").read_text())["metadata"] for file in files]
        assert origin[0]["hookpoint"] == origin[1]["hookpoint"] == "mlp_out"
    columns = list(read_table(both.run.atlas_metrics_file)[0])
    assert columns[:3] == ["layer", "position", "hookpoint"]
    assert "hookpoint" not in read_table(one.run.atlas_metrics_file)[0]
    write_page(str(both.folder))
    page = both.run.report_page.read_text()
    assert "mlp_out, layer 1" in page and "2 hookpoints" in page
