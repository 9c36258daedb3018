"""What a sweep's own Ray leaves out; and another release of Ray, which is then started plainly."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from ray import tune
from ray._private import parameter, services
from ray.air._internal import usage
from ray.tune.execution import class_cache, tune_controller
from ray.tune.search import Searcher

from raysae.cluster.ray_internals import (
    MAX_PRELOADED,
    fewer_processes,
    fewer_tune_steps,
    preloading,
    run_tune,
)
from raysae.config import ResourcesConfig

ROOT = Path(__file__).parents[2]
SERVERS = {"raylet", "gcs_server"}
MONITORS = {"dashboard", "monitor", "log_monitor"}

STARTED = """
import sys
from raysae.cluster.session import ray_session
from raysae.console.quiet import quiet_environment
quiet_environment()
from raysae.config import ResourcesConfig
import time
from pathlib import Path
with ray_session(ResourcesConfig(cpus=2), workers_import="this") as stop:
    import ray
    from ray import tune
    from raysae.cluster.ray_internals import run_tune
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
    def fit():
        return tune.Tuner(
            tune.with_resources(Look, {"cpu": 1}),
            run_config=tune.RunConfig(storage_path=sys.argv[1], verbose=0),
        ).fit()
    (result,) = run_tune(fit, ResourcesConfig(), lambda: False)
    assert result.metrics["pid"] in ready and result.metrics["imported"], (result.metrics, ready)
    assert "mlflow" not in sys.modules
    print("trials took ready workers")
