"""Model folders that cannot be read: each says which file, what is wrong and what to do."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from raysae.errors import UserError
from raysae.transformer.loading import ModelSpec, load_model, load_model_config


@pytest.fixture
def folder(tiny_models, tmp_path):
    shutil.copytree(tiny_models["llama"], tmp_path / "m")
    return tmp_path / "m"


def rewrite_config(folder, **settings):
    config = json.loads((folder / "config.json").read_text())
    config |= settings
    (folder / "config.json").write_text(
        json.dumps({k: v for k, v in config.items() if v is not None})
    )


def lfs_pointer(folder):
    text = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 9\n"
    (folder / "model.safetensors").write_text(text)


def cut_off(folder):
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[: len(content) // 2])


def cut_in_the_header(folder):
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:100])


def empty(folder):
    (folder / "model.safetensors").write_bytes(b"")


def only(name):
    def change(folder):
        (folder / "model.safetensors").rename(folder / name)

    return change


def without_weights(folder):
    (folder / "model.safetensors").unlink()


def missing_shard(folder):
    index = {
        "weight_map": {
            "a": "model-00001-of-00002.safetensors",
            "b": "model-00002-of-00002.safetensors",
        }
    }
    (folder / "model.safetensors").rename(folder / "model-00002-of-00002.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def eight_bits(folder):
    weights = load_file(folder / "model.safetensors")
    packed = {key: (tensor * 100).to(torch.int8) for key, tensor in weights.items()}
    save_file(packed, folder / "model.safetensors", metadata={"format": "pt"})


def other_sizes(folder):
    rewrite_config(folder, intermediate_size=40)


def quantised(method, key="quantization_config"):
    return lambda folder: rewrite_config(folder, **{key: {"quant_method": method}})


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lfs_pointer, "git-lfs pointer"),
        (cut_off, "by its header it should have"),
        (cut_in_the_header, "cut off"),
        (empty, "cut off"),
        (only("pytorch_model.bin"), r"pytorch_model\.bin is PyTorch pickles.*save_pretrained"),
        (only("weights.gguf"), "GGUF"),
        (only("model.onnx"), "ONNX"),
        (only("tf_model.h5"), "TensorFlow"),
        (only("consolidated.safetensors"), "only consolidated.safetensors"),
        (without_weights, "holds no model.safetensors"),
        (missing_shard, r"1 of the 2 files .*\(model-00001-of-00002\.safetensors"),
        (eight_bits, r"quantised \(I8\)"),
        (other_sizes, "sizes of its weights are not those of its config.json"),
        (quantised("gptq"), r"quantised \(gptq"),
        (quantised("awq"), r"quantised \(awq"),
        (quantised("bitsandbytes"), r"quantised \(bitsandbytes"),
        (quantised("fp8"), r"quantised \(fp8"),
        (quantised("compressed-tensors"), r"quantised \(compressed-tensors"),
        (lambda folder: rewrite_config(folder, model_type=None), "model_type"),
        (lambda folder: rewrite_config(folder, model_type="llama9"), "model_type"),
        (
            lambda folder: rewrite_config(
                folder, model_type="mine", auto_map={"AutoConfig": "code.Config"}
            ),
            "trust_remote_code",
        ),
        (lambda folder: (folder / "config.json").write_text("{"), "cannot load it"),
    ],
)  # fmt: skip
def test_a_folder_that_cannot_be_read_says_why(folder, change, reason):
    change(folder)
    with pytest.raises(UserError, match=reason) as refusal:
        load_model(ModelSpec(str(folder), prefix="source."))
    assert str(refusal.value).startswith(f"source.model {str(folder)!r}")


def test_tied_weights_are_not_missing(tmp_path):
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        vocab_size=32, tie_word_embeddings=True,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(tmp_path / "tied")
    assert "lm_head.weight" not in load_file(tmp_path / "tied" / "model.safetensors")
    model = load_model(ModelSpec(str(tmp_path / "tied")))
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_a_pooler_that_is_not_in_the_files_does_not_change_the_hash(tiny_models, tmp_path):
    from raysae.transformer.capture import weights_hash

    shutil.copytree(tiny_models["bert"], tmp_path / "bert")
    rewrite_config(tmp_path / "bert", architectures=["BertModel"])
    hashes = {weights_hash(load_model(ModelSpec(str(tmp_path / "bert")))) for _ in range(2)}
    assert len(hashes) == 1


def test_the_configuration_alone_is_enough_to_refuse_a_quantised_model(folder):
    quantised("mxfp4")(folder)
    with pytest.raises(UserError, match="mxfp4"):
        load_model_config(ModelSpec(str(folder)))
