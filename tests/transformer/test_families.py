"""Every family and hookpoint: the store holds what a plain forward pass gives, to rounding."""

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

import raysae
from raysae.activations.schema import to_torch
from raysae.cluster.later import finished
from raysae.config import load_recipe
from raysae.extraction.plan import model_spec, plan_extraction
from raysae.extraction.run import _manifest
from raysae.extraction.sequences import write_tokens
from raysae.extraction.shards import ShardExtractor
from raysae.transformer.loading import ModelSpec, load_model
from scripts.families import families, judge, walk
from tests.conftest import FAMILIES

PATHS = {
    "gpt2": ("transformer.h", "attn", "mlp"),
    "gpt_neox": ("gpt_neox.layers", "attention", "mlp"),
    "gemma2": ("model.layers", "post_attention_layernorm", "post_feedforward_layernorm"),
    "gemma3": ("model.layers", "post_attention_layernorm", "post_feedforward_layernorm"),
    "bert": ("bert.encoder.layer", "attention.output.dense", "output.dense"),
}
"""Where blocks, attention and MLP lie; those not listed are laid out like Llama."""
LIKE_LLAMA = ("model.layers", "self_attn", "mlp")
HOOKPOINTS = ("resid_pre", "attn_out", "mlp_out", "resid_post")


def in_this_process(recipe):
    """The extraction without Ray: the same functions, one shard after the other."""
    plan = plan_extraction(recipe)
    tokens = write_tokens(plan, lambda *_: None)
    extractor = ShardExtractor(plan)
    for number in range(len(tokens.parts)):
        finished(extractor.do(number, lambda: None))
    _manifest(plan, tokens).write(plan.folder)
    return raysae.open_store(plan.folder)


def plain_activations(model, family, ids):
    """Every hookpoint at every layer on one unpadded sequence, by hooks of the test's own."""
    blocks_path, attention, mlp = PATHS.get(family, LIKE_LLAMA)
    caught, handles = {}, []

    def catch(key, first_input=False):
        def hook(_module, args, kwargs, output):
            if first_input:
                output = args[0] if args else kwargs["hidden_states"]
            caught[key] = (output[0] if isinstance(output, tuple) else output)[0].float()

        return hook

    for layer, block in enumerate(model.get_submodule(blocks_path)):
        for name, module, first_input in (
            ("resid_pre", block, True), ("resid_post", block, False),
            ("attn_out", block.get_submodule(attention), False),
            ("mlp_out", block.get_submodule(mlp), False),
        ):  # fmt: skip
            hook = catch((name, layer), first_input)
            handles.append(module.register_forward_hook(hook, with_kwargs=True))
    with torch.no_grad():
        model(input_ids=torch.tensor([ids]))
    for handle in handles:
        handle.remove()
    return caught


def stored_rows(store, site):
    """Every row of a site: (sequence, token_index, token_id) with its activation."""
    for shard in store.entry(site).shards:
        for split in ("train", "validation", "test"):
            table = store.read(shard, split)
            if not len(table):
                continue
            rows = torch.cat(to_torch(table["activation"], store.manifest.dtype)).float()
            columns = [table[c].to_pylist() for c in ("sequence", "token_index", "token_id")]
            yield from zip(*columns, rows, strict=True)


@pytest.mark.parametrize("hookpoint", HOOKPOINTS)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_store_holds_a_plain_forward_pass(
    connected_ray, tiny_models, tmp_path, family, hookpoint
):
    recipe = load_recipe(
        None,
        [
            f"source.model={tiny_models[family]}", f"source.hookpoint={hookpoint}",
            "source.positions=[0, -2, all]", "source.sequences=12", "source.context_length=40",
            "source.sequences_per_shard=5", "source.validation=0.4", f"store={tmp_path / 's'}",
        ],
    )  # fmt: skip
    store = in_this_process(recipe)
    model = load_model(model_spec(recipe.source)).eval()
    sequences = read_sequences(store)
    expected = {
        number: plain_activations(model, family, row["token_id"])
        for number, row in sequences.items()
    }
    assert len(store.sites) == 9
    for site in store.sites:
        rows = list(stored_rows(store, site))
        wanted_places = {
            (number, place)
            for number, row in sequences.items()
            for place in wanted(site.position, len(row["token_id"]))
        }
        assert {(sequence, place) for sequence, place, _, _ in rows} == wanted_places
        assert len(rows) == len(wanted_places)
        for sequence, place, token, activation in rows:
            assert token == sequences[sequence]["token_id"][place]
            plain = expected[sequence][hookpoint, site.layer][place]
            assert torch.allclose(activation, plain, rtol=2**-10, atol=2e-5)


def wanted(position, length):
    return range(length) if position == "all" else [position % length]


def read_sequences(store):
    rows = [
        row
        for part in store.manifest.sequences
        for row in pq.read_table(store.path / part.file, partitioning=None).to_pylist()
    ]
    assert len({row["sequence"] for row in rows}) == len(rows)
    return {row["sequence"]: row for row in rows}


