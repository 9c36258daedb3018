"""Other libraries' formats without the libraries: there and back, and what is refused.

``tests/peers`` holds the files against the libraries themselves.
"""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from raysae.console.command_line import REFUSED, run_command
from raysae.errors import UserError
from raysae.export import main as export_command
from raysae.sae import export_sae, load_sae, save_sae
from raysae.sae.interchange import FORMATS
from raysae.sae.variants import VARIANTS
from tests.sae.lively import D_IN, D_SAE, METADATA, K, lively, rows

TAKEN = [
    (format, variant)
    for format in FORMATS
    for variant in VARIANTS
    if format != "sparsify" or variant == "topk"
]
BACK_AS = {("saelens", "batch_topk"): "jumprelu", ("saelens", "matryoshka"): "jumprelu"}
"""What comes back as another variant than it went."""


@pytest.fixture(scope="module")
def exports(tmp_path_factory):
    """A lively SAE of each variant in each format that takes it."""
    folder = tmp_path_factory.mktemp("exports")
    for format, variant in TAKEN:
        export_sae(lively(variant), folder / format / variant, format)
    return folder


@pytest.fixture
def exported(exports, tmp_path):
    """Gives an exported SAE's folder, a copy to be damaged at will."""

    def copy(format, variant="topk"):
        return shutil.copytree(exports / format / variant, tmp_path / format)

    return copy


def refusal(folder, format=None):
    with pytest.raises(UserError) as error:
        load_sae(folder, format=format)
    assert str(folder) in str(error.value)
    return str(error.value)


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


@pytest.mark.parametrize("variant", [name for name in VARIANTS if name != "topk"])
def test_sparsify_takes_topk_alone(tmp_path, variant):
    with pytest.raises(UserError, match=f"sparsify cannot express {variant}"):
        export_sae(lively(variant), tmp_path / "out", "sparsify")
    assert not list(tmp_path.iterdir())


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


# What cannot be read: settings

SETTINGS = {"saelens": "cfg.json", "sparsify": "cfg.json", "dictionary_learning": "config.json"}
WEIGHTS = {
    "saelens": "sae_weights.safetensors",
    "sparsify": "sae.safetensors",
    "dictionary_learning": "ae.pt",
}
GONE = object()
COUNTS = {
    "absent": (GONE, "lacks {}"),
    "null": (None, "lacks {}"),
    "text": ("8", "{} is '8'; expected a whole number of at least 1"),
    "fraction": (8.0, "{} is 8.0; expected a whole number of at least 1"),
    "zero": (0, "{} is 0; expected a whole number of at least 1"),
    "negative": (-8, "{} is -8; expected a whole number of at least 1"),
    "true": (True, "{} is True; expected a whole number of at least 1"),
}
"""What no count can be, with the words of the refusal."""


def edit(folder, format, key, value):
    """Set ``key``, or one in ``trainer`` or ``metadata`` by a dot, in the settings."""
    file = folder / SETTINGS[format]
    settings = json.loads(file.read_text())
    *section, last = key.split(".")
    holder = settings[section[0]] if section else settings
    if value is GONE:
        del holder[last]
    else:
        holder[last] = value
    file.write_text(json.dumps(settings))


@pytest.mark.parametrize("kind", COUNTS)
@pytest.mark.parametrize(
    ("format", "key"),
    [
        ("saelens", "d_in"),
        ("saelens", "d_sae"),
        ("saelens", "k"),
        ("sparsify", "d_in"),
        ("sparsify", "k"),
        ("dictionary_learning", "trainer.activation_dim"),
        ("dictionary_learning", "trainer.dict_size"),
    ],
)
def test_sizes_are_whole_numbers(exported, format, key, kind):
    folder, (value, words) = exported(format), COUNTS[kind]
    edit(folder, format, key, value)
    expected = f"{folder / SETTINGS[format]}: {words.format(key.split('.')[-1])}"
    assert refusal(folder, format).startswith(expected)


