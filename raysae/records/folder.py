"""The run folder: the files of a run, the state of its stages, and its lock."""

import shutil
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raysae._version import __version__
from raysae.config import Recipe
from raysae.config.loading import holds_secrets, load_run
from raysae.console.board import console
from raysae.console.shell import raysae_command
from raysae.errors import UserError, in_one_line
from raysae.identity import Made, differences, lines, union
from raysae.records.earlier_version import earlier_version, upgrade
from raysae.records.events import Item
from raysae.records.permission import refuse_unwritable
from raysae.records.products import (
    SEARCHED,
    Identities,
    defaults_of,
    search_differences,
    shared_differences,
    shared_settings,
)
from raysae.records.run_files import RunFiles
from raysae.records.status import PENDING, STAGES, new_status, read_status
from raysae.redaction import redacted
from raysae.sites import Position, Site
from raysae.storage.files import (
    expanded,
    locked,
    refuse_links_outside,
    remove_temporary,
    sha256_of,
    write_json,
    write_text,
)
from raysae.storage.remote import CHECKPOINT, HOME_FILE, claimed, is_uri, join, split
from raysae.storage.trouble import in_words

RESULTS = ("trials", "trials.parquet", "selection.json", "sweet_spot", "atlas", "report")
"""The results in a run folder; while there is none, another recipe may use the folder."""


LEFT_BEHIND = {HOME_FILE, ".lock", ".ray", "study.db", "study.db-journal"}
"""What a run folder may hold before its recipe is written, or after it was deleted during a run."""


@dataclass(frozen=True)
class Data:
    """What is known of the activations of a run."""

    store: str | None = None
    """The store's digest; None before the store exists."""
    layers: Sequence[int] = ()
    positions: Sequence[Position] = ()
    hookpoints: Sequence[str] = ()

    def sites(self, recipe: Recipe) -> list[Site]:
        """The sites of the recipe's sweep; empty while layers and positions are not known."""
        if not self.layers or not self.positions:
            return []
        return recipe.sites_of(self.layers, self.positions, self.hookpoints)


