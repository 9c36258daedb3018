"""Sites: one layer at one position, and how a site names its folder."""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import total_ordering
from pathlib import Path
from typing import Any

from raysae.errors import UserError

Position = int | str
"""A text token counted from 0, or from the end from -1; or the name of a pool of tokens: ``all``, or
a pattern's name such as ``numbers``."""

ALL = "all"
PATTERNS = {
    "numbers": r"\d+(?:[.,]\d+)*",
    "operators": r"[-+*/=×÷<>^%]",
    "answer": r"####\s*(.+)",
}
"""Patterns that every recipe knows. A token is at such a position when it shares a character with a
match, or with the first group's match where the pattern has one."""

ROLE = "role:"
"""``role:assistant`` in place of a regular expression: the content of a chat's messages of that role."""
CHAT_ROLES = ("assistant", "developer", "system", "tool", "user")

POOL_NAME = r"[a-z][a-z0-9_]*"
FOLDER = re.compile(
    rf"(?:hookpoint=({POOL_NAME})/)?layer=([0-9]{{1,18}})/position=(-?[0-9]{{1,18}}|{POOL_NAME})"
)
LAYER_FOLDERS = ("layer=*", "hookpoint=*/layer=*")
"""Patterns of the folders that hold the sites of a layer."""
SITE_FOLDERS = tuple(f"{layer}/position=*" for layer in LAYER_FOLDERS)
"""Patterns of the folders of sites."""


@total_ordering
@dataclass(frozen=True)
class Site:
    """One layer at one position. ``position`` counts text tokens from 0, or from the end from -1;
    a name pools tokens: ``"all"`` every one, a pattern's name those that the pattern matches.
    ``hookpoint`` is given only in a store of several hookpoints."""

    layer: int
    position: Position
    hookpoint: str | None = None

    def __post_init__(self) -> None:
        if isinstance(self.position, str) and not re.fullmatch(POOL_NAME, self.position):
            raise ValueError(
                f"position is {self.position!r}; a number, {ALL!r}, or a pattern's name in lower case"
            )
        if self.hookpoint is not None and not re.fullmatch(POOL_NAME, self.hookpoint):
            raise ValueError(
                f"hookpoint is {self.hookpoint!r}; a name in lower case, such as mlp_out"
            )

    @property
    def folder(self) -> str:
        """The site's folder in a store or an atlas, such as ``layer=08/position=03``, or of a store of
        several hookpoints ``hookpoint=mlp_out/layer=08/position=03``."""
        position = self.position if isinstance(self.position, str) else f"{self.position:02d}"
        first = "" if self.hookpoint is None else f"hookpoint={self.hookpoint}/"
        return f"{first}layer={self.layer:02d}/position={position}"

    @property
    def columns(self) -> dict[str, Any]:
        """``layer``, ``position`` and, where the site has one, ``hookpoint``, as records have them."""
        named = {} if self.hookpoint is None else {"hookpoint": self.hookpoint}
        return {"layer": self.layer, "position": self.position, **named}

    @classmethod
    def of_folder(cls, folder: str) -> "Site":
        """The site of a folder in the form of ``folder``. Raises ValueError on another form."""
        found = FOLDER.fullmatch(folder)
        if not found:
            raise ValueError(f"{folder!r} is not a site's folder, such as layer=08/position=03")
        hookpoint, layer, position = found.groups()
        return cls.of_columns(int(layer), position, hookpoint)

    @classmethod
    def of_columns(cls, layer: int, position: str, hookpoint: str | None = None) -> "Site":
        """The site of a table's row, where every position is text."""
        number = position.lstrip("-").isdigit()
        return cls(layer, int(position) if number else position, hookpoint)

    def __str__(self) -> str:
        first = "" if self.hookpoint is None else f"{self.hookpoint}, "
        return f"{first}layer {self.layer}, position {self.position}"

    def __lt__(self, other: "Site") -> bool:
        return self._key() < other._key()

    def _key(self) -> tuple[int, bool, bool, int, str, str]:
        """By layer; position: numbers first, then patterns by name, ``all`` last; then hookpoint."""
        named = isinstance(self.position, str)
        number, name = (0, str(self.position)) if named else (int(self.position), "")
        return self.layer, named, name == ALL, number, name, self.hookpoint or ""


def site_folders(root: Path, file: str | None = None) -> Iterator[Path]:
    """The folders of sites in a store's or an atlas's folder; with ``file``, the paths of that name (or
    pattern) in them."""
    for pattern in SITE_FOLDERS:
        yield from root.glob(pattern if file is None else f"{pattern}/{file}")


def hookpoints_in_sites(there: Sequence[str]) -> tuple[str | None, ...]:
    """How sites name the hookpoints ``there`` of a store: the only one has no name in them."""
    return tuple(there) if len(there) > 1 else (None,)


def chosen_hookpoints(
    wanted: Iterable[str] | None, there: Sequence[str], key: str
) -> tuple[str | None, ...]:
    """How the sites of a store with the hookpoints ``there`` name the ``wanted`` ones (None: all).

    Raises UserError, with the hookpoints that there are, when one is not among them; ``key`` is the
    recipe's key that names it.
    """
    if wanted is None:
        return hookpoints_in_sites(there)
    names = tuple(dict.fromkeys(wanted))
    if not names:
        raise UserError(f"{key} names nothing; give at least one of {', '.join(there)}, or null")
    for name in names:
        if name not in there:
            raise UserError(
                f"{key}: the store has no hookpoint {name!r}; it has {', '.join(there) or 'none'}"
            )
    return names if len(there) > 1 else (None,)
