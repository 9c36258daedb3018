"""``raysae.fit``: one SAE from a tensor, without Ray."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from raysae.sae import SAE, SAEConfig
from raysae.training.config import TrainingConfig
from raysae.training.rows import Rows, RowSource
from raysae.training.trainer import Trainer


@dataclass(frozen=True)
class Fit:
    """The outcome of a training."""

    sae: SAE
    metrics: dict[str, Any]
    """Validation metrics at the end; definitions in ``raysae.sae.metrics``."""
    history: list[dict[str, Any]]
    """A record for each evaluation: step, tokens, training loss, validation metrics."""


def fit(
    sae_config: SAEConfig | dict[str, Any],
    train: Tensor | Sequence[Tensor] | RowSource,
    training_config: TrainingConfig | dict[str, Any] | None = None,
    *,
    validation: Tensor | Sequence[Tensor] | RowSource,
    seed: int = 0,
    device: str = "cpu",
) -> Fit:
    """Train one SAE on rows ``train [rows, d_in]`` and measure it on ``validation [rows, d_in]``:
    tensors, blocks of rows, or a source that streams them.

    Configs are the dataclasses or dicts of the same keys. Raises ValueError on a config or rows
    that cannot train, NonFiniteLossError when the loss stops being finite.
    """
    if isinstance(sae_config, dict):
        sae_config = SAEConfig(**sae_config)
    if isinstance(training_config, dict):
        training_config = TrainingConfig(**training_config)
    trainer = Trainer(
        sae_config, training_config or TrainingConfig(), _rows(train), _rows(validation),
        seed=seed, device=device,
    )  # fmt: skip
    history = list(trainer.rounds())
    return Fit(trainer.sae(), trainer.metrics(), history)


def _rows(rows: Tensor | Sequence[Tensor] | RowSource) -> RowSource:
    return rows if isinstance(rows, RowSource) else Rows(rows)
