"""A finished atlas: opened, used on texts, written for other libraries. Without Ray."""

from raysae.atlas.library.atlas import Atlas, MissingSiteError, open_atlas
from raysae.atlas.library.encoding import Latents
from raysae.atlas.library.export import Exported, export_atlas

__all__ = ["Atlas", "Exported", "Latents", "MissingSiteError", "export_atlas", "open_atlas"]
