"""The worker that makes the controls of a site: it reads the rows once for all of them."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from raysae.activations import open_store
from raysae.activations.streaming import rows_within
from raysae.cluster.worker import prepare_worker
from raysae.config.search import Control
from raysae.errors import UserError
from raysae.extraction.live_rows import ordered
from raysae.records.run_files import RunFiles
from raysae.sites import Site
from raysae.storage.trouble import reason_in_words
from raysae.sweep.controls.covariance import Covariance, GaussianRows
from raysae.sweep.controls.fits import Record, Shape, fitted
from raysae.training.rows import Splits

LEAST_HELD_OUT = 4096
"""The least number of Gaussian rows that a control is measured on: they cost little."""


@dataclass(frozen=True)
class ControlWork:
    """What a worker receives when it starts."""

    files: RunFiles
    store: str
    """The folder or URI of the store."""
    shape: Shape
    names: tuple[Control, ...]
    """The controls to make of each site."""
    memory: float
    """Bytes of rows that a worker may hold."""
    copy: bool = False
    """Whether a store at a URI is copied to the worker's node."""


class ControlWorker:
    """Makes all controls of one site after another. Raises UserError when the store cannot be opened."""

    def __init__(self, work: ControlWork):
        self.work, self.shape = work, work.shape
        self.device = prepare_worker()
        self.store = open_store(work.store, copy=work.copy)

    def hung_file(self, site: Site) -> Path:
        """Where the trace is written if the worker hangs."""
        name = f"{site.folder.replace('/', ',')}.hung.txt"
        return self.work.files.on_this_node().controls_folder / name

    def do(self, site: Site, alive: Callable[[], None]) -> dict[str, Record]:
        """The controls of a site by name: each one's figures, or why it ``failed``."""
        rows = rows_within(self.store, site, self.work.memory)
        rows = replace(rows, train=ordered(self.store, site, rows.train))
        makers = Makers(self.shape, rows, self.device, alive)
        return {name: makers.record(name) for name in self.work.names}


class Makers:
    """How each control is made from the rows of a site."""

    def __init__(self, shape: Shape, rows: Splits, device: str, alive: Callable[[], None]):
        self.shape, self.rows, self.device, self.alive = shape, rows, device, alive
        self._covariance: Covariance | None = None

    def record(self, name: Control) -> Record:
        """A control's figures, or why it failed: one that fails does not end the others."""
        made: dict[Control, Callable[[], Record]] = {
            "frozen_decoder": self.frozen_decoder, "gaussian": self.gaussian, "pca": self.pca,
            "shuffled_model": self.as_it_is,
        }  # fmt: skip
        try:
            return made[name]()
        except UserError as error:
            return {"failed": str(error)}
        except Exception as error:
            return {"failed": reason_in_words(error)}

    @property
    def covariance(self) -> Covariance:
        """That of the training rows, computed once."""
        if self._covariance is None:
            self._covariance = Covariance.of_rows(self.rows.train, self.device)
            self.alive()
        return self._covariance

    def as_it_is(self) -> Record:
        """The config trained on the rows of the store, which are those of another model."""
        return self._fitted(Splits(self.rows.train, self.rows.validation))

    def frozen_decoder(self) -> Record:
        """The config with a dictionary that stays as it was drawn."""
        return self._fitted(self.rows, frozen=True)

    def gaussian(self) -> Record:
        """The config trained on Gaussian rows of the same mean and covariance, as many, and measured on
        others of them."""
        like, seed, rows = self.covariance, self.shape.seeds[0], self.rows
        held_out = max(len(rows.validation), LEAST_HELD_OUT)
        drawn = Splits(
            GaussianRows(like, len(rows.train), seed),
            GaussianRows(like, held_out, seed, stream=1),
        )
        return {**self._fitted(drawn), "rows_of_covariance": like.rows}

    def pca(self) -> Record:
        """The explained variance of the held-out rows by 0, 1, 2, ... principal components."""
        like = self.covariance
        return {
            "by_components": [_rounded(one) for one in like.explained(self.rows.validation)],
            "rows": like.rows,
            "of_rows": len(self.rows.train),
        }

    def _fitted(self, rows: Splits, frozen: bool = False) -> Record:
        fit: dict[str, Any] = {"device": self.device, "alive": self.alive, "frozen": frozen}
        return fitted(self.shape, rows.train, rows.validation, **fit)


def _rounded(value: float) -> float | None:
    return None if math.isnan(value) else round(value, 9)
