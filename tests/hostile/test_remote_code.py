"""Code that lies beside a model, an adapter or a data set never runs unless the user says so."""

import json
import os
import pickle
import pty
import shutil
import subprocess
import sys

import pytest
import torch

from raysae.config import load_recipe
from raysae.config.loading import load_run
from raysae.errors import UserError
from raysae.pocket import POCKET_FOLDER
from raysae.transformer.loading import load_model, load_model_config, load_tokenizer
from raysae.transformer.model_spec import ModelSpec


@pytest.fixture
def canary(tmp_path):
    """A file that the code beside the model writes; it must never be there."""
    return tmp_path / "canary"


@pytest.fixture
def model(tmp_path, canary):
    """A copy of the pocket model, with Python files beside it that write the canary."""
    folder = tmp_path / "model"
    shutil.copytree(POCKET_FOLDER, folder)
    code = f"open({str(canary)!r}, 'w').close()\n"
    (folder / "evil.py").write_text(
        f"{code}from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast\n"
        "class Config(GPT2Config):\n    model_type = 'mine'\n"
        "class Model(GPT2LMHeadModel):\n    config_class = Config\n"
        "class Tokenizer(PreTrainedTokenizerFast):\n    pass\n"
    )
    (folder / "custom_generate").mkdir()
    (folder / "custom_generate" / "generate.py").write_text(f"{code}def generate(**k):\n    pass\n")
    return folder


def change(file, **values):
    settings = json.loads(file.read_text()) if file.is_file() else {}
    file.write_text(json.dumps({**settings, **values}))


CONFIG = {
    "AutoConfig": "evil.Config",
    "AutoModel": "evil.Model",
    "AutoModelForCausalLM": "evil.Model",
}
NEEDED = {
    "a model": ("config.json", {"model_type": "mine", "auto_map": CONFIG}),
    "a model of another repository": (
        "config.json",
        {"model_type": "mine", "auto_map": {name: f"a/b--{ref}" for name, ref in CONFIG.items()}},
    ),
    "a model with a revision of its code": (
        "config.json", {"model_type": "mine", "auto_map": CONFIG, "code_revision": "main"},
    ),
}  # fmt: skip
UNNEEDED = {
    "a known model": ("config.json", {"auto_map": CONFIG}),
    "a known tokenizer": (
        "tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["evil.Tokenizer", None]}},
    ),
    "a known tokenizer, in the old way": (
        "tokenizer_config.json", {"auto_map": [None, "evil.Tokenizer"]},
    ),
    "a way to generate": ("generation_config.json", {"custom_generate": "evil"}),
    "a class of any name": ("config.json", {"architectures": ["os", "Model"], "auto_map": CONFIG}),
}  # fmt: skip


def tried(load, spec):
    """What loading raises for the user; None when it is done."""
    try:
        load(spec)
    except UserError as error:
        return str(error)
    return None


@pytest.mark.parametrize("case", [*NEEDED, *UNNEEDED])
def test_code_beside_a_model_does_not_run(case, model, canary):
    file, values = {**NEEDED, **UNNEEDED}[case]
    change(model / file, **values)
    spec = ModelSpec(str(model), prefix="source.")
    refusals = [tried(load, spec) for load in (load_model_config, load_tokenizer, load_model)]
    assert not canary.exists()
    if case in NEEDED:
        assert str(model / file) in refusals[0] and "source.trust_remote_code=true" in refusals[0]
        assert refusals[0] == refusals[2]
    elif file == "config.json":
        assert refusals[0] is None, "the architecture is known, and its own class is used"


EXTRACT = [sys.executable, "-m", "raysae", "extract", "source.sequences=20", "records.mlflow=false"]


