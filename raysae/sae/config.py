"""The configuration of one SAE: a frozen dataclass, so that it serves without pydantic too.

The recipe (``raysae.config``) nests it; pydantic reads ``__pydantic_config__`` and the field
docstrings from here.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal


@dataclass(frozen=True, kw_only=True)
class SAEConfig:
    """What one SAE is. Raises ValueError on values that no SAE can have (``k > d_sae``)."""

    __pydantic_config__: ClassVar = {"extra": "forbid", "use_attribute_docstrings": True}

    variant: Literal["topk"] = "topk"
    """The SAE variant."""
    d_sae: int = 512
    """Dictionary size: the number of latents."""
    k: int = 32
    """Active latents a row, at most."""
    aux_coefficient: float = 1 / 32
    """Weight of the AuxK loss, which revives dead latents (0 turns it off)."""

    def __post_init__(self) -> None:
        if self.d_sae < 1:
            raise ValueError(f"d_sae is {self.d_sae}; a dictionary holds at least 1 latent")
        if self.k < 1:
            raise ValueError(f"k is {self.k}; at least 1 latent must be active a row")
        if self.k > self.d_sae:
            raise ValueError(
                f"k is {self.k}, above d_sae {self.d_sae}: no row can have more active latents "
                "than the dictionary holds; lower k or raise d_sae"
            )
        if self.aux_coefficient < 0:
            raise ValueError(f"aux_coefficient is {self.aux_coefficient}; it cannot be negative")