@pytest.mark.parametrize(
    ("format", "key", "value", "words"),
    [
        (
            "saelens",
            "architecture",
            "temporal",
            "architecture is 'temporal', which raysae does not",
        ),
        ("saelens", "architecture", "batchtopk", "save_inference_model"),
        ("saelens", "architecture", ["topk"], "architecture is ['topk']"),
        ("saelens", "architecture", None, "lacks architecture"),
        ("saelens", "metadata", GONE, "metadata.sae_lens_version is none"),
        ("saelens", "metadata", None, "metadata.sae_lens_version is none"),
        ("saelens", "metadata", [1], "metadata: expected keys and values, found a list"),
        ("saelens", "metadata.sae_lens_version", "5.10.7", "sae_lens_version is 5.10.7"),
        ("saelens", "metadata.sae_lens_version", "dev", "sae_lens_version is dev"),
        ("saelens", "normalize_activations", "layer_norm", "normalize_activations is 'layer_norm'"),
        ("saelens", "apply_b_dec_to_input", "no", "apply_b_dec_to_input is 'no'"),
        ("saelens", "rescale_acts_by_decoder_norm", 1, "rescale_acts_by_decoder_norm is 1"),
        ("saelens", "k", D_SAE + 1, f"k is {D_SAE + 1}, above d_sae {D_SAE}"),
        ("saelens", "d_in", D_IN + 1, f"W_dec is [{D_SAE}, {D_IN}], [d_sae, d_in]; cfg.json says"),
        ("saelens", "d_sae", 10**30, f"W_dec is [{D_SAE}, {D_IN}], [d_sae, d_in]; cfg.json says"),
        ("sparsify", "activation", "groupmax", "activation is 'groupmax'"),
        ("sparsify", "skip_connection", True, "skip_connection is True"),
        ("sparsify", "transcode", True, "transcode is True"),
        ("sparsify", "num_latents", "many", "num_latents is 'many'"),
        ("sparsify", "num_latents", -1, "num_latents is -1"),
        ("sparsify", "num_latents", 2 * D_SAE, f"cfg.json says d_sae {2 * D_SAE}"),
        ("dictionary_learning", "trainer", GONE, "lacks trainer"),
        ("dictionary_learning", "trainer", [], "trainer: expected keys and values, found a list"),
        ("dictionary_learning", "trainer.dict_class", GONE, "lacks dict_class"),
        ("dictionary_learning", "trainer.dict_class", "CrossCoder", "dict_class is 'CrossCoder'"),
        ("dictionary_learning", "trainer.dict_class", ["AutoEncoder"], "dict_class is ['AutoEnc"),
        ("dictionary_learning", "trainer.dict_class", "AutoEncoder", "ae.pt: lacks bias"),
        ("dictionary_learning", "trainer.dict_size", 63, "config.json says d_sae 63"),
    ],
)
def test_settings_that_raysae_cannot_express_are_named(exported, format, key, value, words):
    folder = exported(format)
    edit(folder, format, key, value)
    assert words in refusal(folder, format)


PLACES = {
    "saelens": [""],
    "sparsify": [""],
    "dictionary_learning": ["", "trainer.", "buffer."],
    "raysae": [""],
}
UNKNOWN = [True, 1, 0.5, "on", [1], {"a": 1}]
OFF = [None, False, "", [], {}]


@pytest.mark.parametrize("value", UNKNOWN, ids=str)
@pytest.mark.parametrize(
    ("format", "place"), [(format, place) for format in PLACES for place in PLACES[format]]
)
def test_a_setting_that_is_not_known_is_refused_by_name(exported, tmp_path, format, place, value):
    if format == "raysae":
        save_sae(lively("topk"), tmp_path / "own")
        folder = tmp_path / "own"
    else:
        folder = exported(format)
    file = folder / SETTINGS.get(format, "cfg.json")
    settings = json.loads(file.read_text())
    holder = settings[place.removesuffix(".")] if place else settings
    holder["new_rescale"] = value
    file.write_text(json.dumps(settings))
    words = refusal(folder, format)
    assert str(file) in words and "new_rescale" in words
    if format != "raysae":
        assert repr(value) in words and "remove it from the file" in words


