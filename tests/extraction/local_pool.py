"""Extractions in this process, by the run's own code: only the pool's actors are left out."""

import raysae.extraction.run as run_module
import raysae.extraction.shards as shards_module
from raysae.cluster.later import finished
from raysae.cluster.placement import Placement
from raysae.cluster.pool_worker import Outcome
from raysae.config import load_recipe
from raysae.errors import UserError
from raysae.extraction.plan import plan_extraction
from raysae.extraction.run import extract


def map_here(items, work, *, committed, **_):
    """``map_committed`` with one worker in this process."""
    worker = None
    for item in items:
        if committed(item) is None:
            worker = worker or work.make(*work.arguments)
            try:
                finished(worker.do(item, lambda: None))
            except UserError as error:
                yield item, Outcome(failed=str(error), refused=True)
                continue
        yield item, Outcome(committed(item))


def extracted_here(monkeypatch, recipe):
    """The recipe's store and its plan."""
    monkeypatch.setattr(run_module, "map_committed", map_here)
    monkeypatch.setattr(shards_module, "prepare_worker", lambda: "cpu")
    plan = plan_extraction(recipe)
    return extract(plan, Placement(cpus=1, gpus=0, workers=1), recipe.resources), plan


def live_recipe(folder, *overrides, live=True):
    """A small live recipe on the pocket GPT-2: several shards, a numbered and a pooled position."""
    return load_recipe(
        None,
        [
            f"name={folder.name}", f"store={folder}", "source.sequences=160",
            "source.sequences_per_shard=16", "source.layers=[0, 2, 3]", "source.positions=[-1, all]",
            "source.validation=0.2", f"source.live={str(live).lower()}", *overrides,
        ],
    )  # fmt: skip