@pytest.mark.parametrize("terminal", [False, True], ids=["pipe", "terminal"])
def test_nobody_is_asked(terminal, model, canary, tmp_path):
    change(model / "config.json", model_type="mine", auto_map=CONFIG)
    change(model / "tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.Tokenizer", None]})
    ours, theirs = pty.openpty() if terminal else os.pipe()[::-1]
    os.write(ours, b"y\ny\ny\ny\n")
    done = subprocess.run(
        [*EXTRACT, f"source.model={model}"], stdin=theirs, capture_output=True, text=True, timeout=120,
        check=False, cwd=tmp_path, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    os.close(ours)
    os.close(theirs)
    assert done.returncode == 2 and not canary.exists(), done.stderr
    assert "auto_map" in done.stderr and "[y/N]" not in done.stdout + done.stderr
    assert str(model / "config.json") in done.stderr and "Traceback" not in done.stderr


def test_code_runs_for_those_who_say_so(model, canary):
    change(model / "config.json", model_type="mine", auto_map=CONFIG, architectures=["Model"])
    spec = ModelSpec(str(model), trust_remote_code=True)
    assert type(load_model(spec)).__name__ == "Model"
    assert canary.exists()


def test_the_key_identifies_the_store_and_is_recorded(tmp_path):
    from raysae.extraction.plan import plan_extraction

    plans = [
        plan_extraction(load_recipe(None, [f"source.trust_remote_code={value}"]))
        for value in ("false", "true")
    ]
    assert plans[1].identity()["trust_remote_code"] is True
    assert plans[0].differences(plans[1].identity())
    old = {k: v for k, v in plans[0].identity().items() if k != "trust_remote_code"}
    assert not plans[0].differences(old), "a store of an earlier version is the same store"


def handed_over(tmp_path, **recipe):
    """A run folder of somebody else."""
    folder = tmp_path / "runs" / "theirs"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(json.dumps({"name": "theirs", **recipe}))
    (folder / "status.json").write_text("{}")
    return folder


TRUSTING = {
    "source.trust_remote_code": {"source": {"trust_remote_code": True}},
    "models.a.source.trust_remote_code": {"models": {"a": {"source": {"trust_remote_code": True}}}},
}


@pytest.mark.parametrize("key", TRUSTING)
def test_a_run_of_somebody_else_is_not_trusted(key, tmp_path, capsys, monkeypatch):
    from raysae.console.command_line import run_command
    from raysae.pipeline.sweep_command import main

    monkeypatch.chdir(tmp_path)
    folder = handed_over(tmp_path, **TRUSTING[key])
    for arguments in (["--resume", str(folder)], [str(folder / "config.yaml")]):
        for more in ([], ["--dry-run"], ["--force"], ["seed=1"]):
            assert run_command(main, [*arguments, *more]) == 2
            message = capsys.readouterr().err
            assert f"add {key}=true" in message and str(folder / "config.yaml") in message
    assert load_run(folder).name == "theirs", "to read it runs nothing"
    assert load_run(folder, [f"{key}=true"], reading=False)
    distrusted = load_run(folder, [f"{key}=false"], reading=False)
    assert not distrusted.source.trust_remote_code


class Evil:
    """A pickle of this writes the file when it is loaded."""

    def __init__(self, file):
        self.file = str(file)

    def __reduce__(self):
        return (open, (self.file, "w"))


@pytest.mark.parametrize(
    "name", ["pytorch_model.bin", "model.pt", "model.pth", "model.ckpt", "model.pkl"]
)
def test_pickled_weights_are_not_read(name, model, canary):
    (model / "model.safetensors").unlink()
    torch.save(Evil(canary), model / name)
    (model / "training_args.bin").write_bytes(pickle.dumps(Evil(canary)))
    refusal = tried(load_model, ModelSpec(str(model)))
    assert not canary.exists()
    assert name in refusal and "never reads" in refusal


def test_pickles_beside_the_weights_are_not_read(model, canary):
    for name in ("pytorch_model.bin", "training_args.bin", "optimizer.pt", "vocab.pkl"):
        torch.save(Evil(canary), model / name)
    assert tried(load_model, ModelSpec(str(model))) is None
    assert tried(load_tokenizer, ModelSpec(str(model))) is None
    assert not canary.exists()


def test_an_adapter_names_no_module_to_import(model, canary, tmp_path):
    pytest.importorskip("peft")
    from peft import LoraConfig, get_peft_model

    folder = tmp_path / "adapter"
    get_peft_model(load_model(ModelSpec(str(model))), LoraConfig()).save_pretrained(folder)
    settings = {
        "base_model_name_or_path": str(model), "megatron_config": {"a": 1}, "megatron_core": "evil",
        "auto_mapping": {"base_model_class": "Model", "parent_library": "evil"},
    }  # fmt: skip
    change(folder / "adapter_config.json", **settings)
    refusal = tried(load_model, ModelSpec(str(folder)))
    assert "megatron_config" in refusal and not canary.exists()
    change(folder / "adapter_config.json", megatron_config=None)
    assert tried(load_model, ModelSpec(str(folder))) is None
    (folder / "adapter_model.safetensors").unlink()
    torch.save(Evil(canary), folder / "adapter_model.bin")
    assert "reads no pickles" in tried(load_model, ModelSpec(str(folder)))
    assert not canary.exists()


def test_an_adapters_base_is_not_trusted(model, canary, tmp_path):
    change(model / "config.json", model_type="mine", auto_map=CONFIG)
    (tmp_path / "adapter").mkdir()
    change(
        tmp_path / "adapter" / "adapter_config.json",
        base_model_name_or_path=str(model),
        peft_type="LORA",
    )
    refusal = tried(load_model, ModelSpec(str(tmp_path / "adapter")))
    assert "auto_map" in refusal and not canary.exists()


@pytest.mark.parametrize("name", ["texts.py", "dataset.py"])
def test_a_script_of_a_data_set_does_not_run(name, canary, tmp_path):
    from raysae.transformer.texts import TextSpec, read_documents

    folder = tmp_path / name.removesuffix(".py")
    folder.mkdir()
    (folder / name).write_text(f"open({str(canary)!r}, 'w').close()\n")
    with pytest.raises(UserError, match="cannot|can be loaded"):
        list(read_documents(TextSpec(str(folder))))
    assert not canary.exists()
