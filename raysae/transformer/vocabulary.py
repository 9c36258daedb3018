"""Token ids that the model has no embedding for."""

import numpy as np
from numpy.typing import NDArray

from raysae.errors import UserError


def check_token_ids(ids: NDArray[np.int32], embedding_rows: int, sequence: int) -> None:
    """Raise UserError, naming the sequence and the place, when an id has no row in the embedding."""
    beyond = np.flatnonzero((ids >= embedding_rows) | (ids < 0))
    if len(beyond):
        raise UserError(
            f"sequence {sequence}: token {beyond[0]} has id {ids[beyond[0]]}, but the model's embedding "
            f"has {embedding_rows} rows (0 to {embedding_rows - 1}): the tokenizer is another model's, "
            "or tokens were added to it alone; use the model's own tokenizer, or resize the model's "
            "embeddings (resize_token_embeddings) and train them"
        )