@pytest.mark.parametrize("value", OFF, ids=str)
@pytest.mark.parametrize("format", FORMATS)
def test_a_setting_that_is_off_is_no_reason_to_refuse(exported, format, value):
    folder = exported(format)
    edit(folder, format, "new_rescale", value)
    assert load_sae(folder, format=format).config.k == K


@pytest.mark.parametrize(
    ("format", "variant", "key", "value"),
    [
        ("sparsify", "topk", "signed", True),
        ("sparsify", "topk", "multi_topk", True),
        ("sparsify", "topk", "encoder_pkm", True),
        ("sparsify", "topk", "signed", 1),
        ("saelens", "relu_l1", "normalize_activations", "constant_norm_rescale"),
        ("saelens", "relu_l1", "normalize_activations", "expected_average_only_in"),
        ("saelens", "relu_l1", "reshape_activations", "hook_z"),
        ("saelens", "relu_l1", "hook_head_index", 3),
        ("saelens", "relu_l1", "metadata.hook_head_index", 3),
        ("saelens", "relu_l1", "metadata.hook_head_index", 0),
        ("saelens", "relu_l1", "metadata.seqpos_slice", [3, -5]),
        ("saelens", "relu_l1", "metadata.hook_name_out", "blocks.3.hook_mlp_out"),
        ("saelens", "relu_l1", "finetuning_scaling_factor", True),
        ("saelens", "relu_l1", "activation_fn", "tanh-relu"),
        ("saelens", "relu_l1", "activation_fn", "topk"),
        ("saelens", "relu_l1", "rescale_acts_by_decoder_norm", True),
        ("saelens", "gated", "k", 8),
        ("saelens", "topk", "activation_fn_kwargs", {"k": 3}),
        ("saelens", "topk", "activation_fn", "relu"),
        ("saelens", "topk", "d_out", 12),
        ("dictionary_learning", "topk", "trainer.norm_factor", 3.7),
        ("dictionary_learning", "jumprelu", "trainer.apply_b_dec_to_input", True),
        ("dictionary_learning", "topk", "buffer.io", "in_and_out"),
        ("dictionary_learning", "topk", "trainer.trainer_class", "TranscoderTrainer"),
    ],
)
def test_settings_that_change_the_output_are_refused(exported, format, variant, key, value):
    folder = exported(format, variant)
    edit(folder, format, key, value)
    assert f"{key.split('.')[-1]} is {value!r}" in refusal(folder, format)


@pytest.mark.parametrize(
    ("format", "variant", "keys"),
    [
        (
            "saelens", "topk",
            {
                "activation_fn": "topk", "activation_fn_kwargs": {"k": K}, "dtype": "bfloat16",
                "decoder_init_norm": 0.1, "aux_loss_coefficient": 1.0, "model_name": "gpt2",
                "metadata.seqpos_slice": [None], "metadata.model_from_pretrained_kwargs": {"a": 1},
                "metadata.training_architecture_details": {"k": 8}, "metadata.prepend_bos": True,
                "finetuning_scaling_factor": False, "lr_scheduler_name": "constant", "autocast": True,
            },
        ),
        ("saelens", "relu_l1", {"l1_coefficient": 5.0, "lp_norm": 1.0, "activation_fn": "relu"}),
        ("sparsify", "topk", {"normalize_decoder": False, "signed": False, "multi_topk": False}),
        (
            "dictionary_learning", "topk",
            {
                "trainer.auxk_alpha": 0.03, "trainer.wandb_name": "x", "trainer.decay_start": 80,
                "trainer.threshold_beta": 0.999, "buffer.io": "out", "buffer.n_ctxs": 3000,
            },
        ),
    ],
)  # fmt: skip
def test_settings_of_training_and_names_are_no_reason_to_refuse(exported, format, variant, keys):
    folder = exported(format, variant)
    for key, value in keys.items():
        edit(folder, format, key, value)
    sae = load_sae(folder, format=format)
    torch.testing.assert_close(sae(rows()).features, lively(variant)(rows()).features)


