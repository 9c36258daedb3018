"""The configuration of one SAE: frozen dataclasses, so that they serve without pydantic too.

Each variant's own class lies in the variant's file. The recipe (``raysae.config``) nests them;
pydantic reads ``__pydantic_config__`` and the field docstrings from here.
"""

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar


def setting(default: Any, meaning: str) -> Any:
    """A field that subclasses inherit together with its meaning, which pydantic does not find in a
    docstring of the parent's."""
    return field(default=default, metadata={"description": meaning})


@dataclass(frozen=True, kw_only=True)
class SAEConfig:
    """What every variant's config holds. Raises ValueError on values that no SAE can have."""

    __pydantic_config__: ClassVar = {"extra": "forbid", "use_attribute_docstrings": True}
    sparsity_key: ClassVar[str]
    """The field that sets how sparse the features are."""

    variant: str
    """The SAE variant."""
    d_sae: int = setting(512, "Dictionary size: the number of latents.")

    def __post_init__(self) -> None:
        if self.d_sae < 1:
            raise ValueError(f"d_sae is {self.d_sae}; a dictionary holds at least 1 latent")


def refuse_negative(config: SAEConfig, *names: str) -> None:
    """Raise ValueError when one of the fields is negative or not finite."""
    for name in names:
        value = getattr(config, name)
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(f"{name} is {value}; it must be a number of at least 0")
