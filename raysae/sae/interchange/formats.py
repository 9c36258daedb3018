"""The formats of SAEs: detection, import and export."""

from collections.abc import Callable, Collection
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raysae.errors import UserError
from raysae.redaction import redacted_values
from raysae.sae.base import SAE
from raysae.sae.checkpoint import CONFIG_FILE, read_sae, refuse_unusable
from raysae.sae.hierarchical_topk import HierarchicalTopKSAE
from raysae.sae.interchange import dictionary_learning, saelens, sparsify
from raysae.storage.files import read_json, replacing_folder
from raysae.storage.untrusted import usable_path

OWN = "raysae"


@dataclass(frozen=True)
class Format:
    """Another library's file format of an SAE, in a folder."""

    read: Callable[[Path], SAE]
    write: Callable[[SAE, Path], None]
    variants: Collection[str]
    """The variants that it can represent."""


FORMATS = {
    "saelens": Format(saelens.read, saelens.write, saelens.ARCHITECTURES),
    "sparsify": Format(sparsify.read, sparsify.write, ["topk"]),
    "dictionary_learning": Format(
        dictionary_learning.read, dictionary_learning.write, dictionary_learning.CLASS_OF
    ),
}


def load_sae(folder: str | Path, device: str = "cpu", format: str | None = None) -> SAE:
    """The SAE in ``folder``, on ``device``, for inference: its parameters have no gradients.

    Without ``format``, ``cfg.json`` shows whether the format is that of raysae, SAELens or
    sparsify. The format of dictionary_learning is a pickle and is read only with
    ``format="dictionary_learning"`` (with ``weights_only``, so that no code in it runs).

    Raises UserError, naming the file and the key, when something is missing, has a wrong shape, is
    of a newer schema, has no equivalent in raysae, or when a weight is not finite.
    """
    folder = usable_path(folder)
    found = format or _format_of(folder)
    if found not in (OWN, *FORMATS):
        raise UserError(f"format is {found!r}; known are {', '.join((OWN, *FORMATS))}")
    sae = read_sae(folder) if found == OWN else FORMATS[found].read(folder)
    for name, tensor in sae.state_dict().items():  # a conversion may have overflowed
        refuse_unusable(folder, name, tensor)
    # of whoever made it: it is printed and written again
    sae.metadata = redacted_values(sae.metadata)
    return sae.eval().requires_grad_(False).to(device)


def export_sae(sae: SAE, folder: str | Path, to: str) -> None:
    """Write ``sae`` into ``folder`` in the format of the library ``to``, a key of ``FORMATS``.

    A hierarchical_topk SAE is written as the topk of its k; ``sae.at_k(k)`` gives that of a smaller one.

    Raises UserError when ``to`` is unknown, the format cannot represent the SAE's variant, or the
    folder exists and is not empty.
    """
    folder = usable_path(folder)
    if to not in FORMATS:
        raise UserError(f"there is no format {to!r}; known are {', '.join(FORMATS)}")
    if isinstance(sae, HierarchicalTopKSAE):
        sae = sae.at_k(sae.config.k)
    if sae.config.variant not in FORMATS[to].variants:
        known = ", ".join(FORMATS[to].variants)
        others = [name for name, one in FORMATS.items() if sae.config.variant in one.variants]
        raise UserError(
            f"{to} cannot express {sae.config.variant}; of raysae's variants it knows {known}"
            + (f"; export it to {' or '.join(others)}" if others else "")
        )
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder}: is there already; give another folder, or remove it")
    shown = copy(sae)
    shown.metadata = redacted_values(sae.metadata)
    with replacing_folder(folder) as temporary:
        FORMATS[to].write(shown, temporary)


def _format_of(folder: Path) -> str:
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "not found"
        raise UserError(
            f"{folder}: {what}; an SAE is a folder with {CONFIG_FILE} and its weights, such as "
            "runs/NAME/sweet_spot"
        )
    if (folder / CONFIG_FILE).is_file():
        return _format_of_config(folder / CONFIG_FILE, read_json(folder / CONFIG_FILE))
    if (folder / dictionary_learning.WEIGHTS_FILE).is_file():
        raise UserError(
            f"{folder / dictionary_learning.WEIGHTS_FILE}: a pickle, which is read only when asked "
            'for; if it comes from dictionary_learning: load_sae(folder, format="dictionary_learning")'
        )
    raise UserError(f"{folder}: holds no {CONFIG_FILE} (not found); it is not an SAE's folder")


def _format_of_config(path: Path, config: Any) -> str:
    if isinstance(config, dict):
        if config.get("format") == OWN:
            return OWN
        if "architecture" in config:
            return "saelens"
        if "expansion_factor" in config or "num_latents" in config:
            return "sparsify"
    raise UserError(
        f"{path}: not a raysae SAE (its 'format' is not 'raysae'), nor one of SAELens (no "
        "'architecture') or sparsify (no 'num_latents')"
    )