def test_a_scaling_factor_of_one_changes_nothing(exported):
    folder = exported("saelens", "relu_l1")
    edit_tensors(folder, "saelens", scaling_factor=torch.ones(D_SAE))
    torch.testing.assert_close(
        load_sae(folder)(rows()).features, lively("relu_l1")(rows()).features
    )


def test_sparsify_counts_latents_by_expansion_when_it_has_no_number(exported):
    folder = exported("sparsify")
    edit(folder, "sparsify", "num_latents", 0)
    edit(folder, "sparsify", "expansion_factor", "wide")
    assert "expansion_factor is 'wide'; expected a whole number" in refusal(folder)
    edit(folder, "sparsify", "expansion_factor", GONE)
    assert f"says d_sae {32 * D_IN}" in refusal(folder)


# What cannot be read: tensors


def edit_tensors(folder, format, **changes):
    """Replace tensors in the weights' file, dots in names written as ``__``."""
    file = folder / WEIGHTS[format]
    pickled = format == "dictionary_learning"
    tensors = torch.load(file, weights_only=True) if pickled else load_file(file)
    tensors |= {name.replace("__", "."): value for name, value in changes.items()}
    left = {name: value for name, value in tensors.items() if value is not GONE}
    torch.save(left, file) if pickled else save_file(left, file)


@pytest.mark.parametrize(
    ("format", "variant", "changes", "words"),
    [
        ("saelens", "topk", {"W_enc": GONE}, "W_enc is absent, expected [24, 64]"),
        ("saelens", "topk", {"W_dec": GONE}, "lacks W_dec"),
        ("saelens", "gated", {"b_gate": GONE}, "lacks b_gate"),
        ("saelens", "jumprelu", {"threshold": GONE}, "threshold is absent, expected [64]"),
        ("saelens", "topk", {"b_enc": torch.ones(63)}, "b_enc is [63], expected [64]"),
        ("saelens", "topk", {"W_skip": torch.ones(2, 2)}, "W_skip is [2, 2], expected absent"),
        ("saelens", "relu_l1", {"scaling_factor": torch.full((64,), 2.0)}, "scaling_factor is [64]"),
        ("saelens", "relu_l1", {"threshold": torch.ones(64)}, "threshold is [64], expected absent"),
        ("saelens", "jumprelu", {"r_mag": torch.ones(64)}, "r_mag is [64], expected absent"),
        ("sparsify", "topk", {"W_skip": torch.ones(24, 24)}, "W_skip is [24, 24], expected absent"),
        ("sparsify", "topk", {"encoder__scale": torch.ones(64)}, "encoder.scale is [64], expected"),
        ("dictionary_learning", "relu_l1", {"threshold": torch.ones(64)}, "threshold is [64], exp"),
        ("dictionary_learning", "gated", {"k": torch.tensor(8)}, "k is [], expected absent"),
        ("dictionary_learning", "topk", {"group_sizes": torch.tensor([64])}, "group_sizes is [1]"),
        ("dictionary_learning", "topk", {"k": torch.tensor(3)}, "trainer.k is 8, but ae.pt has k 3"),
        ("sparsify", "topk", {"W_dec": GONE}, "lacks W_dec"),
        ("sparsify", "topk", {"encoder__bias": GONE}, "lacks encoder.bias"),
        ("sparsify", "topk", {"encoder__weight": torch.ones(2, 3, 4)}, "W_enc is [2, 3, 4]"),
        ("sparsify", "topk", {"b_dec": torch.ones(1)}, "b_dec is [1], expected [24]"),
        ("dictionary_learning", "topk", {"encoder__weight": GONE}, "lacks encoder.weight"),
        ("dictionary_learning", "gated", {"r_mag": torch.ones(())}, "r_mag is [], expected [64]"),
        ("dictionary_learning", "topk", {"decoder__weight": torch.ones(8)}, "W_dec is [8]"),
        ("dictionary_learning", "batch_topk", {"threshold": GONE}, "lacks threshold"),
        ("dictionary_learning", "topk", {"k": torch.tensor(0.5)}, "k is 0.5; expected whole"),
        ("dictionary_learning", "topk", {"k": torch.tensor(-1)}, "k is -1"),
        ("dictionary_learning", "topk", {"k": torch.ones(0, dtype=int)}, "k is []"),
        ("dictionary_learning", "matryoshka", {"group_sizes": GONE}, "lacks group_sizes"),
        (
            "dictionary_learning", "matryoshka", {"group_sizes": torch.tensor([8, 8])},
            "group_sizes add up to 16, but dict_size is 64",
        ),
        (
            "dictionary_learning", "matryoshka", {"group_sizes": torch.tensor([65, -1])},
            "must rise",
        ),
        ("dictionary_learning", "topk", {"b_dec": "text"}, "found a str as 'b_dec'"),
    ],
)  # fmt: skip
def test_tensors_that_do_not_fit_are_named(exported, format, variant, changes, words):
    folder = exported(format, variant)
    edit_tensors(folder, format, **changes)
    assert words in refusal(folder, format)


