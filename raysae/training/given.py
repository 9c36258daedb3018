"""The arguments of ``fit`` and ``fit_many``, checked: each error names the argument.

Shapes: N rows, D d_in.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from raysae.sae.config import known_keys
from raysae.training.config import TrainingConfig
from raysae.training.conversion import WANTED, as_rows
from raysae.training.finite import finite
from raysae.training.iterator_rows import IteratorRows
from raysae.training.rows import IndexedRows, Rows, RowSource, Splits

GivenRows = Tensor | np.ndarray | Sequence[Tensor] | Sequence[np.ndarray] | IndexedRows
"""Rows ``[rows, d_in]``: one tensor or array, several blocks, or a source with random access."""


def checked_training(settings: TrainingConfig | Mapping[str, Any]) -> TrainingConfig:
    """The training config with ``settings``. Raises ValueError on an unknown key or bad value."""
    if isinstance(settings, TrainingConfig):
        return settings
    known_keys("training_config", "training", settings, TrainingConfig)
    return TrainingConfig(**settings)


def checked_splits(
    train: Any, validation: Any, training: TrainingConfig
) -> tuple[RowSource, IndexedRows]:
    """The training and validation rows.

    Raises ValueError, naming the argument, when either is missing or unusable: NonFiniteRowsError
    where a number is NaN or infinite. Of an iterator the first rows are checked, the others when
    they are read.
    """
    if isinstance(train, Splits):
        measured = (
            train.validation if validation is None else indexed_rows(validation, "validation")
        )
        return train.train, measured
    if validation is None:
        raise ValueError(
            "validation is missing: every metric is measured on held-out rows; give a tensor "
            "[rows, d_in] with rows from other sequences than the training rows"
        )
    measured = indexed_rows(validation, "validation")
    if isinstance(train, RowSource):
        return train, measured
    if not _is_read_once(train):
        return indexed_rows(train, "train"), measured
    if training.tokens is None:
        raise ValueError(
            "train is an iterator of unknown length; set in the training config how many tokens "
            "to train on, such as {'tokens': 10_000_000}"
        )
    return IteratorRows(iter(train), training.tokens), measured


def indexed_rows(given: Any, argument: str) -> IndexedRows:
    """The rows of an argument, all checked. Raises ValueError as ``checked_splits`` does."""
    if isinstance(given, IndexedRows):
        return given
    if isinstance(given, Splits):
        raise ValueError(f"{argument} is a site with two splits; give {argument} = site.{argument}")
    if isinstance(given, list | tuple):
        if not given:
            raise ValueError(f"{argument} is an empty list; it must be {WANTED}, or a list of such")
        blocks = [as_rows(one, f"{argument}[{number}]") for number, one in enumerate(given)]
        _refuse_mixed(blocks, argument)
    else:
        blocks = [as_rows(given, argument)]
    if not any(map(len, blocks)):
        raise ValueError(f"{argument} has no rows; it must be {WANTED}")
    for _ in finite(blocks, argument):
        pass
    return Rows(blocks)


def checked_seed(seed: Any) -> int:
    """The seed. Raises ValueError when it is no whole number."""
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer):
        raise ValueError(f"seed is {seed!r}; it must be a whole number")
    return int(seed)


def checked_device(device: Any) -> str:
    """The device's name. Raises ValueError when torch does not know it."""
    try:
        known = torch.device(device)
    except (RuntimeError, TypeError, ValueError):
        raise ValueError(
            f"device is {device!r}; it must be cpu or cuda, or cuda:1 and so on"
        ) from None
    if known.type not in ("cpu", "cuda"):
        raise ValueError(
            f"device is {device!r}; raysae trains on cpu or cuda: others, as Apple's mps, lack the "
            "float64 of its sums"
        )
    if known.type == "cuda" and (known.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device is {device!r}; torch finds {torch.cuda.device_count()} GPUs here")
    return str(known)


def _is_read_once(train: Any) -> bool:
    """Whether ``train`` gives batches one after another, as generators and data loaders do."""
    whole = isinstance(train, Tensor | np.ndarray | Sequence | Mapping | os.PathLike)
    return isinstance(train, Iterable) and not whole and not hasattr(train, "to_numpy")


def _refuse_mixed(blocks: list[Tensor], argument: str) -> None:
    """Raise ValueError when the blocks have no common d_in, dtype or device."""
    for what in ("d_in", "dtype", "device"):
        values = [block.shape[1] if what == "d_in" else getattr(block, what) for block in blocks]
        for number, value in enumerate(values):
            if value != values[0]:
                raise ValueError(
                    f"{argument}[{number}] has {what} {value}, {argument}[0] {values[0]}; all blocks "
                    "must be alike"
                )
