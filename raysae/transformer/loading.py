"""Loading the transformer and its tokenizer: the pocket GPT-2, a local folder, or a hub id."""

from pathlib import Path
from typing import Any

from raysae.config.limits import shortened
from raysae.errors import UserError
from raysae.pocket import POCKET_FOLDER
from raysae.storage.files import expanded
from raysae.transformer.adapters import (
    ADAPTER_FILE,
    adapter_config,
    base_spec,
    require_peft,
    with_adapter,
)
from raysae.transformer.claims import check_claims, check_values
from raysae.transformer.model_config import text_config
from raysae.transformer.model_spec import POCKET, ModelSpec
from raysae.transformer.remote_code import refusal, remote_loader, trust
from raysae.transformer.weight_files import check_folder

__all__ = [
    "POCKET", "ModelSpec", "empty_model", "load_model", "load_model_config", "load_tokenizer",
    "model_location",
]  # fmt: skip


def model_location(spec: ModelSpec) -> str:
    """The folder or hub id for ``from_pretrained``. Raises UserError when a folder holds no model."""
    if spec.name == POCKET:
        return str(POCKET_FOLDER)
    folder = _as_folder(spec)
    if folder.is_dir():
        if not any((folder / file).is_file() for file in ("config.json", ADAPTER_FILE)):
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


def _as_folder(spec: ModelSpec) -> Path:
    """The name as a path. Raises UserError when no path or hub id can be such a name."""
    try:
        folder = expanded(spec.name)
        folder.is_dir()
    except OSError as error:  # such as one that is too long
        reason = error.strerror
        raise UserError(
            f"{spec.prefix}model {shortened(spec.name)}: {reason}; name a folder in Hugging Face format, "
            "a hub id such as openai-community/gpt2, or 'pocket'"
        ) from None
    return folder


def load_model_config(spec: ModelSpec) -> Any:
    """Load the transformer's configuration; of an adapter, that of its base model.

    Raises UserError when it cannot be loaded, or is of a kind that raysae does not read: quantised, or
    with code of its own.
    """
    from transformers import AutoConfig

    spec, _ = _base_and_adapter(spec)
    config = _loaded(AutoConfig, spec)
    _refuse_quantised(config, spec)
    _refuse_kernels(config, spec)
    check_claims(config, model_location(spec), f"{spec.prefix}model {spec.name!r}")
    return config


def load_tokenizer(spec: ModelSpec) -> Any:
    """Load the model's tokenizer; an adapter's own, or else its base model's.

    Raises UserError when it cannot be loaded or knows no words.
    """
    from transformers import AutoTokenizer

    base, settings = _base_and_adapter(spec)
    own = Path(model_location(spec))
    with_own = settings is None or any(own.glob("tokenizer*")) or not own.is_dir()
    tokenizer = _loaded(AutoTokenizer, spec if with_own else base)
    if len(tokenizer) <= len(set(tokenizer.all_special_ids)):  # made from the model's type alone
        raise UserError(
            f"{spec.prefix}model {spec.name!r}: it has no tokenizer, or one that knows no words; "
            "save the model's tokenizer beside it (tokenizer.save_pretrained)"
        )
    return tokenizer


def load_model(spec: ModelSpec) -> Any:
    """Load the transformer, in the class that its configuration names and ``spec.dtype``.

    An adapter is merged into its base model. With ``spec.shuffled`` every weight's values are shuffled.
    Raises UserError when it cannot be loaded, or when weights are missing, which would be random.
    """
    base, settings = _base_and_adapter(spec)
    if settings is not None:
        require_peft(spec)
    model = _load_whole(base)
    if settings is not None:
        model = with_adapter(model, spec, settings, model_location(spec))
    if spec.shuffled is not None:
        shuffle_weights(model, spec.shuffled)
    return model


def shuffle_weights(model: Any, seed: int) -> None:
    """Shuffle the values within each parameter of ``model``, in place, by ``seed``.

    Each keeps its mean and its spread; what the model has learned is gone. Weights that are tied stay so.
    """
    import torch

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, weight in sorted(model.named_parameters()):
            order = torch.randperm(weight.numel(), generator=generator)
            weight.copy_(weight.flatten()[order.to(weight.device)].view_as(weight))


def model_class(config: Any, spec: ModelSpec) -> Any:
    """The class of transformers that a configuration names, or that loads a trusted model's own code."""
    import transformers

    named = config.architectures
    name = remote_loader(config, spec) or (named[0] if isinstance(named, list) and named else None)
    found = getattr(transformers, name, None) if isinstance(name, str) else None
    loads = isinstance(found, type) and hasattr(found, "from_pretrained")
    return found if loads else transformers.AutoModel


