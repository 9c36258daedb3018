"""MLflow's models of a run: the chosen SAE and the atlas, found by their figures.

A model holds no files of its own: its SAE lies once, with the MLflow run of its trial.
"""

import re
import time
from typing import Any

from raysae.identity import identifier
from raysae.metrics import MLFLOW, floats
from raysae.printable import printable
from raysae.records.events import Result
from raysae.records.folder import RunFolder
from raysae.redaction import redacted

KEY_TAG, MADE_TAG, KIND_TAG = "raysae.key", "raysae.made", "kind"
"""Tags: what a run or model is found by, what a model was made of, and ``sweet spot`` or ``atlas``."""
NOT_IN_NAMES = re.compile(r"[/:.%\"'\\]")
"""Characters that MLflow refuses in the name of a model."""
LONGEST = 500
"""Characters of a parameter, at most."""


def write_model(
    client: Any, experiment: str, parent: str, run: RunFolder, result: Result, source: str | None,
    is_new: bool = False,
) -> dict[str, float]:  # fmt: skip
    """Make the model of a result, unless it is there and equal; one that is not equal is made anew.

    ``source`` is the MLflow run that holds the SAE. ``is_new`` says that ``parent`` was made just now, so
    that it has no model yet. Returns the metrics that were written, of which the
    parent run has those of step 0 too.
    """
    from mlflow.entities import LoggedModelOutput

    kind = "sweet spot" if result.item is not None else "atlas"
    tags = {KEY_TAG: f"{run.id}/{kind}", KIND_TAG: kind}
    params = {key: _text(value) for key, value in result.settings.items()}
    params |= {"sae": f"runs:/{source}/sae"} if source else {}
    figures = _figures(result)
    tags[MADE_TAG] = identifier({"params": params, "figures": figures})
    asked = f"tags.`{KEY_TAG}` = '{tags[KEY_TAG]}'"
    found = [] if is_new else client.search_logged_models([experiment], filter_string=asked)
    if any(one.tags.get(MADE_TAG) == tags[MADE_TAG] for one in found):
        return {}
    for one in found:
        client.delete_logged_model(one.model_id)
    name = NOT_IN_NAMES.sub("_", printable(redacted(result.name)))
    made = client.create_logged_model(experiment, name, parent, tags, params, model_type="SAE")
    _measure(client, parent, made.model_id, figures)
    client.log_outputs(parent, [LoggedModelOutput(made.model_id, 0)])  # the run's page lists it
    client.finalize_logged_model(made.model_id, "READY")
    return figures


def _figures(result: Result) -> dict[str, float]:
    if result.item is not None:
        return floats(result.metrics, MLFLOW)
    return {key: float(value) for key, value in result.metrics.items()}


def _measure(client: Any, parent: str, model: str, figures: dict[str, float]) -> None:
    from mlflow.entities import Metric

    now = int(time.time() * 1000)
    client.log_batch(
        parent,
        metrics=[Metric(key, value, now, 0, model_id=model) for key, value in figures.items()],
    )


def _text(value: Any) -> str:
    return printable(redacted(str(value)))[:LONGEST]
