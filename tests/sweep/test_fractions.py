"""Trials on fractions of a GPU: Ray's bookkeeping is real, the GPU a logical one."""

import json
import subprocess
import sys

from tests.conftest import SMALL

SCRIPT = """
import json, sys
from raysae.cluster.session import quiet_environment
quiet_environment()
import ray
ray.init("local", num_cpus=4, num_gpus=1, include_dashboard=False, log_to_driver=False)
import raysae
result = raysae.sweep(json.loads(sys.argv[1]))
print(json.dumps({"failures": result.failures, "trials": result.trials, "sites": len(result.atlas)}))
"""


def test_a_quarter_of_a_gpu_a_trial(tmp_path):
    place = {"runs_dir": str(tmp_path / "runs"), "store": str(tmp_path / "store")}
    resources = {"gpus_per_trial": 0.25}
    recipe = {**SMALL, **place, "resources": resources, "records": {"mlflow": False}}
    recipe["source"] = {**SMALL["source"], "sequences": 300, "layers": [1]}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps(recipe)],
        capture_output=True, text=True, timeout=900, check=True,
    )  # fmt: skip
    assert "at once, 1 CPU and 0.25 GPU each" in done.stdout
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["failures"] == []
    assert [row["state"] for row in result["trials"]] == ["done"] * 5
    assert result["sites"] == 2