@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "bert"])
def test_hookpoints_add_up(tiny_models, family):
    """What enters a block, and what attention and MLP add, is what leaves it: for pre-norm blocks."""

    found = captured(load_model(ModelSpec(str(tiny_models[family]))))
    for layer in range(3):
        total = found["resid_pre", layer] + found["attn_out", layer] + found["mlp_out", layer]
        assert torch.allclose(total, found["resid_post", layer], atol=1e-5)


def test_berts_hookpoints_add_up_and_are_normalised(tiny_models):

    model = load_model(ModelSpec(str(tiny_models["bert"])))
    found = captured(model)
    for layer, block in enumerate(model.bert.encoder.layer):
        middle = block.attention.output.LayerNorm(
            found["resid_pre", layer] + found["attn_out", layer]
        )
        after = block.output.LayerNorm(middle + found["mlp_out", layer])
        assert torch.allclose(after, found["resid_post", layer], atol=1e-5)


def captured(model):
    """Every hookpoint at every layer by raysae's own Capturer."""
    from raysae.activations import Site
    from raysae.transformer.capture import Capturer
    from raysae.transformer.sequence import TokenSequence

    ids = np.arange(1, 21, dtype=np.int32)
    ones = np.ones(20, dtype=bool)
    sequence = TokenSequence(0, [0], "", ids, ids * 0 - 1, ids * 0 - 1, ones, ids * 0)
    found = {}
    for hookpoint in HOOKPOINTS:
        capturer = Capturer(model, hookpoint=hookpoint, layers=range(3), dtype="float32")
        rows = capturer.rows([sequence], ["all"])
        for layer in range(3):
            found[hookpoint, layer] = rows[Site(layer, "all")].activation_ND
    return found


REPRESENTATIVE = {
    "falcon": "holds",  # adds attention into the MLP's output in place
    "granite": "holds",  # multiplies what it adds
    "gemma2": "holds", "olmo2": "holds", "glm4": "holds",  # normalise again before adding
    "bloom": "holds",  # adds the stream inside its modules
    "opt": "holds",
    "gptj": "holds", "cohere": "holds",  # attention and MLP side by side
    "mixtral": "holds", "granitemoeshared": "holds", "deepseek_v3": "holds",  # experts
    "bert": "holds", "openai-gpt": "holds",  # normalise the stream
    "doge": "refused", "gemma4_text": "refused",  # change the stream itself
    "lfm2_moe": "holds",  # convolutions, in classes that are called Moe
    "mamba": "refused",
}  # fmt: skip
"""Families that differ in what stands between a sublayer and its addition, and ``mlp_out`` there."""


@pytest.mark.parametrize("family", REPRESENTATIVE)
def test_what_is_captured_is_what_the_model_adds_itself(family):
    verdict = judge(family)
    assert not verdict.unmade and not verdict.wrong
    for hookpoint in ("resid_pre", "resid_post"):
        assert verdict.outcome[hookpoint] == "holds"
    assert verdict.outcome["mlp_out"].startswith(REPRESENTATIVE[family])
    attention = "refused" if family == "lfm2_moe" else REPRESENTATIVE[family]
    assert verdict.outcome["attn_out"].startswith(attention)


@pytest.mark.long
def test_no_family_of_transformers_is_wrong():
    verdicts = list(walk(families()))
    assert {v.family: v.outcome for v in verdicts if v.wrong} == {}
    whole = [v for v in verdicts if set(v.outcome.values()) == {"holds"}]
    assert len(whole) > 120


def test_the_check_of_families_sees_a_wrong_capture(monkeypatch):
    """MLP plus attention in the place of the MLP: what Falcon's code leaves in the MLP's tensor."""
    from raysae.transformer import capture
    from raysae.transformer.hookpoints import Taps

    first = capture.find_taps

    def wrong(model, tower, hookpoint, layers):
        taps = first(model, tower, hookpoint, layers)
        other = first(model, tower, "attn_out", layers).by_layer
        by_layer = {n: (*t, *other[n]) for n, t in taps.by_layer.items()}
        return Taps(by_layer, taps.sublayers)

    monkeypatch.setattr(capture, "find_taps", wrong)
    assert "mlp_out" in judge("falcon").wrong


def test_a_checkpoint_with_weights_missing_is_refused(tiny_models, tmp_path):
    import shutil

    from safetensors.torch import load_file, save_file

    from raysae.errors import UserError

    shutil.copytree(tiny_models["llama"], tmp_path / "half")
    weights = load_file(tmp_path / "half" / "model.safetensors")
    kept = {key: value for key, value in weights.items() if "layers.1.mlp" not in key}
    save_file(kept, tmp_path / "half" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="3 of LlamaForCausalLM's weights are not in its files"):
        load_model(ModelSpec(str(tmp_path / "half")))
