"""Runs in the peers' environment: SAELens's own evaluation of an SAE in a model of Hugging Face.

    python loss_program.py FOLDER

FOLDER has the SAE as SAELens loads it (``sae``), the model (``model``), the hook's name and each text's
tokens (``case.json``). The figures of ``sae_lens.evals`` go to ``figures.json``. The model is wrapped by
SAELens's own proxy, so that TransformerLens converts nothing. Texts are evaluated one by one, as they
differ in length, and all tokens count alike.
"""

import json
import sys
from pathlib import Path

import torch
from sae_lens import SAE
from sae_lens.evals import get_downstream_reconstruction_metrics, get_recons_loss
from sae_lens.load_model import HookedProxyLM
from sae_lens.training.activation_scaler import ActivationScaler
from transformers import AutoModelForCausalLM

NO_TOKEN = -1
"""Is ignored, so that values of texts of different lengths are pooled token by token."""


class Texts:
    """What the evaluation asks of SAELens's activation store: the next text's tokens."""

    def __init__(self, texts: list[list[int]]):
        self.left = iter(texts)

    def get_batch_tokens(self, batch_size: int) -> torch.Tensor:
        """One text, ``[1, tokens]``."""
        assert batch_size == 1
        return torch.tensor([next(self.left)])


def main(folder: Path) -> None:
    """Write the figures of the case in ``folder``."""
    torch.set_num_threads(1)
    case = json.loads((folder / "case.json").read_text())
    model = HookedProxyLM(AutoModelForCausalLM.from_pretrained(folder / "model").eval(), None)
    sae = SAE.load_from_disk(str(folder / "sae"))
    sae.cfg.metadata.hook_name = case["hook"]
    texts = case["texts"]
    figures = get_downstream_reconstruction_metrics(
        sae, model, Texts(texts), ActivationScaler(), compute_kl=True, compute_ce_loss=True,
        n_batches=len(texts), eval_batch_size_prompts=1, ignore_tokens=[NO_TOKEN],
    )  # fmt: skip
    figures |= kl_of_predictions(sae, model, texts)
    (folder / "figures.json").write_text(json.dumps(figures))


def kl_of_predictions(sae: SAE, model: HookedProxyLM, texts: list[list[int]]) -> dict[str, float]:
    """Its KL over the places that predict a token of the text: its mean counts each text's last place
    too, which predicts nothing."""
    found: dict[str, list[torch.Tensor]] = {"kl_div_with_sae": [], "kl_div_with_ablation": []}
    for text in texts:
        values = get_recons_loss(
            sae, model, ActivationScaler(), torch.tensor([text]), compute_kl=True,
            compute_ce_loss=False,
        )  # fmt: skip
        for name, kept in found.items():
            kept.append(values[name][0, :-1])
    means = {f"{name}_of_predictions": float(torch.cat(v).mean()) for name, v in found.items()}
    whole, left = (
        means["kl_div_with_ablation_of_predictions"],
        means["kl_div_with_sae_of_predictions"],
    )
    return {**means, "kl_div_score_of_predictions": (whole - left) / whole}


if __name__ == "__main__":
    main(Path(sys.argv[1]))
