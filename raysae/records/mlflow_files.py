"""Files of a run among MLflow's artifacts."""

import posixpath
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from raysae.records.lanes import side_by_side
from raysae.records.mlflow_wait import Closed, Wait

AT_ONCE = 8
"""Calls to a server at the same time, by one thread of records."""
SMALL = 2**20
"""Bytes that are copied while a transaction holds MLflow's database, at most."""
FEATURES = ("report", "features")
"""The pages of the feature browser. They are made from the run, and do not open among artifacts."""


def is_server(uri: str) -> bool:
    """Whether MLflow at this address is a server, not a file or database."""
    return uri.startswith(("http:", "https:", "databricks"))


def at_once(uri: str, jobs: Sequence[Callable[[], None]]) -> None:
    """Do the jobs side by side where MLflow is a server, else one after another."""
    side_by_side(jobs, AT_ONCE if is_server(uri) else 1)


def files_of(path: Path, target: str = "") -> list[tuple[Path, str]]:
    """The files of a file or folder, each with its folder among the artifacts, below ``target``."""
    if not path.is_dir():
        return [(path, target)]
    found = []
    for file in sorted(path.rglob("*")):
        place = posixpath.join(target, file.relative_to(path).parent.as_posix())
        place = place.removesuffix("/.")
        if file.is_file() and tuple(place.split("/")[:2]) != FEATURES:
            found.append((file, place))
    return found


class Artifacts:
    """Where the files of MLflow's runs go: straight to their place, where this machine can write it."""

    def __init__(self, client: Any, uri: str, wait: Wait):
        self._client, self._uri, self._wait = client, uri, wait
        self._places: dict[str, str] = {}

    def note(self, run_id: str, place: str) -> None:
        """Note where the artifacts of a run are."""
        self._places[run_id] = place

    def copied(self, run_id: str, files: Sequence[tuple[Path, str]]) -> bool:
        """Copy a few bytes at once, to this machine's disk. Whether it was done; else ``send`` is due."""
        place = self._places.get(run_id, "")
        try:
            size = sum(file.stat().st_size for file, _ in files)
            if size > SMALL or not place.startswith(("file:", "/")):
                return False
            self.send(run_id, files)
        except OSError:
            return False
        return True

    def send(self, run_id: str, files: Sequence[tuple[Path, str]]) -> None:
        """Send files, each to its folder of the run's artifacts."""
        place = self._places.get(run_id, "")
        if not place or place.startswith("dbfs:") or self._uri.startswith("databricks"):
            for file, folder in files:
                self._client.log_artifact(run_id, str(file), folder or None)
            return
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        target = get_artifact_repository(place, tracking_uri=self._uri)
        jobs = [partial(self._copy, target, str(file), folder or None) for file, folder in files]
        at_once(self._uri, jobs)

    def _copy(self, target: Any, file: str, folder: str | None) -> None:
        if self._wait.closed:
            raise Closed
        with self._wait.slow():
            target.log_artifact(file, folder)
