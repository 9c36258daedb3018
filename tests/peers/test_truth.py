"""What raysae measures against a known truth is what SAELens measures of the same SAE."""

import json
import os
import subprocess
from pathlib import Path

import pytest
from safetensors.torch import save_file

import raysae
from raysae.activations.hard_world import HardWorld
from raysae.sae.truth import Truth, truth_metrics

PROGRAM = Path(__file__).parent / "truth_program.py"


def test_mcc_uniqueness_and_f1_are_saelenss(peer_python, tmp_path):
    world = HardWorld(d_in=16, atoms=40, roots=4, children=3, correlation_rank=3, bias=0.3)
    rows, fired = world.sample(6000)
    settings = {"variant": "batch_topk", "d_sae": 32, "k": 3}
    training = {"epochs": 8, "batch_size": 256, "lr": 3e-3}
    sae = raysae.fit(
        settings, rows[:3500], training, validation=rows[3500:4000], progress=False
    ).sae
    truth = Truth(world.truth(), rows[4000:], fired[4000:])
    case = {
        "atoms": world.truth(), "decoder": sae.W_dec.data, "latents": sae.encode(rows[4000:]).data,
        "fired": fired[4000:],
    }  # fmt: skip
    save_file(
        {name: value.contiguous() for name, value in case.items()}, tmp_path / "case.safetensors"
    )
    done = subprocess.run(
        [peer_python, PROGRAM, tmp_path], env={**os.environ, "HF_HUB_OFFLINE": "1"}, check=False,
        capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    theirs = json.loads((tmp_path / "figures.json").read_text())
    ours = truth_metrics(truth, sae.W_dec, sae.encode)
    assert 0.1 < theirs["f1"] < 0.95 and 0.3 < theirs["mcc"] < 0.99
    for name, value in theirs.items():
        assert ours[name] == pytest.approx(value, abs=2e-6), name
