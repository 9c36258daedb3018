"""The sites of the atlas."""

from raysae.activations import Site, Store


def atlas_sites(
    store: Store, layers: tuple[int, ...] | None, positions: tuple | None
) -> list[Site]:
    """The sites of the given layers and positions (None: all of the store), sorted.

    Raises UserError when the store lacks one of them.
    """
    wanted = [
        Site(layer, position)
        for layer in (store.layers if layers is None else layers)
        for position in (store.positions if positions is None else positions)
    ]
    for site in wanted:
        store.entry(site)
    return sorted(wanted)
