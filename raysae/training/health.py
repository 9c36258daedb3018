"""What is unusual about rows, such as to spoil a training or its figures, and what to do about it.

Shapes: N rows, D d_in.
"""

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import NamedTuple

import torch
from torch import Tensor

LARGE_MEAN = 3.0
"""From this ratio of the mean's norm to the spread on, a person is told."""
MANY_REPEATS = 0.05
"""From this share of equal rows on, a person is told."""
LARGE, HUGE = 10.0, 100.0
"""The shares of rows with a norm of over so many times the median norm are told."""
NAMED_DIMENSIONS = 5
KINDS = ("equal", "mean", "sinks", "large", "constant", "repeated")
"""The kinds of findings, in the order in which they are told."""
ROWS_AT_A_TIME = 512


class Finding(NamedTuple):
    """Something unusual about rows."""

    kind: str
    size: float
    """How much of it there is; comparable within a kind; 0 for nothing."""
    fact: str
    """It in words."""
    advice: str
    """What to do about it."""

    @property
    def note(self) -> str:
        """The fact and the advice."""
        return f"{self.fact} ({self.advice})"


@dataclass(frozen=True)
class Health:
    """What is unusual about rows; the last six fields are of a sample of them."""

    mean_ratio: float
    """Norm of the mean over the spread, the root of the mean square distance from it; NaN when all
    rows are equal. Without centring, a large ratio makes latents that are dead from the start
    (arXiv 2605.31518)."""
    sink_fraction: float
    """Fraction of the rows that are sinks."""
    sink_size: float
    """Mean distance of the sinks from the median, over that of the median row; 0 without sinks."""
    over_10: float = 0.0
    """Share of the sampled rows with a norm over 10 times the median norm."""
    over_100: float = 0.0
    """Share of the sampled rows with a norm over 100 times the median norm."""
    constant: int = 0
    """Number of dimensions that vary by no more than the rounding error of the rows' dtype."""
    constant_at: tuple[int, ...] = ()
    """The first few of them."""
    repeated: float = 0.0
    """Share of the sampled rows that are equal to another sampled row, to the bit. Of few rows out
    of many it finds only those that occur often."""
    rows: int = 0
    """Number of sampled rows."""

    @property
    def notes(self) -> list[str]:
        """What a person should know before training, one note each; empty when all is usual."""
        return [finding.note for finding in self.findings]

    @property
    def findings(self) -> list[Finding]:
        """What is unusual, and what to do about it; empty when all is usual."""
        if self.rows > 1 and math.isnan(self.mean_ratio):
            return [Finding("equal", 1.0, "all rows are equal", "there is nothing to learn")]
        return [finding for finding in (*self._of_all(), *self._of_the_sample()) if finding.size]

    def _of_all(self) -> Iterator[Finding]:
        yield Finding(
            "mean",
            self.mean_ratio if self.mean_ratio > LARGE_MEAN else 0.0,
            f"the mean's norm is {self.mean_ratio:.3g} times the spread",
            "inputs are centred before a training, so nothing needs to be done",
        )
        yield Finding(
            "sinks",
            self.sink_fraction,
            f"{self.sink_fraction:.2%} of the rows are sinks, on average {self.sink_size:.3g} "
            "times as far from the median as the median row",
            "training.sink_rows=leave_out leaves them out",
        )

    def _of_the_sample(self) -> Iterator[Finding]:
        yield Finding(
            "large",
            self.over_10,
            f"{self.over_10:.2%} of the rows have a norm over {LARGE:g} times the median norm, "
            f"{self.over_100:.2%} over {HUGE:g} times",
            f"source.max_norm_ratio={LARGE:g} leaves them out of a store",
        )
        named = ", ".join(map(str, self.constant_at))
        more = ", ..." if self.constant > len(self.constant_at) else ""
        yield Finding(
            "constant",
            self.constant,
            f"{self.constant:,} {'dimensions' if self.constant != 1 else 'dimension'} ({named}{more}) "
            f"never {'vary' if self.constant != 1 else 'varies'}",
            "harmless, but of no use",
        )
        yield Finding(
            "repeated",
            self.repeated if self.repeated >= MANY_REPEATS else 0.0,
            f"{self.repeated:.2%} of the rows are equal to another one",
            "source.repeats=drop leaves repeated texts out; where texts begin alike, their first rows "
            "are equal by nature",
        )

    def __str__(self) -> str:
        usual = f"the mean's norm is {self.mean_ratio:.2f} times the spread; no sink rows"
        return "; ".join(self.notes) or usual


def with_sample(health: Health, sample_ND: Tensor) -> Health:
    """The same, with what a sample of the rows ``[N, d_in]`` shows, all of them finite.

    Of one row alone, nothing is said.
    """
    rows = len(sample_ND)
    if rows < 2:
        return replace(health, rows=rows)
    norm_N = norms(sample_ND)
    constant = constant_dimensions(sample_ND)
    return replace(
        health,
        over_10=float(too_large(norm_N, LARGE).double().mean()),
        over_100=float(too_large(norm_N, HUGE).double().mean()),
        constant=len(constant),
        constant_at=tuple(constant[:NAMED_DIMENSIONS]),
        repeated=repeats(sample_ND) / rows,
        rows=rows,
    )


def norms(rows_ND: Tensor) -> Tensor:
    """The norm of each row, in float64: ``[N]``."""
    parts = rows_ND.split(ROWS_AT_A_TIME)
    return torch.cat([part_ND.double().norm(dim=1) for part_ND in parts])


def too_large(norm_N: Tensor, ratio: float) -> Tensor:
    """Which rows have a norm over ``ratio`` times the median norm: ``[N]`` of bool.

    The median is that of these rows, the lower one of two. None is too large where it is 0, or where
    there are no rows; with a ratio of at least 1, half of the rows always remain.
    """
    if not len(norm_N):
        return torch.zeros(0, dtype=torch.bool)
    median = norm_N.median()
    return (norm_N > ratio * median) & (median > 0)


def constant_dimensions(rows_ND: Tensor) -> list[int]:
    """The dimensions whose standard deviation is no more than a rounding step of the rows' dtype."""
    first_D = rows_ND[0].double()
    sum_D, square_D = torch.zeros_like(first_D), torch.zeros_like(first_D)
    for part_ND in rows_ND.split(ROWS_AT_A_TIME):
        offset_ND = part_ND.double() - first_D
        sum_D += offset_ND.sum(dim=0)
        square_D += offset_ND.square().sum(dim=0)
    shift_D = sum_D / len(rows_ND)
    variance_D = (square_D / len(rows_ND) - shift_D.square()).clamp_min(0)
    step_D = torch.finfo(rows_ND.dtype).eps * (first_D + shift_D).abs()
    return [int(at) for at in (variance_D.sqrt() <= step_D).nonzero()[:, 0]]


def repeats(rows_ND: Tensor) -> int:
    """The number of rows that are equal to another one, to the bit."""
    bytes_ND = rows_ND.detach().cpu().contiguous().view(torch.uint8).numpy()
    counts = Counter(blake2b(row_D, digest_size=16).digest() for row_D in bytes_ND)
    return sum(count for count in counts.values() if count > 1)
