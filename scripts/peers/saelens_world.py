"""Runs in the peers' environment: rows of a world of SAELens's own generator, with its truth.

    python saelens_world.py FILE

FILE.json holds the settings of a SyntheticModel, with the numbers of ``rows`` and of the rows of a
``sample`` beside them; FILE.safetensors then holds ``x``, ``atoms``, and of the sample, which are the
last rows, ``fired``.
"""

import json
import sys
from pathlib import Path

import torch
from sae_lens.synthetic import (
    HierarchyConfig,
    LowRankCorrelationConfig,
    OrthogonalizationConfig,
    SyntheticModel,
    SyntheticModelConfig,
    ZipfianFiringProbabilityConfig,
)
from safetensors.torch import save_file


def main(file: Path) -> None:
    """Write the rows and the truth of the world in ``file``."""
    settings = json.loads(file.with_suffix(".json").read_text())
    rows, sample = settings.pop("rows"), settings.pop("sample")
    sections = {
        "firing_probability": ZipfianFiringProbabilityConfig,
        "hierarchy": HierarchyConfig,
        "correlation": LowRankCorrelationConfig,
        "orthogonalization": OrthogonalizationConfig,
    }
    for name, section in sections.items():
        settings[name] = None if settings[name] is None else section(**settings[name])
    model = SyntheticModel(SyntheticModelConfig(**settings))
    torch.manual_seed(settings["seed"])
    with torch.no_grad():  # the model's construction needs gradients
        features = model.activation_generator.sample(rows + sample)
        x = model.feature_dict(features)
    atoms = model.feature_dict.feature_vectors.detach().clone()
    fired = (features[rows:] > 0).contiguous()
    save_file({"x": x.contiguous(), "atoms": atoms, "fired": fired}, f"{file}.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
