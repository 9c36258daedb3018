"""The worker of live training: from a shard's training sequences to its rows at the wanted sites.

No Ray here: whoever carries the rows makes a ``LiveExtractor`` in each of its workers. Shapes: N rows,
D d_in.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from raysae.activations.live import replaced
from raysae.activations.store import Store, open_store
from raysae.activations.writer import SiteRows, shard_order
from raysae.errors import UserError
from raysae.extraction.keeping import kept_shard, write_kept
from raysae.extraction.plan import ExtractionPlan
from raysae.extraction.sequences import training_of
from raysae.extraction.shards import load_capturer, shard_format
from raysae.sites import Site
from raysae.transformer.sequence import from_table

if TYPE_CHECKING:
    from raysae.transformer.capture import Capturer
    from raysae.transformer.sequence import TokenSequence


READS_TEXTS = {"RAYSAE_READS_TEXTS": "1"}
"""A variable of the processes that read texts for live data: those that made the held-out rows compute
the training rows, as they have the libraries loaded."""


def nothing() -> None:
    """Report to nobody."""


Load = Callable[[ExtractionPlan, str], "tuple[Capturer, str]"]
"""Gives the plan's transformer on a device, and the hash of its weights."""


class LiveExtractor:
    """Computes the training rows of a live store, shard by shard, at ``sites``.

    It holds the transformer, on ``device``, as ``load`` gives it. With ``keep`` it also writes the
    training rows of all the store's sites, and reads those of a shard that is written already. Raises
    UserError when the model cannot be loaded, is another one than that of the store, or the store is not
    live.
    """

    def __init__(
        self, plan: ExtractionPlan, sites: tuple[Site, ...], device: str = "cpu",
        keep: bool = False, load: Load = load_capturer,
    ):  # fmt: skip
        self.plan, self.sites, self.keep = plan, sites, keep
        self.store = live_store(plan)
        for site in sites:
            self.store.entry(site)
        self.read = tuple(self.store.sites) if keep else sites
        """The sites that are forwarded."""
        self.capturer, self.weights_sha256 = load(plan, device)
        self._check_weights()
        self.capturer.only(
            {site.layer for site in self.read}, {site.hookpoint for site in self.read}
        )
        self.left_out: dict[Site, int] = {}
        """Rows of the last shard that were left out, and others took the place of."""

    def rows(self, shard: int, alive: Callable[[], None] = nothing) -> dict[Site, Tensor]:
        """The training rows ``[N, D]`` of a shard at each wanted site, in the store's dtype.

        N is as planned (``store.live.rows(site, shard)``), and 0 at a site without any. The rows and
        their order depend on the plan and the shard alone, and are those of a kept store. ``alive`` is
        called after every batch. Raises UserError, with count and place, when rows cannot be used.
        """
        self.left_out = {}
        if self.keep and (report := kept_shard(self.store, shard)) is not None:
            return report.rows(self.store, self.sites)
        sequences = self._sequences(shard)
        if not sequences:
            return {site: self._none() for site in self.sites}
        found, self.left_out = training_rows(
            self.capturer, self.plan, shard, sequences, self.read, lambda _tokens: alive()
        )
        if self.keep:
            write_kept(self.store, self.plan, shard, found, self.left_out)
        return {site: self._ordered(found[site], shard) for site in self.sites}

    def _sequences(self, shard: int) -> "list[TokenSequence]":
        """The training sequences of a shard; the checksum of their file is checked."""
        part = self.store.manifest.sequences[shard]
        return training_of(from_table(self.store.sequences(part)), self.plan)

    def _ordered(self, rows: SiteRows, shard: int) -> Tensor:
        if not len(rows):
            return self._none()
        order, _ = shard_order(rows.sequence, shard, shard_format(self.plan))
        return rows.activation_ND[torch.from_numpy(order)]

    def _none(self) -> Tensor:
        return torch.empty(0, self.plan.d_in, dtype=getattr(torch, self.plan.source.dtype))

    def _check_weights(self) -> None:
        there = weights_of(self.store)
        if there != self.weights_sha256:
            raise UserError(
                f"source.model {self.plan.source.model!r}: its weights are not those that made the "
                f"held-out rows of {self.store.path} (sha256 {self.weights_sha256[:12]}, there "
                f"{str(there)[:12]}); put the model back, or name another folder with store=FOLDER"
            )


def live_store(plan: ExtractionPlan) -> Store:
    """The live store of a plan. Raises UserError when it is not there, or not live."""
    store = open_store(plan.folder)
    if store.live is None:
        raise UserError(f"{plan.folder}: is no live store; name another folder with store=FOLDER")
    return store


def weights_of(store: Store) -> Any:
    """The hash of the weights that made the store's rows."""
    return (store.manifest.model or {}).get("weights_sha256")


class HeldTransformer:
    """The last transformer that this process has loaded, for all sites and passes: one at a time reads
    with it."""

    def __init__(self) -> None:
        self._plan: tuple[ExtractionPlan, str] | None = None
        self._held: tuple[Capturer, str] | None = None

    def __call__(self, plan: ExtractionPlan, device: str) -> "tuple[Capturer, str]":
        """As ``load_capturer``. It is loaded anew where the store was made with other weights since."""
        wanted = weights_of(live_store(plan))
        if self._held is None or self._plan != (plan, device) or self._held[1] != wanted:
            self._held = None  # its memory may go
            self._plan, self._held = (plan, device), load_capturer(plan, device)
        return self._held


def training_rows(
    capturer: "Capturer",
    plan: ExtractionPlan,
    shard: int,
    sequences: "list[TokenSequence]",
    sites: tuple[Site, ...],
    report: Callable[[int], None],
) -> tuple[dict[Site, SiteRows], dict[Site, int]]:
    """The training rows of a shard at ``sites``, in the order of its training ``sequences``, and how many
    were left out, and others took the place of.

    ``report`` is called with the tokens of each batch. Raises UserError as ``replaced`` does.
    """
    positions = [p for p in plan.positions if any(site.position == p for site in sites)]
    captured = capturer.rows(sequences, positions, plan.source.used_patterns, report)
    rows: dict[Site, SiteRows] = {}
    left_out: dict[Site, int] = {}
    for site in sites:
        rows[site], gone = replaced(captured.pop(site), shard, shard_format(plan), site)
        left_out[site] = len(gone)
    return rows, left_out
