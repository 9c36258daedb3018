"""SIGKILL at random moments: never taken for complete, nothing done twice, the same bytes at the end."""

import random
import subprocess
import sys
import time

import pytest
import ray

import raysae
from raysae.activations.verify import verify
from raysae.errors import UserError
from tests.processes import kill, processes_below

KILLS = 5
OVERRIDES = [
    "source.sequences=400", "source.sequences_per_shard=4", "source.layers=[0, 2]",
    "source.positions=[all]", "source.validation=0.3", "resources.max_concurrent=2",
]  # fmt: skip


def start(store, address):
    command = [sys.executable, "-m", "raysae.extract", *OVERRIDES, f"store={store}"]
    return subprocess.Popen(
        [*command, "--address", address],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def shards_at_work():
    """Processes of this test's Ray that are extracting a shard this moment."""
    return processes_below(b"ray::PoolWorker.do")


def committed(store):
    """When each file of each committed shard was written, to see that it is not written again."""
    work, found = store / "extraction", {}
    for report in work.glob("shard-*.json"):
        for path in [report, *store.glob(f"layer=*/*/part-{report.stem[-5:]}.parquet")]:
            found[path] = path.stat().st_mtime_ns
    return found


def content(store):
    files = (path for path in store.rglob("*") if path.is_file())
    return {path.relative_to(store).as_posix(): path.read_bytes() for path in files}


def refuse_unfinished(store):
    with pytest.raises(UserError, match="not a finished activation store"):
        raysae.open_store(store)


def wait_for_shards(store, process, more):
    """Wait until ``more`` shards are committed beyond those there now."""
    there, until = len(committed(store)), time.monotonic() + 90
    while len(committed(store)) < there + more * 3 and process.poll() is None:
        assert time.monotonic() < until, "no progress"
        time.sleep(0.01)


def kill_in_mid_work(store, process, rng):
    """SIGKILL a worker in mid-shard, or the driver at its start, or the driver in mid-work; how many
    were killed."""
    if rng.random() < 0.2:
        time.sleep(rng.uniform(0, 3))  # imports, planning, joining Ray
        return kill(process.pid)
    kills = 0
    wait_for_shards(store, process, rng.randint(1, 5))
    for _ in range(rng.randint(2, 4)):
        time.sleep(rng.uniform(0, 0.3))
        kills += any(kill(pid) for pid in shards_at_work()[:1])
    time.sleep(rng.uniform(0, 0.2))
    return kills + kill(process.pid)


@pytest.fixture(scope="module")
def address(connected_ray):
    return ray.get_runtime_context().gcs_address


@pytest.fixture(scope="module")
def whole(address, tmp_path_factory):
    """The store of an extraction that was left in peace."""
    store = tmp_path_factory.mktemp("peace") / "whole"
    process = start(store, address)
    out, _ = process.communicate(timeout=600)
    assert process.returncode == 0, out
    return store


@pytest.mark.long
def test_killed_workers_do_not_end_the_command(whole, address, tmp_path):
    process, kills = start(tmp_path / "broken", address), 0
    wait_for_shards(tmp_path / "broken", process, 2)
    while kills < 3 and process.poll() is None:
        kills += any(kill(pid) for pid in shards_at_work()[:1])
        time.sleep(0.5)
    out, _ = process.communicate(timeout=600)
    assert process.returncode == 0 and kills == 3, out
    assert content(tmp_path / "broken") == content(whole)


@pytest.mark.long
def test_killed_five_times_and_still_the_same_store(whole, address, tmp_path):
    broken = tmp_path / "broken"
    rng, kills, done = random.Random(3), 0, {}
    while kills < KILLS:
        process = start(broken, address)
        kills += kill_in_mid_work(broken, process, rng)
        process.communicate()
        assert process.returncode != 0, "over before it was killed: make the extraction longer"
        refuse_unfinished(broken)
        assert done == {path: path.stat().st_mtime_ns for path in done}
        done = committed(broken)
    assert done, "some kills came in mid-work"
    process = start(broken, address)
    out, _ = process.communicate(timeout=600)
    assert process.returncode == 0, out
    shards = {path: when for path, when in done.items() if path.suffix == ".parquet"}
    assert shards == {path: path.stat().st_mtime_ns for path in shards}
    assert content(broken) == content(whole)
    assert verify(broken) == []
