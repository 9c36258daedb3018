"""Extraction: the rows are those of a plain forward pass, at the tokens that were asked for."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import raysae
from raysae.activations import Site
from raysae.activations.capture import Capturer, long_enough
from raysae.activations.extraction import extract, plan_extraction
from raysae.activations.models import load_model
from raysae.activations.texts import read_texts
from raysae.cluster.placement import Placement
from raysae.config import SourceConfig, load_recipe
from raysae.errors import UserError
from raysae.pocket.problems import make_problem

TEXTS = [make_problem(5, index).text[: 60 + 7 * index] for index in range(12)]


def plain_outputs(model, module, ids):
    """What ``module`` gives on one unpadded text, by a hook of the test's own."""
    caught = []

    def keep(_module, args, kwargs, output):
        value = output[0] if isinstance(output, tuple) else output
        caught.append((args[0] if args else kwargs["hidden_states"], value))

    handle = module.register_forward_hook(keep, with_kwargs=True)
    with torch.no_grad():
        model(input_ids=torch.tensor([ids]))
    handle.remove()
    entering, leaving = caught[0]
    return entering[0], leaving[0]


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("hookpoint", ["resid_pre", "resid_post", "attn_out", "mlp_out"])
def test_rows_equal_a_plain_forward_pass(tiny_models, family, hookpoint):
    model, tokenizer = load_model(SourceConfig(model=str(tiny_models[family])))
    capturer = Capturer(model, tokenizer, hookpoint=hookpoint, layers=[0, 2], context=40)
    tokens = capturer.tokenize(range(12), TEXTS)
    rows = capturer.rows(tokens, [0, -2, "all"])
    blocks = model.transformer.h if family == "gpt2" else model.model.layers
    attention = "attn" if family == "gpt2" else "self_attn"
    for layer in (0, 2):
        block = blocks[layer]
        module = {"attn_out": getattr(block, attention), "mlp_out": block.mlp}.get(hookpoint, block)
        expected = []
        for text in tokens:
            entering, leaving = plain_outputs(model, module, text.ids)
            expected.append(entering if hookpoint == "resid_pre" else leaving)
        for position in (0, -2):
            wanted = torch.stack([e[position] for e in expected])
            found = rows[Site(layer, position)].activation_ND
            assert torch.allclose(found, wanted, atol=1e-5)
        assert torch.allclose(
            rows[Site(layer, "all")].activation_ND, torch.cat(expected), atol=1e-5
        )


def test_positions_and_token_ids_are_what_they_say(tiny_models):
    model, tokenizer = load_model(SourceConfig(model=str(tiny_models["gpt2"])))
    capturer = Capturer(model, tokenizer, hookpoint="resid_post", layers=[1], context=64)
    tokens = capturer.tokenize(range(100, 112), TEXTS)
    rows = capturer.rows(tokens, [2, -1, "all"])
    ids = [tokenizer(text)["input_ids"] for text in TEXTS]
    assert rows[Site(1, 2)].token_id.tolist() == [row[2] for row in ids]
    assert rows[Site(1, -1)].token_id.tolist() == [row[-1] for row in ids]
    assert rows[Site(1, -1)].token_index.tolist() == [len(row) - 1 for row in ids]
    assert rows[Site(1, "all")].token_id.tolist() == [i for row in ids for i in row]  # no padding
    assert rows[Site(1, 2)].sequence.tolist() == list(range(100, 112))


def test_special_tokens_are_not_text(tiny_models):
    from tokenizers.processors import TemplateProcessing

    model, tokenizer = load_model(SourceConfig(model=str(tiny_models["llama"])))
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|end|> $A", special_tokens=[("<|end|>", 0)]
    )
    capturer = Capturer(model, tokenizer, hookpoint="resid_post", layers=[0], context=64)
    tokens = capturer.tokenize(range(12), TEXTS)
    rows = capturer.rows(tokens, [0, "all"])
    assert set(rows[Site(0, 0)].token_index.tolist()) == {1}  # the first text token comes after BOS
    assert 0 not in rows[Site(0, "all")].token_id
    assert not long_enough(tokens[0], [len(tokens[0].ids) - 1])


def recipe_of(tmp_path, name, *overrides):
    return load_recipe(
        None,
        [
            f"name={name}", f"store={tmp_path / name}", "source.sequences=60",
            "source.sequences_per_shard=16", "source.layers=[0, 3]", "source.positions=[-1, 0]",
            "source.validation=0.3", *overrides,
        ],
    )  # fmt: skip


def extracted(recipe, workers):
    plan = plan_extraction(recipe)
    return extract(
        plan, read_texts(plan.source), Placement(cpus=1, gpus=0, workers=workers), lambda *_: None
    )


def content(store):
    return {
        file.relative_to(store.path).as_posix(): file.read_bytes()
        for file in Path(store.path).rglob("*.*")
        if file.is_file()
    }


def test_the_number_of_workers_never_shows(connected_ray, tmp_path):
    one = content(extracted(recipe_of(tmp_path, "one"), 1))
    three = content(extracted(recipe_of(tmp_path, "three"), 3))
    assert len(one) == 4 * 4 + 1
    assert one == three


def test_the_manifest_says_where_everything_came_from(connected_ray, tmp_path):
    store = extracted(recipe_of(tmp_path, "s"), 2)
    manifest = json.loads((store.path / "manifest.json").read_text())
    assert manifest["provenance"] == "model"
    assert manifest["model"]["architecture"] == "GPT2LMHeadModel"
    assert len(manifest["model"]["weights_sha256"]) == 64
    assert manifest["dataset"]["used"] == 60 and manifest["dataset"]["too_short"] == 0
    assert [str(site) for site in store.sites] == [
        "layer 0, position -1", "layer 0, position 0", "layer 3, position -1", "layer 3, position 0"
    ]  # fmt: skip
    store.verify()


def test_values_too_large_for_float16_are_refused(connected_ray, tmp_path, tiny_models):
    model = AutoModelForCausalLM.from_pretrained(tiny_models["gpt2"])
    with torch.no_grad():
        model.transformer.wte.weight.mul_(1e8)
    model.save_pretrained(tmp_path / "huge")
    AutoTokenizer.from_pretrained(tiny_models["gpt2"]).save_pretrained(tmp_path / "huge")
    small = [f"source.model={tmp_path / 'huge'}", "source.layers=all", "source.context_length=64"]
    with pytest.raises(UserError, match="source.dtype=bfloat16"):
        extracted(recipe_of(tmp_path, "huge_store", *small), 1)
    with pytest.raises(UserError, match="not a finished activation store"):
        raysae.open_store(tmp_path / "huge_store")
    wide = extracted(recipe_of(tmp_path, "wide", *small, "source.dtype=float32"), 1)
    assert wide.manifest.sites[0].mean_square_norm > 1e9


def test_texts_too_short_for_the_positions_are_counted_and_left_out(connected_ray, tmp_path):
    store = extracted(recipe_of(tmp_path, "s", "source.positions=[-50]"), 1)
    counts = store.manifest.dataset
    assert counts["used"] + counts["too_short"] == 60 and counts["too_short"] > 0
    assert store.manifest.sites[0].rows.total == counts["used"]
    with pytest.raises(UserError, match="long enough"):
        extracted(recipe_of(tmp_path, "none", "source.positions=[-120]"), 1)
