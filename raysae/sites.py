"""Sites: one layer at one position, and how a site names its folder."""

import re
from dataclasses import dataclass
from functools import total_ordering

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
FOLDER = re.compile(rf"layer=([0-9]{{1,18}})/position=(-?[0-9]{{1,18}}|{POOL_NAME})")


@total_ordering
@dataclass(frozen=True)
class Site:
    """One layer at one position. ``position`` counts text tokens from 0, or from the end from -1;
    a name pools tokens: ``"all"`` every one, a pattern's name those that the pattern matches."""

    layer: int
    position: Position

    def __post_init__(self) -> None:
        if isinstance(self.position, str) and not re.fullmatch(POOL_NAME, self.position):
            raise ValueError(
                f"position is {self.position!r}; a number, {ALL!r}, or a pattern's name in lower case"
            )

    @property
    def folder(self) -> str:
        """The site's folder in a store or an atlas, such as ``layer=08/position=03``."""
        position = self.position if isinstance(self.position, str) else f"{self.position:02d}"
        return f"layer={self.layer:02d}/position={position}"

    @classmethod
    def of_folder(cls, folder: str) -> "Site":
        """The site of a folder such as ``layer=08/position=03``. Raises ValueError on another form."""
        found = FOLDER.fullmatch(folder)
        if not found:
            raise ValueError(f"{folder!r} is not a site's folder, such as layer=08/position=03")
        layer, position = found.groups()
        return cls.of_columns(int(layer), position)

    @classmethod
    def of_columns(cls, layer: int, position: str) -> "Site":
        """The site of a table's row, where every position is text."""
        return cls(layer, int(position) if position.lstrip("-").isdigit() else position)

    def __str__(self) -> str:
        return f"layer {self.layer}, position {self.position}"

    def __lt__(self, other: "Site") -> bool:
        return self._key() < other._key()

    def _key(self) -> tuple[int, bool, bool, int, str]:
        """Numbers first, then patterns by name, ``all`` last."""
        named = isinstance(self.position, str)
        number, name = (0, str(self.position)) if named else (int(self.position), "")
        return self.layer, named, name == ALL, number, name
