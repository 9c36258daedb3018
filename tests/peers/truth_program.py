"""Runs in the peers' environment: SAELens's figures of an SAE in a world whose atoms are known.

    python truth_program.py FOLDER

FOLDER/case.safetensors holds atoms, decoder, latents and fired; the figures go to FOLDER/figures.json.
"""

import json
import sys
from pathlib import Path

from sae_lens.synthetic.evals import (
    compute_classification_metrics,
    feature_uniqueness,
    mean_correlation_coefficient,
)
from safetensors.torch import load_file


def main(folder: Path) -> None:
    """Write the figures of the case in ``folder``."""
    case = load_file(folder / "case.safetensors")
    decoder, atoms = case["decoder"], case["atoms"]
    detection = compute_classification_metrics(
        case["latents"], case["fired"].float(), decoder, atoms
    )
    figures = {
        "mcc": mean_correlation_coefficient(decoder, atoms),
        "uniqueness": feature_uniqueness(decoder, atoms),
        "f1": detection.f1_score,
        "f1_precision": detection.precision,
        "f1_recall": detection.recall,
    }
    (folder / "figures.json").write_text(json.dumps(figures))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
