"""Adapters: a PEFT folder or hub id is loaded as its base model with the adapter merged in."""

import json
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

from raysae.errors import UserError
from raysae.transformer.model_spec import ModelSpec
from raysae.transformer.weight_files import read_header

ADAPTER_FILE = "adapter_config.json"


def adapter_config(spec: ModelSpec, location: str) -> dict[str, Any] | None:
    """The settings of an adapter; None when ``location``, a folder or hub id, holds none."""
    if Path(location).is_dir():
        file = Path(location) / ADAPTER_FILE
        return _read(spec, file) if file.is_file() else None
    if (Path(location).parts[:1] or ("",))[0] in (".", "/"):
        return None
    from transformers.utils.hub import cached_file

    options = {"_raise_exceptions_for_missing_entries": False}
    options |= {"_raise_exceptions_for_connection_errors": False}
    options |= {"_raise_exceptions_for_gated_repo": False}
    try:
        found = cached_file(location, ADAPTER_FILE, revision=spec.revision, **options)
    except (OSError, ValueError):
        return None
    return None if found is None else _read(spec, Path(found))


def base_spec(spec: ModelSpec, settings: dict[str, Any], location: str) -> ModelSpec:
    """The adapter's base model. Raises UserError when the adapter names none."""
    name = settings.get("base_model_name_or_path")
    if not name or not isinstance(name, str):
        raise UserError(
            f"{spec.prefix}model {spec.name!r}: is an adapter whose {ADAPTER_FILE} names no base model; "
            "add base_model_name_or_path to it, or merge the adapter into its base and save that"
        )
    folder = Path(location).absolute()
    if folder.is_dir() and not Path(name).is_absolute():  # relative to a folder around the adapter
        near = [str(place / name) for place in (folder, *folder.parents) if (place / name).is_dir()]
        name = near[0] if near else name
    return replace(spec, name=name, revision=settings.get("revision"))


def with_adapter(model: Any, spec: ModelSpec, settings: dict[str, Any], location: str) -> Any:
    """The base model with the adapter merged into its weights.

    Raises UserError when ``peft`` is not installed, or the adapter cannot be merged.
    """
    require_peft(spec)
    _refuse_other_modules(spec, settings)
    from peft import PeftModel

    kind = settings.get("peft_type")
    options: dict[str, Any] = {} if Path(location).is_dir() else {"revision": spec.revision}
    if Path(location).is_dir():
        _check_weights(Path(location), f"{spec.prefix}model {spec.name!r}")
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message=".*missing adapter keys.*")
            adapted = PeftModel.from_pretrained(model, location, **options)
        return adapted.merge_and_unload(safe_merge=True)
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"{spec.prefix}model {spec.name!r}: the adapter ({kind}) cannot be merged into "
            f"{settings.get('base_model_name_or_path')!r} ({type(error).__name__}: {reason}); merge it "
            "yourself (merge_and_unload) and save the whole model"
        ) from None


def _refuse_other_modules(spec: ModelSpec, settings: dict[str, Any]) -> None:
    """Raise UserError when ``peft`` would import a module that the adapter's file names."""
    if settings.get("megatron_config"):
        raise UserError(
            f"{spec.prefix}model {spec.name!r}: its {ADAPTER_FILE} has megatron_config, with which peft "
            "imports a module that the file names; merge the adapter into its base where you trust it, "
            "and save that"
        )


def require_peft(spec: ModelSpec) -> None:
    """Raise UserError when ``peft``, which reads adapters, is not installed."""
    from importlib.util import find_spec

    if find_spec("peft") is None:
        raise UserError(
            f"{spec.prefix}model {spec.name!r}: is an adapter, and peft, which reads adapters, is not "
            "installed; install it (pip install peft), or merge the adapter into its base and save that"
        )


def _check_weights(folder: Path, name: str) -> None:
    """Raise UserError when the adapter's weights are a pickle, or are damaged."""
    weights = folder / "adapter_model.safetensors"
    if not weights.is_file():
        raise UserError(
            f"{name}: is an adapter without adapter_model.safetensors; raysae reads no pickles "
            "(adapter_model.bin): save the adapter again with save_pretrained"
        )
    read_header(weights, name)


def _read(spec: ModelSpec, file: Path) -> dict[str, Any]:
    try:
        settings = json.loads(file.read_text())
        assert isinstance(settings, dict)
    except (ValueError, AssertionError, RecursionError):
        raise UserError(f"{spec.prefix}model {spec.name!r}: {file} is no JSON object") from None
    return settings
