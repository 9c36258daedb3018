"""The downstream loss of an SAE is that of SAELens's own evaluation, where the definitions agree.

They agree where the site has every token's row and no token is special: pocket problems, all tokens.
"""

import json
import os
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from raysae.analysis.phases.loss import Loss, LossSettings
from raysae.analysis.subject import Subject
from raysae.analysis.token_batches import texts_of
from raysae.records.run_files import RunFiles
from raysae.sae import export_sae
from tests.atlas.library.conftest import made

PROGRAM = Path(__file__).parent / "loss_program.py"
LAYER, TEXTS = 1, 25
SAME = {
    "ce_clean": "ce_loss_without_sae", "ce_sae": "ce_loss_with_sae", "ce_zero": "ce_loss_with_ablation",
    "ce_recovered": "ce_loss_score", "kl_sae": "kl_div_with_sae_of_predictions",
    "kl_zero": "kl_div_with_ablation_of_predictions", "kl_recovered": "kl_div_score_of_predictions",
}  # fmt: skip
"""Our figures, and theirs."""


def loss_row(subject: Subject, folder: Path) -> dict:
    """The phase's row of layer 1 at all tokens."""
    phase, settings = Loss(), LossSettings(sequences=TEXTS, continuation=None)
    phase.check(subject, settings)
    folders = {item: folder / item.key for item in phase.items(subject, settings)}
    for item, place in folders.items():
        place.mkdir(parents=True)
        phase.work(subject, settings, item, place, lambda: None)
    rows = phase.collect(subject, settings, folders).tables["sites"]
    (row,) = [r for r in rows if (r["layer"], r["position"]) == (LAYER, "all")]
    return dict(row)


def test_ce_and_kl_are_those_of_saelens(peer_python, tmp_path):
    run = made(tmp_path / "run", [f"source.layers=[{LAYER}]"])
    subject = Subject(str(run.folder), RunFiles(tmp_path / "out"), str(run.store.path))
    texts = texts_of(subject, "validation", TEXTS, None)
    subject.transformer.model.save_pretrained(tmp_path / "model")
    export_sae(subject.atlas[LAYER, "all"], tmp_path / "sae", "saelens")
    tokens = [text.token_id.tolist() for text in texts]
    case = {"hook": f"transformer.h.{LAYER}", "texts": tokens}
    (tmp_path / "case.json").write_text(json.dumps(case))
    done = subprocess.run(
        [peer_python, PROGRAM, tmp_path], env={**os.environ, "HF_HUB_OFFLINE": "1"}, check=False,
        capture_output=True, text=True, timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    theirs = json.loads((tmp_path / "figures.json").read_text())
    ours = loss_row(subject, tmp_path / "items")
    assert ours["texts"] == len(texts) and ours["special_tokens"] == 0
    assert (
        theirs["ce_loss_with_ablation"] > theirs["ce_loss_with_sae"] > theirs["ce_loss_without_sae"]
    )
    for name, other in SAME.items():
        assert ours[name] == pytest.approx(theirs[other], rel=2e-5, abs=2e-6), name
    imported = replace(subject, place=str(tmp_path / "sae"))  # their folder as the subject
    again = loss_row(imported, tmp_path / "again")
    for name in SAME:
        assert again[name] == pytest.approx(ours[name], rel=1e-5, abs=1e-6), name
