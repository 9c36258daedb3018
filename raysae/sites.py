"""Sites: one layer at one position, and how a site names its folder."""

import re
from dataclasses import dataclass
from functools import total_ordering
from typing import Literal, cast

Position = int | Literal["all"]
"""A text token counted from 0, or from the end from -1; ``all`` pools every one."""

ALL = "all"
FOLDER = re.compile(r"layer=(\d+)/position=(-?\d+|all)")


@total_ordering
@dataclass(frozen=True)
class Site:
    """One layer at one position. ``position`` counts text tokens from 0, or from the end from -1;
    ``"all"`` pools every position."""

    layer: int
    position: Position

    def __post_init__(self) -> None:
        if isinstance(self.position, str) and self.position != ALL:
            raise ValueError(f"position is {self.position!r}; a number or {ALL!r}")

    @property
    def folder(self) -> str:
        """The site's folder in a store or an atlas, such as ``layer=08/position=03``."""
        position = self.position if isinstance(self.position, str) else f"{self.position:02d}"
        return f"layer={self.layer:02d}/position={position}"

    @classmethod
    def of_folder(cls, folder: str) -> "Site":
        found = FOLDER.fullmatch(folder)
        if not found:
            raise ValueError(f"{folder!r} is not a site's folder, such as layer=08/position=03")
        layer, position = found.groups()
        return cls(int(layer), cast(Position, position if position == ALL else int(position)))

    def __str__(self) -> str:
        return f"layer {self.layer}, position {self.position}"

    def __lt__(self, other: "Site") -> bool:
        return self._key() < other._key()

    def _key(self) -> tuple[int, bool, int]:
        pooled = isinstance(self.position, str)
        return self.layer, pooled, 0 if isinstance(self.position, str) else self.position
