"""A sweep that streams or scans its rows gives what one that shares them gives, to the bit."""

import pytest

import raysae
from raysae.records.commit import VOLATILE_COLUMNS
from tests.conftest import SMALL


def rows_of(table):
    return [{k: v for k, v in row.items() if k not in VOLATILE_COLUMNS} for row in table]


@pytest.mark.parametrize("reading", [pytest.param("streaming", marks=pytest.mark.long), "scan"])
def test_reading_never_shows_in_the_result(small_run, tmp_path, capsys, reading):
    recipe = {
        **SMALL,
        "runs_dir": str(tmp_path / "runs"),
        "store": str(small_run.run.recipe.store_folder),
        "resources": {**SMALL["resources"], "reading": reading},
        "records": {"mlflow": False},
    }
    streamed = raysae.sweep(recipe)
    assert f"Reading: {reading}, as asked for" in capsys.readouterr().out
    assert rows_of(streamed.trials) == rows_of(small_run.trials)
    assert rows_of(streamed.atlas) == rows_of(small_run.atlas)
    for file in sorted(small_run.folder.glob("atlas/*/*/sae.safetensors")):
        other = streamed.folder / file.relative_to(small_run.folder)
        assert other.read_bytes() == file.read_bytes()
