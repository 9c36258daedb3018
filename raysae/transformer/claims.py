"""What a model's configuration says of its size, compared with its weights before memory is taken."""

from pathlib import Path
from typing import Any

from raysae.errors import UserError
from raysae.transformer.model_config import text_config
from raysae.transformer.weight_files import stored_values

MOST_LAYERS = 10_000
"""The most layers of a model."""
SPARE = 4
"""A model has at most so many times the numbers that its files hold: weights may be shared."""
SPARE_VALUES = 100_000_000
"""And so many more, for tables that are not saved."""


def check_claims(config: Any, location: str, name: str) -> None:
    """Compare the layers and the width that a configuration states with the weights beside it.

    Raises UserError that names the file and the figure when the weights cannot be of such a model.
    """
    file = Path(location) / "config.json"
    layers, width = (_size(config, key) for key in ("num_hidden_layers", "hidden_size"))
    if layers is not None and layers > MOST_LAYERS:
        raise UserError(
            f"{name}: {file} says num_hidden_layers {layers:,}; expected at most {MOST_LAYERS:,}: use "
            "the config.json that was saved with the model"
        )
    stored = stored_values(Path(location))
    if stored is None or layers is None or width is None:
        return
    if layers * width > stored:  # each layer has more than one number for each dimension
        raise UserError(
            f"{name}: {file} says hidden_size {width:,} and num_hidden_layers {layers:,}, which are at "
            f"least {layers * width:,} numbers, and the weights hold {stored:,}; use the config.json "
            "that was saved with these weights"
        )


def check_values(values: int, location: str, name: str) -> None:
    """Raise UserError when a model of ``values`` numbers is far larger than the weights beside it."""
    stored = stored_values(Path(location))
    if stored is not None and values > SPARE * stored + SPARE_VALUES:
        raise UserError(
            f"{name}: by {Path(location) / 'config.json'} the model has {values:,} numbers, and the "
            f"weights hold {stored:,}; use the config.json that was saved with these weights"
        )


def _size(config: Any, key: str) -> int | None:
    value = getattr(text_config(config), key, None)
    return value if isinstance(value, int) and not isinstance(value, bool) else None
