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
from raysae.records.products import trained
from raysae.records.run_files import RunFiles
from raysae.sae import SAEConfig
from raysae.training import Trainer, TrainingConfig, load_training, save_training

Record = dict[str, Any]


@dataclass(frozen=True)
class SiteSettings:
    """What every site of an atlas is trained with."""

    store: str
    """The store's digest."""
    seed: int
    sae: SAEConfig
    training: TrainingConfig
    parameters: Mapping[str, Any]
    """Of the chosen trial."""

    def made(self, site: Site) -> dict[str, Any]:
        """What makes the SAE of a site."""
        return trained("site", self.store, [site], [self.seed], self.sae, self.training)

    def of(self, site: Site) -> Record:
        """The site with its settings, and what makes its SAE, as its commit has them."""
        place = {"layer": site.layer, "position": site.position}
        return {**place, "parameters": dict(self.parameters), "made": self.made(site)}


@dataclass(frozen=True)
class AtlasWork:
    """What an atlas worker is sent, once."""

    files: RunFiles
    store: str
    """A folder or a URI."""
    settings: SiteSettings
    memory: float
    """Bytes of rows that a worker may hold; a site with more is streamed."""
    checkpoint_seconds: float


class AtlasWorker:
    """Trains one site after another; reads each site's rows itself, once."""

    def __init__(self, work: AtlasWork):
        self.work = work
        self.device = prepare_worker()
        self.files = work.files.on_this_node()
        self.store = open_store(work.store)

    def hung_file(self, site: Site) -> Path:
        return self.files.atlas_site(site).with_suffix(".hung.txt")

    def do(self, site: Site, alive: Callable[[], None]) -> Generator[Record, None, Record]:
        """Train and commit one site; its record. Yields a report at each evaluation."""
        started, folder = time.time(), self.files.atlas_site(site)
        _remove_partial(folder)
        training = SiteTraining(
            self._trainer(site), self.files, folder, self.work.checkpoint_seconds, alive
        )
        for record in training.rounds():
            yield {**record, "steps": training.trainer.steps}
        job, source = self.work.settings.of(site), provenance(self.store, site)
        record = commit(
            self.files, training.trainer, folder, job, source, training.history, started
        )
        self.files.remove_checkpoint(training.checkpoint)
        return record

    def _trainer(self, site: Site) -> Callable[[], Trainer]:
        """What makes the site's trainer, as it is before the first step."""
        rows, settings = rows_within(self.store, site, self.work.memory), self.work.settings

        def make() -> Trainer:
            return Trainer(
                settings.sae, settings.training, rows.train, rows.validation, seed=settings.seed,
                device=self.device, truth=rows.truth,
            )  # fmt: skip

        return make


def _remove_partial(folder: Path) -> None:
    """Remove what a worker that was killed had half written of the site in ``folder``."""
    for path in folder.parent.glob(f".{folder.name}.*.tmp"):
        remove_folder(path)


class SiteTraining:
    """The training of the site in ``folder``, which has a checkpoint every ``seconds`` and goes on
    from there.

    ``make`` gives the trainer before its first step; a checkpoint that is damaged, or of another
    training, is removed. ``alive`` is called after every step.
    """

    def __init__(
        self,
        make: Callable[[], Trainer],
        files: RunFiles,
        folder: Path,
        seconds: float,
        alive: Callable[[], None],
    ):
        self.files, self.seconds, self.alive = files, seconds, alive
        self.checkpoint = files.checkpoint(folder)
        self.history: list[Record] = []
        self.trainer = self._resumed(make)
        self._saved = time.monotonic()

    def rounds(self) -> Iterator[Record]:
        """Train to the end; the record of each evaluation that is still to come."""
        for record in self.trainer.rounds(self._after_step):
            self.history.append(record)
            self._save_in_time()
            yield record

    def _resumed(self, make: Callable[[], Trainer]) -> Trainer:
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
            self.files.send_checkpoint(self.checkpoint)
        self._saved = time.monotonic()
