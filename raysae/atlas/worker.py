"""The atlas's worker: trains and commits one site after another, each from its checkpoint on."""

import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raysae.activations import Site, open_store
from raysae.activations.streaming import rows_within
from raysae.cluster.worker import prepare_worker
from raysae.errors import UserError
from raysae.files import remove_folder
from raysae.records.commit import commit, provenance
from raysae.records.folder import atlas_folder
from raysae.remote import KEPT, bind, discard_packed, pull_packed, push_packed
from raysae.sae import SAEConfig
from raysae.training import Trainer, TrainingConfig, load_training, save_training

Record = dict[str, Any]


@dataclass(frozen=True)
class AtlasWork:
    """What an atlas worker is sent, once: what its sites share, and what identifies each commit."""

    run: Path
    run_uri: str | None
    store: str
    """A folder or a URI."""
    sae: SAEConfig
    training: TrainingConfig
    seed: int
    memory: float
    """Bytes of rows that a worker may hold; a site with more is streamed."""
    checkpoint_seconds: float
    identities: Mapping[Site, Record]


class AtlasWorker:
    """Trains one site after another; reads each site's rows itself, once."""

    def __init__(self, work: AtlasWork):
        self.work = work
        self.device = prepare_worker()
        self.run = work.run if work.run_uri is None else bind(work.run_uri)
        self.store = open_store(work.store)

    def hung_file(self, site: Site) -> Path:
        return atlas_folder(self.run, site).with_suffix(".hung.txt")

    def do(self, site: Site, alive: Callable[[], None]) -> Generator[Record, None, Record]:
        """Train and commit one site; its record. Yields a report at each evaluation."""
        started, folder = time.time(), atlas_folder(self.run, site)
        _remove_partial(folder)
        training = SiteTraining(
            self._trainer(site), folder.with_suffix(KEPT), self.work.checkpoint_seconds, alive
        )
        for record in training.rounds():
            yield {**record, "steps": training.trainer.steps}
        identity, source = self.work.identities[site], provenance(self.store, site)
        record = commit(training.trainer, folder, identity, source, training.history, started)
        training.remove_checkpoint()
        return record

    def _trainer(self, site: Site) -> Callable[[], Trainer]:
        """What makes the site's trainer, as it is before the first step."""
        rows = rows_within(self.store, site, self.work.memory)

        def make() -> Trainer:
            return Trainer(
                self.work.sae, self.work.training, rows.train, rows.validation,
                seed=self.work.seed, device=self.device, truth=rows.truth,
            )  # fmt: skip

        return make


def _remove_partial(folder: Path) -> None:
    """Remove what a worker that was killed had half written of the site in ``folder``."""
    for path in folder.parent.glob(f".{folder.name}.*.tmp"):
        remove_folder(path)


class SiteTraining:
    """A training that is saved to ``checkpoint`` every ``seconds`` and goes on from there.

    ``make`` gives the trainer before its first step; a checkpoint that is damaged, or of another
    training, is removed. ``alive`` is called after every step.
    """

    def __init__(
        self,
        make: Callable[[], Trainer],
        checkpoint: Path,
        seconds: float,
        alive: Callable[[], None],
    ):
        self.checkpoint, self.seconds, self.alive = checkpoint, seconds, alive
        self.history: list[Record] = []
        self.trainer = self._resumed(make)
        self._saved = time.monotonic()

    def rounds(self) -> Iterator[Record]:
        """Train to the end; the record of each evaluation that is still to come."""
        for record in self.trainer.rounds(self._after_step):
            self.history.append(record)
            self._save_in_time()
            yield record

    def remove_checkpoint(self) -> None:
        remove_folder(self.checkpoint)
        discard_packed(self.checkpoint)

    def _resumed(self, make: Callable[[], Trainer]) -> Trainer:
        pull_packed(self.checkpoint)
        trainer = make()
        if not self.checkpoint.exists():
            return trainer
        try:
            self.history = load_training(trainer, self.checkpoint)
            return trainer
        except Exception:
            remove_folder(self.checkpoint)
            return make()  # the other may be half changed

    def _after_step(self, tokens: int) -> None:
        self.alive()
        if not self.trainer.at_evaluation():  # its record comes first
            self._save_in_time()

    def _save_in_time(self) -> None:
        if time.monotonic() - self._saved < self.seconds:
            return
        with suppress(OSError, UserError):  # a full disk: the last checkpoint stays good
            save_training(self.trainer, self.checkpoint, self.history)
            push_packed(self.checkpoint)
        self._saved = time.monotonic()
