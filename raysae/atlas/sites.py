"""The sites of the atlas."""

from raysae.activations import Site, Store
from raysae.sites import chosen_hookpoints


def atlas_sites(
    store: Store,
    layers: tuple[int, ...] | None,
    positions: tuple | None,
    hookpoints: tuple[str, ...] | None = None,
) -> list[Site]:
    """The sites of the given layers, positions and hookpoints (None: all of the store), sorted.

    Raises UserError when the store lacks one of them.
    """
    wanted = [
        Site(layer, position, hookpoint)
        for layer in (store.layers if layers is None else layers)
        for position in (store.positions if positions is None else positions)
        for hookpoint in chosen_hookpoints(hookpoints, store.hookpoints, "atlas.hookpoints")
    ]
    for site in wanted:
        store.entry(site)
    return sorted(wanted)
