"""Names of hooks: which site a folder that SAELens wrote belongs to, and how a site is named there."""

import re
from collections.abc import Mapping
from dataclasses import replace
from functools import reduce
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
    pooled, and ``blocks.8.hook_resid_post.position_-1`` of one position. ``hookpoint`` is that of all
    sites, where they name none."""
    named = site.hookpoint or hookpoint
    hook = named if named and re.fullmatch(r"\w{1,60}", named) else "activations"
    position = "" if site.position == ALL else f".position_{site.position}"
    return f"blocks.{site.layer}.hook_{hook}{position}"


def saelens_folders(folder: Path) -> tuple[dict[Site, Path], dict[str, Any]]:
    """The folders of SAELens's SAEs below ``folder`` by site, and what they say of their activations.

    The layer is that of the hook's name, and the position is ``all``, or what raysae wrote into the
    metadata. Sites name their hookpoint where there are several. Raises UserError when a hook is not
    known, or when two SAEs are of one site or were trained on activations of another model or d_in. What
    they do not agree upon otherwise is None.
    """
    origins = {
        config.parent: read_origin(config.parent) for config in sorted(folder.rglob(CONFIG_FILE))
    }
    sites = {place: _site(place, origin) for place, origin in origins.items()}
    hookpoints = sorted({str(site.hookpoint) for site in sites.values()})
    found: dict[Site, Path] = {}
    for place, site in sites.items():
        named = site if len(hookpoints) > 1 else replace(site, hookpoint=None)
        if named in found:
            raise UserError(
                f"{place}: an SAE of {named}, as is {found[named]}; an atlas has one SAE a site: move "
                "one of the two elsewhere"
            )
        found[named] = place
    place, agreed = reduce(_agreed, origins.items())
    hookpoint = hookpoints[0] if len(hookpoints) == 1 else hookpoints
    told = {"provenance": "imported", **agreed, "hookpoint": hookpoint}
    return dict(sorted(found.items())), told


def _site(place: Path, origin: Mapping[str, Any]) -> Site:
    """The site of an SAE, with its hookpoint. Raises UserError when raysae does not read its hook."""
    layer, hookpoint = origin.get("layer"), origin.get("hookpoint")
    if type(layer) is not int or layer < 0 or hookpoint not in HOOKPOINTS:
        name = part(origin, "saelens").get("hook_name", hookpoint)
        raise UserError(
            f"{place / CONFIG_FILE}: metadata.hook_name is {name!r}; an atlas reads "
            f"blocks.LAYER.hook_NAME with NAME one of {', '.join(HOOKPOINTS)}; move this SAE elsewhere, "
            "or correct the name"
        )
    position = origin.get("position", ALL)
    try:
        return Site(layer, position if type(position) is int else str(position), hookpoint)
    except ValueError as error:
        raise UserError(f"{place / CONFIG_FILE}: metadata.raysae: {error}") from None


Origin = tuple[Path, dict[str, Any]]
"""The folder of an SAE, and where its activations came from."""


def _agreed(first: Origin, other: Origin) -> Origin:
    """What both say; what else they say is None where it differs."""
    (place, there), (folder, origin) = first, other
    for name in ("model", "d_in"):
        before, now = _named(there.get(name)), _named(origin.get(name))
        if None not in (before, now) and before != now:
            raise UserError(
                f"{folder}: its {name} is {now}, that of {place} is {before}; an atlas is of one model's "
                f"activations, with one {name}: move the SAEs of one of them into a folder of their own"
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
