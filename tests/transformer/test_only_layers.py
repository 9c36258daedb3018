"""Reading some layers alone: the same rows to the bit, and nothing above them runs."""

import numpy as np
import pytest
import torch

from raysae.sites import Site
from raysae.transformer import towers
from raysae.transformer.capture import Capturer
from raysae.transformer.loading import ModelSpec, load_model
from raysae.transformer.sequence import TokenSequence

LENGTHS = (5, 9, 12, 7)


def sequences():
    random = np.random.default_rng(0)
    for number, length in enumerate(LENGTHS):
        ids = random.integers(5, 60, length).astype(np.int32)
        unknown = np.full(length, -1, np.int32)
        every = np.ones(length, bool)
        yield TokenSequence(
            number, [0], "", ids, unknown, unknown, every, np.zeros(length, np.int32)
        )


@pytest.mark.parametrize("hookpoint", ["resid_pre", "resid_post", "mlp_out", "attn_out"])
@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma3", "gpt_neox", "bert"])
def test_fewer_layers_give_the_same_rows_and_fewer_blocks_run(tiny_models, family, hookpoint):
    model = load_model(ModelSpec(str(tiny_models[family]), None, "float32", False))
    texts = list(sequences())
    capturer = Capturer(model, hookpoint=hookpoint, layers=range(3), dtype="float32")
    every = capturer.rows(texts, ["all", -1])
    ran = []
    for number, block in enumerate(capturer.tower.blocks):
        block.register_forward_hook(lambda *_, number=number: ran.append(number))
    few = capturer.only([1]).rows(texts, ["all"])
    # the pass ends at the last tensor that is read, within the block or before it
    assert set(ran) == ({0, 1} if hookpoint == "resid_post" else {0})
    assert list(few) == [Site(1, "all")]
    again = capturer.only([0, 2]).rows(texts, [-1])
    assert torch.equal(few[Site(1, "all")].activation_ND, every[Site(1, "all")].activation_ND)
    for layer in (0, 2):
        site = Site(layer, -1)
        assert torch.equal(again[site].activation_ND, every[site].activation_ND)


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma3", "bert"])
def test_no_keys_and_values_are_kept_for_tokens_to_come(tiny_models, family, monkeypatch):
    model = load_model(ModelSpec(str(tiny_models[family]), None, "float32", False))
    capturer = Capturer(model, hookpoint="resid_post", layers=range(3), dtype="float32")
    kept, inference = [], []
    capturer.tower.forward.register_forward_hook(
        lambda module, args, output: kept.append(output.get("past_key_values"))
    )
    capturer.tower.blocks[0].register_forward_hook(
        lambda *_: inference.append(torch.is_inference_mode_enabled())
    )
    rows = capturer.rows(list(sequences()), ["all"])
    assert kept and set(kept) == {None} and all(inference)
    monkeypatch.setattr(towers, "_takes_cache", lambda kind: False)
    again = capturer.rows(list(sequences()), ["all"])
    for site, expected in again.items():
        assert torch.equal(rows[site].activation_ND, expected.activation_ND)
