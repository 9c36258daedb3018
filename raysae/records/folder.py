"""The run folder: what a run wrote, how far it came, and who may write to it."""

import difflib
import hashlib
import json
import time
import uuid
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import raysae
from raysae.config import Recipe, parse_recipe
from raysae.errors import UserError
from raysae.files import locked, read_json, write_json, write_text
from raysae.remote import HOME_FILE, bind, claimed, pull, push
from raysae.sites import Site

STAGES = ("extract", "sweep", "select", "atlas", "report")
RESULTS = ("trials", "trials.parquet", "selection.json", "sweet_spot", "atlas", "report")
"""What a run has earned; while none of it is there, another recipe may take the folder."""
FREE_SECTIONS = ("resources", "records", "runs_dir", "select")
"""Recipe sections that may change between two goes at one run: they touch no training."""
AFTER_TRIALS = ("select", "atlas", "report")
"""Stages that another choice begins again."""


class RunFolder:
    """One run on disk. ``open_run`` makes it; ``stage`` keeps its ``status.json``."""

    def __init__(self, path: Path, recipe: Recipe, forced: bool = False):
        self.path, self.recipe, self.forced = path, recipe, forced
        self.status: dict[str, Any] = read_json(path / "status.json")

    @property
    def id(self) -> str:
        """The run's own id, made once; MLflow runs are found by it."""
        return self.status["id"]

    @property
    def started(self) -> float:
        """When the run folder was made, in seconds since the epoch."""
        return self.status["created"]

    @property
    def selection_file(self) -> Path:
        return self.path / "selection.json"

    @property
    def trials_file(self) -> Path:
        return self.path / "trials.parquet"

    @property
    def study_file(self) -> Path:
        return self.path / "study.db"

    @property
    def sweet_spot(self) -> Path:
        return self.path / "sweet_spot"

    @property
    def atlas_metrics_file(self) -> Path:
        return self.path / "atlas" / "metrics.parquet"

    @property
    def report_page(self) -> Path:
        return self.path / "report" / "index.html"

    def trial(self, number: int) -> Path:
        return trial_folder(self.path, number)

    def atlas_site(self, site: Site) -> Path:
        return atlas_folder(self.path, site)

    def state(self, stage: str) -> str:
        return self.status["stages"][stage]["state"]

    @property
    def finished(self) -> bool:
        return all(self.state(stage) == "done" for stage in STAGES)

    def bind_store(self, digest: str) -> str:
        """Tie the run to its data; the fingerprint of config, data and code that commits carry.

        Raises UserError when an earlier go at this run used other data or another version, unless
        this go was forced: what is there then counts as this recipe's.
        """
        fingerprint = _fingerprint(self.recipe, digest)
        known = self.status.setdefault(
            "fingerprint",
            {"value": fingerprint, "store": digest, "version": raysae.__version__, "accepted": []},
        )
        if fingerprint not in (known["value"], *known.get("accepted", [])):
            self._accept(fingerprint, digest, known)
        self._write()
        return known["value"]

    def _accept(self, fingerprint: str, digest: str, known: dict[str, Any]) -> None:
        """Let a forced go count what is there as its own. Raises UserError when it is not forced."""
        change = (
            f"an earlier go at this run used raysae {known['version']} and store "
            f"{known['store'][:12]}; now they are {raysae.__version__} and {digest[:12]}"
        )
        if not self.forced:
            raise UserError(
                f"{self.path}: {change}; take another name=NAME, remove the run folder, or go on "
                "all the same with --force, which is recorded"
            )
        known.setdefault("accepted", []).append(fingerprint)
        if (known["version"], known["store"]) != (raysae.__version__, digest):
            self.record_force(change)  # a changed recipe is recorded where the run is opened

    @property
    def records_lost(self) -> int:
        """Records that MLflow had not taken when the last go ended."""
        return self.status.get("records_lost", 0)

    @records_lost.setter
    def records_lost(self, count: int) -> None:
        if count != self.records_lost:
            self.status["records_lost"] = count
            self._write()

    def record_force(self, change: str) -> None:
        """Keep what went on with ``--force`` although it had changed."""
        forced = self.status.setdefault("forced", [])
        forced.append({"at": time.time(), "version": raysae.__version__, "change": change})
        self._write()

    def begin_again(self, *stages: str) -> None:
        """Let ``stages`` be done anew."""
        for name in stages:
            self._set(name, state="pending")

    @contextmanager
    def stage(self, name: str) -> Iterator[list[str]]:
        """Mark a stage running, then done, or failed with its reason.

        What the block puts into the list it is given was not done; the stage is then ``partial``,
        and another go at the run tries it again.
        """
        started = time.time()
        undone: list[str] = []
        self._set(name, state="running", started=started)
        try:
            yield undone
        except BaseException as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            self._set(name, state="failed", started=started, ended=time.time(), reason=reason)
            raise
        ended = {"started": started, "ended": time.time()}
        push(self.path)
        if undone:
            self._set(name, state="partial", **ended, reason="; ".join(undone))
        else:
            self._set(name, state="done", **ended)

    def seconds(self, name: str) -> float | None:
        """How long a stage took, when it has run to its end."""
        entry = self.status["stages"][name]
        return entry["ended"] - entry["started"] if "ended" in entry else None

    def _set(self, name: str, **entry: Any) -> None:
        self.status["stages"][name] = entry
        self._write()

    def _write(self) -> None:
        write_json(self.path / "status.json", self.status)
        push(self.path / "status.json")


