"""An SAE on disk: what comes back, and what is refused."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

import raysae
from raysae.errors import UserError
from raysae.sae import build_sae, save_sae
from raysae.sae.checkpoint import write_tensors
from raysae.sae.config import TopKConfig


@pytest.fixture
def sae():
    return build_sae(TopKConfig(d_sae=32, k=4), d_in=8, seed=1)


@pytest.fixture
def folder(sae, tmp_path):
    save_sae(sae, tmp_path / "sae", {"layer": 3})
    return tmp_path / "sae"


def test_saved_and_loaded_give_the_same_output(sae, folder):
    x = torch.randn(20, 8)
    ours, theirs = sae(x), raysae.load_sae(folder)(x)
    assert torch.equal(ours.reconstruction, theirs.reconstruction)
    assert torch.equal(ours.features, theirs.features)


def test_a_folder_holds_no_pickle(folder):
    assert sorted(file.name for file in folder.iterdir()) == ["cfg.json", "sae.safetensors"]
    assert json.loads((folder / "cfg.json").read_text())["metadata"] == {"layer": 3}


def test_tensors_are_written_as_safetensors_itself_writes_them(tmp_path):
    tensors = {
        "wide": torch.randn(40, 70_000).T, "b": torch.randn(3, 5), "a": torch.arange(4),
        "scalar": torch.tensor(2.0), "none": torch.zeros(0, 3), "half": torch.randn(5, 2).bfloat16(),
        "double": torch.randn(4, 4).double().T, "yes": torch.ones(3, dtype=torch.bool),
        "ä\"": torch.ones(1),
    }  # fmt: skip
    write_tensors(tmp_path / "ours", tensors)
    ready = {name: tensor.contiguous() for name, tensor in tensors.items()}
    save_file(ready, tmp_path / "theirs", metadata={"format": "pt"})
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()


def test_saving_again_replaces(sae, folder):
    save_sae(sae, folder, {"layer": 4})
    assert json.loads((folder / "cfg.json").read_text())["metadata"] == {"layer": 4}
    assert not list(folder.parent.glob(".*"))


def edit_config(folder, **changes):
    config = json.loads((folder / "cfg.json").read_text())
    (folder / "cfg.json").write_text(json.dumps({**config, **changes}))


def break_nothing_there(folder):
    shutil.rmtree(folder)


def break_weights_gone(folder):
    (folder / "sae.safetensors").unlink()


def break_truncated(folder):
    content = (folder / "sae.safetensors").read_bytes()
    (folder / "sae.safetensors").write_bytes(content[: len(content) // 2])


def break_newer_schema(folder):
    edit_config(folder, schema_version=99)


def break_shape(folder):
    edit_config(folder, d_in=9)


def break_k(folder):
    edit_config(folder, k=33)


def break_missing_tensor(folder):
    tensors = load_file(folder / "sae.safetensors")
    del tensors["b_enc"]
    save_file(tensors, folder / "sae.safetensors")


def break_json(folder):
    (folder / "cfg.json").write_text("{")


def break_extra_tensor(folder):
    tensors = load_file(folder / "sae.safetensors")
    save_file({**tensors, "b_mag": tensors["b_enc"].clone()}, folder / "sae.safetensors")


def break_variant(folder):
    edit_config(folder, variant="quantum")


def break_setting(folder):
    edit_config(folder, prefixes=[1.0])


def break_d_in(folder):
    edit_config(folder, d_in=-8)


def break_type(folder):
    edit_config(folder, k="many")


def break_pickle(folder):
    (folder / "cfg.json").unlink()
    torch.save({"W": torch.zeros(2)}, folder / "sae.pt")


def break_foreign(folder):
    edit_config(folder, format="other")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (break_nothing_there, "not found"),
        (break_weights_gone, "not found"),
        (break_truncated, "safetensors"),
        (break_newer_schema, "schema_version 99"),
        (break_shape, r"W_dec is \[32, 8\], .* says d_sae 32, d_in 9"),
        (break_extra_tensor, r"b_mag is \[32\], expected absent"),
        (break_variant, "variant is 'quantum'"),
        (break_setting, "topk has no setting 'prefixes'"),
        (break_d_in, "d_in is -8"),
        (break_type, "cfg.json"),
        (break_pickle, "not an SAE's folder"),
        (break_k, "above d_sae"),
        (break_missing_tensor, r"b_enc is absent, expected \[32\]"),
        (break_json, "JSON"),
        (break_foreign, "not a raysae SAE"),
    ],
)
def test_damage_is_named(folder, damage, words):
    damage(folder)
    with pytest.raises(UserError, match=words):
        raysae.load_sae(folder)


def test_checkpoints_of_the_first_schema_are_read(sae, folder):
    config = json.loads((folder / "cfg.json").read_text())
    (folder / "cfg.json").write_text(json.dumps({**config, "schema_version": 1}))
    assert raysae.load_sae(folder).config == sae.config


def test_a_file_is_no_folder(folder):
    with pytest.raises(UserError, match="is a file"):
        raysae.load_sae(folder / "sae.safetensors")
