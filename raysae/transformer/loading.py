"""Loading the transformer and its tokenizer: the pocket GPT-2, a local folder, or a hub id."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raysae.errors import UserError
from raysae.pocket import POCKET_FOLDER

POCKET = "pocket"


@dataclass(frozen=True)
class ModelSpec:
    """Which transformer to load: ``pocket``, a folder in Hugging Face format, or a hub id."""

    name: str
    revision: str | None = None
    """A hub model's revision."""
    dtype: str = "float32"
    """The number format in which the model computes."""
    prefix: str = ""
    """What stands before a setting's name in error messages, such as ``source.``."""


def model_location(spec: ModelSpec) -> str:
    """The folder or hub id for ``from_pretrained``. Raises UserError when a folder holds no model."""
    if spec.name == POCKET:
        return str(POCKET_FOLDER)
    folder = Path(spec.name).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise UserError(
                f"{spec.prefix}model {spec.name!r}: the folder holds no config.json; expected a "
                "folder that save_pretrained wrote"
            )
        return str(folder.absolute())
    if folder.is_absolute() or spec.name.startswith((".", "~")) or spec.name.count("/") > 1:
        raise UserError(
            f"{spec.prefix}model {spec.name!r}: no such folder; name a folder in Hugging Face format, "
            "a hub id such as openai-community/gpt2, or 'pocket'"
        )
    return spec.name


def load_model_config(spec: ModelSpec) -> Any:
    """Load the transformer's configuration. Raises UserError when it cannot be loaded."""
    from transformers import AutoConfig

    return _loaded(AutoConfig, spec)


def load_tokenizer(spec: ModelSpec) -> Any:
    """Load the model's tokenizer. Raises UserError when it cannot be loaded or knows no words."""
    from transformers import AutoTokenizer

    tokenizer = _loaded(AutoTokenizer, spec)
    if len(tokenizer) <= len(set(tokenizer.all_special_ids)):  # made from the model's type alone
        raise UserError(
            f"{spec.prefix}model {spec.name!r}: it has no tokenizer, or one that knows no words; "
            "save the model's tokenizer beside it (tokenizer.save_pretrained)"
        )
    return tokenizer


def load_model(spec: ModelSpec) -> Any:
    """Load the transformer, in the class that its configuration names and ``spec.dtype``.

    Raises UserError when it cannot be loaded, or when weights are missing, which would be random.
    """
    import torch
    import transformers

    name = next(iter(load_model_config(spec).architectures or ()), "AutoModel")
    model_class = getattr(transformers, name, transformers.AutoModel)
    model, loading = _loaded(
        model_class, spec, dtype=getattr(torch, spec.dtype), output_loading_info=True
    )
    missing = sorted(key for key in loading["missing_keys"] if "pooler" not in key)
    if missing:
        raise UserError(
            f"{spec.prefix}model {spec.name!r}: {len(missing)} of {name}'s weights are not in its files "
            f"({', '.join(missing[:3])}, ...) and would be random; name a complete model"
        )
    return model


def _loaded(loader: Any, spec: ModelSpec, **options: Any) -> Any:
    location = model_location(spec)
    local = Path(location).is_dir()
    if local and spec.revision is not None:
        raise UserError(
            f"{spec.prefix}revision {spec.revision!r}: {spec.name!r} is a folder, which has no "
            "revisions; leave it out, or name a hub model"
        )
    revision = {} if local else {"revision": spec.revision}
    try:
        return loader.from_pretrained(location, **revision, **options)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"{spec.prefix}model {spec.name!r}: {loader.__name__} cannot load it ({reason[:300]}); "
            "check the name, the revision and the network, or name a local folder"
        ) from None
