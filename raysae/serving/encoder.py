"""Which features are active in a text: model and atlas, loaded once, used by one request at a time.

Shapes: A active latents of all rows, N rows.
"""

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from raysae.analysis.labelling.token_names import TokenNames, pieces
from raysae.atlas.library.atlas import Atlas, open_atlas
from raysae.atlas.library.encoding import Latents
from raysae.browser.details import rounded, shown
from raysae.errors import UserError, in_one_line
from raysae.sites import Site

LOADING, READY, MISSING = "loading", "ready", "missing"
MOST_CHARACTERS = 20_000
"""Characters of a text, at most."""
MOST_ACTIVATIONS = 256
"""Tokens of a text whose activations of a feature are told, at most: the strongest."""
MOST_SITES = 64
"""Sites of one request, at most: each has its SAE loaded."""


class NoModelError(UserError):
    """The model is not at hand, or is not the one that the store was made with."""


@dataclass
class Encoder:
    """The atlas in ``place`` with its model, or the one in the folder ``model``."""

    place: str
    model: str | None = None
    force: bool = False
    """Whether to use a model whose weights are not the store's."""
    state: str = LOADING
    reason: str = ""
    """Why there is no model."""

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._atlas: Atlas | None = None

    def start(self) -> None:
        """Load the model in the background."""
        threading.Thread(target=self.load, name="load the model", daemon=True).start()

    def load(self) -> None:
        """Load the model; ``state`` says then whether it is there."""
        with self._lock:
            if self.state == READY:
                return
            try:
                self._atlas = open_atlas(self.place)
                _hide_bars()
                self._atlas.transformer(self.model, None, self.force)
                self.state, self.reason = READY, ""
            except Exception as error:  # whatever is wrong with the model, the rest is served
                self.state, self.reason = MISSING, _as_options(in_one_line(error))

    def encode(
        self, text: str, sites: Sequence[Site], top: int, token: int | None = None
    ) -> dict[str, Any]:
        """The tokens of a text, and by site the ``top`` features that are the most active in it, or at
        one ``token``.

        Raises NoModelError without the model, UserError when the text or a site cannot be used.
        """
        with self._lock:
            if self.state != READY or self._atlas is None:
                raise NoModelError(self.reason or "the model is still being loaded; try again")
            transformer = self._atlas.transformer(self.model, None, self.force)
            sequences = list(transformer.sequences([text]))
            names = TokenNames(transformer.tokenizer)
            found = self._atlas.encode([text], sites, model=self.model, force=self.force)
        tokens = [shown(one) for sequence in sequences for one in pieces(sequence, names)]
        last = max((int(one.token_end.max()) for one in sequences if len(one)), default=0)
        answer = [
            {"site": site, "read": of.token_index.tolist(), "features": _top(of, top, token)}
            for site, of in found.items()
        ]
        return {"tokens": tokens, "cut": bool(text[last:].strip()), "sites": answer}


def _hide_bars() -> None:
    """Hide the progress bars of transformers: nobody looks at the server's terminal."""
    from transformers.utils import logging

    logging.disable_progress_bar()


def _top(latents: Latents, top: int, token: int | None) -> list[dict[str, Any]]:
    """The strongest features of a site, each with its activation at every token where it is active."""
    row_A, feature_A = latents.indices
    place_A = latents.token_index[row_A]
    strength_F = torch.zeros(latents.d_sae)
    ranked_A = torch.ones_like(place_A, dtype=torch.bool) if token is None else place_A == token
    strength_F.scatter_reduce_(0, feature_A[ranked_A], latents.values[ranked_A].float(), "amax")
    best = strength_F.topk(min(top, latents.d_sae))
    found = []
    for value, feature in zip(best.values.tolist(), best.indices.tolist(), strict=True):
        if value <= 0:
            break
        mine = (feature_A == feature).nonzero()[:, 0]
        strongest = latents.values[mine].topk(min(MOST_ACTIVATIONS, len(mine))).indices
        mine = mine[strongest].sort().values
        pairs = zip(place_A[mine].tolist(), latents.values[mine].tolist(), strict=True)
        activations = [[place, rounded(one)] for place, one in pairs]
        found.append({"feature": feature, "activation": rounded(value), "activations": activations})
    return found


def _as_options(reason: str) -> str:
    """What a caller of Python is told, as what a caller of the command is."""
    return reason.replace("model=FOLDER", "--model FOLDER").replace("force=True", "--force")