def trial_folder(run: Path, number: int) -> Path:
    """Where trial ``number`` of the run in folder ``run`` commits."""
    return run / "trials" / f"{number:03d}"


def atlas_folder(run: Path, site: Site) -> Path:
    """Where the atlas of the run in folder ``run`` commits ``site``."""
    return run / "atlas" / site.folder


@contextmanager
def open_run(recipe: Recipe, forced: bool = False) -> Iterator[RunFolder]:
    """The recipe's run folder, made or taken up again, locked for the block.

    A recipe that selects otherwise takes the run's trials as they are and chooses again. ``forced``
    goes on with a run of another recipe, and records how they differ.
    Raises UserError when the folder holds another run, foreign files, or a run that some other
    process is working on; nothing is changed then.
    """
    path = recipe.run_folder
    if recipe.run_uri is not None:
        pull(bind(recipe.run_uri))
    difference = _difference(path, recipe) if (path / "config.yaml").exists() else ""
    if not (path / "config.yaml").exists():
        _create(path, recipe)
    elif difference and not forced:
        _refuse_unless_empty(path, recipe)
        _create(path, recipe)
    with _locked(path), claimed(path):
        run = RunFolder(path, recipe, forced)
        if difference and forced:
            run.record_force(difference)
            run.begin_again(*STAGES)
        elif read_recipe(path).select != recipe.select:
            run.begin_again(*AFTER_TRIALS)
        if read_recipe(path) != recipe:
            write_text(path / "config.yaml", recipe.to_yaml())
        push(path / "config.yaml")
        yield run


def read_run(path: Path) -> RunFolder:
    """A run folder as it lies, for reading. Raises UserError when it is none."""
    return RunFolder(path, read_recipe(path))


def read_recipe(path: Path) -> Recipe:
    """The resolved recipe of a run folder. Raises UserError when the folder is not a run."""
    import yaml

    file = path / "config.yaml"
    if not file.is_file():
        raise UserError(
            f"{path}: not a run folder (no config.yaml); expected one such as runs/NAME"
        )
    return parse_recipe(yaml.safe_load(file.read_text(encoding="utf-8")), str(file))


def _create(path: Path, recipe: Recipe) -> None:
    if (
        path.exists()
        and {one.name for one in path.iterdir()} - {HOME_FILE}
        and not (path / "config.yaml").exists()
    ):
        raise UserError(
            f"{path}: holds files but no run (no config.yaml); take another name=NAME, or empty it"
        )
    stages = {stage: {"state": "pending"} for stage in STAGES}
    status = {"id": uuid.uuid4().hex, "created": time.time(), "stages": stages}
    try:
        write_json(path / "status.json", status)
        write_text(path / "config.yaml", recipe.to_yaml())
    except OSError as error:
        raise UserError(
            f"{path}: nothing can be written there ({error.strerror}); give another runs_dir=FOLDER"
        ) from None


def _difference(path: Path, recipe: Recipe) -> str:
    """How the recipe there differs from ``recipe``, a line each; empty when it does not."""
    there, wanted = _comparable(read_recipe(path)), _comparable(recipe)
    lines = difflib.unified_diff(
        there.to_yaml().splitlines(), wanted.to_yaml().splitlines(), n=0, lineterm=""
    )
    return "\n".join(f"  {line}" for line in lines if not line.startswith(("@@", "---", "+++")))


def _refuse_unless_empty(path: Path, recipe: Recipe) -> None:
    """Raise UserError unless the other run there came to nothing and nobody works on it."""
    if any((path / name).exists() for name in RESULTS) or _is_locked(path):
        raise UserError(
            f"{path}: holds another run; take another name=NAME, remove the folder, or go on all the "
            f"same with --force, which is recorded (- there, + asked for):\n{_difference(path, recipe)}"
        )


def _comparable(recipe: Recipe) -> Recipe:
    defaults = Recipe()
    return recipe.model_copy(update={name: getattr(defaults, name) for name in FREE_SECTIONS})


def _fingerprint(recipe: Recipe, digest: str) -> str:
    content = [_comparable(recipe).dump(), digest, raysae.__version__]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _is_locked(path: Path) -> bool:
    try:
        with _locked(path):
            return False
    except UserError:
        return True


def _locked(path: Path) -> AbstractContextManager[None]:
    return locked(path / ".lock", "this run", "take another name=NAME")
