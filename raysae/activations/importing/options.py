"""The options of an import, and their checks."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from raysae.activations.importing.names import ROLES
from raysae.activations.schema import ITEM_BYTES, Dtype
from raysae.activations.writer import NonFinite
from raysae.errors import UserError
from raysae.redaction import WHERE_SECRETS_BELONG, secrets_in
from raysae.sites import ALL, POOL_NAME, Position


@dataclass(frozen=True)
class ImportOptions:
    """The options of an import. Raises UserError when one is out of range."""

    layer: int | None = None
    """The layer of every row; when the file gives layers, the one to import."""
    position: Position | None = None
    """A token's number, ``all`` or a pool's name; when the file gives positions, the one to import."""
    keys: Mapping[str, str] = field(default_factory=dict)
    """Which tensor or column of the file plays a role (``activation``, ``sequence``, ...)."""
    sequences: Path | None = None
    """A .npy file with a sequence id for each row."""
    d_in: int | None = None
    """Raw files only: values per row."""
    raw_dtype: Dtype | None = None
    """Raw files only: the dtype of the values."""
    axes: str | None = None
    """The dimensions of one array, such as ``sequence,layer,token,d_in``."""
    pad_token: int | None = None
    """The token id of the padding, where the file has token ids and no mask."""
    dtype: Dtype | None = None
    """The store's dtype; None for the file's."""
    validation: float = 0.1
    test: float = 0.1
    seed: int = 0
    """Decides the order of the rows."""
    non_finite: NonFinite = "refuse"
    max_norm_ratio: float | None = None
    """Rows with a norm over so many times the median norm of their shard are left out."""
    shard_rows: int | None = None
    model: str | None = None
    dataset: str | None = None
    hookpoint: str | None = None

    def __post_init__(self) -> None:
        for option, found in secrets_in(vars(self)):
            raise UserError(f"{_flag(option)}: holds {found}; {WHERE_SECRETS_BELONG}")
        object.__setattr__(self, "position", parse_position(self.position))
        object.__setattr__(self, "sequences", self.sequences and Path(self.sequences))
        for option in ("d_in", "shard_rows"):
            self._at_least(option, 1)
        for option in ("layer", "seed", "pad_token"):
            self._at_least(option, 0)
        self._one_of("dtype", tuple(ITEM_BYTES))
        self._one_of("raw_dtype", tuple(ITEM_BYTES))
        self._one_of("non_finite", get_args(NonFinite))
        self._ratio()
        fractions = self.validation, self.test
        if not all(0 <= fraction < 1 for fraction in fractions) or sum(fractions) >= 1:
            raise UserError(
                f"--validation {self.validation} and --test {self.test}: expected fractions "
                "of at least 0 that leave rows for training, such as 0.1 and 0.1"
            )
        unknown = sorted(set(self.keys) - set(ROLES))
        if unknown:
            raise UserError(f"--key {unknown[0]}=...: unknown; known are {', '.join(ROLES)}")

    @property
    def split(self) -> dict[str, float]:
        """The fractions of the sequences, as the manifest has them."""
        return {"validation": self.validation, "test": self.test}

    def record(self) -> dict[str, Any]:
        """The options as recorded in the manifest, without paths of this machine."""
        options = {**vars(self), "keys": dict(self.keys), "sequences": base_name(self.sequences)}
        if self.max_norm_ratio is None:  # so that other imports are recorded as before
            del options["max_norm_ratio"]
        return options

    def _ratio(self) -> None:
        value = self.max_norm_ratio
        if value is not None and not (isinstance(value, int | float) and 1 < value < math.inf):
            raise UserError(
                f"--max-norm-ratio {value}: expected a number over 1, such as 10: so many times the "
                "median norm"
            )

    def _at_least(self, option: str, least: int) -> None:
        value = getattr(self, option)
        if value is not None and (not isinstance(value, int) or value < least):
            raise UserError(f"{_flag(option)} {value}: expected a whole number from {least}")

    def _one_of(self, option: str, known: tuple[str, ...]) -> None:
        value = getattr(self, option)
        if value is not None and value not in known:
            raise UserError(f"{_flag(option)} {value}: expected one of {', '.join(known)}")


def parse_position(value: Position | None) -> Position | None:
    """Parse a position; numbers become int. Raises UserError when it is not a position."""
    if value is None or isinstance(value, int):
        return value
    if re.fullmatch(r"[+-]?\d+", value):
        return int(value)
    if not re.fullmatch(POOL_NAME, value):
        raise UserError(
            f"--position {value}: expected a number (-1 is the last token), {ALL!r}, or a pool's "
            "name in lower case"
        )
    return value


def base_name(path: Path | None) -> str | None:
    """The file's name without its folders, with links followed; None for None."""
    return None if path is None else path.resolve().name


def _flag(option: str) -> str:
    return "--" + option.replace("_", "-")
