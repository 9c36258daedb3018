"""The pocket GPT-2: a small trained transformer in the package, for use without a network."""

from pathlib import Path

POCKET_FOLDER = Path(__file__).parent / "model"
"""The pocket GPT-2 in Hugging Face format (``from_pretrained`` loads it)."""
