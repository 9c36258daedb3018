"""Labelling one site: one pass over its rows, a second over those of the shown texts, then its tables.

Shapes: N rows of a chunk, F d_sae, A attributes, L features with contexts.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from raysae.activations.splits import SPLITS, split_of
from raysae.analysis.labelling.best import Best, Events, draw_of
from raysae.analysis.labelling.contexts import Chosen, Neighbours, Window, choose, windows
from raysae.analysis.labelling.opened import names_of, texts_of
from raysae.analysis.labelling.rows import Chunk, Rows, encoded, read_rows, rows_together
from raysae.analysis.labelling.settings import LabelsSettings
from raysae.analysis.labelling.tallies import Correlations, Tallies
from raysae.analysis.labelling.texts import Texts
from raysae.analysis.labelling.token_names import TokenNames
from raysae.analysis.subject import Subject
from raysae.sites import Site

if TYPE_CHECKING:
    from raysae.activations import Store
    from raysae.sae import SAE

SAMPLE, SAMPLE_EVENTS = 200, 2**23
"""Activations of each feature that quantiles are taken from, and of all features together, at most."""
DRAWN_ROWS = 512
"""Rows drawn from all, for contexts in which a feature is not active."""


@dataclass
class SiteLabels:
    """What is known of the features of a site; filled by ``read``."""

    subject: Subject
    settings: LabelsSettings
    site: Site
    alive: Callable[[], None]
    sequences: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    """The sequences of the rows."""

    @cached_property
    def sae(self) -> "SAE":
        """The site's SAE."""
        return self.subject.atlas[self.site]

    @property
    def store(self) -> "Store":
        """The store of the rows."""
        return self.subject.store

    @cached_property
    def texts(self) -> Texts | None:
        """The store's texts; None where it has none."""
        if not self.store.manifest.sequences:
            return None
        return texts_of(self.subject, self.settings.attributes, self.alive)

    @cached_property
    def names(self) -> TokenNames:
        """The names of tokens."""
        return names_of(self.subject)

    @cached_property
    def seed(self) -> int:
        """The seed of what is drawn; another for each site."""
        number = sum(ord(letter) * 31**place for place, letter in enumerate(self.site.folder))
        return (self.subject.seed + number) % 2**31

    @property
    def d_sae(self) -> int:
        """Features of the SAE."""
        return int(self.sae.config.d_sae)

    def chunks(self, which: Callable[[Rows], Rows] = lambda rows: rows) -> Iterator[Chunk]:
        """The site's rows with their latents, those that ``which`` keeps of each chunk."""
        settings = self.settings
        together = rows_together(self.d_sae)
        for rows in read_rows(self.store, self.site, settings.splits, settings.rows, together):
            kept = which(rows)
            if len(kept):
                yield encoded(self.sae, kept)
            self.alive()

    def read(self) -> None:
        """The first pass: sums of all features, the strongest activations, and a sample of all."""
        d_sae, names = self.d_sae, () if self.texts is None else self.texts.names
        self.tallies = Tallies(d_sae)
        self.correlations = Correlations(d_sae, len(names), self.seed)
        top = Best(d_sae, self.settings.top, distinct=True)
        sample = Best(d_sae, max(min(SAMPLE, SAMPLE_EVENTS // d_sae), 1), distinct=False)
        drawn = Best(1, DRAWN_ROWS, distinct=False)
        seen: list[NDArray[np.int64]] = []
        for chunk in self.chunks():
            self.tallies.add(chunk)
            events = _events(chunk)
            top.add(events, -events.value.astype(np.float64))
            sample.add(events, draw_of(events, self.seed))
            if self.texts is not None:
                self._correlate(chunk)
                rows = _as_events(chunk.rows)
                drawn.add(rows, draw_of(rows, self.seed))
            seen.append(np.unique(chunk.rows.sequence))
            if len(seen) > 64:
                seen = [np.unique(np.concatenate(seen))]
        self.sequences = np.unique(np.concatenate(seen))
        self.top, self.sample, self.drawn = top.kept(), sample.kept(), drawn.kept()

    def _correlate(self, chunk: Chunk) -> None:
        assert self.texts is not None
        rows = chunk.rows
        self.correlations.add(chunk, self.texts.attributes(rows.sequence, rows.token_index))

    @cached_property
    def live(self) -> NDArray[np.bool_]:
        """Which features are active at all, ``[F]``."""
        return self.tallies.active_F > 0

    @cached_property
    def labelled(self) -> NDArray[np.int64]:
        """The features that get contexts, ``[L]``, the densest and strongest first."""
        weight_F = self.tallies.active_F * self.tallies.most_F.astype(np.float64)
        order = np.lexsort((np.arange(self.d_sae), -weight_F))
        return order[: min(int(self.live.sum()), self.settings.features)]

    @cached_property
    def chosen(self) -> Chosen:
        """The contexts of the labelled features."""
        settings = self.settings
        return choose(
            self.top, self.sample, self.labelled, settings.bands, settings.per_band, self.seed
        )

    @cached_property
    def neighbours(self) -> Neighbours | None:
        """Activations around the contexts, of a site that pools tokens; None of others."""
        if isinstance(self.site.position, int) or self.texts is None:
            return None
        found = Neighbours(self.chosen)
        for chunk in self.chunks(lambda rows: rows.taken(found.wanted(rows.sequence))):
            found.add(chunk)
        return found

    @cached_property
    def windows(self) -> list[Window]:
        """The text around each context; empty without texts."""
        if self.texts is None:
            from raysae.analysis.labelling.contexts import NO_WINDOW

            return [NO_WINDOW] * len(self.chosen)
        return windows(
            self.chosen, self.texts, self.names, self.settings.window, self.neighbours, self.alive
        )

    def splits_of(self, sequence: NDArray[np.int64]) -> NDArray:
        """The split of each sequence."""
        shares = self.store.manifest.split
        codes = split_of(sequence, shares["validation"], shares["test"])
        return np.array(SPLITS)[codes]


def _events(chunk: Chunk) -> Events:
    rows = chunk.rows
    return Events(
        chunk.feature, chunk.value, rows.sequence[chunk.row], rows.token_index[chunk.row],
        rows.token_id[chunk.row],
    )  # fmt: skip


def _as_events(rows: Rows) -> Events:
    """The rows themselves, as events of one feature."""
    nothing = np.zeros(len(rows), np.int64)
    return Events(
        nothing, nothing.astype(np.float32), rows.sequence, rows.token_index, rows.token_id
    )