def test_dictionaries_from_before_k_was_a_tensor_are_read(exported):
    folder = exported("dictionary_learning")
    edit_tensors(folder, "dictionary_learning", k=GONE, threshold=GONE)
    edit(folder, "dictionary_learning", "trainer.k", 5)
    assert load_sae(folder, format="dictionary_learning").config.k == 5
    edit(folder, "dictionary_learning", "trainer.k", GONE)
    assert "lacks k" in refusal(folder, "dictionary_learning")


class Evil:
    """A pickle that would make a file."""

    def __reduce__(self):
        return open, ("ran.txt", "w")


@pytest.mark.parametrize(
    "content",
    [Evil(), {"b_dec": Evil()}, [torch.ones(2)], {1: torch.ones(2)}],
    ids=["code", "code as a tensor", "list", "number as a name"],
)
def test_a_pickle_of_anything_but_tensors_is_refused_and_runs_nothing(
    exported, tmp_path, monkeypatch, content
):
    folder = exported("dictionary_learning")
    torch.save(content, folder / "ae.pt")
    monkeypatch.chdir(tmp_path)
    words = refusal(folder, "dictionary_learning")
    assert "ae.pt: " in words and "weights_only" not in words, "torch advises to run it"
    assert not (tmp_path / "ran.txt").exists()


def test_features_are_never_negative(exported):
    """The others' ReLU stops what a threshold below zero lets through."""
    for format in ("saelens", "dictionary_learning"):
        folder = exported(format, "jumprelu")
        edit_tensors(folder, format, threshold=torch.full((D_SAE,), -1.0))
        assert load_sae(folder, format=format)(rows()).features.min() == 0


# Whatever is in the settings


@pytest.mark.parametrize(
    "value", [None, "x", -1, 1.5, 10**30, True, [], [1], {}, {"a": 1}], ids=str
)
@pytest.mark.parametrize(("format", "variant"), TAKEN)
def test_no_setting_makes_a_reader_fail_otherwise(exported, format, variant, value):
    folder = exported(format, variant)
    file = folder / SETTINGS[format]
    whole = file.read_text()
    settings = json.loads(whole)
    within = [
        f"{key}.{inner}"
        for key in settings
        if isinstance(settings[key], dict)
        for inner in settings[key]
    ]
    for key in [*settings, *within]:
        edit(folder, format, key, value)
        try:
            load_sae(folder, format=format)
        except UserError as error:
            assert str(folder) in str(error)
        file.write_text(whole)


# The command


@pytest.mark.parametrize("format", FORMATS)
def test_the_command_exports_and_says_how_to_load(tmp_path, capsys, format):
    save_sae(lively("topk"), tmp_path / "own")
    assert (
        export_command([str(tmp_path / "own"), "--to", format, "--out", str(tmp_path / "out")]) == 0
    )
    told = capsys.readouterr().out
    assert f"topk, d_in {D_IN}, d_sae {D_SAE}" in told and f'"{tmp_path / "out"}"' in told
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
