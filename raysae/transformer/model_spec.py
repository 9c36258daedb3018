"""Which transformer to load."""

from dataclasses import dataclass

POCKET = "pocket"


@dataclass(frozen=True)
class ModelSpec:
    """Which transformer to load: ``pocket``, a folder in Hugging Face format, or a hub id."""

    name: str
    revision: str | None = None
    """A hub model's revision."""
    dtype: str = "float32"
    """The number format in which the model computes."""
    trust_remote_code: bool = False
    """Whether Python code that lies beside the model may run here."""
    shuffled: int | None = None
    """The seed by which the values of every weight are shuffled; None leaves them as they are."""
    prefix: str = ""
    """What stands before a setting's name in error messages, such as ``source.``."""
