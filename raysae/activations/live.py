"""Live stores: their training rows are computed while training, and how many there are is known before.

Such a store holds the sequences, the validation and test rows, and as a head the training rows of the
first files of sequences. Shapes: N rows.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raysae.activations.kept import kept_rows
from raysae.activations.manifest import LiveEntry
from raysae.activations.store import Store
from raysae.activations.writer import ShardFormat, SiteRows
from raysae.errors import UserError
from raysae.sites import Site

HELD_OUT = "held-out"
"""How the names of a live store's shards of validation and test rows begin."""
WINDOWS_HELD = 2
"""Shuffle windows of a site that are in memory at once: one is read while the next is filled."""


@dataclass(frozen=True)
class LivePlan:
    """The training rows of a live store: how many each file of sequences gives, and which are on disk."""

    entry: LiveEntry

    @property
    def shards(self) -> int:
        """Files of sequences; their numbers are those of the shards."""
        return len(self.entry.shards)

    @property
    def head(self) -> int:
        """Files of sequences, from the first, whose training rows were written with the store."""
        return self.entry.head

    @property
    def kept(self) -> bool:
        """Whether all training rows are on disk by now."""
        return self.entry.kept

    @property
    def tokens(self) -> int:
        """Tokens of all training sequences: what one pass over the training rows reads."""
        return sum(shard.tokens for shard in self.entry.shards)

    def sequences(self, shard: int) -> int:
        """Training sequences of a shard; one without any need not be computed."""
        return self.entry.shards[shard].sequences

    def rows(self, site: Site, shard: int) -> int:
        """Training rows that a shard has at ``site``."""
        return self.entry.shards[shard].rows.get(str(site.position), 0)

    def total(self, site: Site) -> int:
        """Training rows at ``site``."""
        return sum(self.rows(site, shard) for shard in range(self.shards))

    def head_rows(self, site: Site) -> int:
        """Training rows at ``site`` that were written with the store."""
        return sum(self.rows(site, shard) for shard in range(self.head))


def replaced(
    rows: SiteRows, number: int, form: ShardFormat, site: Site
) -> tuple[SiteRows, NDArray[np.int64]]:
    """The rows ``[N]`` of a shard, with the next row that stays, in a circle, in the place of each one
    that is left out, and the numbers of those that were left out.

    Raises UserError, with count and place, when rows are refused, or no row stays.
    """
    try:
        stays_N = kept_rows(rows, site, form.non_finite, form.max_norm_ratio).which_N
    except UserError as error:
        raise UserError(f"shard {number}: {error}") from None
    if stays_N is None:
        return rows, np.zeros(0, np.int64)
    good = np.flatnonzero(stays_N)
    if not len(good):
        raise UserError(
            f"{site}: all {len(rows):,} training rows of shard {number} are left out (first: sequence "
            f"{rows.sequence[0]}, token {rows.token_index[0]}), and a live store needs one to take their "
            "place; find out why, or extract with source.live=false"
        )
    every = np.arange(len(rows))
    taken = good[np.searchsorted(good, every) % len(good)]
    return rows.take(taken), every[~stays_N]


def left_out_note(left_out: Mapping[Site, int]) -> str | None:
    """A sentence on training rows that others took the place of; None when there are none."""
    counts = [f"{count:,} at {site}" for site, count in sorted(left_out.items()) if count]
    if not counts:
        return None
    return f"training rows left out, with the next usable row in the place of each: {', '.join(counts)}"


def read_head(store: Store, site: Site) -> Tensor:
    """The first ``store.head_rows(site)`` training rows ``[rows, d_in]``, in the store's dtype and in the
    order in which they are trained on; the same before and after a live store is kept.

    Raises UserError when a file was altered.
    """
    wanted, blocks = store.head_rows(site), list[Tensor]()
    for shard in store.entry(site).shards:
        if shard.rows.train and sum(map(len, blocks)) < wanted:
            store.check(shard)
            blocks.append(store.rows(store.segments(shard, "train")))
    return torch.cat(blocks)[:wanted]


def not_on_disk(store: Store, site: Site) -> UserError:
    """That the training rows of a live store cannot be read."""
    return UserError(
        f"{store.path}: the training rows of {site} are computed while training (source.live=true); "
        f"{store.head_rows(site):,} of {store.entry(site).rows.train:,} are on disk, as its head. To "
        "have them all, train with source.keep=yes, or extract with source.live=false"
    )


def live_memory(shuffle_rows: int, rows: int, row_bytes: int, sites: int) -> int:
    """Bytes that the shuffle windows of ``sites`` sites of ``rows`` training rows take at once."""
    return WINDOWS_HELD * min(shuffle_rows, rows) * row_bytes * sites


def check_live_memory(needed: int, available: float | None, shuffle_rows: int, sites: int) -> None:
    """Raise UserError when live data's shuffle windows do not fit.

    ``needed`` and ``available`` are bytes (None: not known); ``sites`` are read at once.
    """
    if available is None or needed <= available:
        return
    fits = int(shuffle_rows * available / needed)
    way = (
        f"training.shuffle_rows of at most {fits:,}, or fewer sites at once"
        if fits
        else "fewer sites"
    )
    raise UserError(
        f"source.live: {WINDOWS_HELD} shuffle windows of up to {shuffle_rows:,} rows at {sites} sites at "
        f"once take {needed / 1e9:.2f} GB of memory, and {available / 1e9:.2f} GB may be taken; ask for "
        f"{way}"
    )
