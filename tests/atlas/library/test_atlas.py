"""An opened atlas: its sites, its SAEs, its figures, and what is missing or damaged."""

import csv
import shutil
import subprocess
import sys

import pytest
import torch

import raysae
from raysae import Site, UserError
from raysae.atlas.library import MissingSiteError
from raysae.records.tables import read_table
from tests.atlas.library.conftest import FAILED, WHY


@pytest.fixture(params=["run", "atlas"])
def place(request, run):
    return run.folder if request.param == "run" else run.folder / "atlas"


def test_it_is_a_mapping_from_sites_to_saes(place, run):
    atlas = raysae.open_atlas(place)
    sites = [site for site in run.store.sites if site != FAILED]
    assert atlas.sites == list(atlas) == sites and len(atlas) == 3
    for site in sites:
        assert site in atlas and (site.layer, site.position) in atlas
        assert atlas[site.layer, site.position] is atlas[site]
        alone = raysae.load_sae(run.folder / "atlas" / site.folder)
        assert torch.equal(atlas[site].W_dec, alone.W_dec)
    assert FAILED not in atlas and "nothing" not in atlas and atlas.get(Site(7, -1)) is None


def test_an_sae_is_loaded_when_it_is_asked_for_and_kept(run):
    atlas = raysae.open_atlas(run.folder)
    assert not atlas._loaded
    first, *others = atlas.sites
    sae = atlas[first]
    assert list(atlas._loaded) == [first] and atlas[first] is sae
    small = raysae.open_atlas(run.folder, cached_bytes=1)
    for site in [first, *others]:
        assert small[site] is small[site]
    assert list(small._loaded) == others[-1:]


def test_recorded_explained_variance_is_that_of_the_sae(run):
    atlas = raysae.open_atlas(run.folder)
    rows = {Site.of_columns(row.layer, row.position): row for row in atlas.metrics}
    for site, sae in atlas.items():
        x = run.store.validation(site).float()
        assert sae(x).metrics["explained_variance"] == pytest.approx(
            rows[site].explained_variance, abs=1e-5
        )
    assert rows[FAILED].state == "failed" and rows[FAILED].reason == WHY
    assert rows[FAILED]["explained_variance"] is None
    assert atlas.failed == {FAILED: WHY}


def test_the_origin_is_that_of_the_store(run):
    origin = raysae.open_atlas(run.folder).provenance
    manifest = run.store.manifest
    assert origin["store_digest"] == run.store.digest
    assert origin["model"] == manifest.model and origin["dataset"] == manifest.dataset
    assert (origin["hookpoint"], origin["context_length"]) == ("resid_post", 128)


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ((9, -1), "no layer 9, position -1; its layers are 1, 2"),
        ((1, -7), "layer 1 has the positions -1, all"),
        ((2, "all"), WHY),
        ("nowhere", "expected atlas[layer, position]"),
        ((1, "Odd Name"), "Odd Name"),
    ],
)  # fmt: skip
def test_a_missing_site_says_what_there_is(run, key, said):
    atlas = raysae.open_atlas(run.folder)
    with pytest.raises(KeyError) as raised:
        atlas[key]
    assert isinstance(raised.value, UserError | MissingSiteError)
    assert said in str(raised.value) and "\\n" not in str(raised.value)


def test_sites_of_several_hookpoints_name_theirs(wide_run, run):
    atlas = raysae.open_atlas(wide_run.folder)
    assert atlas[1, -1, "mlp_out"] is atlas[Site(1, -1, "mlp_out")]
    assert atlas.provenance["hookpoint"] == ["mlp_out", "resid_post"]
    for key in ((1, -1), (1, -1, "attn_out")):
        with pytest.raises(KeyError, match="its hookpoints are mlp_out, resid_post"):
            atlas[key]
    with pytest.raises(KeyError, match="which sites do not name"):
        raysae.open_atlas(run.folder)[1, -1, "resid_post"]


