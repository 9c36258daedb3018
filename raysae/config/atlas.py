"""The recipe's atlas: where the sweet spot is trained, and by which config."""

from typing import Literal

from raysae.config.section import PositionKey, Positive, Section


class AtlasConfig(Section):
    """Where the sweet spot is trained."""

    enabled: bool = True
    """Whether to train the atlas."""
    layers: tuple[int, ...] | None = None
    """Layers of the store; null takes every one."""
    positions: tuple[PositionKey, ...] | None = None
    """Positions of the store; null takes every one."""
    hookpoints: tuple[str, ...] | None = None
    """Hookpoints of the store; null takes every one."""
    seeds_per_site: Positive = 1
    """Seeds each site is trained with; figures are their means, ``stability`` says how far they found the
    same latents, and the SAEs of the further seeds lie beside the first one's."""
    carry: Literal["same", "layers", "spread"] = "same"
    """How layers that are not swept get their config: ``same``, that of the sweep; ``layers``, d_sae and
    K interpolated between those of the layers in ``sweep.per_layer``; ``spread``, those of the nearest of
    these layers, with K in the ratio of the number of directions that the rows spread over."""

    def check_carry(self, swept: object) -> None:
        """Raise ValueError when ``carry`` has no layers to carry from: ``swept`` is the recipe's
        ``sweep.per_layer``."""
        if self.carry == "same":
            return
        if not isinstance(swept, tuple):
            raise ValueError(
                f"atlas.carry is {self.carry!r}, but sweep.per_layer is {swept or 'null'}; name the "
                "layers to sweep, from which the others' configs follow, such as sweep.per_layer=[0,4,8]"
            )
        if not self.enabled:
            raise ValueError(
                f"atlas.carry is {self.carry!r}, but atlas.enabled is false: no layer would be trained "
                "by it; give up one of them"
            )