class RunFolder(RunFiles):
    """One run on disk. ``open_run`` opens it; its state is in ``status.json``."""

    def __init__(self, path: Path, recipe: Recipe, forced: bool = False):
        super().__init__(path, recipe.run_uri)
        self.recipe, self.forced = recipe, forced
        self.status, self.mended = read_status(path)
        """The state of the run, and what of it was made again, in words (or "")."""

    @property
    def id(self) -> str:
        """The run's id, set once; MLflow runs are found by it."""
        return self.status["id"]

    @property
    def started(self) -> float:
        """When the run folder was made, in seconds since the epoch."""
        return self.status["created"]

    @property
    def identities(self) -> Identities:
        """Decides whether a product of this run was made as wanted."""
        return Identities(self.status.get("same", {}), earlier_version(self.status))

    @property
    def store_digest(self) -> str:
        """The digest of the store that the run is tied to; empty before it is tied to one."""
        return self.status.get("shared", {}).get("store", "")

    def bind_data(self, data: Data) -> None:
        """Tie the run to its data, once the store exists.

        Raises UserError when the run's products came from another store or from other settings. If this
        attempt was forced, they count as made from this store with these settings instead.
        """
        wanted = shared_settings(self.recipe, data.store, data.sites(self.recipe))
        found = _shared_differences(self.path, self.status, self.recipe, data)
        if found and _has_results(self.path):
            if not self.forced:
                raise _other_run(self.path, found)
            self.accept(found)
        self.status["shared"] = wanted
        self._write()

    def accept(self, found: dict[str, tuple[Any, Any]]) -> None:
        """Let products made with other settings count as made with the new ones, and record it.

        ``found`` holds the settings that differ, each with its old and its new value.
        """
        self.status["same"] = union(self.status.get("same", {}), found)
        forced = self.status.setdefault("forced", [])
        change = redacted(lines(found))
        forced.append({"at": time.time(), "version": __version__, "change": change})
        self._write()

    def trial_item(
        self, number: int, parameters: Mapping[str, Any], made: Made | None = None
    ) -> Item:
        """The trial's item for events; ``made`` is used if the trial is not committed."""
        record = self.record(self.trial(number))
        of_earlier_version = record is not None and "made" not in record
        known = record["made"] if record is not None and "made" in record else made
        return Item.of_trial(number, parameters, None if of_earlier_version else known)

    def site_item(self, site: Site, made: Made | None = None) -> Item:
        """The site's item for events; ``made`` is used if the site is not committed."""
        record = self.record(self.atlas_site(site))
        of_earlier_version = record is not None and "made" not in record
        known = record["made"] if record is not None and "made" in record else made
        return Item.of_site(site, None if of_earlier_version else known)

    def state(self, stage: str) -> str:
        """The state of a stage: ``pending``, ``running``, ``done``, ``partial`` or ``failed``."""
        return self.entry(stage)["state"]

    def made(self, stage: str) -> Made | None:
        """What makes the product of a stage, as noted when it began; None when not known."""
        return self.entry(stage).get("made")

    def has(self, stage: str, wanted: Made, *products: Path) -> bool:
        """Whether a stage is done, and its ``products`` exist and were made as ``wanted``."""
        made, same = self.made(stage), self.identities.same
        if self.state(stage) != "done" or made is None or not all(p.exists() for p in products):
            return False
        return not differences(made, wanted, defaults_of({**made, **wanted}), same)

    def check_unaltered(self, stage: str) -> None:
        """Raise UserError when a file that the stage has made was altered or removed since."""
        for name, digest in self.entry(stage).get("files", {}).items():
            file = self.path / name
            if not file.is_file():
                raise UserError(f"{file}: not found; the file was removed")
            if sha256_of(file) != digest:
                raise UserError(f"{file}: the file was damaged or altered after it was written")

    @property
    def records_lost(self) -> int:
        """The number of records that MLflow did not get before the last attempt ended."""
        return self.status.get("records_lost", 0)

    @records_lost.setter
    def records_lost(self, count: int) -> None:
        """Write the number to ``status.json``."""
        if count != self.records_lost:
            self.status["records_lost"] = count
            self._write()

    def begin_search(self, search: Made) -> None:
        """Set aside the trials of an earlier search that proposes other configs.

        A trial that the new search proposes, too, is restored when the search reaches it.
        """
        before = self.made("sweep")
        if before is None or not search_differences(before, search, self.identities.same):
            return
        for folder in sorted((self.path / "trials").glob("[0-9]*")):
            if not folder.suffix:
                self.set_aside(folder)
        for rest in (self.path / "trials").glob("[0-9]*"):
            self.remove(rest)

    def copy_sweet_spot(self, number: int | None) -> None:
        """Copy the SAE of trial ``number`` to ``sweet_spot``; for None, remove ``sweet_spot``."""
        if number is None:
            self.remove(self.sweet_spot)
            return
        with self.replacing_folder(self.sweet_spot) as temporary:
            shutil.copytree(self.trial(number), temporary, dirs_exist_ok=True)

    def begin_again(self, *stages: str) -> None:
        """Mark ``stages`` as pending; what made their products stays noted."""
        for name in stages:
            made = self.made(name)
            self._set(name, state="pending", **({} if made is None else {"made": made}))

    @contextmanager
    def stage(
        self, name: str, made: Made | None = None, files: Sequence[Path] = ()
    ) -> Iterator[list[str]]:
        """Mark a stage as running, then as done, or as failed with the reason.

        ``made`` is what makes its product, and ``files`` are what it writes. The block gets a list and
        adds to it what could not be done; the stage is then ``partial``, and another attempt at the run
        tries it again. What the block raises is raised.
        """
        entry: dict[str, Any] = {"started": time.time()}
        began = time.monotonic()
        if made is not None:
            entry["made"] = made
        undone: list[str] = []
        self._set(name, state="running", **entry)
        try:
            yield undone
        except BaseException as error:
            with suppress(OSError, UserError):  # a full disk: the block's own error is told
                self._set(
                    name, state="failed", **entry, ended=time.time(), reason=in_one_line(error)
                )
            raise
        entry |= {"ended": time.time(), "seconds": time.monotonic() - began}
        there = [file for file in files if file.is_file()]
        entry["files"] = {f.relative_to(self.path).as_posix(): sha256_of(f) for f in there}
        self.send()
        if undone:
            self._set(name, state="partial", **entry, reason="; ".join(undone))
        else:
            self._set(name, state="done", **entry)

    def mark_failed(self, name: str, reason: str) -> None:
        """Mark a stage as failed that did not begin, or whose end could not be written."""
        self._set(name, **{**self.entry(name), "state": "failed", "reason": reason})

    def seconds(self, name: str) -> float | None:
        """How many seconds a stage took; None when it has not ended."""
        entry = self.entry(name)
        if "seconds" in entry:  # by a clock that nobody sets
            return entry["seconds"]
        return max(entry["ended"] - entry["started"], 0.0) if "ended" in entry else None

    def entry(self, stage: str) -> Mapping[str, Any]:
        """What is known of a stage; a run of an earlier version lacks some stages."""
        return self.status["stages"].get(stage, PENDING)

    def _set(self, name: str, **entry: Any) -> None:
        self.status["stages"][name] = entry
        self._write()

    def _write(self) -> None:
        self.write_json(self.path / "status.json", self.status)