def test_a_damaged_site_fails_alone(run, tmp_path):
    folder = run.copy(tmp_path / "run")
    first, second, _ = raysae.open_atlas(folder).sites
    weights = folder / "atlas" / first.folder / "sae.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    atlas = raysae.open_atlas(folder)
    with pytest.raises(UserError, match=r"sae\.safetensors"):
        atlas[first]
    assert atlas[second].d_in == run.store.d_in


def test_a_site_whose_folder_is_gone_is_told(run, tmp_path):
    folder = run.copy(tmp_path / "run")
    (folder / "atlas" / "layer=01" / "position=-1").rename(tmp_path / "elsewhere")
    atlas = raysae.open_atlas(folder)
    with pytest.raises(KeyError, match="it has no folder"):
        atlas[1, -1]
    assert len(atlas) == 2


def test_before_the_table_is_written_figures_are_those_of_the_records(run, tmp_path):
    folder = run.copy(tmp_path / "run")
    known = {(row.layer, row.position): row for row in raysae.open_atlas(folder).metrics}
    (folder / "atlas" / "metrics.parquet").unlink()
    rows = raysae.open_atlas(folder).metrics
    assert len(rows) == 3
    for row in rows:
        assert row.explained_variance == known[row.layer, row.position].explained_variance


def test_further_seeds(members_run, run):
    atlas = raysae.open_atlas(members_run)
    first, second, _ = atlas.sites
    assert len(atlas) == 3 and len(atlas.seeds(first)) == 2 and atlas.seeds(second) == []
    assert torch.equal(atlas.seeds(first)[0].W_enc, atlas[first].W_enc)


def test_the_table_as_text_has_the_same_columns_and_values(run):
    with (run.folder / "atlas" / "metrics.csv").open(newline="") as file:
        told = list(csv.DictReader(file))
    known = read_table(run.folder / "atlas" / "metrics.parquet")
    assert list(told[0]) == list(known[0]) and len(told) == len(known) == 4
    for text, row in zip(told, known, strict=True):
        assert text["explained_variance"] == (
            "" if row["explained_variance"] is None else repr(row["explained_variance"])
        )
        assert (text["position"], text["reason"]) == (row["position"], row["reason"])


def test_what_is_no_atlas_is_refused(run, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("name: run\n")
    (tmp_path / "file").write_text("")
    begun = run.copy(tmp_path / "begun") / "atlas"
    (begun / "layer=01").rename(begun / "aside")
    shutil.rmtree(begun / "layer=02")
    (begun / "metrics.parquet").unlink()
    for name, said in (
        ("empty", "neither an SAE nor an atlas"), ("nothing", "not found"),
        ("run", "the run has no atlas"), ("begun", "has no site yet"), ("file", "is a file"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=said):
            raysae.open_atlas(tmp_path / name)


def test_a_link_out_of_the_atlas_is_refused(run, tmp_path):
    folder = run.copy(tmp_path / "run")
    (folder / "atlas" / "layer=05").symlink_to(run.folder / "atlas" / "layer=01")
    with pytest.raises(UserError, match="is a link"):
        raysae.open_atlas(folder)


def test_a_run_at_a_uri(run, tmp_path, monkeypatch):
    monkeypatch.setenv("RAYSAE_CACHE", str(tmp_path / "cache"))
    run.copy(tmp_path / "there")
    for place in (f"file://{tmp_path / 'there'}", f"file://{tmp_path / 'there' / 'atlas'}"):
        assert len(raysae.open_atlas(place)) == 3
        assert raysae.open_atlas(place)[1, -1].d_in == run.store.d_in


def test_it_needs_no_ray(run):
    code = (
        "import sys, raysae\n"
        f"atlas = raysae.open_atlas({str(run.folder)!r})\n"
        "atlas[1, -1]\n"
        "assert not {'ray', 'mlflow', 'optuna', 'transformers'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
