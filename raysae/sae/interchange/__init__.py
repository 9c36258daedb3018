"""Import and export of SAEs in the formats of SAELens, sparsify and dictionary_learning."""

from raysae.sae.interchange.formats import FORMATS, export_sae, load_sae

__all__ = ["FORMATS", "export_sae", "load_sae"]
