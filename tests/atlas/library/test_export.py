"""A whole atlas for other libraries and back, and SAEs of SAELens as an atlas."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

import raysae
from raysae import Site, UserError
from raysae.export import main
from raysae.records.tables import read_sites
from raysae.sae import export_sae, load_sae
from tests.atlas.library.conftest import FAILED, WHY
from tests.sae.lively import METADATA, lively, rows

HOOKS = {
    Site(1, -1): "blocks.1.hook_resid_post.position_-1",
    Site(1, "all"): "blocks.1.hook_resid_post",
}


@pytest.fixture(scope="module")
def formats(run, tmp_path_factory):
    """The atlas in every format, by name."""
    folder = tmp_path_factory.mktemp("formats")
    atlas = raysae.open_atlas(run.folder)
    names = ("raysae", "saelens", "sparsify", "dictionary_learning")
    for name in names:
        exported = raysae.export_atlas(atlas, folder / name, name)
        assert list(exported.folders) == atlas.sites and exported.failed == {FAILED: WHY}
    return {name: folder / name for name in names}


@pytest.mark.parametrize("name", ["raysae", "saelens", "sparsify", "dictionary_learning"])
def test_every_format_comes_back_as_the_same_atlas(formats, run, name):
    trusted = {"format": name} if name == "dictionary_learning" else {}
    there, back = raysae.open_atlas(run.folder), raysae.open_atlas(formats[name], **trusted)
    assert back.sites == there.sites and back.failed == there.failed
    assert back.provenance == there.provenance
    assert [dict(row) for row in back.metrics] == [dict(row) for row in there.metrics]
    for site, sae in back.items():
        x = run.store.validation(site).float()
        torch.testing.assert_close(sae.encode(x), there[site].encode(x), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["raysae", "saelens"])
def test_an_exported_atlas_encodes_as_the_run_does(formats, run, name):
    text = "Tom has 3 apples."
    there, back = raysae.open_atlas(run.folder), raysae.open_atlas(formats[name])
    for site, latents in back.encode(text).items():
        expected = there.encode(text)[site].dense()
        torch.testing.assert_close(latents.dense(), expected, rtol=1e-5, atol=1e-5)


def test_pickles_of_an_export_are_read_only_when_asked_for(formats):
    atlas = raysae.open_atlas(formats["dictionary_learning"])
    with pytest.raises(UserError, match="a pickle"):
        atlas[1, -1]


def test_each_folder_has_what_saelens_wants(formats):
    for site, name in HOOKS.items():
        settings = json.loads((formats["saelens"] / name / "cfg.json").read_text())
        metadata = settings["metadata"]
        assert (settings["architecture"], settings["k"]) == ("topk", 4)
        assert metadata["hook_name"] == f"blocks.{site.layer}.hook_resid_post"
        assert (metadata["model_name"], metadata["dataset_path"]) == ("pocket", "pocket")
        assert metadata["context_size"] == 128 and metadata["raysae"]["position"] == site.position
        weights = load_file(formats["saelens"] / name / "sae_weights.safetensors")
        assert {key: list(value.shape) for key, value in weights.items()} == {
            "W_enc": [settings["d_in"], 48], "W_dec": [48, settings["d_in"]], "b_enc": [48],
            "b_dec": [settings["d_in"]],
        }  # fmt: skip


def test_the_index_lists_every_site(formats):
    index = json.loads((formats["saelens"] / "atlas.json").read_text())
    assert {(one["layer"], one["position"]): one["folder"] for one in index["sites"]} == {
        (1, -1): HOOKS[Site(1, -1)], (1, "all"): HOOKS[Site(1, "all")],
        (2, -1): "blocks.2.hook_resid_post.position_-1",
    }  # fmt: skip
    assert index["failed"] == [{"layer": 2, "position": "all", "reason": WHY}]
    assert index["provenance"]["model"]["id"] == index["source"]["model"] == "pocket"


def test_a_site_that_cannot_be_read_leaves_the_others(run, tmp_path, capsys):
    folder = run.copy(tmp_path / "run")
    (folder / "atlas" / "layer=01" / "position=-1" / "sae.safetensors").write_bytes(b"")
    assert main([str(folder), "--to", "saelens", "--out", str(tmp_path / "out")]) == 1
    told = capsys.readouterr().out
    assert "layer 1, position -1" in told and WHY in told and "2 sites" in told
    atlas = raysae.open_atlas(tmp_path / "out")
    assert set(atlas.failed) == {FAILED, Site(1, -1)} and len(atlas) == 2
    (row,) = [row for row in atlas.metrics if (row.layer, row.position) == (1, "-1")]
    assert row.state == "failed" and row["explained_variance"] is None


def test_what_cannot_be_written_is_refused(run, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("")
    with pytest.raises(UserError, match="is there already"):
        raysae.export_atlas(run.folder, tmp_path / "full", "saelens")
    with pytest.raises(UserError, match="there is no format"):
        raysae.export_atlas(run.folder, tmp_path / "new", "gguf")
    gated = tmp_path / "gated"
    lively("gated").save(gated / "layer=01" / "position=all")
    with pytest.raises(UserError, match="no site could be written as sparsify: .*cannot express"):
        raysae.export_atlas(gated, tmp_path / "new", "sparsify")
    assert not (tmp_path / "new").exists()


@pytest.fixture
def saelens(tmp_path):
    """A folder of SAEs as SAELens keeps them, without anything of raysae: layers 2 and 10."""

    def make(layer, variant, **changes):
        folder = tmp_path / "saes" / f"layer {layer} {variant}"
        export_sae(lively(variant), folder, "saelens")
        settings = json.loads((folder / "cfg.json").read_text())
        del settings["metadata"]["raysae"]
        settings["metadata"] |= {"hook_name": f"blocks.{layer}.hook_resid_post", **changes}
        (folder / "cfg.json").write_text(json.dumps(settings))
        return folder

    make(10, "topk")
    make(2, "jumprelu")
    return make


def test_saes_of_saelens_become_an_atlas(saelens, tmp_path, capsys):
    assert main([str(tmp_path / "saes"), "--to", "raysae", "--out", str(tmp_path / "atlas")]) == 0
    assert "open_atlas" in capsys.readouterr().out
    atlas, x = raysae.open_atlas(tmp_path / "atlas"), rows()
    assert atlas.sites == [Site(2, "all"), Site(10, "all")]
    for layer, variant in ((10, "topk"), (2, "jumprelu")):
        torch.testing.assert_close(atlas[layer, "all"].encode(x), lively(variant).encode(x))
        own = tmp_path / "atlas" / f"layer={layer:02d}" / "position=all"
        assert load_sae(own).metadata["imported_from"] == "saelens"
    assert atlas.provenance["model"] == {"id": METADATA["model"]["id"]}
    assert atlas.provenance["dataset"] == METADATA["dataset"]
    assert (atlas.provenance["hookpoint"], atlas.provenance["context_length"]) == (
        "resid_post",
        128,
    )


def test_their_figures_are_not_known_and_no_zeros(saelens, tmp_path):
    raysae.export_atlas(tmp_path / "saes", tmp_path / "atlas", "raysae")
    for row in read_sites(tmp_path / "atlas" / "metrics.parquet"):
        assert row.state == "done" and row.figures == {} and row.explained_variance != 0
    text = (tmp_path / "atlas" / "metrics.csv").read_text()
    assert text == "layer,position,state,reason\n2,all,done,\n10,all,done,\n"


def test_two_saes_of_one_site_are_refused(saelens, tmp_path):
    saelens(2, "gated")
    with pytest.raises(UserError, match="layer 2 jumprelu: an SAE of layer 2, position all, as is"):
        raysae.open_atlas(tmp_path / "saes")


@pytest.mark.parametrize("hook", ["blocks.3.attn.hook_z", "blocks.3.hook_resid_mid", "", None, 3])
def test_unknown_hooks_are_refused(saelens, tmp_path, hook):
    saelens(3, "topk", hook_name=hook)
    with pytest.raises(UserError, match=r"layer 3 topk.*hook_name is .*one of resid_pre"):
        raysae.open_atlas(tmp_path / "saes")


def test_saes_of_another_model_are_refused(saelens, tmp_path):
    saelens(3, "topk", model_name="pythia")
    with pytest.raises(UserError, match="its model is pythia, that of .* is gpt2"):
        raysae.open_atlas(tmp_path / "saes")


def test_seeds_stay_in_an_atlas_of_raysae_alone(members_run, tmp_path):
    for name, count in (("raysae", 2), ("saelens", 0)):
        raysae.export_atlas(members_run, tmp_path / name, name)
        atlas = raysae.open_atlas(tmp_path / name)
        assert len(atlas) == 3 and len(atlas.seeds((1, -1))) == count


def test_several_hookpoints_are_named_by_their_sites(saelens, tmp_path):
    saelens(2, "gated", hook_name="blocks.2.hook_mlp_out")
    atlas = raysae.open_atlas(tmp_path / "saes")
    assert atlas[2, "all", "mlp_out"].config.variant == "gated"
    assert atlas[2, "all", "resid_post"].config.variant == "jumprelu"
    raysae.export_atlas(atlas, tmp_path / "atlas", "raysae")
    back = raysae.open_atlas(tmp_path / "atlas")
    assert back.sites == atlas.sites and back.provenance == atlas.provenance
    assert back.provenance["hookpoint"] == ["mlp_out", "resid_post"]
    assert [row["hookpoint"] for row in back.metrics] == [site.hookpoint for site in atlas]


def test_an_atlas_of_two_hookpoints_goes_out_and_comes_back(wide_run, tmp_path):
    atlas = raysae.open_atlas(wide_run.folder)
    exported = raysae.export_atlas(atlas, tmp_path / "out", "saelens")
    assert exported.folders[Site(1, "all", "mlp_out")] == "blocks.1.hook_mlp_out"
    back = raysae.open_atlas(tmp_path / "out")
    assert back.sites == atlas.sites == wide_run.store.sites and len(back) == 4
    (tmp_path / "out" / "atlas.json").unlink()
    (tmp_path / "out" / "metrics.parquet").unlink()
    assert raysae.open_atlas(tmp_path / "out").sites == atlas.sites


def test_another_d_in_is_refused(saelens, tmp_path):
    file = saelens(3, "topk") / "cfg.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "d_in": 7}))
    with pytest.raises(UserError, match="its d_in is 7, that of .* is 24"):
        raysae.open_atlas(tmp_path / "saes")


def test_a_damaged_one_is_named_and_the_others_are_imported(saelens, tmp_path, capsys):
    (saelens(3, "topk") / "sae_weights.safetensors").write_bytes(b"no tensors")
    assert main([str(tmp_path / "saes"), "--to", "raysae", "--out", str(tmp_path / "atlas")]) == 1
    assert "layer 3, position all" in capsys.readouterr().out
    assert raysae.open_atlas(tmp_path / "atlas").sites == [Site(2, "all"), Site(10, "all")]


def test_without_digests_a_model_is_used_only_when_forced(saelens, tmp_path):
    atlas = raysae.open_atlas(tmp_path / "saes")
    with pytest.raises(UserError, match="nothing records which model and texts"):
        atlas.encode("Tom has 3 apples.")
    with pytest.raises(UserError, match="nothing records which weights"):
        atlas.encode("Tom has 3 apples.", model="pocket")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"schema_version": 2}, "upgrade raysae"),
        ({"sites": [{"layer": 1, "position": -1, "folder": "../../run"}]}, "not one below"),
        ({"sites": [{"layer": 1, "position": -1, "folder": "a"}] * 2}, "twice"),
        ({"sites": [{"layer": "1", "position": -1, "folder": "a"}]}, "layer '1'"),
        ({"sites": [{"layer": 1, "position": "A B", "folder": "a"}]}, "position is 'A B'"),
        ({"sites": [7]}, "damaged"),
        ({"sites": None}, "damaged"),
    ],
)
def test_a_damaged_index_is_refused(formats, tmp_path, change, said):
    folder = tmp_path / "atlas"
    shutil.copytree(formats["saelens"], folder)
    index = json.loads((folder / "atlas.json").read_text())
    (folder / "atlas.json").write_text(json.dumps(index | change))
    with pytest.raises(UserError, match=said):
        raysae.open_atlas(folder)


def test_code_beside_a_model_is_not_run_because_an_index_says_so(formats, tmp_path, monkeypatch):
    import raysae.transformer.loading as loading

    folder = tmp_path / "atlas"
    shutil.copytree(formats["saelens"], folder)
    index = json.loads((folder / "atlas.json").read_text())
    index["source"]["trust_remote_code"] = True
    (folder / "atlas.json").write_text(json.dumps(index))
    seen = []
    load = loading.load_model
    monkeypatch.setattr(loading, "load_model", lambda spec: seen.append(spec) or load(spec))
    raysae.open_atlas(folder).encode("Tom has 3 apples.")
    assert not seen[0].trust_remote_code


def test_one_sae_is_written_as_before(run, tmp_path, capsys):
    site = run.folder / "atlas" / "layer=01" / "position=-1"
    assert main([str(site), "--to", "saelens", "--out", str(tmp_path / "sae")]) == 0
    assert "SAE.load_from_disk" in capsys.readouterr().out
    assert main([str(tmp_path / "sae"), "--to", "raysae", "--out", str(tmp_path / "own")]) == 0
    assert load_sae(tmp_path / "own").d_in == run.store.d_in
