"""Splicing is exact in every family: an SAE that changes nothing changes no logit, and what is written at
a hookpoint is what the model reads on."""

import pytest
import torch

from raysae.analysis.language_model import LanguageModel
from raysae.analysis.splicing import (
    Change,
    Splicer,
    added,
    read_into,
    replaced_by,
    spliced,
    zeroed,
)
from raysae.errors import UserError
from raysae.sae import build_sae
from raysae.sae.config import TopKConfig
from raysae.transformer.layouts import Batch
from raysae.transformer.loading import ModelSpec, load_model
from scripts.families import tiny_model
from tests.conftest import FAMILIES
from tests.transformer.test_families import HOOKPOINTS, LIKE_LLAMA, PATHS

IDS = torch.arange(1, 31).reshape(2, 15)
MASK = torch.ones_like(IDS)
MASK[1, -4:] = 0
PLACES = (torch.tensor([0, 0, 1]), torch.tensor([3, 7, 5]))
OTHERS = ("falcon", "granite", "bloom", "opt", "gptj", "mixtral", "granitemoeshared", "openai-gpt")
"""Families whose hookpoints are sums, scaled, flat, or changed in place."""


def identity(d_in):
    """An SAE that reconstructs every row: a pair of latents a dimension, of opposite sign."""
    sae = build_sae(TopKConfig(d_sae=2 * d_in, k=2 * d_in), d_in)
    with torch.no_grad():
        sae.W_dec.copy_(torch.cat([torch.eye(d_in), -torch.eye(d_in)]))
        sae.W_enc.copy_(sae.W_dec.T)
        sae.b_dec.normal_(std=0.02, generator=torch.Generator().manual_seed(0))
    return sae


def logits_of(model):
    with torch.inference_mode():
        return model(input_ids=IDS, attention_mask=MASK).logits[MASK.bool()]


@pytest.mark.parametrize("family", FAMILIES)
def test_an_identity_sae_leaves_the_logits_unchanged(tiny_models, family):
    model = load_model(ModelSpec(str(tiny_models[family]))).eval()
    clean = logits_of(model)
    sae = identity(32)
    for hookpoint in HOOKPOINTS:
        splicer = Splicer(model, [hookpoint], range(3))
        for error in (False, True):
            changes = [Change(layer, PLACES, spliced(sae, error)) for layer in range(3)]
            with splicer.changed(changes, Batch(2, 15)):
                there = logits_of(model)
            assert float((there - clean).abs().max()) <= 1e-6 * max(1.0, float(clean.abs().max()))
        with splicer.changed([Change(1, PLACES, zeroed)], Batch(2, 15)):
            assert not torch.allclose(logits_of(model), clean, atol=1e-4)
        assert torch.equal(logits_of(model), clean), "the hooks are gone"


@pytest.mark.parametrize("family", FAMILIES)
def test_zero_ablation_equals_hooks_of_the_tests_own(tiny_models, family):
    model = load_model(ModelSpec(str(tiny_models[family]))).eval()
    blocks, attention, mlp = PATHS.get(family, LIKE_LLAMA)
    block = model.get_submodule(blocks)[1]
    own = {
        "resid_post": block, "attn_out": block.get_submodule(attention),
        "mlp_out": block.get_submodule(mlp),
    }  # fmt: skip

    def zero(_module, _args, output):
        tensor = output[0] if isinstance(output, tuple) else output
        tensor = tensor.clone()
        tensor[PLACES] = 0
        return (tensor, *output[1:]) if isinstance(output, tuple) else tensor

    for hookpoint, module in own.items():
        handle = module.register_forward_hook(zero)
        wanted = logits_of(model)
        handle.remove()
        with Splicer(model, [hookpoint], [1]).changed([Change(1, PLACES, zeroed)], Batch(2, 15)):
            assert torch.allclose(logits_of(model), wanted, atol=1e-6)


@pytest.mark.parametrize("family", OTHERS)
def test_what_is_written_is_what_is_read_again(family):
    """Also where a hookpoint is a sum of several tensors, or scaled: halved rows are read as halved."""
    model = tiny_model(family)
    ids = torch.arange(10, 22).reshape(1, 12).repeat(2, 1)
    index = (torch.tensor([0, 0, 1]), torch.tensor([2, 9, 4]))
    for hookpoint in HOOKPOINTS:
        splicer = Splicer(model, [hookpoint], [1])
        before, after = [], []
        edits = (read_into(before), lambda x: x * 0.5, read_into(after))
        changes = [Change(1, index, edit) for edit in edits]
        with splicer.changed(changes, Batch(2, 12)), torch.inference_mode():
            splicer.tower.forward(input_ids=ids, attention_mask=torch.ones_like(ids))
        assert len(before) == len(after) == 1
        assert torch.allclose(after[0], before[0] * 0.5, rtol=1e-4, atol=1e-5)


def test_a_hookpoint_that_cannot_be_found_is_refused_by_name():
    with pytest.raises(UserError, match="mlp_out"):
        Splicer(tiny_model("doge"), ["mlp_out"], [1])


def test_means_and_directions_are_written(tiny_models):
    model = load_model(ModelSpec(str(tiny_models["gpt2"])))
    splicer, found = Splicer(model, ["resid_post", "mlp_out"], [0, 2]), []
    vector = torch.arange(32.0)
    changes = [
        Change(2, PLACES, replaced_by(vector), "mlp_out"),
        Change(2, PLACES, added(vector), "mlp_out"),
        Change(2, PLACES, read_into(found), "mlp_out"),
    ]
    with splicer.changed(changes, Batch(2, 15)):
        logits_of(model)
    assert torch.allclose(found[0], 2 * vector.expand(3, 32))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_parts_of_a_model_equal_the_whole(tiny_models, family):
    model = load_model(ModelSpec(str(tiny_models[family])))
    parts = LanguageModel(model, Splicer(model, ["resid_post"], [1]).tower)
    assert parts.has_head and parts.resumes
    assert parts.causal == (family != "bert")
    whole = logits_of(model)
    final = parts.final(IDS, MASK, keep=[1])
    assert torch.allclose(parts.logits(final.rows_BTD[MASK.bool()]), whole, atol=1e-6)
    twice = torch.tensor([1, 0, 1])
    resumed = parts.final(IDS[twice], MASK[twice], start=(1, final.streams[1][twice]))
    real = MASK[twice].bool()
    assert torch.allclose(resumed.rows_BTD[real], final.rows_BTD[twice][real], atol=1e-5)
    assert torch.equal(logits_of(model), whole), "the model is as it was"


def test_a_model_without_head_is_told_apart(tiny_models):
    from transformers import AutoModel

    model = AutoModel.from_pretrained(tiny_models["bert"])
    parts = LanguageModel(model, Splicer(model, ["resid_post"], [1]).tower)
    assert not parts.has_head and not parts.causal
