"""What a sweep's own Ray leaves out: a release of Ray that names it otherwise is noticed here."""

import subprocess
import sys

import pytest
from ray.air._internal import usage
from ray.tune.execution import class_cache

from raysae.cluster.lean import MOST_READY, lean_tune, ready_workers
from raysae.config import ResourcesConfig

STARTED = """
import sys
from raysae.cluster.session import quiet_environment, ray_session
quiet_environment()
from raysae.config import ResourcesConfig
import time
from pathlib import Path
with ray_session(ResourcesConfig(cpus=2), workers_import="this") as stop:
    import ray
    from ray import tune
    from raysae.cluster.lean import lean_tune
    node = ray._private.worker._global_node
    left_out = {"dashboard", "monitor", "log_monitor"}
    assert not left_out & set(node.all_processes), list(node.all_processes)
    assert {"raylet", "gcs_server"} <= set(node.all_processes), list(node.all_processes)
    raylet = node.all_processes["raylet"][0].process.pid
    children = Path(f"/proc/{raylet}/task/{raylet}/children")
    def workers():
        lines = {pid: Path(f"/proc/{pid}/cmdline").read_text() for pid in children.read_text().split()}
        return [int(pid) for pid in lines if "default_worker" in lines[pid] or "ray::IDLE" in lines[pid]]
    until = time.time() + 300
    while len(ready := workers()) < 2 and time.time() < until:
        time.sleep(0.1)
    class Look(tune.Trainable):
        def step(self):
            import os, sys
            return {"pid": os.getpid(), "imported": "this" in sys.modules, "done": True}
    with lean_tune():
        (result,) = tune.Tuner(
            tune.with_resources(Look, {"cpu": 1}),
            run_config=tune.RunConfig(storage_path=sys.argv[1], verbose=0),
        ).fit()
    assert result.metrics["pid"] in ready and result.metrics["imported"], (result.metrics, ready)
    assert "mlflow" not in sys.modules
    print("lean")
"""


def test_trials_take_the_workers_that_are_ready(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", STARTED, str(tmp_path)],
        check=False, capture_output=True, text=True, timeout=900,
    )  # fmt: skip
    assert "lean" in done.stdout, done.stderr


def test_what_was_replaced_is_put_back():
    before = class_cache.DEFAULT_ENV_VARS, usage.tag_callbacks
    with pytest.raises(KeyError), lean_tune():
        assert not class_cache.DEFAULT_ENV_VARS and usage.tag_callbacks is not before[1]
        raise KeyError
    assert (class_cache.DEFAULT_ENV_VARS, usage.tag_callbacks) == before and before[0]


@pytest.mark.parametrize(
    ("cpus", "ready"), [(2, True), (MOST_READY, True), (MOST_READY + 1, False)]
)
def test_a_large_machine_keeps_no_workers_ready(cpus, ready):
    settings = ready_workers(ResourcesConfig(cpus=cpus), "raysae.sweep.trainable")
    assert bool(settings) == ready
