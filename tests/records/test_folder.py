"""The run folder: whose it is, and when another run may take its place."""

import pytest

from raysae.config import load_recipe
from raysae.errors import UserError
from raysae.records.folder import open_run


def recipe(tmp_path, *overrides):
    return load_recipe(None, [f"runs_dir={tmp_path}", "name=r", *overrides])


def identity(tmp_path, *overrides):
    with open_run(recipe(tmp_path, *overrides)) as run:
        return run.id


@pytest.mark.parametrize(
    "result", ["trials", "trials.parquet", "selection.json", "sweet_spot", "atlas", "report"]
)
def test_a_run_that_left_any_result_is_not_replaced(tmp_path, result):
    """As when its owner removed some of it to save disk."""
    first = identity(tmp_path)
    (tmp_path / "r" / result).mkdir()
    kept = (tmp_path / "r" / "config.yaml").read_bytes()
    with pytest.raises(UserError, match="holds another run"):
        identity(tmp_path, "seed=1")
    assert (tmp_path / "r" / "config.yaml").read_bytes() == kept
    assert identity(tmp_path) == first


def test_a_run_that_came_to_nothing_makes_room_for_another_recipe(tmp_path):
    first = identity(tmp_path)
    assert identity(tmp_path) == first  # the same run goes on, in MLflow too
    assert identity(tmp_path, "seed=1") != first
