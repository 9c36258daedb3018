"""Features in the format of SAEDashboard's batches, which it converts to what Neuronpedia takes.

A folder a site; each ``batch-N.json`` has ``model_id``, ``layer``, ``sae_set`` and ``features``.
What raysae has no counterpart of (correlated neurons, the histogram of all logits) is an empty list.
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from raysae.browser.details import shown
from raysae.browser.site_data import SiteData
from raysae.browser.tables import TRACKING, Results, site_key
from raysae.browser.tracks import Tracks
from raysae.errors import UserError
from raysae.storage.files import replacing_folder

Row = Mapping[str, Any]
BATCH = 128
"""Features of a batch."""
NOT_KNOWN = (
    "neuron_alignment_indices", "neuron_alignment_values", "neuron_alignment_l1",
    "correlated_neurons_indices", "correlated_neurons_l1", "correlated_neurons_pearson",
    "correlated_features_indices", "correlated_features_l1", "correlated_features_pearson",
    "logits_hist_data_bar_heights", "logits_hist_data_bar_values", "decoder_weights_dist",
)  # fmt: skip
TOP = (-1, -1)
"""The least activation and the share of the band of the strongest contexts, by SAEDashboard's habit."""


def export_features(place: Path, folder: Path) -> Path:
    """Write the features with contexts of the run in ``place``; returns ``folder``.

    Raises UserError when the run has no labels, or ``folder`` holds anything.
    """
    results = Results(place)
    results.need_labels()
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise UserError(f"{folder}: is there already; give a folder that is empty or not there")
    origin = origin_of(place)
    tracks = Tracks(results.phases[TRACKING])
    with replacing_folder(folder) as temporary:
        for site in results.sites:
            data = SiteData(results, tracks, site)
            there = temporary / site_key(site)
            there.mkdir()
            for number, batch in enumerate(batches(data, origin)):
                text = json.dumps(batch, allow_nan=False)
                (there / f"batch-{number}.json").write_text(text, encoding="ascii")
    return folder


def origin_of(place: Path) -> dict[str, Any]:
    """The model and the texts that a run's recipe names; empty texts where it names none."""
    from raysae.config.loading import load_run
    from raysae.records.run_files import RECIPE_FILE

    source = load_run(place).source if (place / RECIPE_FILE).is_file() else None
    if source is None:
        return {"model": "", "dataset": "", "prompts": 0, "tokens": 0}
    return {
        "model": str(source.model), "dataset": str(source.dataset),
        "prompts": source.sequences or 0, "tokens": source.context_length or 0,
    }  # fmt: skip


def batches(data: SiteData, origin: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The batches of a site: its features with contexts."""
    rows = [row for row in data.rows if row["labelled"]]
    site = data.site
    return [
        {
            "model_id": origin["model"], "layer": site.layer, "sae_set": site_key(site),
            "sae_id_suffix": None,
            "features": [
                feature(row, data.contexts_of(row["feature"]), origin)
                for row in rows[start : start + BATCH]
            ],
        }
        for start in range(0, len(rows), BATCH)
    ]  # fmt: skip


def feature(row: Row, contexts: Sequence[Row], origin: Mapping[str, Any]) -> dict[str, Any]:
    """A feature as SAEDashboard has it."""
    bands = {one["band"] for one in contexts if one["band"] is not None}
    first, counts = row["histogram_first"], row["histogram"]
    middles = [2 ** ((first + number + 0.5) / 2) for number in range(len(counts))]
    return {
        "feature_index": row["feature"],
        **{name: [] for name in NOT_KNOWN},
        "neg_str": _names(row["suppresses"]), "neg_values": row["suppresses_by"] or [],
        "pos_str": _names(row["promotes"]), "pos_values": row["promotes_by"] or [],
        "frac_nonzero": row["density"],
        "freq_hist_data_bar_values": middles, "freq_hist_data_bar_heights": counts,
        "n_prompts_total": origin["prompts"], "n_tokens_in_prompt": origin["tokens"],
        "dataset": origin["dataset"],
        "activations": [_activation(one, len(bands)) for one in contexts if one["tokens"]],
    }  # fmt: skip


def _activation(row: Row, bands: int) -> dict[str, Any]:
    """A context; a token that has no row at the site counts as 0."""
    least, share = TOP if row["band"] is None else (row["band_low"], 1 / bands)
    most = row["activation"] if row["band"] is None else row["band_high"]
    values = [value or 0.0 for value in row["activations"]]
    return {
        "bin_min": least, "bin_max": most, "bin_contains": share,
        "qualifying_token_index": row["marked"], "tokens": [shown(one) for one in row["tokens"]],
        "values": [value if math.isfinite(value) else 0.0 for value in values],
    }  # fmt: skip


def _names(tokens: Sequence[str] | None) -> list[str]:
    return [shown(token) for token in tokens or []]
