"""Other libraries' formats without the libraries: there and back, and what is refused.

``tests/peers`` holds the files against the libraries themselves.
"""

import json

import pytest
import torch

from raysae.console.command_line import REFUSED, run_command
from raysae.errors import UserError
from raysae.export import main as export_command
from raysae.sae import export_sae, load_sae, save_sae
from raysae.sae.interchange import FORMATS
from raysae.sae.variants import VARIANTS
from tests.sae.foreign_saes import (
    BACK_AS,
    SETTINGS,
    TAKEN,
    WEIGHTS,
    refusal,
)
from tests.sae.lively import D_IN, D_SAE, METADATA, K, lively, rows

# There and back


@pytest.mark.parametrize(("format", "variant"), TAKEN)
def test_an_exported_sae_comes_back_the_same(exported, format, variant):
    sae, x = lively(variant), rows()
    back = load_sae(exported(format, variant), format=format)
    assert back.config.variant == BACK_AS.get((format, variant), variant)
    assert getattr(back.config, "k", K) == K
    assert getattr(back.config, "prefixes", None) == (
        getattr(sae.config, "prefixes", None) if format == "dictionary_learning" else None
    )
    torch.testing.assert_close(back(x).features, sae(x).features, rtol=0, atol=1e-5)
    torch.testing.assert_close(back(x).reconstruction, sae(x).reconstruction, rtol=0, atol=1e-5)


@pytest.mark.parametrize("format", ["saelens", "sparsify"])
def test_a_format_is_told_from_its_files(exported, format):
    assert load_sae(exported(format)).metadata["imported_from"] == format


@pytest.mark.parametrize("format", FORMATS)
def test_an_import_is_saved_and_exported_like_any_sae(exported, tmp_path, format):
    imported = load_sae(exported(format), format=format)
    save_sae(imported, tmp_path / "own")
    assert load_sae(tmp_path / "own").metadata == imported.metadata
    for to in FORMATS:
        export_sae(imported, tmp_path / "again" / to, to)


def test_relu_features_keep_their_size_whatever_the_decoder_norms(tmp_path):
    sae, x = lively("relu_l1", norms=True), rows()
    export_sae(sae, tmp_path / "out", "dictionary_learning")
    trainer = json.loads((tmp_path / "out" / "config.json").read_text())["trainer"]
    assert trainer["dict_class"] == "AutoEncoderNew", "an AutoEncoder is rescaled on loading"
    back = load_sae(tmp_path / "out", format="dictionary_learning")
    torch.testing.assert_close(back(x).features, sae(x).features, rtol=0, atol=1e-5)


def test_saelens_is_told_where_the_activations_came_from(exported):
    metadata = json.loads((exported("saelens") / "cfg.json").read_text())["metadata"]
    assert (
        metadata.items()
        >= {
            "model_name": "gpt2",
            "hook_name": "blocks.8.hook_resid_post",
            "dataset_path": "some/texts",
            "context_size": 128,
            "raysae": {"variant": "topk", **METADATA},
        }.items()
    )


def test_metadata_of_any_kind_is_exported(tmp_path):
    sae = lively("topk")
    sae.metadata = {"model": "gpt2", "dataset": ["a", "b"], "training": None, "layer": "eight"}
    for format in FORMATS:
        export_sae(sae, tmp_path / format, format)


# What cannot be exported


@pytest.mark.parametrize(
    "variant", [name for name in VARIANTS if name not in ("topk", "hierarchical_topk")]
)
def test_sparsify_takes_topk_alone(tmp_path, variant):
    with pytest.raises(UserError, match=f"sparsify cannot express {variant}"):
        export_sae(lively(variant), tmp_path / "out", "sparsify")
    assert not list(tmp_path.iterdir())


def test_the_command_writes_a_hierarchical_sae_at_the_k_that_is_asked_for(tmp_path, capsys):
    save_sae(lively("hierarchical_topk"), tmp_path / "own")
    asked = [str(tmp_path / "own"), "--to", "sparsify", "--out", str(tmp_path / "out"), "--k"]
    assert run_command(export_command, [*asked, "3"]) == 0
    assert load_sae(tmp_path / "out").config.k == 3
    assert run_command(export_command, [*asked, "99"]) == REFUSED
    assert f"trained for 1 to {K}" in capsys.readouterr().err
    save_sae(lively("gated"), tmp_path / "gated")
    asked[0] = str(tmp_path / "gated")
    assert run_command(export_command, [*asked, "3"]) == REFUSED
    assert "--k is for hierarchical_topk; this SAE is gated" in capsys.readouterr().err


