"""Names of hooks: which site a folder that SAELens wrote belongs to, and how a site is named there."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from raysae.errors import UserError
from raysae.sae.checkpoint import CONFIG_FILE
from raysae.sae.interchange.saelens import read_origin
from raysae.sae.interchange.settings import part
from raysae.sites import ALL, Site

HOOKPOINTS = ("resid_pre", "resid_post", "attn_out", "mlp_out")
"""The hookpoints that raysae reads; ``blocks.8.hook_resid_post`` is a hook's name."""


def folder_name(site: Site, hookpoint: str | None) -> str:
    """The folder of a site's SAE in an export, such as ``blocks.8.hook_resid_post`` where positions are
    pooled, and ``blocks.8.hook_resid_post.position_-1`` of one position."""
    hook = hookpoint if hookpoint and re.fullmatch(r"\w{1,60}", hookpoint) else "activations"
    position = "" if site.position == ALL else f".position_{site.position}"
    return f"blocks.{site.layer}.hook_{hook}{position}"


def saelens_folders(folder: Path) -> tuple[dict[Site, Path], dict[str, Any]]:
    """The folders of SAELens's SAEs below ``folder`` by site, and what they say of their activations.

    The layer is that of the hook's name, and the position is ``all``, or what raysae wrote into the
    metadata. Raises UserError when a hook is not known, or when two SAEs are of one site or were trained
    on activations of another model, hookpoint or d_in. What they do not agree upon otherwise is None.
    """
    found: dict[Site, Path] = {}
    first: tuple[Path, dict[str, Any]] | None = None
    for config in sorted(folder.rglob(CONFIG_FILE)):
        origin = read_origin(config.parent)
        site = _site(config, origin)
        if site in found:
            raise UserError(
                f"{config.parent}: an SAE of {site}, as is {found[site]}; an atlas has one SAE a site: "
                "move one of the two elsewhere"
            )
        found[site] = config.parent
        first = (config.parent, origin) if first is None else _agreed(first, config.parent, origin)
    assert first is not None, "called for folders with a cfg.json"
    return dict(sorted(found.items())), {"provenance": "imported", **first[1]}


def _site(config: Path, origin: Mapping[str, Any]) -> Site:
    """The site of an SAE. Raises UserError when its hook is none that raysae reads."""
    layer, hookpoint = origin.get("layer"), origin.get("hookpoint")
    if type(layer) is not int or layer < 0 or hookpoint not in HOOKPOINTS:
        name = part(origin, "saelens").get("hook_name", hookpoint)
        raise UserError(
            f"{config}: metadata.hook_name is {name!r}; an atlas reads blocks.LAYER.hook_NAME with NAME "
            f"one of {', '.join(HOOKPOINTS)}; move this SAE elsewhere, or correct the name"
        )
    position = origin.get("position", ALL)
    try:
        return Site(layer, position if type(position) is int else str(position))
    except ValueError as error:
        raise UserError(f"{config}: metadata.raysae: {error}") from None


def _agreed(
    first: tuple[Path, dict[str, Any]], folder: Path, origin: Mapping[str, Any]
) -> tuple[Path, dict[str, Any]]:
    """What is the same in both; what else an SAE's origin says is None where it differs."""
    place, there = first
    for name, what in (("model", "model"), ("hookpoint", "hookpoint"), ("d_in", "d_in")):
        before, now = _named(there.get(name)), _named(origin.get(name))
        if None not in (before, now) and before != now:
            raise UserError(
                f"{folder}: its {what} is {now}, that of {place} is {before}; an atlas is of one model's "
                f"activations, with one {what}: move the SAEs of one of them into a folder of their own"
            )
    agreed = {
        name: value if _named(value) == _named(origin.get(name)) else None
        for name, value in there.items()
    }
    known = [one for one in (there.get("model"), origin.get("model")) if _named(one) is not None]
    return place, {**agreed, "model": known[0] if known else None}


def _named(value: Any) -> Any:
    """A model or data set by its id."""
    return value.get("id") if isinstance(value, Mapping) else value
