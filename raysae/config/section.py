"""What all sections of a recipe share: their base class and the types of their values."""

import math
import re
from typing import Annotated, Any

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
)
from pydantic_core import PydanticCustomError

from raysae.config.limits import LARGEST
from raysae.redaction import WHERE_SECRETS_BELONG, secrets_in
from raysae.sites import POOL_NAME

Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(ge=1, le=LARGEST)]
PositionKey = int | Annotated[str, Field(pattern=f"^{POOL_NAME}$")]
SECRET = "secret"
"""The kind of pydantic's complaint about a value that holds a secret."""
UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
UNITS |= {f"{unit}i": 1024**power for power, unit in enumerate("kmgt", 1)}


def _number_with_unit(value: Any) -> Any:
    found = re.fullmatch(r"\s*([\d._]+(?:e\d+)?)\s*([kmgt]?i?b?)\s*", str(value).lower())
    if not isinstance(value, str) or not found:
        return value
    unit = found[2].rstrip("b")
    if unit not in UNITS:
        return value
    size = float(found[1].replace("_", "")) * UNITS[unit]
    if not math.isfinite(size):
        raise ValueError(f"is larger than any size; expected at most {LARGEST}")
    return round(size)


Size = Annotated[int, BeforeValidator(_number_with_unit), Field(ge=1, le=LARGEST)]
"""A count, or bytes with a unit such as ``50 GB``."""


class Section(BaseModel):
    """The base of every section: frozen, without unknown keys, with docstrings as help."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False,
        hide_input_in_errors=True,
    )  # fmt: skip

    @field_validator("*", mode="before")
    @classmethod
    def _without_secrets(cls, value: Any, info: ValidationInfo) -> Any:
        name = info.field_name or ""
        for key, found in secrets_in(value, name):
            inner = key.removeprefix(name).removeprefix(".")
            said = f"holds {found}; {WHERE_SECRETS_BELONG}"
            raise PydanticCustomError(SECRET, "{said}", {"said": said, "inner": inner})
        return value
