"""An atlas whose workers are killed: every site is done, to the same bits, and from its checkpoint on."""

import random
import threading
import time

import pytest

from raysae import Recipe, open_store
from raysae.activations import Site
from raysae.activations.synthetic import SuperpositionWorld, write_synthetic_store
from raysae.atlas.training import AtlasJob, train_atlas
from raysae.atlas.worker import SiteSettings
from raysae.cluster.placement import Placement
from raysae.records.commit import VOLATILE_COLUMNS
from raysae.records.events import Events
from raysae.records.folder import open_run
from raysae.storage.files import read_json
from tests.processes import kill, processes_below

SITES = 4
PARAMETERS = {"sae.d_sae": 64, "sae.k": 4}
LONG = {"epochs": 40, "batch_size": 64, "lr": 3e-3, "evaluations": 4}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world") / "store"
    world = SuperpositionWorld(d_in=32, atoms=64, p=0.05)
    write_synthetic_store(folder, world, 2000, sites=SITES, test=0.0)
    return open_store(folder)


def atlas(
    store, runs, training=None, sites=None, at_once=2, meanwhile=lambda folder: None, seeds=1
):
    """The rows and the folder of an atlas; ``meanwhile(folder)`` is called in a thread of its own."""
    recipe = Recipe.model_validate(
        {
            "name": "atlas", "runs_dir": str(runs), "source": None, "store": str(store.path),
            "training": training or LONG, "resources": {"checkpoint_seconds": 0.05},
        }
    )  # fmt: skip
    settings = SiteSettings(
        store.digest,
        tuple(range(seeds)),
        *recipe.with_parameters(PARAMETERS),
        parameters=PARAMETERS,
    )
    with open_run(recipe) as run:
        job = AtlasJob(run, store, settings)
        beside = threading.Thread(target=meanwhile, args=(run.path / "atlas",), daemon=True)
        beside.start()
        rows = train_atlas(job, sites or store.sites, Placement(1, 0, at_once), Events())
        beside.join(30)
        return rows, run.path / "atlas"


@pytest.fixture(scope="module")
def quiet(connected_ray, store, tmp_path_factory):
    """The atlas left in peace."""
    return atlas(store, tmp_path_factory.mktemp("quiet"))


def stable(rows):
    return [{k: v for k, v in row.items() if k not in VOLATILE_COLUMNS} for row in rows]


def weights(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("sae.safetensors"))
    }


def step_of(checkpoint):
    try:
        return read_json(checkpoint / "training.json")["step"]
    except OSError:  # it is being replaced
        return None


def first_checkpoint(folder):
    """Wait until a site is in mid-training, ten steps from its start; its checkpoint and step."""
    until = time.monotonic() + 60
    while time.monotonic() < until:
        for checkpoint in folder.glob("*/*.training"):
            step = max(map(step_of, (checkpoint, *checkpoint.glob("*"))), key=lambda at: at or 0)
            if step is not None and step > 10:
                return checkpoint, step
        time.sleep(0.01)
    raise AssertionError("no site came to mid-training")


def test_killed_workers_cost_nothing(quiet, store, tmp_path):
    kills = []

    def kill_twice(folder):
        for _ in range(2):
            first_checkpoint(folder)
            time.sleep(0.1)
            kills.extend(pid for pid in processes_below(b"ray::PoolWorker")[:1] if kill(pid))

    rows, folder = atlas(store, tmp_path, meanwhile=kill_twice)
    assert len(kills) == 2
    assert [row["state"] for row in rows] == ["done"] * SITES
    assert stable(rows) == stable(quiet[0])
    assert weights(folder) == weights(quiet[1]) and len(weights(folder)) == SITES
    left = [
        path.name for path in folder.rglob("*") if ".training" in path.name or "hung" in path.name
    ]
    assert left == []


def test_a_site_goes_on_from_its_checkpoint(quiet, store, tmp_path):
    site, steps = store.sites[0], []

    def kill_and_watch(folder):
        checkpoint, step = first_checkpoint(folder)
        steps.append(step)
        for pid in processes_below(b"ray::PoolWorker"):
            kill(pid)
        while not (folder / site.folder / "metrics.json").is_file():
            step = step_of(checkpoint)
            if step is not None:
                steps.append(step)
            time.sleep(0.005)

    rows, folder = atlas(store, tmp_path, sites=[site], at_once=1, meanwhile=kill_and_watch)
    assert rows[0]["state"] == "done"
    assert steps == sorted(steps) and steps[-1] > steps[0] > 10
    name = f"{site.folder}/sae.safetensors"
    assert weights(folder)[name] == weights(quiet[1])[name]
    records = [read_json(one / site.folder / "metrics.json") for one in (folder, quiet[1])]
    assert records[0]["history"] == records[1]["history"] and len(records[0]["history"]) == 4


@pytest.mark.long
def test_sites_of_several_seeds_are_killed_at_random_moments(connected_ray, store, tmp_path):
    kills, moments = [], random.Random(0)

    def kill_at_random(folder):
        for _ in range(3):
            first_checkpoint(folder)
            time.sleep(moments.random())
            kills.extend(pid for pid in processes_below(b"ray::PoolWorker")[:1] if kill(pid))

    training, sites = {**LONG, "epochs": 15}, store.sites[:3]
    _, peace = atlas(store, tmp_path / "peace", training, sites, seeds=3)
    rows, folder = atlas(
        store, tmp_path / "run", training, sites, meanwhile=kill_at_random, seeds=3
    )
    assert len(kills) >= 2 and [row["state"] for row in rows] == ["done"] * 3
    assert all(0 < row["stability"] <= 1 for row in rows)
    assert weights(folder) == weights(peace) and len(weights(folder)) == 9
    assert not list(folder.rglob("*.training"))


def test_a_site_that_fails_leaves_its_traceback_beside_its_folder(connected_ray, store, tmp_path):
    rows, folder = atlas(
        store, tmp_path, training={**LONG, "lr": 1e38}, sites=[Site(1, "all")], at_once=1
    )
    assert rows[0]["state"] == "failed" and "NonFiniteLossError" in rows[0]["reason"]
    failure = folder / "layer=01" / "position=all.failure.txt"
    assert "Traceback" in failure.read_text() and "NonFiniteLossError" in failure.read_text()
