"""The main job with a store at a URI: extracted there, read there by every way of reading."""

import pytest

import raysae
from raysae.records.commit import VOLATILE_COLUMNS


@pytest.fixture
def home(tmp_path, monkeypatch):
    """Ray's workers have a cache of their own (conftest.py), as on another node."""
    monkeypatch.setenv("RAYSAE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "home"


def recipe(name, tmp_path, **resources):
    return {
        "name": name, "runs_dir": str(tmp_path / "runs"), "store": f"file://{tmp_path}/home/store",
        "source": {
            "sequences": 300, "layers": [1, 2], "positions": [-1], "sequences_per_shard": 100,
            "validation": 0.3,
        },
        "training": {"epochs": 2, "batch_size": 64, "evaluations": 1},
        "sweep": {"sampler": "list", "configs": [{"sae.d_sae": 16, "sae.k": 2}]},
        "records": {"mlflow": False}, "resources": resources,
    }  # fmt: skip


def figures(result):
    return [
        {key: value for key, value in row.items() if key not in VOLATILE_COLUMNS}
        for row in result.trials
    ]


@pytest.mark.long
def test_extracted_to_a_uri_and_read_there_in_every_way(connected_ray, home, tmp_path):
    streamed = raysae.sweep(recipe("streamed", tmp_path, reading="streaming"))
    assert streamed.failures == [] and (home / "store" / "manifest.json").is_file()
    shared = raysae.sweep(recipe("shared", tmp_path, reading="shared"))
    assert not [p for p in (tmp_path / "cache").rglob("*.parquet") if p.is_file()]
    copied = raysae.sweep(recipe("copied", tmp_path, reading="streaming", copy_store=True))
    assert list((tmp_path / "cache").rglob("part-00000.parquet"))
    assert figures(streamed) == figures(shared) == figures(copied)
    assert shared.failures == copied.failures == []
    page = (tmp_path / "runs/streamed/report/index.html").read_text()
    assert f"file://{tmp_path}/home/store (digest" in page
