"""Python code that lies beside a model: it never runs here unless the recipe says so."""

import json
from pathlib import Path
from typing import Any

from raysae.transformer.model_spec import ModelSpec

MAP = "auto_map"
"""The key of a model's files that names classes in Python files beside it."""
FILES = ("config.json", "tokenizer_config.json", "generation_config.json", "processor_config.json")
"""Files that may have the key."""


def trust(spec: ModelSpec) -> dict[str, bool]:
    """What every ``from_pretrained`` and ``from_config`` is given: without it, transformers asks on the
    terminal."""
    return {"trust_remote_code": spec.trust_remote_code}


def refusal(spec: ModelSpec, location: str) -> str:
    """The message for a model that needs code of its own."""
    file = file_with_code(location)
    named = f"{file} names Python code ({MAP})" if file else f"it names Python code ({MAP})"
    return (
        f"{spec.prefix}model {spec.name!r}: {named} that lies beside it, and raysae runs no code of a "
        "model's own (trust_remote_code); name a model of a family that transformers knows, or, when you "
        f"have read that code and trust it, set {spec.prefix}trust_remote_code=true"
    )


def file_with_code(location: str) -> Path | None:
    """The file in a model's folder that names code of its own; None when there is none, or no folder."""
    for name in FILES:
        settings = _settings(Path(location) / name)
        if settings.get(MAP):
            return Path(location) / name
    return None


def remote_loader(config: Any, spec: ModelSpec) -> str | None:
    """The class of transformers that loads a trusted model's own code; None when it has none."""
    classes = getattr(config, MAP, None) if spec.trust_remote_code else None
    known = ("AutoModelForCausalLM", "AutoModelForMaskedLM", "AutoModel")
    return next((name for name in known if name in (classes or ())), None)


def _settings(file: Path) -> dict[str, Any]:
    try:
        settings = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    except (OSError, ValueError, RecursionError):
        return {}
    return settings if isinstance(settings, dict) else {}
