"""A whole run on live data: kept or not, the figures are those to the bit, and the passes are told."""

import re

import pytest

import raysae
from raysae.activations import open_store
from raysae.records.commit import VOLATILE_COLUMNS
from tests.conftest import SMALL

LIVE = {
    **SMALL,
    "source": {**SMALL["source"], "sequences": 300, "sequences_per_shard": 50, "live": True},
    "training": {"epochs": 2, "batch_size": 64, "evaluations": 2, "shuffle_rows": 100},
    "sweep": {**SMALL["sweep"], "trials": 2, "startup_trials": 2, "proposal_lag": 1},
    "records": {"mlflow": False},
    "resources": {"max_concurrent": 2},
}


def rows_of(table):
    return [{k: v for k, v in row.items() if k not in VOLATILE_COLUMNS} for row in table]


@pytest.mark.long
def test_a_live_run_kept_or_not(connected_ray, tmp_path, capsys):
    """Two waves of one trial, two epochs each, and the atlas: six passes, or one that keeps."""
    found = {}
    for keep in ("no", "auto"):
        source = {**LIVE["source"], "keep": keep}
        found[keep] = raysae.sweep(
            {
                **LIVE,
                "source": source,
                "runs_dir": str(tmp_path / keep),
                "store": str(tmp_path / f"{keep}s"),
            }
        )
        out = " ".join(capsys.readouterr().out.split())
        store = open_store(tmp_path / f"{keep}s")
        assert "Reading: live" in out and "so 2 trainings cost 2 passes" in out
        assert store.computes_rows == (keep == "no")
        passes = [float(number) for number in re.findall(r"tokens, ([\d.]+) passes over", out)]
        assert passes[0] == (4 if keep == "no" else pytest.approx(1, abs=0.3))
        if keep == "no":
            assert passes == [4, 2], "two waves of two epochs, and the atlas's two for all sites"
    assert rows_of(found["no"].trials) == rows_of(found["auto"].trials)
    assert rows_of(found["no"].atlas) == rows_of(found["auto"].atlas)
    for file in sorted(found["no"].folder.glob("atlas/*/*/sae.safetensors")):
        other = found["auto"].folder / file.relative_to(found["no"].folder)
        assert other.read_bytes() == file.read_bytes()
