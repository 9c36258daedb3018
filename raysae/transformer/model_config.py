"""What a transformer's configuration says of its language model, without loading torch."""

from typing import Any

from raysae.errors import UserError

CONTEXTS = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "max_sequence_length")
"""Names for the number of tokens that a model can read."""


def text_config(config: Any) -> Any:
    """The part of a model's configuration that describes its language model."""
    try:
        return config.get_text_config()
    except ValueError:  # several towers read text
        return config.get_text_config(decoder=True)


def refuse_encoder_decoder(config: Any, name: str) -> None:
    """Raise UserError when the configuration is that of an encoder-decoder."""
    if getattr(config, "is_encoder_decoder", False):
        raise UserError(
            f"{name} is an encoder-decoder ({config.model_type}), which raysae does not read: one text "
            "has two residual streams there; name a model with one stack of blocks"
        )


def longest_context(config: Any) -> int | None:
    """The tokens that the model reads at most, by its configuration; None when it sets no limit."""
    for key in CONTEXTS:
        try:
            value = getattr(text_config(config), key, None)
        except NotImplementedError:  # XLNet has none
            continue
        if isinstance(value, int) and value > 0:
            return value
    return None


def needed_setting(config: Any, key: str, name: str) -> int:
    """A size of the language model, such as ``hidden_size``. Raises UserError when there is none."""
    value = getattr(text_config(config), key, None)
    if not isinstance(value, int):
        raise UserError(
            f"{name}: its configuration ({config.model_type}) has no {key}; raysae reads language models "
            "that are one stack of blocks"
        )
    if value < 1 or isinstance(value, bool):
        raise UserError(f"{name}: its config.json says {key} {value}; expected at least 1")
    return value