@contextmanager
def open_run(recipe: Recipe, forced: bool = False, data: Data = Data()) -> Iterator[RunFolder]:
    """The recipe's run folder, new or existing, locked for the block.

    In an existing run, the settings that all products share must not have changed; see
    ``products.shared_settings``. With ``forced`` they may, and the change is recorded.
    Raises UserError when the folder holds another run, foreign files, or a run that another process
    is working on; nothing is changed then.
    """
    recipe = recipe.anchored()
    files = RunFiles.of(recipe)
    files.fetch()
    path = files.path
    refuse_links_outside(path, "this run")
    found: dict[str, tuple[Any, Any]] = {}
    if (path / "config.yaml").exists():
        found = _shared_differences(path, read_status(path)[0], recipe, data)
    if not (path / "config.yaml").exists():
        _create(path, recipe)
    elif found and not forced:
        _refuse_unless_empty(path, found)
        _create(path, recipe)
        found = {}
    refuse_unwritable(path)
    with _locked(path), claimed(path):
        remove_temporary(path)
        run = RunFolder(path, recipe, forced)
        run.in_work = True
        if run.mended:
            console.print(run.mended, style="yellow")
            run._write()
        there = read_recipe(path)
        if upgrade(run.status, run, there, data.sites(there)):
            run._write()
        if found:
            run.accept(found)
            run.begin_again(*STAGES)
        if there != recipe or holds_secrets(path):
            run.write_text(path / "config.yaml", recipe.to_yaml())
        run.send(path / "config.yaml")
        yield run


def read_run(place: str | Path) -> RunFolder:
    """The run in a folder or at a URI, for reading only. Raises UserError when it is not a run."""
    if not is_uri(str(place)):
        path = expanded(place).absolute()
        return RunFolder(path, read_recipe(path))
    runs_dir, name = split(str(place))
    files = RunFiles.at(join(runs_dir, name))
    files.fetch()
    return RunFolder(files.path, load_run(files.path, place={"runs_dir": runs_dir, "name": name}))


def read_recipe(path: Path) -> Recipe:
    """The resolved recipe of a run folder. Raises UserError when the folder is not a run."""
    return load_run(path)


def _only_checkpoints(folder: Path) -> bool:
    """Whether a folder of trials or sites holds nothing but checkpoints of unfinished trainings."""
    if folder.name not in ("trials", "atlas") or not folder.is_dir():
        return False
    files = [file for file in folder.rglob("*") if file.is_file()]
    return all(any(part.endswith(CHECKPOINT) for part in file.parts) for file in files)


def _create(path: Path, recipe: Recipe) -> None:
    there = path.iterdir() if path.exists() and not (path / "config.yaml").exists() else ()
    if any(one.name not in LEFT_BEHIND and not _only_checkpoints(one) for one in there):
        raise UserError(
            f"{path}: holds files but no run (no config.yaml); take another name=NAME, or empty it"
        )
    try:
        write_json(path / "status.json", new_status(uuid.uuid4().hex, time.time()))
        write_text(path / "config.yaml", recipe.to_yaml())
    except OSError as error:
        raise UserError(
            f"{path}: nothing can be written there ({in_words(error)}); give another runs_dir=FOLDER"
        ) from None


def _shared_differences(
    path: Path, status: dict[str, Any], recipe: Recipe, data: Data
) -> dict[str, tuple[Any, Any]]:
    """The shared settings of the run in ``path`` that differ from those of ``recipe``: old and new."""
    there = status.get("shared")
    if there is None:  # a run without products, or of version 0.1.0
        old = read_recipe(path)
        digest = status.get("fingerprint", {}).get("store")
        there = shared_settings(old, digest, data.sites(old))
    wanted = shared_settings(recipe, data.store, data.sites(recipe))
    return shared_differences(there, wanted, status.get("same", {}))


def _has_results(path: Path) -> bool:
    return any((path / name).exists() for name in RESULTS)


def _refuse_unless_empty(path: Path, found: dict[str, tuple[Any, Any]]) -> None:
    """Raise UserError if the other run in ``path`` has results or is in work."""
    if _has_results(path) or _is_locked(path):
        raise _other_run(path, found)


def _other_run(path: Path, found: dict[str, tuple[Any, Any]]) -> UserError:
    if SEARCHED in found:
        return UserError(_other_kind(path, found[SEARCHED][0]))
    return UserError(
        f"{path}: holds another run; take another name=NAME, remove the folder, or continue "
        f"with --force, which is recorded (- there, + asked for):\n{lines(found)}"
    )


def _other_kind(path: Path, searched: bool) -> str:
    """What to do in a folder with a run that has a search where none is asked for, or the other way."""
    if searched:
        atlas = raysae_command("atlas", "--run", path)
        return (
            f"{path}: holds a run with a search, and its atlas is that of the search's choice; "
            f"{atlas} trains it at the sites that are asked for; for an atlas of a given config take "
            "another name=NAME"
        )
    return (
        f"{path}: holds an atlas of a given config, without a search; take another name=NAME for the "
        "search, or remove the folder"
    )


def _is_locked(path: Path) -> bool:
    try:
        with _locked(path):
            return False
    except UserError:
        return True


def _locked(path: Path) -> AbstractContextManager[None]:
    return locked(path / ".lock", "this run", "take another name=NAME")
