"""Adapters are merged into their base model, or refused with that word."""

import json
import shutil

import pytest
import torch

from raysae.errors import UserError
from raysae.transformer import adapters
from raysae.transformer.capture import weights_hash
from raysae.transformer.loading import ModelSpec, load_model, load_model_config, load_tokenizer

peft = pytest.importorskip("peft")


@pytest.fixture
def adapter(tiny_models, tmp_path):
    """A LoRA folder with weights that are not zero, beside a copy of its base model."""
    shutil.copytree(tiny_models["llama"], tmp_path / "base")
    base = load_model(ModelSpec(str(tmp_path / "base")))
    torch.manual_seed(0)
    settings = peft.LoraConfig(r=4, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM")
    adapted = peft.get_peft_model(base, settings)
    for name, parameter in adapted.named_parameters():
        if "lora" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    adapted.save_pretrained(tmp_path / "adapter")
    rewrite(tmp_path / "adapter", base_model_name_or_path=str(tmp_path / "base"))
    return tmp_path / "adapter"


def rewrite(folder, **settings):
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))


def test_an_adapter_is_its_base_model_with_the_adapter_merged_in(adapter):
    base = load_model(ModelSpec(str(adapter.parent / "base")))
    model = load_model(ModelSpec(str(adapter)))
    own = peft.PeftModel.from_pretrained(
        load_model(ModelSpec(str(adapter.parent / "base"))), adapter
    )
    ids = torch.arange(1, 15)[None]
    with torch.no_grad():
        assert torch.allclose(model(ids).logits, own(ids).logits, atol=1e-5)
        assert not torch.allclose(model(ids).logits, base(ids).logits, atol=1e-2)
    assert type(model) is type(base)
    assert weights_hash(model) != weights_hash(base)
    assert load_model_config(ModelSpec(str(adapter))).num_hidden_layers == 3
    assert len(load_tokenizer(ModelSpec(str(adapter)))) > 10


def test_a_base_model_is_found_near_the_adapter_wherever_one_stands(adapter, monkeypatch, tmp_path):
    rewrite(adapter, base_model_name_or_path="base")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert weights_hash(load_model(ModelSpec(str(adapter))))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda f: rewrite(f, base_model_name_or_path=None), "names no base model"),
        (lambda f: rewrite(f, base_model_name_or_path="/no/such/folder"), "no such folder"),
        (lambda f: (f / "adapter_model.safetensors").rename(f / "adapter_model.bin"), "pickles"),
        (lambda f: rewrite(f, r=8), "cannot be merged"),
        (lambda f: rewrite(f, target_modules=["v_proj"]), "cannot be merged"),
        (lambda f: (f / "adapter_config.json").write_text("["), "no JSON object"),
    ],
)
def test_an_adapter_that_cannot_be_merged_says_why(adapter, change, reason):
    change(adapter)
    with pytest.raises(UserError, match=reason):
        load_model(ModelSpec(str(adapter), prefix="source."))


def test_without_peft_an_adapter_is_refused_with_that_word(adapter, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"is an adapter, and peft.*pip install peft"):
        load_model(ModelSpec(str(adapter)))
    assert adapters.ADAPTER_FILE == "adapter_config.json"
