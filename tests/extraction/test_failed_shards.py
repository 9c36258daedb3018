"""What is said of shards that failed: repeating is advised only where a worker was lost."""

import pytest

from raysae.cluster.placement import Placement
from raysae.cluster.pool_worker import Outcome
from raysae.config import load_recipe
from raysae.errors import UserError
from raysae.extraction import run
from raysae.extraction.plan import plan_extraction
from raysae.extraction.sequences import write_tokens


@pytest.mark.parametrize(
    ("outcome", "ending"),
    [
        (
            Outcome(failed="worker lost 3 times: ActorDiedError: killed", lost=True),
            r"killed\); the same command continues with the missing shards",
        ),
        (Outcome(failed="ValueError: odd shape"), r"ValueError: odd shape\); once that is mended"),
        (Outcome(failed="position 3 does not exist", refused=True), "^position 3 does not exist"),
    ],
)
def test_repeating_is_advised_only_where_a_worker_was_lost(tmp_path, monkeypatch, outcome, ending):
    overrides = [f"store={tmp_path / 's'}", "source.sequences=60", "source.validation=0.3"]
    recipe = load_recipe(None, overrides)
    plan = plan_extraction(recipe)
    plan.work.mkdir(parents=True)
    tokens = write_tokens(plan, lambda *_: None)
    monkeypatch.setattr(run, "map_committed", lambda *_, **__: (pair for pair in [(0, outcome)]))
    with pytest.raises(UserError, match=ending):
        run._run(plan, tokens, Placement(cpus=1, gpus=0, workers=1), recipe.resources)