"""


def program(*arguments):
    """What a Python program prints, and what it writes to stderr."""
    done = subprocess.run(
        [sys.executable, *arguments], cwd=ROOT,
        check=False, capture_output=True, text=True, timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


def test_trials_take_the_workers_that_are_ready(tmp_path):
    stdout, stderr = program("-c", STARTED, str(tmp_path))
    assert "trials took ready workers" in stdout
    assert "plainly" not in stderr


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("a missing name", "has no attribute 'start_api_server'"),
        ("a changed signature", "unexpected keyword argument 'no_monitor'"),
        ("a signature that does not show its change", "['include_log_monitor', 'no_monitor']"),
        ("another arity", "not enough values to unpack"),
        pytest.param(
            "an unknown setting", "RuntimeError", marks=pytest.mark.long
        ),  # Ray waits 30 s
    ],
)
@pytest.mark.long
def test_another_release_of_ray_starts_plainly(change, reason):
    stdout, stderr = program("-m", "tests.cluster.other_ray", change)
    told = json.loads(stdout.splitlines()[-1])
    assert told["result"] == "ran"
    assert SERVERS | {"monitor", "log_monitor"} <= set(told["processes"])
    assert told["servers"] == 1, "the first attempt's is stopped"
    assert stderr.count("Ray was started plainly") == 1
    assert reason in stderr and "resources.lean=false" in stderr


@pytest.mark.parametrize(("change", "lean"), [("nothing", True), ("lean is false", False)])
def test_nothing_is_said_of_a_start_that_was_asked_for(change, lean):
    stdout, stderr = program("-m", "tests.cluster.other_ray", change)
    told = json.loads(stdout.splitlines()[-1])
    assert told["result"] == "ran" and set(told["processes"]) >= SERVERS
    assert bool(MONITORS & set(told["processes"])) != lean
    assert "plainly" not in stderr


@pytest.mark.long
def test_another_release_of_tune_runs_plainly(tmp_path):
    stdout, _ = program("-m", "tests.cluster.other_tune", str(tmp_path))
    told = json.loads(stdout.splitlines()[-1])
    assert [one["value"] for one in told.values()] == [7] * 6
    assert told.pop("nothing") == {"value": 7, "runs": [True], "said": []}
    assert told.pop("lean is false") == {"value": 7, "runs": [False], "said": []}
    assert all(one["runs"][-1] is False for one in told.values())
    reasons = {change: one["said"] for change, one in told.items()}
    assert all(
        len(said) == 1 and said[0].startswith("Tune was started plainly")
        for said in reasons.values()
    )
    assert "no attribute 'tag_callbacks'" in reasons["a missing name"][0]
    assert "TypeError" in reasons["another arity"][0]
    assert "no attribute 'items'" in reasons["a constant that became a function"][0]
    assert "PL_DISABLE_FORK" in reasons["a variable that is needed"][0]


def test_a_start_that_fails_plainly_too_raises_what_it_raises():
    start = (
        "import ray; from raysae.config import ResourcesConfig;"
        "from raysae.cluster.ray_internals import start_ray\n"
        "try: start_ray(ResourcesConfig(), '', address='local', num_cpus=-1)\n"
        "except ValueError as error: print(ray.is_initialized(), error.__context__, error)"
    )
    stdout, stderr = program("-c", start)
    assert stdout.startswith("False None") and "must be nonnegative" in stdout
    assert "plainly" not in stderr


def test_a_trial_that_has_begun_is_not_begun_again(connected_ray, caplog):
    calls = []

    def call():
        calls.append(1)
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space left"):
        run_tune(call, ResourcesConfig(), lambda: True)
    assert len(calls) == 1 and not caplog.records
    with pytest.raises(OSError, match="no space left"):
        run_tune(call, ResourcesConfig(), lambda: False)
    assert len(calls) == 3
    assert [one.name for one in caplog.records] == ["raysae.cluster.ray_internals"]


def test_what_was_replaced_is_put_back():
    def names():
        start = parameter.RayParams, services.start_api_server
        workers = tune_controller._ObjectCache
        return *start, class_cache.DEFAULT_ENV_VARS, usage.tag_callbacks, workers

    before = names()
    with pytest.raises(KeyError), fewer_processes(ResourcesConfig()), fewer_tune_steps():
        assert not {id(one) for one in names()} & {id(one) for one in before}
        raise KeyError
    assert names() == before and "PL_DISABLE_FORK" in class_cache.DEFAULT_ENV_VARS


class InWaves(Searcher):
    """Two trials at a time: the next two once both have ended."""

    def __init__(self):
        super().__init__(metric="worker", mode="max")
        self.begun, self.ended = 0, 0

    def suggest(self, trial_id):
        if self.begun == 2 and self.ended < 2:
            return None
        self.begun += 1
        return {"number": self.begun}

    def on_trial_complete(self, trial_id, result=None, error=False):
        self.ended += 1


class Together(tune.Trainable):
    """Ends when the other trial of its wave has begun too."""

    def setup(self, config, folder):
        self.folder = folder
        self.reset_config(config)

    def step(self):
        (self.folder / str(self.number)).touch()
        other = self.folder / str((self.number - 1 ^ 1) + 1)
        until = time.monotonic() + 100
        while not other.exists() and time.monotonic() < until:
            time.sleep(0.01)
        return {"worker": os.getpid(), "done": True}

    def reset_config(self, new_config):
        self.number = new_config["number"]
        return True


def test_the_workers_of_a_wave_are_those_of_the_next(connected_ray, tmp_path):
    together = tune.with_parameters(Together, folder=tmp_path)

    def fit():
        return tune.Tuner(
            tune.with_resources(together, {"cpu": 1}),
            tune_config=tune.TuneConfig(
                search_alg=InWaves(), num_samples=4, max_concurrent_trials=2, reuse_actors=True
            ),
            run_config=tune.RunConfig(
                storage_path=str(tmp_path), verbose=0,
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            ),
        ).fit()  # fmt: skip

    results = run_tune(fit, ResourcesConfig(), lambda: False)
    assert len(results) == 4
    assert len({result.metrics["worker"] for result in results}) == 2


@pytest.mark.parametrize(
    ("cpus", "ready"), [(2, True), (MAX_PRELOADED, True), (MAX_PRELOADED + 1, False)]
)
def test_a_large_machine_keeps_no_workers_ready(cpus, ready):
    settings = preloading(ResourcesConfig(cpus=cpus), "raysae.sweep.trials.trainable")
    assert bool(settings) == ready
