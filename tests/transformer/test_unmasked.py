"""Padding that is not masked, so that attention can take its fast path: only where it is the same."""

import numpy as np
import pytest
import torch
from torch.nn import functional

from raysae.sites import Site
from raysae.transformer import capture
from raysae.transformer.capture import Capturer
from raysae.transformer.loading import ModelSpec, load_model
from raysae.transformer.sequence import TokenSequence
from raysae.transformer.steadiness import needs_no_mask

LENGTHS = (5, 9, 12, 7)
CAUSAL = ("gpt2", "gpt_neox", "llama", "mistral", "qwen3", "gemma3", "phi")


def sequences():
    random = np.random.default_rng(0)
    for number, length in enumerate(LENGTHS):
        ids = random.integers(5, 60, length).astype(np.int32)
        unknown, every = np.full(length, -1, np.int32), np.ones(length, bool)
        yield TokenSequence(
            number, [0], "", ids, unknown, unknown, every, np.zeros(length, np.int32)
        )


def loaded(tiny_models, family):
    return load_model(ModelSpec(str(tiny_models[family]), None, "float32", False))


def attention_of(capturer, monkeypatch):
    """The rows at all tokens, and the mask and ``is_causal`` of every call of torch's attention."""
    seen, attention = [], functional.scaled_dot_product_attention

    def spy(*args, attn_mask=None, is_causal=False, **more):
        seen.append((attn_mask is not None, is_causal))
        return attention(*args, attn_mask=attn_mask, is_causal=is_causal, **more)

    monkeypatch.setattr(functional, "scaled_dot_product_attention", spy)
    return capturer.rows(list(sequences()), ["all"]), set(seen)


@pytest.mark.parametrize("hookpoint", ["resid_post", "mlp_out"])
@pytest.mark.parametrize("family", CAUSAL)
def test_causal_models_read_padded_texts_without_a_mask(
    tiny_models, family, hookpoint, monkeypatch
):
    model, where = loaded(tiny_models, family), {"hookpoint": hookpoint, "layers": range(3)}
    masked = Capturer(model, **where, dtype="float32").rows(list(sequences()), ["all"])
    capturer = Capturer(model, **where, dtype="float32", unmasked=True)
    assert not capturer.masked and capturer.padding
    rows, seen = attention_of(capturer, monkeypatch)
    assert seen == {(False, True)}, "torch's own causal attention, in which flash attention is"
    for site, expected in masked.items():
        assert rows[site].activation_ND.shape == expected.activation_ND.shape
        torch.testing.assert_close(
            rows[site].activation_ND, expected.activation_ND, atol=1e-5, rtol=1e-4
        )


def test_a_mask_is_passed_on_cpus_and_to_models_that_look_both_ways(tiny_models, monkeypatch):
    model = loaded(tiny_models, "gpt2")
    capturer = Capturer(model, hookpoint="resid_post", layers=range(3), dtype="float32")
    assert capturer.masked
    assert attention_of(capturer, monkeypatch)[1] >= {(True, False)}
    model = loaded(tiny_models, "bert")
    capturer = Capturer(
        model, hookpoint="resid_post", layers=range(3), dtype="float32", unmasked=True
    )
    assert capturer.masked and capturer.padding


def test_a_model_that_says_it_is_causal_and_is_not_keeps_its_mask(tiny_models):
    model = loaded(tiny_models, "gpt2")
    model.transformer.h[1].mlp.register_forward_hook(
        lambda module, args, given: given + 1e-6 * given.mean(dim=1, keepdim=True)
    )
    where = {"hookpoint": "resid_post", "layers": range(3), "dtype": "float32"}
    capturer = Capturer(model, **where, unmasked=True)
    assert capturer.masked and capturer.padding, "it is far less than what rounding may do"
    rows = capturer.rows(list(sequences()), ["all"])
    expected = Capturer(model, **where).rows(list(sequences()), ["all"])
    assert torch.equal(rows[Site(2, "all")].activation_ND, expected[Site(2, "all")].activation_ND)
    assert not Capturer(model, **{**where, "layers": [0]}, unmasked=True).masked, "below that block"


def test_a_model_that_reads_otherwise_without_a_mask_keeps_it(tiny_models):
    """Its rows are compared with and without the mask, and not with the mask twice."""
    model, masked = loaded(tiny_models, "gpt2"), [True]

    def look(module, args, named):
        masked[0] = "attention_mask" in named

    model.transformer.register_forward_pre_hook(look, with_kwargs=True)
    model.transformer.h[1].mlp.register_forward_hook(
        lambda module, args, out: out if masked[0] else out + 1
    )
    where = {"hookpoint": "resid_post", "layers": range(3), "dtype": "float32"}
    assert Capturer(model, **where, unmasked=True).masked


IDS = torch.arange(1, 37).reshape(3, 12)
EMBEDDING = torch.randn(40, 8, generator=torch.Generator().manual_seed(0))


def runs(mix):
    """Rows of each text, of one layer; ``mix`` changes the padded batch ``[B, T, D]``."""

    def run(texts):
        width = max(map(len, texts))
        ids = torch.stack([torch.cat([t, t.new_zeros(width - len(t))]) for t in texts])
        return [row[: len(t)] for row, t in zip(mix(EMBEDDING[ids]), texts, strict=True)]

    return run


def sums(rows):
    return rows.cumsum(dim=1)


@pytest.mark.parametrize(
    ("mix", "without"),
    [
        (sums, True),
        (lambda rows: sums(rows) + 1e-6 * rows.mean(dim=1, keepdim=True), False),
        (lambda rows: 1.1 * sums(rows), False),
        (lambda rows: sums(rows) + 0.1 * torch.randn_like(rows), False),
        (lambda rows: sums(rows) / len(rows), False),
        (lambda rows: 1 / 0, False),
    ],
    ids=["looks back", "a little ahead", "other rows", "random", "mixes texts", "fails"],
)
def test_a_mask_is_left_out_only_where_that_is_shown_to_change_nothing(mix, without):
    assert needs_no_mask(runs(sums), runs(mix), IDS, 1, torch.float32) is without


def test_a_batch_on_a_gpu_has_no_more_rows_than_fit_pinned_memory(tiny_models, monkeypatch):
    capturer = Capturer(
        loaded(tiny_models, "gpt2"), hookpoint="resid_post", layers=range(3), dtype="float16"
    )
    texts = list(sequences())
    last = {-1: [one.places(-1) for one in texts]}
    every = {**last, "all": [one.places("all") for one in texts]}
    assert capturer._most_tokens(texts, every) == capture.FORWARD_TOKENS["cpu"]
    capturer._device = torch.device("cuda")
    assert capturer._most_tokens(texts, every) == capture.FORWARD_TOKENS["cuda"]
    monkeypatch.setattr(capture, "BATCH_BYTES", 192 * 20)  # of three layers of 32 values
    assert capturer._most_tokens(texts, {"all": every["all"]}) == 20
    assert capturer._most_tokens(texts, last) == 20 * sum(LENGTHS) // len(LENGTHS)
