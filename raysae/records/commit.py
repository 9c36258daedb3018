"""A trained SAE's folder as a commit: valid only if complete, and only for the job it was made for."""

import socket
import time
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from raysae.activations import Site, Store
from raysae.metrics import registered, volatile
from raysae.records.run_files import MEMBERS, RunFiles
from raysae.redaction import redacted_values
from raysae.sae import save_sae
from raysae.sae.checkpoint import METRICS_FILE
from raysae.storage.files import read_json
from raysae.training import Trainer

VOLATILE_COLUMNS = volatile()
"""Columns that differ between two runs of one recipe; all others are equal to the bit on CPU."""
COST_ORDER = (
    "steps", "tokens", "tokens_trained", "seconds", "tokens_per_second", "wait_seconds",
    "memory_bytes", "started", "host", "device",
)  # fmt: skip
"""The order of the cost columns in the tables, the same since the first version."""


def commit(
    files: RunFiles,
    trainer: Trainer,
    folder: Path,
    job: dict[str, Any],
    provenance: dict[str, Any],
    history: list[dict[str, Any]],
    started: float,
    *,
    seconds: float | None = None,
    metrics: dict[str, Any] | None = None,
    cost: Mapping[str, Any] = MappingProxyType({}),
    beside: Mapping[str, tuple[Trainer, dict[str, Any]]] = MappingProxyType({}),
) -> dict[str, Any]:
    """Write a trained SAE's folder, weights and figures together or not at all; returns the record.

    ``job`` is the trial or site with its settings and what makes it (``made``). ``provenance`` says where
    the data came from. ``history`` holds the record of each evaluation. ``started`` is in seconds since
    the epoch, and ``seconds`` is what it took since then, by a clock that nobody sets. If the SAE
    represents several members of a trial, ``metrics`` and ``cost`` are those of all members, and
    ``beside`` holds the other members by name, each with its provenance; they are written to
    ``FOLDER.members``. Raises OSError when a file cannot be written.
    """
    files.check_there()
    if seconds is None:
        seconds = max(time.time() - started, 0.0)
    trainer.release()
    own = trainer.final_metrics()
    for name, (other, its_provenance) in beside.items():
        other.release()
        figures, sae = other.final_metrics(), other.sae()
        described = {**its_provenance, **sae.metadata, "metrics": figures}
        save_sae(sae, folder.with_suffix(MEMBERS) / name, described, metrics=figures)
    record = {
        **job,
        "metrics": own if metrics is None else metrics,
        "feature_density": trainer.density_histogram(),
        "history": history,
        "steps": trainer.step,
        "tokens": trainer.tokens,
        "tokens_trained": trainer.tokens,
        "seconds": seconds,
        "tokens_per_second": trainer.tokens_per_second,
        "wait_seconds": trainer.feed.waited,
        "started": started,
        "host": socket.gethostname(),
        "device": trainer.device,
        **cost,
    }
    sae = trainer.sae()
    metadata = {**provenance, **sae.metadata, "metrics": own}
    save_sae(sae, folder, metadata, metrics=record)
    files.send_commit(folder)
    return read_json(folder / METRICS_FILE)  # as it is read later: undefined figures are None


def state_of(record: dict[str, Any]) -> dict[str, str]:
    """The ``state`` of a committed SAE, ``done`` or ``degenerate``, and the ``reason`` if degenerate."""
    if record["metrics"].get("degenerate"):
        return {
            "state": "degenerate",
            "reason": "no latent fires on the validation rows; a weaker sparsity coefficient or a "
            "lower lr usually helps",
        }
    return {"state": "done", "reason": ""}


def figures_of(record: Mapping[str, Any]) -> dict[str, Any]:
    """A committed SAE's metrics and costs, in the order of the tables' columns."""
    costs = [metric.name for metric in registered().values() if metric.cost]
    measured = {name: record.get(name) for name in COST_ORDER if name in costs}
    more = {name: record[name] for name in costs if name in record and name not in measured}
    return {**record["metrics"], **measured, **more}


def provenance(store: Store, site: Site) -> dict[str, Any]:
    """Where an SAE's activations came from, for its ``cfg.json``; secrets in the names are hidden."""
    manifest = store.manifest
    return {
        "provenance": manifest.provenance,
        "model": redacted_values(manifest.model),
        "dataset": redacted_values(manifest.dataset),
        "hookpoint": site.hookpoint or manifest.hookpoint,
        "context_length": manifest.context_length,
        "layer": site.layer,
        "position": site.position,
        "store_digest": store.digest,
    }
