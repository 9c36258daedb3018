"""What SAELens, sparsify and dictionary_learning make of our SAEs, and SAEs of their own making.

``python peer_program.py FOLDER``, in the environment of scripts/peers.sh, where raysae is not. Reads
``x.safetensors``, the SAEs in ``ours/FORMAT/NAME`` and those of atlases in ``atlas/FORMAT/NAME``; saves
its own in ``theirs/FORMAT/NAME``. For all of them, loaded by the library itself, it writes ``features``
and ``reconstruction`` of x into ``answers/WHOSE/FORMAT/NAME.safetensors`` and the library's own figures
beside them, into ``NAME.json``.

Tests read the names of the cases from here, so that nothing above a function imports a peer.
"""

import json
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

D_IN, D_SAE, K = 24, 64, 8
HOOK = "blocks.3.hook_resid_pre"
BATCHES = (80, 70, 50)
"""Rows in the batches over which SAELens streams its figures."""

NO_B_DEC = {"apply_b_dec_to_input": False}
SAELENS = {
    "topk": {"architecture": "topk", "k": K},
    "topk rescaled": {"architecture": "topk", "k": K, "rescale_acts_by_decoder_norm": True},
    "topk of x": {"architecture": "topk", "k": K, **NO_B_DEC},
    "topk rescaled of x": {
        "architecture": "topk", "k": K, "rescale_acts_by_decoder_norm": True, **NO_B_DEC,
    },
    "jumprelu": {"architecture": "jumprelu"},
    "jumprelu of x": {"architecture": "jumprelu", **NO_B_DEC},
    "jumprelu below zero": {"architecture": "jumprelu"},
    "gated": {"architecture": "gated"},
    "gated of x": {"architecture": "gated", **NO_B_DEC},
    "standard": {"architecture": "standard"},
    "standard of x": {"architecture": "standard", **NO_B_DEC},
}  # fmt: skip
SAELENS_TRAINING = {
    "trained topk": {"architecture": "topk", "k": K},
    "trained batchtopk": {"architecture": "batchtopk", "k": K, "decoder_init_norm": 0.7},
    "trained batchtopk not rescaled": {
        "architecture": "batchtopk", "k": K, "rescale_acts_by_decoder_norm": False,
    },
    "trained matryoshka": {
        "architecture": "matryoshka_batchtopk", "k": K, "decoder_init_norm": 0.7,
        "matryoshka_widths": [16, D_SAE],
    },
    "trained jumprelu": {"architecture": "jumprelu"},
    "trained gated": {"architecture": "gated"},
    "trained standard": {"architecture": "standard"},
}  # fmt: skip
SPARSIFY = {"topk": {"num_latents": D_SAE}, "topk by expansion": {"expansion_factor": 3}}
DICTIONARY_LEARNING = {
    "AutoEncoder": (),
    "AutoEncoderNew": (),
    "GatedAutoEncoder": (),
    "JumpReluAutoEncoder": (),
    "AutoEncoderTopK": (K,),
    "BatchTopKSAE": (K,),
    "MatryoshkaBatchTopKSAE": (K, [8, 16, 40]),
}
"""Its classes, with what they take besides the two widths."""
CASES = {
    "saelens": [*SAELENS, *SAELENS_TRAINING],
    "sparsify": [*SPARSIFY],
    "dictionary_learning": [*DICTIONARY_LEARNING],
}


@dataclass
class Loaded:
    """An SAE as its library loaded it."""

    encode: Callable[[Tensor], Tensor]
    decode: Callable[[Tensor], Tensor]
    figures: Callable[[Tensor], dict[str, Any]]
    """The library's own figures on rows, and what it says of the SAE."""


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    x = load_file(folder / "x.safetensors")["x"]
    for format, save in SAVE.items():
        for number, name in enumerate(CASES[format]):
            torch.manual_seed(number)
            save(name, folder / "theirs" / format / name)
    atlas = [config.parent for config in folder.glob("atlas/*/*/cfg.json")]
    for sae in [*folder.glob("ours/*/*"), *folder.glob("theirs/*/*"), *atlas]:
        loaded = LOAD[sae.parent.name](sae)
        answer = folder / "answers" / sae.relative_to(folder)
        answer.parent.mkdir(parents=True, exist_ok=True)
        with torch.no_grad():
            features = loaded.encode(x)
            tensors = {"features": features, "reconstruction": loaded.decode(features)}
            figures = loaded.figures(x)
        save_file(
            {key: t.detach().contiguous() for key, t in tensors.items()}, f"{answer}.safetensors"
        )
        Path(f"{answer}.json").write_text(json.dumps(figures))


