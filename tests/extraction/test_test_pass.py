"""The driver's test pass: what cannot work is told with its own reason, before any text is read."""

import shutil

import numpy as np
import pytest
import torch

from raysae.activations import Site
from raysae.config import load_recipe
from raysae.errors import UserError
from raysae.extraction import test_pass as module
from raysae.extraction.plan import plan_extraction
from raysae.pipeline.preflight import preflight
from raysae.pocket.tokenizer import build_tokenizer

test_pass = module.test_pass
test_pass.__test__ = False  # pytest takes it for a test
SIZE = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 2,
    "max_position_embeddings": 64,
}  # fmt: skip


@pytest.fixture
def saved(tmp_path):
    """Saves a model with the pocket's tokenizer; returns the overrides that name it."""

    def save(model, tokenizer=None):
        tokenizer = tokenizer or build_tokenizer(64)
        model.save_pretrained(tmp_path / "m")
        tokenizer.save_pretrained(tmp_path / "m")
        return recipe_of(tmp_path, tmp_path / "m")

    return save


def recipe_of(tmp_path, folder, *overrides):
    base = [f"store={tmp_path / 'store'}", f"source.model={folder}", "source.context_length=32"]
    return load_recipe(None, [*base, "source.layers=all", *overrides])


def vocabulary():
    return len(build_tokenizer(64))


def test_a_good_model_passes_and_is_not_kept(tiny_models, tmp_path):
    import gc

    from transformers import GPT2LMHeadModel

    def models():
        gc.collect()
        return {id(m) for m in gc.get_objects() if type(m) is GPT2LMHeadModel}

    before = models()
    test_pass(plan_extraction(recipe_of(tmp_path, tiny_models["gpt2"])))
    assert models() <= before


def test_the_main_jobs_preflight_and_the_command_make_the_pass_before_texts(tiny_models, tmp_path):
    from raysae.extraction.extract_command import run_extraction

    shutil.copytree(tiny_models["gpt2"], tmp_path / "cut")
    file = tmp_path / "cut" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    texts = f"source.dataset={tmp_path / 'no_such_file.jsonl'}"
    recipe = recipe_of(tmp_path, tmp_path / "cut", texts, "sae.d_sae=64", "sae.k=4")
    for check in (preflight, run_extraction):
        with pytest.raises(UserError, match="by its header it should have"):
            check(recipe)


@pytest.mark.parametrize("family", ["Bart", "T5"])
def test_encoder_decoders_are_refused_by_that_word(saved, family):
    import transformers

    size = {"d_model": 16, "vocab_size": vocabulary(), "decoder_start_token_id": 0}
    config = getattr(transformers, f"{family}Config")(**size)
    config.num_layers = config.encoder_layers = config.decoder_layers = 1
    recipe = saved(getattr(transformers, f"{family}ForConditionalGeneration")(config))
    with pytest.raises(UserError, match=r"is an encoder-decoder \((bart|t5)\)"):
        plan_extraction(recipe)


def llava(vision_layers):
    from transformers import (
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
    )

    vision = CLIPVisionConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=vision_layers,
        num_attention_heads=2, image_size=16, patch_size=8,
    )  # fmt: skip
    text = LlamaConfig(vocab_size=vocabulary(), **SIZE)
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_id=5)
    return LlavaForConditionalGeneration(config).eval()


@pytest.mark.parametrize("vision_layers", [2, 3])
def test_of_several_towers_the_language_models_blocks_are_read(vision_layers):
    from raysae.transformer.capture import Capturer

    model = llava(vision_layers)
    capturer = Capturer(model, hookpoint="resid_post", layers=[1], dtype="float32")
    assert capturer.tower.name == "model.language_model.layers"
    ids = np.arange(6, 20, dtype=np.int32)
    rows = capturer.rows([module._sequence(ids.tolist())], ["all"])[Site(1, "all")].activation_ND
    with torch.no_grad():
        text = torch.from_numpy(ids.astype(np.int64))[None]
        own = model(input_ids=text, output_hidden_states=True).hidden_states
    assert torch.allclose(rows, own[2][0], atol=1e-5)


