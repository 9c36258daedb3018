"""What a training must know of its rows before its first step: mean, scale, median, sink rows.

The SAE is trained on ``scale * (x - mean)``, whose mean square norm is d_in: a coefficient then
means the same on all rows, and no figure depends on a constant that is added to the rows. All sums
are in float64 and around the median, so that a mean far larger than the spread does not spoil them.

A sink row is one that is more than ``SINK_DISTANCE`` times as far from the geometric median of the
rows as the median row is, where at most a tenth of the rows are so. Attention sinks are such rows.
Mean and scale are those of the ordinary rows, also where sinks are trained on: one sink of 50 times
the usual size in 128 rows would make the inputs 4.5 times smaller, and a sparsity coefficient as
much stronger.

Shapes: B batch, D d_in.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from raysae.sae.metrics import Sinks, mean_of_rows
from raysae.training.config import TrainingConfig
from raysae.training.finite import finite, refuse_non_finite
from raysae.training.health import Health, with_sample
from raysae.training.initialisation import geometric_median
from raysae.training.memory import STATISTICS_ROWS
from raysae.training.rows import IndexedRows, RowSource

MEDIAN_SAMPLE = STATISTICS_ROWS
SURVEY_ROWS = 262_144
"""The most rows that mean and scale are measured on; they are spread over all rows."""
HEALTH_ROWS = 8192
SINK_DISTANCE = 10.0
MOST_SINKS = 0.1
TOLERANCE = 1e-5
"""A distance up to this fraction of the spread may be the median's own error."""
NO_SPREAD = 1e-8
"""A spread up to this fraction of the mean's norm is only rounding error of float32."""
LARGEST_SCALE = 1e30


@dataclass(frozen=True)
class InputStatistics:
    """Statistics of the rows that a training needs before its first step."""

    rows: RowSource
    """The rows to train on: all, or those that are no sinks."""
    mean_D: Tensor
    """Mean of the ordinary training rows, ``[d_in]``, float64."""
    scale: float
    """Factor that makes the mean square norm of the centred ordinary rows equal to d_in."""
    validation_mean_D: Tensor
    """Mean of the validation rows, ``[d_in]``, float64."""
    sinks: Sinks
    """The rule for sink rows; its centre is the geometric median of the training rows."""
    health: Health


def input_statistics(
    train: RowSource, validation: IndexedRows, seed: int, training: TrainingConfig
) -> InputStatistics:
    """The statistics for a training on ``train`` that is evaluated on ``validation``.

    When ``training`` leaves out sink rows, all rows are read once to find them. Raises
    NonFiniteRowsError when a row that they are computed from is not finite, ValueError when there
    are no validation rows.
    """
    checked = finite(validation.batches(), "validation")
    validation_mean_D = mean_of_rows(batch_BD.float() for batch_BD in checked)
    sample_BD = train.sample(MEDIAN_SAMPLE, seed, training.shuffle_rows)
    sinks, typical = sink_rule(sample_BD)
    mean_D, scale, health = survey(train.survey(SURVEY_ROWS), sinks, typical)
    leave_out = training.sink_rows == "leave_out" and sinks.limit < math.inf
    rows = train.without(sinks) if leave_out else train
    health = with_sample(health, sample_BD)
    return InputStatistics(rows, mean_D, scale, validation_mean_D, sinks, health)


def health_of(rows: RowSource, count: int = HEALTH_ROWS) -> Health:
    """What is unusual about ``rows``, from about ``count`` of them; see ``health_of_batches``."""
    return health_of_batches(list(rows.survey(count)))


def health_of_batches(batches: list[tuple[int, Tensor]]) -> Health:
    """What is unusual about the rows in ``batches``, each ``[batch, d_in]`` with its first row's number.

    Raises NonFiniteRowsError when a row is not finite.
    """
    sample_BD = torch.cat([batch_BD for _, batch_BD in batches])
    health = survey(batches, *sink_rule(sample_BD))[2]
    return with_sample(health, sample_BD)


