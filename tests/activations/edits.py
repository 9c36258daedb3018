"""Changes of a store's manifest, for tests of what is wrong with it."""

import json


def edit(store, change):
    """Let ``change`` change the manifest of the store in the folder ``store``."""
    path = store / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))
