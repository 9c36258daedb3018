"""Runs with the records of any number of trials and sites, written without training anything."""

import math
import random
from pathlib import Path

from raysae.activations import Store, open_store
from raysae.activations.synthetic import SuperpositionWorld, write_synthetic_store
from raysae.config import load_recipe
from raysae.config.search import SelectConfig
from raysae.records.environment import write_environment
from raysae.records.folder import RunFolder, open_run
from raysae.records.rows import TrialRow
from raysae.report.page import write_report
from raysae.sweep.selection.rules import select
from tests.report.atlases import atlas

SIZES, KS = (32, 64, 128, 256), (1, 2, 4, 8, 16)


def trial(number: int, **changed) -> TrialRow:
    """A finished trial; its explained variance rises with K and d_sae, with diminishing gains."""
    noise = random.Random(number)
    d_sae, k = SIZES[number % len(SIZES)], KS[number // len(SIZES) % len(KS)]
    ev = 1 - 0.5 / (1 + k) ** 0.8 - 2 / d_sae + noise.gauss(0, 0.003)
    settings = {"sae.variant": "topk", "sae.d_sae": d_sae, "sae.k": k, "training.lr": 0.003}
    figures = {
        "explained_variance": ev, "mse": 1 - ev, "l0": float(k), "sparsity": k / d_sae,
        "dead_fraction": 0.4 / k, "dead_fraction_validation": 0.5 / k, "cosine": 0.9,
        "dead_window_tokens": 20_000, "dead_validation_tokens": 300, "tokens": 20_000,
        "tokens_trained": 20_000, "seconds": 3.0 + noise.random(), "tokens_per_second": 6e3,
        "wait_seconds": 0.1, "memory_bytes": 4e8, "started": 1e9 + 1.5 * number, "host": "here",
        "device": "cpu",
    }  # fmt: skip
    row = {"state": "done", "reason": "", "settings": settings, "figures": figures, **changed}
    return TrialRow(number, **row)


def failed(number: int, reason: str) -> TrialRow:
    """A trial that failed in the middle."""
    return trial(number, state="failed", reason=reason, figures={})


def history(end: float) -> list[dict[str, float]]:
    """The record of a training that ends at an explained variance."""
    return [
        {"tokens": at, "explained_variance": end * (1 - math.exp(-at / 4000))}
        for at in range(2000, 22_000, 2000)
    ]


def written_run(
    folder: Path, name: str = "small", trials=None, sites=None, curves: int = 30
) -> tuple[RunFolder, Store]:
    """A run in ``folder`` with these rows and the choice among them, without its page.

    By default it has 12 trials, of which one failed, and 12 sites. ``curves`` trials and sites have
    records.
    """
    store = folder / "store"
    if not store.exists():
        write_synthetic_store(store, SuperpositionWorld(d_in=8, atoms=16), 400, sites=2)
    places = [f"name={name}", f"runs_dir={folder / 'runs'}", f"store={store}", "source=null"]
    recipe = load_recipe(None, [*places, "records.mlflow=false"])
    trials = (
        [trial(n) for n in range(11)] + [failed(11, "loss is nan")] if trials is None else trials
    )
    sites = atlas(4, range(3)) if sites is None else sites
    with open_run(recipe) as run:
        opened = open_store(store)
        write_environment(run, opened.digest, 0, run.id)
        run.write_table(run.trials_file, trials)
        run.write_json(run.selection_file, select(trials, SelectConfig()))
        run.write_atlas_metrics(sites)
        places = [(run.trial(row.trial), row) for row in trials if row.done]
        places += [(run.atlas_site(row.site), row) for row in sites if row.done][:curves]
        for place, row in places:
            run.write_json(place / "metrics.json", record(row.explained_variance))
    return run, opened


def record(ev: float) -> dict:
    """The record of a training."""
    return {"metrics": {}, "history": history(ev), "steps": 3, "started": 1.0, "seconds": 1.0}


def named(run: RunFolder, name: str) -> RunFolder:
    """The run under a name that no recipe may have."""
    return RunFolder(run.path, run.recipe.model_copy(update={"name": name}))


def page_of(folder: Path, *args, **options) -> Path:
    """The page of a run that ``written_run`` writes."""
    run, store = written_run(folder, *args, **options)
    return write_report(run, store)
