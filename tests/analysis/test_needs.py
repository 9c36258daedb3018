"""A model that is not at hand, or whose weights are not the store's, is refused before anything runs."""

import shutil

import pytest
import torch

from raysae.analysis.engine import plan
from raysae.analysis.registry import phases_named
from raysae.analysis.subject import Subject
from raysae.errors import UserError
from raysae.records.run_files import RunFiles
from raysae.transformer.loading import ModelSpec, load_model, load_tokenizer
from tests.atlas.library.conftest import made


def refused(subject: Subject, *names: str) -> str:
    with pytest.raises(UserError) as error:
        plan(subject, phases_named(names), {}, asked=True)
    assert not (subject.files.path / "analysis").exists()
    return str(error.value)


@pytest.mark.long
def test_other_weights_and_a_lost_model_are_refused(tmp_path):
    model, spec = tmp_path / "model", ModelSpec("pocket")
    network = load_model(spec)
    network.save_pretrained(model)
    load_tokenizer(spec).save_pretrained(model)
    run = made(tmp_path / "run", [f"source.model={model}", "source.layers=[1]"])
    subject = Subject(str(run.folder), RunFiles(tmp_path / "out"), str(run.store.path))
    planned, _ = plan(subject, phases_named(["loss", "ablation"]), {}, asked=True)
    assert len(planned) == 2 and "transformer" not in vars(subject)
    with torch.no_grad():
        next(network.parameters()).mul_(1.5)
    network.save_pretrained(model)
    said = refused(subject, "loss", "ablation", "labels")
    assert said.count("that the store was made with") == 2 and "phase labels" not in said
    shutil.rmtree(model)
    said = refused(subject, "loss", "ablation")
    assert str(model) in said and said.count("phase ") == 2