def test_an_unknown_format_is_refused(tmp_path, exported):
    with pytest.raises(UserError, match="no format 'onnx'; known are saelens, sparsify"):
        export_sae(lively("topk"), tmp_path / "out", "onnx")
    with pytest.raises(UserError, match="format is 'onnx'; known are raysae, saelens"):
        load_sae(exported("saelens"), format="onnx")


def test_what_lies_in_the_folder_stays(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    for taken in (tmp_path, tmp_path / "notes.txt"):
        with pytest.raises(UserError, match="is there already"):
            export_sae(lively("topk"), taken, "saelens")
    assert [file.read_text() for file in tmp_path.iterdir()] == ["mine"]


# What cannot be read: folders


@pytest.mark.parametrize("format", [None, "raysae", *FORMATS])
def test_a_folder_that_is_not_there_is_named(tmp_path, format):
    assert "not found" in refusal(tmp_path / "nothing", format)


def test_an_empty_folder_and_a_file_are_refused(tmp_path):
    (tmp_path / "file").write_text("")
    assert "is a file" in refusal(tmp_path / "file")
    (tmp_path / "folder").mkdir()
    assert "holds no cfg.json" in refusal(tmp_path / "folder")


def test_a_folder_with_a_foreign_config_is_refused(tmp_path):
    (tmp_path / "cfg.json").write_text('{"model_type": "gpt2"}')
    words = refusal(tmp_path)
    assert "nor one of SAELens (no 'architecture') or sparsify (no 'num_latents')" in words


def test_a_pickle_is_read_only_when_asked_for(exported):
    folder = exported("dictionary_learning")
    assert 'load_sae(folder, format="dictionary_learning")' in refusal(folder)


@pytest.mark.parametrize("format", FORMATS)
def test_settings_that_are_gone_or_no_object_are_refused(exported, format):
    folder = exported(format)
    for content in ("{", "[1]", '"cfg"', "null"):
        (folder / SETTINGS[format]).write_text(content)
        assert SETTINGS[format] in refusal(folder, format)
    (folder / SETTINGS[format]).unlink()
    assert f"{SETTINGS[format]}: not found" in refusal(folder, format)


@pytest.mark.parametrize("format", FORMATS)
def test_weights_that_are_gone_or_damaged_are_refused(exported, format):
    folder = exported(format)
    file = folder / WEIGHTS[format]
    whole = file.read_bytes()
    for content in (b"", b"garbage" * 20, *(whole[: len(whole) * n // 8] for n in range(1, 8))):
        file.write_bytes(content)
        assert f"{file}: not a readable" in refusal(folder, format)
    file.unlink()
    assert f"{file}: not found" in refusal(folder, format)


# The command


@pytest.mark.parametrize("format", FORMATS)
def test_the_command_exports_and_says_how_to_load(tmp_path, capsys, format):
    save_sae(lively("topk"), tmp_path / "own")
    assert (
        export_command([str(tmp_path / "own"), "--to", format, "--out", str(tmp_path / "out")]) == 0
    )
    told = capsys.readouterr().out
    assert f"topk, d_in {D_IN}, d_sae {D_SAE}" in told and repr(str(tmp_path / "out")) in told
    assert load_sae(tmp_path / "out", format=format).config.k == K


def test_the_command_reads_other_formats(exported, tmp_path):
    given = [str(exported("dictionary_learning")), "--format", "dictionary_learning"]
    assert export_command([*given, "--to", "saelens", "--out", str(tmp_path / "out")]) == 0
    assert load_sae(tmp_path / "out").config.k == K


def test_a_refusal_is_one_message_and_exit_code_2(tmp_path, capsys):
    save_sae(lively("gated"), tmp_path / "own")
    given = [str(tmp_path / "own"), "--to", "sparsify", "--out", str(tmp_path / "out")]
    assert run_command(export_command, given) == REFUSED == 2
    assert capsys.readouterr().err.startswith("error: sparsify cannot express")
    given[0] = str(tmp_path / "nothing")
    assert run_command(export_command, given) == REFUSED
    assert "not found" in capsys.readouterr().err
