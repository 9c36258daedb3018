"""Loading the transformer: the pocket GPT-2, a local folder, or a hub id, all by the same path."""

from pathlib import Path
from typing import Any

from raysae.config import SourceConfig
from raysae.errors import UserError
from raysae.pocket import POCKET_FOLDER

POCKET = "pocket"


def model_location(source: SourceConfig) -> str:
    """What ``from_pretrained`` is given. Raises UserError when a named folder is not a model's."""
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


def with_absolute_model(source: SourceConfig) -> SourceConfig:
    """The source with a model folder's absolute path: workers have working folders of their own."""
    folder = Path(source.model).expanduser()
    if source.model == POCKET or not folder.is_dir():
        return source
    return source.model_copy(update={"model": str(folder.absolute())})


def load_model_config(source: SourceConfig) -> Any:
    """The transformer's configuration. Raises UserError when the model cannot be had."""
    from transformers import AutoConfig

    return _loaded(AutoConfig, source)


def load_model(source: SourceConfig) -> tuple[Any, Any]:
    """The transformer in float32 and its tokenizer. Raises UserError when they cannot be had."""
    import torch
    from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

    config = load_model_config(source)
    causal = any("CausalLM" in name or "LMHead" in name for name in config.architectures or ())
    model_class = AutoModelForCausalLM if causal else AutoModel
    return _loaded(model_class, source, dtype=torch.float32), _loaded(AutoTokenizer, source)


def _loaded(loader: Any, source: SourceConfig, **options: Any) -> Any:
    location = model_location(source)
    revision = {} if Path(location).is_dir() else {"revision": source.revision}
    try:
        return loader.from_pretrained(location, **revision, **options)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"source.model {source.model!r}: {loader.__name__} cannot load it ({reason[:300]}); "
            "check the name, the revision and the network, or name a local folder"
        ) from None