def sink_rule(sample_BD: Tensor) -> tuple[Sinks, float]:
    """The rule for sink rows, and the distance of the median row from the centre, from a sample.

    No row is a sink where half of the sample ``[batch, d_in]`` is equal to the centre, or where more
    than ``MOST_SINKS`` of it are that far out: those are rows of another kind, not a few sinks.
    """
    refuse_non_finite(sample_BD, "a sample of train")
    shift_D = sample_BD.double().mean(dim=0)
    centre_D = shift_D + geometric_median((sample_BD.double() - shift_D).float())
    distance_B = (sample_BD.double() - centre_D).norm(dim=1)
    typical, spread = float(distance_B.median()), float(distance_B.square().mean().sqrt())
    limit = SINK_DISTANCE * typical
    few = float((distance_B > limit).double().mean()) <= MOST_SINKS
    apart = typical > max(NO_SPREAD * float(centre_D.norm()), TOLERANCE * spread)
    return Sinks(centre_D, limit if few and apart else math.inf), typical


def survey(
    batches: Iterable[tuple[int, Tensor]], sinks: Sinks, typical: float
) -> tuple[Tensor, float, Health]:
    """Mean ``[d_in]`` and scale of the ordinary rows in ``batches``, and what is unusual about them.

    Each batch ``[batch, d_in]`` comes with the number of its first row. ``typical`` is the distance
    of the median row from the centre of ``sinks``.
    """
    total_D, square, count, sink_count, sink_distance = 0.0 * sinks.centre_D, 0.0, 0, 0, 0.0
    for start, batch_BD in batches:
        refuse_non_finite(batch_BD, "train", start)
        offset_BD = batch_BD.double() - sinks.centre_D
        distance_B = offset_BD.norm(dim=1)
        ordinary_B = distance_B <= sinks.limit
        sink_distance += float(distance_B[~ordinary_B].sum())
        square += float(distance_B[ordinary_B].square().sum())
        total_D += ordinary_B.double() @ offset_BD
        count += int(ordinary_B.sum())
        sink_count += int((~ordinary_B).sum())
    shift_D = total_D / count
    mean_D = sinks.centre_D + shift_D
    variance = square / count - float(shift_D.square().sum())
    has_spread = variance > NO_SPREAD**2 * float(mean_D.square().sum())
    ratio = float(mean_D.norm()) / math.sqrt(variance) if has_spread else math.nan
    size = sink_distance / sink_count / typical if sink_count else 0.0
    scale = scale_of(len(mean_D), variance) if has_spread else 1.0
    return mean_D, scale, Health(ratio, sink_count / (count + sink_count), size)


def scale_of(d_in: int, mean_square: float) -> float:
    """The factor that changes ``mean_square``, a mean square norm, to d_in; 1 for 0."""
    scale = math.sqrt(d_in / mean_square) if mean_square > 0 else math.inf
    return scale if scale < LARGEST_SCALE else 1.0


def uncentred_scale(batches: Iterable[Tensor], d_in: int) -> float:
    """The factor that makes the mean square norm of the first rows d_in, without centring.

    Checkpoints up to schema 3 were trained with it. ``batches`` are ``[*, d_in]``.
    """
    square, count = 0.0, 0
    for batch_BD in batches:
        if count >= SURVEY_ROWS:
            break
        square += float(batch_BD.double().square().sum())
        count += len(batch_BD)
    return math.sqrt(d_in * count / square) if square else 1.0


class StatisticsCache:
    """Computes the statistics of rows once for all trainings that use the same rows and seed."""

    def __init__(self) -> None:
        self._known: dict[tuple[int, int, int, int, str], InputStatistics] = {}
        self._rows: list[RowSource] = []  # referenced, so that no other object gets their ids

    def of(
        self, train: RowSource, validation: IndexedRows, seed: int, training: TrainingConfig
    ) -> InputStatistics:
        """The result of ``input_statistics`` for these arguments."""
        key = id(train), id(validation), seed, training.shuffle_rows, training.sink_rows
        if key not in self._known:
            self._known[key] = input_statistics(train, validation, seed, training)
            self._rows += [train, validation]
        return self._known[key]
