"""The same command on another model and other texts: a Llama and GSM8K, from local folders."""

import pytest

import raysae
from raysae.pipeline.sweep_command import main
from tests.conftest import SHARED

MODEL = SHARED / "models" / "stories260K"
QUESTIONS = SHARED / "data" / "gsm8k" / "train.jsonl"


@pytest.mark.skipif(not MODEL.exists(), reason=f"needs the Llama in {MODEL}")
@pytest.mark.skipif(not QUESTIONS.exists(), reason=f"needs GSM8K in {QUESTIONS}")
@pytest.mark.long
def test_a_local_llama_with_gsm8k(connected_ray, tmp_path, capsys):
    code = main(
        [
            "configs/local_model.yaml", f"source.model={MODEL}", f"source.dataset={QUESTIONS}",
            f"runs_dir={tmp_path / 'runs'}", f"store={tmp_path / 'store'}",
            "source.sequences=300", "source.context_length=96", "training.epochs=2",
            "sweep.trials=3", "source.layers=[1, 3]",
        ]
    )  # fmt: skip
    assert code == 0
    run = tmp_path / "runs" / "local_model"
    store = raysae.open_store(tmp_path / "store")
    assert store.manifest.model["architecture"] == "LlamaForCausalLM"
    assert store.d_in == 64
    assert len(list(run.glob("atlas/*/*/sae.safetensors"))) == len(store.sites) == 2 * 6
    sae = raysae.load_sae(run / "sweet_spot")
    site = store.sites[-1]
    reconstruction, features, _ = sae(store.validation(site).float())
    assert reconstruction.shape[1] == 64 and features.shape[1] == sae.config.d_sae
    printed = capsys.readouterr().out
    assert "report/index.html" in printed.replace("\n", "")
