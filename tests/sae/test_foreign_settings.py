"""Settings and tensors of other libraries' SAEs: which are read, and which are refused by name."""

import json

import pytest
import torch

from raysae.errors import UserError
from raysae.sae import load_sae, save_sae
from raysae.sae.interchange import FORMATS
from tests.sae.foreign_saes import (
    GONE,
    SETTINGS,
    TAKEN,
    edit,
    edit_tensors,
    refusal,
)
from tests.sae.lively import D_IN, D_SAE, K, lively, rows

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
