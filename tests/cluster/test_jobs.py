"""What ``ray job submit --runtime-env scripts/job.yaml`` takes to a cluster, and what a job refuses."""

import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest
import yaml
from ray._private.runtime_env.packaging import create_package

import raysae
from raysae.activations.synthetic import SuperpositionWorld, write_synthetic_store
from raysae.pipeline.preflight import preflight

ROOT = Path(__file__).parents[2]


def test_a_job_takes_the_code_and_no_activations(tmp_path):
    folder = tmp_path / "raysae"
    tracked = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    for name in tracked.stdout.splitlines():
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    world = SuperpositionWorld(d_in=8, atoms=16)
    for store in ("stores/mine", "elsewhere"):
        write_synthetic_store(folder / store, world, 1000)
    (folder / "runs" / "mine" / "trials" / "000").mkdir(parents=True)
    (folder / "runs" / "mine" / "trials" / "000" / "sae.safetensors").write_bytes(b"weights")
    job = yaml.safe_load((ROOT / "scripts" / "job.yaml").read_text())
    assert job["working_dir"] == "."
    create_package(str(folder), tmp_path / "job.zip", True, excludes=job["excludes"])
    with zipfile.ZipFile(tmp_path / "job.zip") as package:
        taken = {item.filename for item in package.infolist() if not item.is_dir()}
        size = sum(item.file_size for item in package.infolist())
    code = {
        name for name in tracked.stdout.splitlines() if name.startswith(("raysae/", "configs/"))
    }
    assert code <= taken
    assert not [name for name in taken if name.endswith((".parquet", "sae.safetensors"))]
    assert not [name for name in taken if name.startswith(("runs", "stores"))]
    assert size < 8e6


@pytest.mark.parametrize(
    ("places", "key"),
    [({}, "runs_dir"), ({"runs_dir": "/shared/runs"}, "store"), ({"runs_dir": "runs"}, "runs_dir")],
)
def test_a_job_that_would_lose_its_run_is_refused(places, key, tmp_path, monkeypatch):
    folder = tmp_path / "working_dir_files" / "_ray_pkg_0123"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    with pytest.raises(raysae.UserError, match=f"{key} is .* a folder that Ray removes"):
        preflight(raysae.Recipe.model_validate(places))
