"""One trial where the disk is full: it says so, its checkpoint stays, and the next attempt is done."""

import os
import shutil
import subprocess

import pytest
import torch

from raysae.activations.synthetic import SuperpositionWorld
from raysae.cluster.alarm import HangAlarm
from raysae.errors import UserError
from raysae.records.run_files import RunFiles
from raysae.sae import sae_config
from raysae.sites import Site
from raysae.storage.files import read_json
from raysae.sweep.trials.gang import Gang
from raysae.sweep.trials.trainable import SAETrials
from raysae.sweep.trials.trial import Trial
from raysae.training import TrainingConfig
from raysae.training.ensemble import Member
from raysae.training.rows import Rows

HERE = Site(0, "all")
ASKED = {"trial": 0, "parameters": {}}
MADE = {"store": "s", "seeds": [0]}
WORLD = SuperpositionWorld(d_in=32, atoms=48, p=0.05)


@pytest.fixture
def small_disk(tmp_path):
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if (
        not shutil.which("mount")
        or subprocess.run(mount, capture_output=True, check=False).returncode
    ):
        pytest.skip("no small disk could be mounted here (it takes root)")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def members():
    training = TrainingConfig(epochs=4, batch_size=64, lr=3e-3, evaluations=2)
    config = sae_config({"variant": "topk", "d_sae": 512, "k": 2})
    return {(HERE, 0): Member(config, training, Rows(WORLD.rows(500, 0)), Rows(WORLD.rows(200, 1)))}


def attempt(folder):
    trial = Trial(ASKED, RunFiles(folder.parents[1]), "cpu", MADE)
    gang = Gang([trial.begin(members(), None)], 0)
    for _ in gang.rounds():
        trial.advance({HERE: {}})
    return trial.report


def test_a_full_disk_is_the_reason_and_another_attempt_is_done(small_disk):
    folder = small_disk / "trials" / "000"
    filler = small_disk / "filler"
    filler.write_bytes(bytes(1_000_000))
    report = attempt(folder)
    assert report["done"] and "No space left" in report["failed"]
    assert not folder.exists()
    filler.unlink()
    report = attempt(folder)
    assert report["committed"] and "failed" not in report
    assert read_json(folder / "metrics.json")["metrics"]["explained_variance"] > 0
    assert not (small_disk / "trials" / "000.training").exists()


def test_a_worker_that_is_asked_for_more_after_the_end_gives_no_old_reports():
    worker = object.__new__(SAETrials)
    worker._ended = True
    with pytest.raises(RuntimeError, match="given to another trial"):
        worker.step()


class EndedError(Exception):
    """In the place of the end of the process."""


def test_a_worker_that_lost_its_gpu_ends_and_its_trials_have_not_failed(monkeypatch, tmp_path):
    def ended(code):
        raise EndedError

    def rounds(trial):
        yield
        trial.fail(RuntimeError("CUDA error: an illegal memory access was encountered"))

    monkeypatch.setattr(os, "_exit", ended)
    trial = Trial(ASKED, RunFiles(tmp_path), "cpu", MADE)
    worker = object.__new__(SAETrials)
    worker._ended, worker.trials, worker.rounds = False, [trial], rounds(trial)
    worker.alarm = HangAlarm(tmp_path / "hung.txt", None)
    worker.step()
    with pytest.raises(EndedError):
        worker.step()
    assert not trial.ended and not list(tmp_path.rglob("*.failure.txt"))


def test_out_of_memory_is_a_trials_own_failure(tmp_path):
    trial = Trial(ASKED, RunFiles(tmp_path), "cpu", MADE)
    trial.fail(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"))
    assert trial.ended and "lower batch_size, d_sae or resources.gang" in trial.report["failed"]


def test_what_is_measured_at_the_end_is_among_the_figures(tmp_path):
    def judge(saes):
        return {"ce_recovered": float(len(saes)), "ce_increase": None}

    trial = Trial(ASKED, RunFiles(tmp_path), "cpu", MADE, judge=judge)
    gang = Gang([trial.begin(members(), None)], 0)
    for _ in gang.rounds():
        trial.advance({HERE: {}})
    assert trial.report["committed"] and trial.report["ce_recovered"] == 1
    figures = read_json(tmp_path / "trials" / "000" / "metrics.json")["metrics"]
    assert figures["ce_recovered"] == 1 and figures["ce_increase"] is None


def test_what_cannot_be_measured_is_the_reason(tmp_path):
    def judge(saes):
        raise UserError("the model is gone")

    trial = Trial(ASKED, RunFiles(tmp_path), "cpu", MADE, judge=judge)
    gang = Gang([trial.begin(members(), None)], 0)
    for _ in gang.rounds():
        trial.advance({HERE: {}})
    assert trial.report["failed"] == "the model is gone" and not trial.folder.exists()