@torch.no_grad()
def enliven(module: torch.nn.Module) -> None:
    """Random values on the grid of tests/sae/lively.py for all but decoders and ranks."""
    for name, tensor in module.state_dict().items():
        noise = torch.randn(tensor.shape)
        if name in ("W_enc", "encoder.weight"):
            tensor.copy_((noise * 2**8).round() / 2**10)
        elif "threshold" in name:
            tensor.copy_(((0.8 + noise.clamp(-2, 2) / 4) * 2**8).round() / 2**8 + 2**-19)
        elif name not in ("W_dec", "decoder.weight", "k", "group_sizes"):
            tensor.copy_((noise * 0.3 * 2**8).round() / 2**8)


# SAELens


def save_saelens(name: str, folder: Path) -> None:
    from sae_lens import SAE, TrainingSAE

    settings = {"d_in": D_IN, "d_sae": D_SAE, "metadata": {"hook_name": HOOK, "model_name": "m"}}
    if name in SAELENS_TRAINING:
        sae = TrainingSAE.from_dict({**settings, **SAELENS_TRAINING[name]})
        enliven(sae)
        if "batchtopk" in SAELENS_TRAINING[name]["architecture"]:
            sae.save_inference_model(folder)
            return
    else:
        sae = SAE.from_dict({**settings, **SAELENS[name]})
        enliven(sae)
    if name == "jumprelu below zero":
        sae.threshold.data.sub_(1)
    sae.save_model(folder)


def load_saelens(folder: Path) -> Loaded:
    from sae_lens import SAE

    sae = SAE.load_from_disk(str(folder))

    def figures(x: Tensor) -> dict[str, Any]:
        return {
            "architecture": sae.cfg.architecture(),
            "hook_name": sae.cfg.metadata.hook_name,
            "model_name": sae.cfg.metadata.model_name,
            "context_size": sae.cfg.metadata.context_size,
            "dataset_path": sae.cfg.metadata.dataset_path,
            "evaluation": saelens_evaluation(sae, x),
            "training": saelens_training_log(sae, x),
            "constant": saelens_evaluation_of_constant_rows(x),
        }

    return Loaded(sae.encode, sae.decode, figures)


class TokensAreRows:
    """Stands in for SAELens's language model and its store of tokens: token i activates as x[i]."""

    def __init__(self, x: Tensor, hook_name: str):
        self.x, self.hook_name = x, hook_name
        self.batches = iter(torch.arange(sum(BATCHES)).split(BATCHES))

    def get_batch_tokens(self, batch_size: int) -> Tensor:
        return next(self.batches).view(-1, 10)

    def run_with_cache(self, tokens: Tensor, **_: Any) -> tuple[None, dict[str, Tensor]]:
        return None, {self.hook_name: self.x[tokens]}


def saelens_evaluation(sae: Any, x: Tensor) -> dict[str, float]:
    """What ``sae_lens.evals`` reports, streamed over BATCHES."""
    from sae_lens.evals import get_sparsity_and_variance_metrics
    from sae_lens.training.activation_scaler import ActivationScaler

    stand_in = TokensAreRows(x, sae.cfg.metadata.hook_name)
    figures, _ = get_sparsity_and_variance_metrics(
        sae, stand_in, stand_in, ActivationScaler(), len(BATCHES),
        compute_l2_norms=False, compute_sparsity_metrics=True, compute_variance_metrics=True,
        compute_featurewise_density_statistics=False, eval_batch_size_prompts=1, model_kwargs={},
    )  # fmt: skip
    return figures


