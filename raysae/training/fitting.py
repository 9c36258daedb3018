"""``raysae.fit``: one SAE from a tensor, an iterator or a store's site, without Ray."""

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from raysae.sae import SAE, SAEConfig
from raysae.sae import sae_config as checked_config
from raysae.training.checkpoint import has_training, load_training, save_training
from raysae.training.config import TrainingConfig
from raysae.training.ensemble.engine import Ensemble
from raysae.training.ensemble.members import Member
from raysae.training.finite import NonFiniteLossError
from raysae.training.given import (
    GivenRows,
    checked_device,
    checked_seed,
    checked_splits,
    checked_training,
)
from raysae.training.rows import RowSource, Splits
from raysae.training.trainer import Trainer


@dataclass(frozen=True)
class Fit:
    """The outcome of a training."""

    sae: SAE
    metrics: dict[str, Any]
    """Validation metrics at the end; definitions in ``raysae.sae.metrics`` and
    ``raysae.sae.dictionary``."""
    history: list[dict[str, Any]]
    """A record for each evaluation: step, tokens, training loss, validation metrics."""
    wait_seconds: float = 0.0
    """Seconds that training waited for its rows; members of ``fit_many`` that train on the same
    batches share this time."""
    stopped: str | None = None
    """Why ``fit_many`` ended this training early; None when it made its last step."""


def fit(
    sae_config: SAEConfig | Mapping[str, Any],
    train: GivenRows | RowSource | Iterable[Tensor] | Splits,
    training_config: TrainingConfig | Mapping[str, Any] | None = None,
    *,
    validation: GivenRows | None = None,
    seed: int = 0,
    device: str = "cpu",
    checkpoint: str | Path | None = None,
    progress: bool = True,
) -> Fit:
    """Train one SAE on rows ``train [rows, d_in]`` and measure it on ``validation [rows, d_in]``.

    ``train`` is one of: a tensor or numpy array, blocks of rows, a source that streams rows, an
    iterator over batches (it is read once, and the training config must then set ``tokens``), or a
    site of a
    store (``store.site(raysae.Site(8, 3))``), which has its own validation rows. Configs are the
    dataclasses or dicts with the same keys. ``checkpoint`` names a folder where the training is
    saved at every evaluation; the same call continues from there and ends with the same bits.

    Raises ValueError on a config or rows that cannot train (NonFiniteRowsError where a row holds NaN
    or infinite values), NonFiniteLossError when the loss or its
    gradient is no longer finite (``checkpoint`` then holds the last good state), and UserError when
    ``checkpoint`` is damaged or holds another training.
    """
    training = checked_training(training_config or {})
    rows, measured = checked_splits(train, validation, training)
    trainer = Trainer(
        checked_config(sae_config), training, rows, measured, seed=checked_seed(seed),
        device=checked_device(device), truth=train.truth if isinstance(train, Splits) else None,
    )  # fmt: skip
    tell_health(trainer, progress)
    history: list[dict[str, Any]] = []
    if checkpoint is not None and has_training(checkpoint):
        history = load_training(trainer, checkpoint)
    _train(trainer, history, checkpoint, progress)
    return outcome(trainer, history)


def tell_health(trainer: Trainer, progress: bool, who: str = "train") -> None:
    """Print what is unusual about the training rows, if anything, where progress is shown."""
    from tqdm.auto import tqdm

    if progress:
        for note in trainer.statistics.health.notes:
            tqdm.write(f"{who}: {note}", file=sys.stderr)


def outcome(trainer: Trainer, history: list[dict[str, Any]], **more: Any) -> Fit:
    """The ``Fit`` of an ended training; frees its memory. ``more`` sets other fields."""
    trainer.release()
    metrics = trainer.final_metrics()
    sae = trainer.sae()
    sae.metadata = {**sae.metadata, "metrics": metrics}
    return Fit(sae, metrics, history, **{"wait_seconds": trainer.feed.waited, **more})


def _train(
    trainer: Trainer, history: list[dict[str, Any]], checkpoint: str | Path | None, progress: bool
) -> None:
    """Train to the end: show a progress bar, append to ``history``, save checkpoints."""
    from tqdm.auto import tqdm

    with tqdm(
        total=trainer.all_tokens, initial=trainer.tokens, disable=not progress, unit="tok",
        unit_scale=True, desc=f"{trainer.model.config.variant} {trainer.model.config.d_sae}",
    ) as bar:  # fmt: skip
        try:
            for record in _records(trainer, history, bar.update):
                bar.set_postfix(EV=f"{record['explained_variance']:.4f}", L0=f"{record['l0']:.2f}")
                if checkpoint is not None:
                    save_training(trainer, checkpoint, history)
        except NonFiniteLossError as error:
            if checkpoint is None or not has_training(checkpoint):
                raise
            raise type(error)(
                f"{error}; {checkpoint} holds the last good state, of step {history[-1]['step']}"
            ) from None


def _records(
    trainer: Trainer,
    history: list[dict[str, Any]],
    on_step: Callable[[int], None],
    pack: bool | None = None,
) -> Iterator[dict[str, Any]]:
    """Train to the end and yield a record at each evaluation, which is in ``history`` then.

    On a GPU by the engine that trains many, in which this SAE is a pack of one (``pack`` as there).
    """
    if pack is False or (pack is None and torch.device(trainer.device).type != "cuda"):
        for record in trainer.rounds(on_step=on_step):
            history.append(record)
            yield record
        return
    config, rows = trainer.model.config, trainer.train
    member = Member(config, trainer.training, rows, trainer.validation, trainer.seed, trainer.truth)
    member.begin(trainer, history)
    passed = len(history)
    for _ in Ensemble([member], trainer.device, pack=pack, after_batch=on_step).rounds():
        if member.failure is not None:
            raise member.failure
        yield from history[passed:]
        passed = len(history)
