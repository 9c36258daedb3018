"""The checkpoint of a training: its exact state, in ``training.json`` and ``training.safetensors``.

It holds the weights, the thresholds, Adam's moments, the mean and the scale of the inputs, the
tokens since each latent fired, the position in the data and the last loss. It holds no state of a
random generator: schedules depend on the step alone, and the order of the data depends on seed,
epoch and position alone. No file is a pickle.

Up to schema 3 inputs were scaled but not centred; such a training goes on so, with a mean of 0.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from raysae.errors import UserError
from raysae.sae.checkpoint import load_tensors, read_tensors, write_tensors
from raysae.storage.files import read_json, refuse_other_content, replacing_folder, write_json
from raysae.storage.leftovers import remove_leftovers_of
from raysae.training.config import TrainingConfig
from raysae.training.rows import StreamPosition
from raysae.training.statistics import uncentred_scale
from raysae.training.trainer import Trainer

SCHEMA_VERSION = 4
READABLE_VERSIONS = (2, 3, 4)
ADDED = {"first"}
"""What a position did not have at first; it counts as 0 then."""
CENTRED_SINCE = 4
STATE_FILE, TENSORS_FILE = "training.json", "training.safetensors"
MOMENTS = ("exp_avg", "exp_avg_sq", "step")
SINCE_FIRED, SINCE_FIRED_IN_VERSION_2 = "tokens_since_fired", "quiet_tokens"
INPUT_MEAN, INPUT_SCALE = "input_mean", "input_scale"
TOLERANCE = 1e-6
"""By how much mean and scale of the same rows may differ between two machines, relatively."""


def save_training(trainer: Trainer, folder: str | Path, history: Sequence[Any] = ()) -> None:
    """Save the state of ``trainer`` and the records ``history`` in ``folder``.

    A checkpoint that ``folder`` holds already is replaced only when the new one is complete. Raises
    UserError when ``folder`` holds something else, OSError when it cannot be written.
    """
    folder = Path(folder)
    refuse_other_content(folder, STATE_FILE, "training")
    with replacing_folder(folder) as temporary:
        write_tensors(temporary / TENSORS_FILE, _tensors(trainer))
        write_json(
            temporary / STATE_FILE,
            {
                "format": "raysae training",
                "schema_version": SCHEMA_VERSION,
                "job": {**_job(trainer), INPUT_SCALE: trainer.scale},
                "position": asdict(trainer.stream.position),
                "step": trainer.step,
                "tokens": trainer.tokens,
                "loss": trainer.loss,
                "seconds": trainer.seconds,
                "waited": trainer.feed.waited,
                "history": list(history),
            },
        )
    trainer.give_back()


def has_training(folder: str | Path) -> bool:
    """Whether ``folder`` holds the checkpoint of a training."""
    if not Path(folder).exists():
        remove_leftovers_of(Path(folder))  # puts back one that a killed process was replacing
    return (Path(folder) / STATE_FILE).is_file()


def load_training(trainer: Trainer, folder: str | Path) -> list[dict[str, Any]]:
    """Load the saved state into ``trainer``; returns the saved history, one record per evaluation.

    ``trainer`` must be new and made with the same arguments as the saved one. Raises UserError when
    the saved training has other settings, another seed, other rows or another d_in, and when the
    files are missing, damaged or of a newer schema.
    """
    folder = Path(folder)
    state = _read_state(folder / STATE_FILE)
    tensors = read_tensors(folder / TENSORS_FILE)
    if state["step"] > trainer.steps:
        raise UserError(
            f"{folder / STATE_FILE}: step is {state['step']}, but this training has {trainer.steps} "
            f"steps; the file was damaged or altered: remove {folder} to begin again"
        )
    scale = state["job"].pop(INPUT_SCALE, math.nan)
    scale = scale if _is_number(scale) else math.nan
    _refuse_other_job(folder / STATE_FILE, _completed(state["job"]), _job(trainer))
    _read_as_saved(trainer, state["schema_version"], scale, tensors, folder)
    _load_model(trainer, tensors, folder / TENSORS_FILE)
    _load_moments(trainer, tensors, folder / TENSORS_FILE)
    name = SINCE_FIRED if state["schema_version"] > 2 else SINCE_FIRED_IN_VERSION_2
    trainer.tokens_since_fired_F.copy_(_named(tensors, name, folder / TENSORS_FILE))
    trainer.stream.position = StreamPosition(**state["position"])
    trainer.step, trainer.tokens = state["step"], state["tokens"]
    trainer.seconds, trainer.feed.waited = state["seconds"], state["waited"]
    trainer.loss = float("nan") if state["loss"] is None else state["loss"]
    return state["history"]


def _tensors(trainer: Trainer) -> dict[str, Tensor]:
    moments = {
        f"adam.{name}.{moment}": _separate(trainer.adam_state[parameter][moment])
        for name, parameter in trainer.model.named_parameters()
        if parameter in trainer.adam_state
        for moment in MOMENTS
    }
    model = {f"model.{name}": tensor for name, tensor in trainer.model.state_dict().items()}
    more = {SINCE_FIRED: trainer.tokens_since_fired_F, INPUT_MEAN: trainer.mean_D}
    return {**model, **moments, **more}


def _separate(moment: Tensor) -> Tensor:
    """The moment; a scalar is copied, as parameters share their step count and a file cannot."""
    return moment if moment.dim() else moment.clone()


def _job(trainer: Trainer) -> dict[str, Any]:
    """The settings and data that identify a training."""
    return {
        "d_in": trainer.train.d_in,
        "sae": asdict(trainer.model.config),
        "training": asdict(trainer.training),
        "seed": trainer.seed,
        "rows": len(trainer.train),
    }


def _completed(job: Any) -> Any:
    """A saved job with the defaults of the settings that did not exist when it was saved."""
    if not isinstance(job, dict) or not isinstance(job.get("training"), dict):
        return job
    return {**job, "training": {**asdict(TrainingConfig()), **job["training"]}}


def _read_as_saved(
    trainer: Trainer, schema: int, scale: float, tensors: dict[str, Tensor], folder: Path
) -> None:
    """Centre and scale the inputs as the saved training did.

    Raises UserError when mean or scale are not those of the trainer's rows.
    """
    mean_D, expected_D = torch.zeros_like(trainer.mean_D), trainer.mean_D
    if schema >= CENTRED_SINCE:
        mean_D = _named(tensors, INPUT_MEAN, folder / TENSORS_FILE).to(trainer.mean_D)
    if mean_D.shape != expected_D.shape:
        shapes = f"{list(mean_D.shape)}, expected {list(expected_D.shape)}"
        raise UserError(f"{folder / TENSORS_FILE}: {INPUT_MEAN} is {shapes}")
    here = trainer.scale
    if not mean_D.any():  # a training that began before inputs were centred
        here, expected_D = uncentred_scale(trainer.train.head(), trainer.train.d_in), mean_D
    if not abs(scale - here) <= TOLERANCE * here:
        raise _other_rows(folder, INPUT_SCALE, scale, here)
    size = math.sqrt(len(mean_D)) / scale + float(mean_D.norm())  # of a usual row
    if not float((mean_D - expected_D).norm()) <= TOLERANCE * size:
        raise _other_rows(folder, INPUT_MEAN, mean_D.norm(), expected_D.norm())
    trainer.read_as(mean_D, scale)


def _other_rows(folder: Path, what: str, there: Any, here: Any) -> UserError:
    norm = "the norm of " if what == INPUT_MEAN else ""
    return UserError(
        f"{folder / STATE_FILE}: another training was saved here: {norm}{what} is "
        f"{float(there):.9g}, now {float(here):.9g}; give the same rows, or another folder"
    )


def _read_state(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise UserError(f"{path}: not found; the folder holds no training to continue")
    state = read_json(path)
    if not isinstance(state, dict) or state.get("format") != "raysae training":
        raise UserError(f"{path}: not a raysae training")
    if state.get("schema_version") not in READABLE_VERSIONS:
        raise UserError(
            f"{path}: schema_version {state.get('schema_version')!r}; this raysae reads "
            f"{' and '.join(map(str, READABLE_VERSIONS))}; upgrade raysae"
        )
    needed = {"job", "position", "step", "tokens", "loss", "seconds", "waited", "history"}
    if missing := sorted(needed - state.keys()):
        raise UserError(f"{path}: lacks {', '.join(missing)}")
    known = {field.name for field in fields(StreamPosition)}
    position = state["position"]
    if not isinstance(position, dict) or not known - ADDED <= position.keys() <= known:
        raise UserError(f"{path}: position is {state['position']!r}; expected {sorted(known)}")
    if wrong := [name for name, sound in _checks(state).items() if not sound]:
        raise UserError(
            f"{path}: {', '.join(wrong)} has an unusable value; the file was damaged or altered: remove "
            f"{path.parent} to begin this training again"
        )
    return state


def _checks(state: dict[str, Any]) -> dict[str, bool]:
    """Whether the value of each key is of the right kind."""
    history, loss = state["history"], state["loss"]
    return {
        "job": isinstance(state["job"], dict),
        "position": all(_is_count(value) for value in state["position"].values()),
        "step": _is_count(state["step"]),
        "tokens": _is_count(state["tokens"]),
        "loss": loss is None or _is_number(loss),
        "seconds": _is_number(state["seconds"]),
        "waited": _is_number(state["waited"]),
        "history": isinstance(history, list) and all(isinstance(one, dict) for one in history),
    }


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _refuse_other_job(path: Path, saved: Any, wanted: dict[str, Any]) -> None:
    there, here = _flat(saved), _flat(wanted)
    different = [key for key in sorted({**there, **here}) if there.get(key) != here.get(key)]
    if different:
        lines = [f"{key} is {there.get(key)}, now {here.get(key)}" for key in different]
        raise UserError(
            f"{path}: another training was saved here: {'; '.join(lines)}; give the same settings "
            "and rows, or another folder"
        )


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {prefix: list(value) if isinstance(value, tuple) else value}
    pairs = [_flat(item, f"{prefix}.{key}" if prefix else key) for key, item in value.items()]
    return {key: item for pair in pairs for key, item in pair.items()}


def _load_model(trainer: Trainer, tensors: dict[str, Tensor], path: Path) -> None:
    model = {
        name.removeprefix("model."): tensor
        for name, tensor in tensors.items()
        if name.startswith("model.")
    }
    load_tensors(trainer.model, model, path)


def _load_moments(trainer: Trainer, tensors: dict[str, Tensor], path: Path) -> None:
    for name, parameter in trainer.model.named_parameters():
        if not parameter.requires_grad:  # it is frozen, and has none
            continue
        state = {m: _named(tensors, f"adam.{name}.{m}", path) for m in MOMENTS}
        for moment in ("exp_avg", "exp_avg_sq"):
            if state[moment].shape != parameter.shape:
                raise UserError(
                    f"{path}: adam.{name}.{moment} is {list(state[moment].shape)}, expected "
                    f"{list(parameter.shape)}"
                )
        trainer.adam_state[parameter] = {
            moment: tensor.to(trainer.device, copy=True) for moment, tensor in state.items()
        }


def _named(tensors: dict[str, Tensor], name: str, path: Path) -> Tensor:
    if name not in tensors:
        raise UserError(f"{path}: lacks the tensor {name}")
    return tensors[name]