def empty_model(config: Any, spec: ModelSpec) -> Any:
    """The model that a configuration describes, on the meta device: it takes no memory for its numbers.

    Raises UserError when there can be no such model, or it is far larger than the weights beside it.
    """
    import torch

    what, location = f"{spec.prefix}model {spec.name!r}", model_location(spec)
    made = model_class(config, spec)
    try:
        with torch.device("meta"):
            if made.__module__.startswith("transformers.models.auto"):
                model = made.from_config(config, **trust(spec))
            else:
                model = made._from_config(config)
    except Exception as error:  # a configuration may say anything
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"{what}: no model can be made by its config.json ({type(error).__name__}: {reason}); use "
            "the one that was saved with the weights"
        ) from None
    check_values(
        sum(part.numel() for part in (*model.parameters(), *model.buffers())), location, what
    )
    return model


def _load_whole(spec: ModelSpec) -> Any:
    import torch

    what = f"{spec.prefix}model {spec.name!r}"
    config = load_model_config(spec)
    if Path(model_location(spec)).is_dir():
        check_folder(Path(model_location(spec)), what)
        empty_model(config, spec)
    loader = model_class(config, spec)
    model, loading = _loaded(
        loader, spec, dtype=getattr(torch, spec.dtype), output_loading_info=True,
        use_safetensors=True,
    )  # fmt: skip
    missing = sorted(loading["missing_keys"])
    needed = [key for key in missing if "pooler" not in key]
    if needed:
        raise UserError(
            f"{what}: {len(needed)} of {loader.__name__}'s weights are not in its files "
            f"({', '.join(needed[:3])}, ...) and would be random; name a complete model"
        )
    for key in missing:  # not used, but random numbers would change the hash of the weights
        model.state_dict()[key].zero_()
    return model


def _base_and_adapter(spec: ModelSpec) -> tuple[ModelSpec, dict[str, Any] | None]:
    """The model to load, and the settings of the adapter to merge into it; None without one."""
    location = model_location(spec)
    whole = Path(location).is_dir() and not (Path(location) / ADAPTER_FILE).is_file()
    if whole or (not Path(location).is_dir() and _has_config(spec)):
        return spec, None
    settings = adapter_config(spec, location)
    return (spec, None) if settings is None else (base_spec(spec, settings, location), settings)


def _has_config(spec: ModelSpec) -> bool:
    """Whether a hub id has a configuration of its own; adapters have none."""
    from transformers.utils.hub import cached_file

    try:
        return cached_file(spec.name, "config.json", revision=spec.revision) is not None
    except (OSError, ValueError):
        return False


def _refuse_quantised(config: Any, spec: ModelSpec) -> None:
    for part in (config, text_config(config)):
        for key in ("quantization_config", "compression_config"):
            settings = getattr(part, key, None)
            if not settings:
                continue
            settings = settings if isinstance(settings, dict) else settings.to_dict()
            method = settings.get("quant_method") or settings.get("format") or "an unnamed method"
            raise UserError(
                f"{spec.prefix}model {spec.name!r}: is quantised ({getattr(method, 'value', method)}, by "
                f"{key} in its config.json), and raysae reads weights of 16 bits or more; name the "
                "original model, or save it dequantised"
            )


def _refuse_kernels(config: Any, spec: ModelSpec) -> None:
    """Refuse a configuration that names compiled code on the hub, which transformers would fetch."""
    for part in (config, text_config(config)):
        name = getattr(part, "_attn_implementation", None)
        if isinstance(name, str) and "/" in name and not spec.trust_remote_code:
            raise UserError(
                f"{spec.prefix}model {spec.name!r}: its config.json names code on the hub "
                f"(attn_implementation {name[:100]!r}), and raysae runs no code of a model's own; remove "
                "that line"
            )


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
        return loader.from_pretrained(location, **revision, **trust(spec), **options)
    except UserError:
        raise
    except Exception as error:  # from any of the libraries that loading calls
        raise UserError(_why_not_loaded(error, loader, spec)) from None


def _why_not_loaded(error: Exception, loader: Any, spec: ModelSpec) -> str:
    reason = " ".join(str(error).split())
    what = f"{spec.prefix}model {spec.name!r}"
    if "trust_remote_code" in reason:
        return refusal(spec, model_location(spec))
    if "mismatched_sizes" in reason:
        return (
            f"{what}: the sizes of its weights are not those of its config.json (hidden_size, layers, "
            "vocabulary or the like); use the config.json that was saved with these weights"
        )
    if "model_type" in reason or "model type" in reason:
        return (
            f"{what}: its config.json has no model_type that transformers knows ({reason[:200]}); use "
            "the config.json that was saved with the model, or a newer transformers"
        )
    advice = (
        "check the name, the revision and the network, or name a local folder"
        if isinstance(error, OSError)
        else "check its files"
    )
    return f"{what}: {loader.__name__} cannot load it ({type(error).__name__}: {reason[:300]}); {advice}"
