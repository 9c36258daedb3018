"""What is measured of an SAE against the atoms that its rows are made of."""

import pytest
import torch

from raysae.sae import truth as module
from raysae.sae.truth import Truth, mcc, truth_metrics
from tests.sae.test_dictionary import unit_rows


def perfect():
    """Orthogonal atoms, and rows in which each fires or not."""
    atoms = torch.eye(6)
    fired = torch.rand(200, 6, generator=torch.Generator().manual_seed(0)) < 0.3
    return Truth(atoms, fired.float() @ atoms, fired)


def test_the_truth_itself_has_the_best_figures():
    truth = perfect()
    found = truth_metrics(truth, truth.atoms_GD.flip(0) * 3, lambda rows: rows.flip(1))
    assert found == pytest.approx(
        {
            "mmcs": 1, "recovered": 1, "mcc": 1, "uniqueness": 1,
            "f1": 1, "f1_precision": 1, "f1_recall": 1,
        }
    )  # fmt: skip


def test_latents_of_the_same_atom_are_not_unique_and_match_once():
    truth = perfect()
    found = truth_metrics(truth, truth.atoms_GD[[0, 0, 0, 1]], lambda rows: rows[:, [0, 0, 0, 1]])
    assert found["uniqueness"] == 2 / 4 and found["mcc"] == pytest.approx(2 / 4)
    assert found["f1"] == 1


def test_precision_and_recall_say_when_a_latent_fires_too_often_or_too_rarely():
    truth = perfect()
    always = truth_metrics(truth, truth.atoms_GD, torch.ones_like)
    rate = truth.fired_SG.double().mean(dim=0)
    assert always["f1_recall"] == 1
    assert always["f1_precision"] == pytest.approx(float(rate.mean()))
    never = truth_metrics(truth, truth.atoms_GD, torch.zeros_like)
    assert never["f1"] == never["f1_precision"] == never["f1_recall"] == 0


def test_without_a_sample_only_the_decoder_is_measured():
    atoms = perfect().atoms_GD
    assert set(truth_metrics(Truth(atoms), atoms, lambda rows: rows)) == {
        "mmcs", "recovered", "mcc", "uniqueness",
    }  # fmt: skip


def test_the_sample_is_encoded_in_parts(monkeypatch):
    truth = perfect()
    whole = truth_metrics(truth, truth.atoms_GD, lambda rows: rows - 0.5)
    monkeypatch.setattr(module, "VALUES_AT_ONCE", 50)
    assert truth_metrics(truth, truth.atoms_GD, lambda rows: rows - 0.5) == whole


def test_of_large_sets_a_sample_is_matched(monkeypatch):
    atoms, learned = unit_rows(90, 32), unit_rows(60, 32, seed=1)
    exact = mcc(atoms, learned)
    monkeypatch.setattr(module, "ALL_MATCHED", 100)
    monkeypatch.setattr(module, "MATCH_SAMPLE", 30)
    assert exact < mcc(atoms, learned) < exact + 0.1
