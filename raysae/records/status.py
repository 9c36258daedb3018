"""``status.json``: read, and made again where it is damaged."""

import math
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from raysae.errors import UserError
from raysae.sae.checkpoint import METRICS_FILE
from raysae.sites import SITE_FOLDERS
from raysae.storage.files import read_json

STAGES = ("extract", "sweep", "select", "controls", "scaling", "atlas", "analyze", "report")
ADDED_STAGES = ("controls", "scaling", "analyze")
"""Stages that runs of earlier versions lack."""
STATES = ("pending", "running", "done", "partial", "failed")
PENDING = {"state": "pending"}
STATUS_FILE, ENVIRONMENT_FILE = "status.json", "environment.json"
STARTED = ("trials/[0-9]*", *(f"atlas/{folder}" for folder in SITE_FOLDERS))
"""Where the committed records are that say when a run began."""


def read_status(run: Path) -> tuple[dict[str, Any], str]:
    """The status of the run in the folder ``run``, and what was made again, in words (or "").

    A damaged or missing file is made again as far as the run's other files tell: a stage whose entry is
    lost is pending, and another attempt at it makes only what is not committed. Nothing is written.
    """
    file = run / STATUS_FILE
    try:
        found = read_json(file) if file.exists() else None
        reason = "" if file.exists() else "it is missing"
    except UserError as error:
        found, reason = None, str(error).removeprefix(f"{file}: ")
    if not isinstance(found, dict):
        reason = reason or f"it holds a {type(found).__name__}, not keys and values"
        return new_status(*_identity(run)), _told(file, reason)
    wrong = [key for key, sound in _CHECKS.items() if key in found and not sound(found[key])]
    wrong += [key for key in ("id", "created", "stages") if key not in found]
    status = {key: value for key, value in found.items() if key not in wrong}
    if "id" in wrong or "created" in wrong:
        known, created = _identity(run)
        status = {"id": known, "created": created, **status}
    stages, lost = _stages(status.get("stages", {}))
    wrong += [f"stages.{name}" for name in lost if "stages" not in wrong]
    reason = f"{', '.join(wrong)} missing or unusable" if wrong else ""
    return {**status, "stages": stages}, _told(file, reason)


def new_status(identity: str, created: float) -> dict[str, Any]:
    """The status of a run in which nothing is done."""
    stages = {stage: dict(PENDING) for stage in STAGES}
    return {"id": identity, "created": created, "stages": stages}


def _told(file: Path, reason: str) -> str:
    if not reason:
        return ""
    return (
        f"{file}: {reason}; it was damaged or altered, and is made again: stages that it does not "
        "know look again for what is committed, and make only what is missing"
    )


def _stages(found: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The entry of each stage, and the names of those that are not usable."""
    stages, lost = {}, []
    for name in STAGES:
        entry = found.get(name)
        stages[name] = entry if _is_entry(entry) else dict(PENDING)
        if stages[name] is not entry and not (entry is None and name in ADDED_STAGES):
            lost.append(name)
    return stages, lost


def _is_entry(entry: Any) -> bool:
    if not isinstance(entry, dict) or entry.get("state") not in STATES:
        return False
    times = [entry[key] for key in ("started", "ended", "seconds") if key in entry]
    made, files = entry.get("made", {}), entry.get("files", {})
    if "ended" in entry and "started" not in entry:
        return False
    return all(map(_is_number, times)) and isinstance(made, dict) and _is_words(files)


def _identity(run: Path) -> tuple[str, float]:
    """The id of the run, as its environment has it, and when its first product was begun."""
    environment: Any = None
    if (run / ENVIRONMENT_FILE).is_file():
        try:
            environment = read_json(run / ENVIRONMENT_FILE)
        except UserError:
            environment = None
    known: Any = environment.get("run") if isinstance(environment, dict) else None
    began = min(_begun(run), default=(run / "config.yaml").stat().st_mtime)
    return str(known) if _is_id(known) else uuid.uuid4().hex, began


def _begun(run: Path) -> Iterator[float]:
    for pattern in STARTED:
        for marker in run.glob(f"{pattern}/{METRICS_FILE}"):
            try:
                record = read_json(marker)
            except UserError:
                continue
            if isinstance(record, dict) and _is_number(record.get("started")):
                yield record["started"]


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _is_id(value: Any) -> bool:
    return isinstance(value, str) and bool(value)


def _is_words(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(one, str) for one in value.values())


def _is_lists(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(one, list) for one in value.values())


def _is_earlier(value: Any) -> bool:
    keys = {"fingerprints": list, "recipe": dict, "store": str, "sites": list}
    return isinstance(value, dict) and all(isinstance(value.get(k), t) for k, t in keys.items())


_CHECKS: dict[str, Callable[[Any], bool]] = {
    "id": _is_id,
    "created": _is_number,
    "stages": lambda value: isinstance(value, dict),
    "shared": lambda value: isinstance(value, dict) and isinstance(value.get("store", ""), str),
    "same": _is_lists,
    "forced": lambda value: isinstance(value, list),
    "records_lost": lambda value: type(value) is int and value >= 0,
    "fingerprint": lambda value: isinstance(value, dict) and {"value", "store"} <= value.keys(),
    "earlier": _is_earlier,
}
"""Tells of each known key whether its value is usable."""