def saelens_training_log(sae: Any, x: Tensor) -> dict[str, float]:
    """What its trainer logs for a step whose batch is all of x."""
    from sae_lens.saes.sae import TrainStepOutput
    from sae_lens.training.sae_trainer import SAETrainer

    optimizer = types.SimpleNamespace(param_groups=[{"lr": 0.0}])
    stand_in = types.SimpleNamespace(
        optimizer=optimizer, n_forward_passes_since_fired=torch.zeros(1),
        dead_neurons=torch.zeros(1), coefficient_schedulers={},
    )  # fmt: skip
    features = sae.encode(x)
    step = TrainStepOutput(x, sae.decode(features), features, features, torch.zeros(()), {})
    return SAETrainer.build_train_step_log_dict(stand_in, step, 0)


def saelens_evaluation_of_constant_rows(x: Tensor) -> float:
    from sae_lens.evals import ExplainedVarianceCalculator

    calculator = ExplainedVarianceCalculator()
    calculator.add_batch(torch.ones_like(x), torch.ones_like(x))
    return calculator.compute()


# sparsify


def save_sparsify(name: str, folder: Path) -> None:
    from sparsify import SparseCoder, SparseCoderConfig

    coder = SparseCoder(D_IN, SparseCoderConfig(k=K, **SPARSIFY[name]))
    enliven(coder)
    coder.save_to_disk(folder)


def load_sparsify(folder: Path) -> Loaded:
    from sparsify import SparseCoder

    coder = SparseCoder.load_from_disk(folder)

    def encode(x: Tensor) -> Tensor:
        values, indices, preactivations = coder.encode(x)
        return torch.zeros_like(preactivations).scatter(1, indices, values)

    def decode(features: Tensor) -> Tensor:
        return coder.decode(*features.topk(coder.cfg.k))

    def figures(x: Tensor) -> dict[str, Any]:
        whole = coder(x)
        return {
            "fvu": float(whole.fvu),
            "fvu of batches": [float(coder(batch).fvu) for batch in x.split(BATCHES)],
            "l0": float((whole.latent_acts > 0).sum(dim=1).double().mean()),
        }

    return Loaded(encode, decode, figures)


# dictionary_learning


def import_dictionary_learning() -> Any:
    """Its package. nnsight runs language models and zstandard reads texts, neither of which happens
    here; empty modules stand in for them, as nnsight would bind the environment's torch."""
    for name in ("nnsight", "zstandard"):
        sys.modules.setdefault(name, types.ModuleType(name))
    sys.modules["nnsight"].LanguageModel = object
    import dictionary_learning.evaluation
    import dictionary_learning.utils

    return dictionary_learning


def save_dictionary_learning(name: str, folder: Path) -> None:
    """As the end of its ``trainSAE`` saves; see ``training.py`` there."""
    autoencoder = getattr(import_dictionary_learning().utils, name)(
        D_IN, D_SAE, *DICTIONARY_LEARNING[name]
    )
    enliven(autoencoder)
    folder.mkdir(parents=True)
    torch.save(autoencoder.state_dict(), folder / "ae.pt")
    trainer = {
        "dict_class": name, "activation_dim": D_IN, "dict_size": D_SAE, "layer": 8, "lm_name": "m",
    }  # fmt: skip
    if DICTIONARY_LEARNING[name]:
        trainer["k"] = K
    (folder / "config.json").write_text(json.dumps({"trainer": trainer, "buffer": {}}))


def load_dictionary_learning(folder: Path) -> Loaded:
    package = import_dictionary_learning()
    dictionary, config = package.utils.load_dictionary(str(folder), device="cpu")

    def figures(x: Tensor) -> dict[str, Any]:
        evaluation = package.evaluation.evaluate(dictionary, iter([x]))
        return {**evaluation, "dict_class": config["trainer"]["dict_class"]}

    return Loaded(dictionary.encode, dictionary.decode, figures)


SAVE = {
    "saelens": save_saelens,
    "sparsify": save_sparsify,
    "dictionary_learning": save_dictionary_learning,
}
LOAD = {
    "saelens": load_saelens,
    "sparsify": load_sparsify,
    "dictionary_learning": load_dictionary_learning,
}

if __name__ == "__main__":
    main(Path(sys.argv[1]))
