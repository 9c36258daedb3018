"""Loading the transformer and its tokenizer: the pocket GPT-2, a local folder, or a hub id."""

from pathlib import Path
from typing import Any

from raysae.config.source import SourceConfig
from raysae.errors import UserError
from raysae.pocket import POCKET_FOLDER

POCKET = "pocket"


def model_location(source: SourceConfig) -> str:
    """The folder or hub id for ``from_pretrained``. Raises UserError when a folder holds no model."""
    if source.model == POCKET:
        return str(POCKET_FOLDER)
    folder = Path(source.model).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise UserError(
                f"source.model {source.model!r}: the folder holds no config.json; expected a "
                "folder that save_pretrained wrote"
            )
        return str(folder.absolute())
    if folder.is_absolute() or source.model.startswith((".", "~")) or source.model.count("/") > 1:
        raise UserError(
            f"source.model {source.model!r}: no such folder; name a folder in Hugging Face format, "
            "a hub id such as openai-community/gpt2, or 'pocket'"
        )
    return source.model


def with_absolute_paths(source: SourceConfig) -> SourceConfig:
    """The source with absolute paths: workers have other working folders."""
    paths = {
        key: str(Path(value).expanduser().absolute())
        for key in ("model", "dataset")
        if (value := getattr(source, key)) != POCKET and Path(value).expanduser().exists()
    }
    return source.model_copy(update=paths)


def load_model_config(source: SourceConfig) -> Any:
    """Load the transformer's configuration. Raises UserError when it cannot be loaded."""
    from transformers import AutoConfig

    return _loaded(AutoConfig, source)


def load_tokenizer(source: SourceConfig) -> Any:
    """Load the model's tokenizer. Raises UserError when it cannot be loaded or knows no words."""
    from transformers import AutoTokenizer

    tokenizer = _loaded(AutoTokenizer, source)
    if len(tokenizer) <= len(set(tokenizer.all_special_ids)):  # made from the model's type alone
        raise UserError(
            f"source.model {source.model!r}: it has no tokenizer, or one that knows no words; "
            "save the model's tokenizer beside it (tokenizer.save_pretrained)"
        )
    return tokenizer


def load_model(source: SourceConfig) -> Any:
    """Load the transformer, in the class that its configuration names and ``source.model_dtype``.

    Raises UserError when it cannot be loaded, or when weights are missing, which would be random.
    """
    import torch
    import transformers

    name = next(iter(load_model_config(source).architectures or ()), "AutoModel")
    model_class = getattr(transformers, name, transformers.AutoModel)
    model, loading = _loaded(
        model_class, source, dtype=getattr(torch, source.model_dtype), output_loading_info=True
    )
    missing = sorted(key for key in loading["missing_keys"] if "pooler" not in key)
    if missing:
        raise UserError(
            f"source.model {source.model!r}: {len(missing)} of {name}'s weights are not in its files "
            f"({', '.join(missing[:3])}, ...) and would be random; name a complete model"
        )
    return model


def _loaded(loader: Any, source: SourceConfig, **options: Any) -> Any:
    location = model_location(source)
    local = Path(location).is_dir()
    if local and source.revision is not None:
        raise UserError(
            f"source.revision {source.revision!r}: {source.model!r} is a folder, which has no "
            "revisions; leave it out, or name a hub model"
        )
    revision = {} if local else {"revision": source.revision}
    try:
        return loader.from_pretrained(location, **revision, **options)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"source.model {source.model!r}: {loader.__name__} cannot load it ({reason[:300]}); "
            "check the name, the revision and the network, or name a local folder"
        ) from None