def test_text_towers_of_models_that_want_images_are_read():
    from transformers import CLIPConfig, CLIPModel

    from raysae.transformer.capture import Capturer

    size = {**SIZE, "vocab_size": 64, "bos_token_id": 1, "eos_token_id": 2}
    config = CLIPConfig(text_config=size, vision_config={**SIZE, "image_size": 16, "patch_size": 8})
    capturer = Capturer(CLIPModel(config), hookpoint="mlp_out", layers=[0], dtype="float32")
    assert capturer.tower.name == "text_model.encoder.layers"


def test_a_hookpoint_that_cannot_be_read_is_told_with_the_figure(saved):
    from transformers import MambaConfig, MambaForCausalLM

    config = MambaConfig(hidden_size=32, num_hidden_layers=2, vocab_size=vocabulary())
    recipe = saved(MambaForCausalLM(config))
    source = recipe.source.model_copy(update={"hookpoint": "mlp_out"})
    with pytest.raises(UserError, match=r"source.model .*layer 0.*from no mlp.*use resid_pre"):
        test_pass(plan_extraction(recipe.model_copy(update={"source": source})))


def test_positions_that_the_model_has_no_embedding_for(saved):
    from transformers import RobertaConfig, RobertaForMaskedLM

    config = RobertaConfig(**SIZE | {"max_position_embeddings": 33}, vocab_size=vocabulary())
    with pytest.raises(UserError, match="context_length is 32; .* reaches 31 tokens"):
        test_pass(plan_extraction(saved(RobertaForMaskedLM(config))))


def test_the_context_goes_by_many_names(saved):
    from transformers import MptConfig, MptForCausalLM

    config = MptConfig(d_model=32, n_heads=2, n_layers=2, vocab_size=vocabulary(), max_seq_len=16)
    with pytest.raises(UserError, match="reads at most 16 tokens"):
        plan_extraction(saved(MptForCausalLM(config)))


def test_tokens_beyond_the_embedding_are_told_at_once_and_refused_by_sequence(saved, capsys):
    from transformers import LlamaConfig, LlamaForCausalLM

    from raysae.transformer.capture import Capturer

    tokenizer = build_tokenizer(64)
    model = LlamaForCausalLM(LlamaConfig(**SIZE, vocab_size=vocabulary()))
    tokenizer.add_tokens(["<|im_start|>"])
    test_pass(plan_extraction(saved(model, tokenizer)))
    assert f"has {vocabulary() + 1} tokens" in capsys.readouterr().out.replace("\n", " ")
    capturer = Capturer(model, hookpoint="resid_pre", layers=[0], dtype="float32")
    with pytest.raises(UserError, match=f"sequence 0: token 1 has id {vocabulary()}"):
        capturer.rows([module._sequence([3, vocabulary()])], ["all"])


def test_a_model_too_large_for_this_machine_is_left_to_the_first_worker(
    tiny_models, tmp_path, monkeypatch, capsys
):
    from raysae.training import memory

    monkeypatch.setattr(memory, "free_bytes", lambda device: 1000)
    monkeypatch.setattr("raysae.transformer.loading.load_model", None)
    test_pass(plan_extraction(recipe_of(tmp_path, tiny_models["gpt2"])))
    assert "no test pass here" in capsys.readouterr().out


def test_a_model_whose_rows_change_with_padding_runs_over_equal_lengths():
    from transformers import FNetConfig, FNetForMaskedLM

    from raysae.transformer.batching import length_batches
    from raysae.transformer.capture import Capturer

    model = FNetForMaskedLM(FNetConfig(**SIZE, vocab_size=64, tpu_short_seq_length=64)).eval()
    capturer = Capturer(model, hookpoint="resid_post", layers=[1], dtype="float32")
    assert not capturer.padding
    lengths = (5, 9, 5, 7)
    sequences = [module._sequence(list(range(3, 3 + length))) for length in lengths]
    batches = [
        [lengths[i] for i in batch] for batch in length_batches(sequences, 4096, padding=False)
    ]
    assert batches == [[5, 5], [7], [9]]
    together = capturer.rows(sequences, ["all"])[Site(1, "all")].activation_ND
    alone = [capturer.rows([s], ["all"])[Site(1, "all")].activation_ND for s in sequences]
    assert torch.allclose(together, torch.cat(alone), atol=1e-5)
