"""A training on disk: refused where it is another, damaged or of a newer schema; an older one resumes."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import raysae
from raysae.errors import UserError
from raysae.sae import sae_config
from raysae.training import (
    NonFiniteLossError,
    Trainer,
    TrainingConfig,
    load_training,
    save_training,
)
from raysae.training.checkpoint import STATE_FILE, TENSORS_FILE
from raysae.training.rows import Rows

QUICK = {"epochs": 3, "batch_size": 64, "lr": 1e-3, "evaluations": 4}
SMALL = {"variant": "topk", "d_sae": 32, "k": 3}


@pytest.fixture(scope="module")
def rows():
    return torch.randn(1000, 16, generator=torch.Generator().manual_seed(2))


def trainer_of(rows, config=SMALL, seed=7, **training):
    settings = TrainingConfig(**{**QUICK, **training})
    return Trainer(sae_config(config), settings, Rows(rows), Rows(rows[:300]), seed=seed)


@pytest.fixture
def folder(rows, tmp_path):
    """A training saved after its second round."""
    trainer = trainer_of(rows)
    rounds = trainer.rounds()
    save_training(trainer, tmp_path / "saved", [next(rounds), next(rounds)])
    return tmp_path / "saved"


def test_a_folder_holds_no_pickle(folder):
    assert sorted(file.name for file in folder.iterdir()) == [STATE_FILE, TENSORS_FILE]


def test_everything_comes_back(rows, folder):
    trainer = trainer_of(rows)
    history = load_training(trainer, folder)
    assert [row["step"] for row in history] == [12, 24] and trainer.step == 24
    assert trainer.tokens == trainer.stream.position.epoch * 1000 + trainer.stream.position.rows
    assert trainer.tokens_since_fired_F.max() < trainer.tokens
    moments = trainer.adam_state[trainer.model.W_enc]
    assert float(moments["step"]) == 24 and moments["exp_avg_sq"].max() > 0


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"seed": 8}, "seed is 7, now 8"),
        ({"lr": 2e-3}, "training.lr is 0.001, now 0.002"),
        ({"config": {**SMALL, "k": 4}}, "sae.k is 3, now 4"),
        ({"config": {"variant": "relu_l1", "d_sae": 32}}, "sae.variant is topk, now relu_l1"),
    ],
)
def test_another_training_is_refused(rows, folder, changes, words):
    with pytest.raises(UserError, match=words):
        load_training(trainer_of(rows, **changes), folder)


def test_other_rows_are_refused(rows, folder):
    with pytest.raises(UserError, match="d_in is 16, now 8"):
        load_training(trainer_of(rows[:, :8]), folder)
    with pytest.raises(UserError, match="rows is 1000, now 900"):
        load_training(trainer_of(rows[:900]), folder)
    with pytest.raises(UserError, match="input_scale"):
        load_training(trainer_of(rows.flip(1) * 1.001), folder)


def edit_state(folder, **changes):
    state = json.loads((folder / STATE_FILE).read_text())
    (folder / STATE_FILE).write_text(json.dumps({**state, **changes}))


def break_newer_schema(folder):
    edit_state(folder, schema_version=9)


def break_format(folder):
    edit_state(folder, format="other")


def break_position(folder):
    edit_state(folder, position=[3])


def break_truncated(folder):
    content = (folder / TENSORS_FILE).read_bytes()
    (folder / TENSORS_FILE).write_bytes(content[:500])


def break_missing_moment(folder):
    change_tensors(folder, "adam.W_enc.exp_avg", None)


def break_shape_of_moment(folder):
    change_tensors(folder, "adam.W_enc.exp_avg", torch.zeros(2))


def break_missing_weight(folder):
    change_tensors(folder, "model.b_enc", None)


def break_counter(folder):
    change_tensors(folder, "tokens_since_fired", None)


def change_tensors(folder, name, tensor):
    tensors = load_file(folder / TENSORS_FILE)
    tensors.pop(name)
    save_file(tensors if tensor is None else {**tensors, name: tensor}, folder / TENSORS_FILE)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (break_newer_schema, "schema_version 9"),
        (break_format, "not a raysae training"),
        (break_position, "position is"),
        (break_truncated, "safetensors"),
        (break_missing_moment, "lacks the tensor adam.W_enc.exp_avg"),
        (break_shape_of_moment, r"adam.W_enc.exp_avg is \[2\], expected \[16, 32\]"),
        (break_missing_weight, r"b_enc is absent, expected \[32\]"),
        (break_counter, "lacks the tensor tokens_since_fired"),
    ],
)
def test_damage_is_named(rows, folder, damage, words):
    damage(folder)
    with pytest.raises(UserError, match=words):
        load_training(trainer_of(rows), folder)


def test_fit_goes_on_from_its_checkpoint_and_a_finished_one_is_only_read(rows, folder):
    def again(**changes):
        settings = {**QUICK, **changes}
        return raysae.fit(
            SMALL, rows, settings, validation=rows[:300], seed=7, checkpoint=folder, progress=False
        )

    whole = raysae.fit(SMALL, rows, QUICK, validation=rows[:300], seed=7, progress=False)
    first, second = again(), again()
    assert first.history == second.history == whole.history
    assert first.metrics == second.metrics == whole.metrics
    with pytest.raises(UserError, match="another training"):
        again(epochs=4)


def test_a_non_finite_loss_keeps_the_last_good_state(rows, tmp_path):
    def batches():
        for number in range(48):
            yield rows[:64] * (float("nan") if number == 40 else 1)

    settings = {**QUICK, "tokens": 48 * 64, "shuffle_rows": 64}
    del settings["epochs"]
    # the head that is looked at before the training ends before the poisoned batch
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("raysae.training.iterator_rows.HEAD_ROWS", 64)
        with pytest.raises(
            NonFiniteLossError, match=r"saved holds the last good state, of step 36"
        ):
            raysae.fit(
                SMALL, batches(), settings, validation=rows[:300], checkpoint=tmp_path / "saved",
                progress=False,
            )  # fmt: skip
    tensors = load_file(tmp_path / "saved" / TENSORS_FILE)
    assert all(tensor.isfinite().all() for tensor in tensors.values())


def test_a_gradient_that_overflows_stops_before_the_update(rows):
    trainer = trainer_of(rows, {"variant": "relu_l1", "d_sae": 32})
    before = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    trainer.model.W_dec.register_hook(lambda gradient: gradient * float("inf"))
    with pytest.raises(NonFiniteLossError, match="gradient norm"):
        next(trainer.rounds())
    for name, tensor in trainer.model.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_saving_over_something_else_is_refused(rows, tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="holds no training"):
        save_training(trainer_of(rows), tmp_path)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


OF_VERSION_2 = Path(__file__).parent / "checkpoint_of_version_2"
"""Step 8 of 15 of ``trainer_of_version_2``, written by raysae when the schema was 2."""


def trainer_of_version_2():
    numbers = torch.arange(300 * 8).reshape(300, 8)
    rows = ((numbers * 37) % 101 - 50).float() / 32  # their scale is the same on every machine
    settings = TrainingConfig(epochs=3, batch_size=64, lr=1e-2, evaluations=5, aux_window_tokens=64)
    config = sae_config({"variant": "topk", "d_sae": 16, "k": 1})
    return Trainer(config, settings, Rows(rows), Rows(rows[:100]), seed=7)


def resumed(folder):
    trainer = trainer_of_version_2()
    history = load_training(trainer, folder)
    return trainer, [*history, *trainer.rounds()]


def test_a_checkpoint_of_schema_2_resumes_as_it_would_have_then(tmp_path):
    shutil.copytree(OF_VERSION_2, tmp_path / "new")
    tensors = load_file(OF_VERSION_2 / TENSORS_FILE)
    assert "quiet_tokens" in tensors
    loaded = trainer_of_version_2()
    load_training(loaded, OF_VERSION_2)
    assert torch.equal(loaded.tokens_since_fired_F, tensors["quiet_tokens"])
    assert int(loaded.tokens_since_fired_F.max()) > 0 and loaded.step == 8
    save_training(loaded, tmp_path / "new", [])
    assert "quiet_tokens" not in load_file(tmp_path / "new" / TENSORS_FILE)
    edit_state(
        tmp_path / "new", history=json.loads((OF_VERSION_2 / STATE_FILE).read_text())["history"]
    )
    (old, history), (new, again) = resumed(OF_VERSION_2), resumed(tmp_path / "new")
    assert history == again and len(history) == 5
    whole = trainer_of_version_2()
    scale, median_D = old.scale, whole.statistics.sinks.centre_D
    assert not old.mean_D.any() and scale != whole.scale
    whole.read_as(torch.zeros(8), scale)
    whole.model.b_dec.data = (median_D * scale).float()
    list(whole.rounds())
    for name, tensor in old.model.state_dict().items():
        assert torch.equal(tensor, new.model.state_dict()[name])
        # what was trained before was trained on another machine, perhaps
        assert torch.allclose(tensor, whole.model.state_dict()[name], atol=1e-4)
