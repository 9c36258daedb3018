"""What is shown of one feature: plain values for JSON, with texts in which nothing steers a page."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from raysae.printable import printable

Row = Mapping[str, Any]
MEASURES = ("ce", "kl", "accuracy", "ce_answer", "away")
"""Effects of the ablation that have intervals."""
ATTRIBUTES = 8
"""Attributes listed of a feature: those of the largest correlations."""


class Words:
    """Texts that occur often, each written once and known by its number."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    def number(self, text: str) -> int:
        """The text's number."""
        return self._numbers.setdefault(text, len(self._numbers))

    @property
    def texts(self) -> list[str]:
        """The texts by number, as they are shown."""
        return [shown(text) for text in self._numbers]


def shown(text: str) -> str:
    """The text with invisible and direction-changing characters as escapes; ends of lines stay."""
    return printable(text, lines=True)


def rounded(value: Any, digits: int = 4) -> Any:
    """A number with so many significant digits; anything else as it is. None for what is not finite."""
    if not isinstance(value, float):
        return value
    if value != value or value in (float("inf"), float("-inf")):
        return None
    return float(f"{value:.{digits}g}")


def feature_detail(
    row: Row, contexts: Sequence[Row], attributes: Sequence[Row], words: Words
) -> dict[str, Any]:
    """What the labels say of a feature."""
    return {
        "feature": row["feature"],
        "figures": {name: rounded(row[name]) for name in FIGURES},
        "histogram": [row["histogram_first"], row["histogram"]],
        "tokens": _listed(words, row, "tokens", "token_counts", "token_shares", "token_fires"),
        "promotes": _listed(words, row, "promotes", "promotes_by"),
        "suppresses": _listed(words, row, "suppresses", "suppresses_by"),
        "alike": _pairs(row["alike"], row["alike_cosine"]),
        "attributes": [_attribute(one) for one in _largest(attributes)],
        "description": _description(row),
        "contexts": [_context(one, words) for one in contexts],
    }


FIGURES = (
    "rows", "sequences", "active", "density", "density_low", "density_high", "max_activation",
    "mean_activation", "std_activation", "mean_index", "first_share", "special_share", "token_kinds",
    "token_entropy", "coherence", "coherence_texts", "seed_agreement", "seed_chance",
)  # fmt: skip


def effect_detail(row: Row | None, tokens: Sequence[str] = ()) -> dict[str, Any] | None:
    """A row of the ablation's features: each effect with its interval; None where there is none."""
    if row is None:
        return None
    followed = [name for name in row if name.startswith("logprob_")]
    return {
        "kind": row["kind"], "matched_to": row.get("matched_to"), "rank": row.get("rank"),
        "texts": row.get("texts_changed"),
        "effects": [
            [name, *(rounded(row.get(f"{name}{end}")) for end in ("", "_low", "_high"))]
            for name in MEASURES
            if row.get(name) is not None
        ],
        "logprobs": [[shown(name.removeprefix("logprob_")), rounded(row[name])] for name in followed],
    }  # fmt: skip


def _listed(words: Words, row: Row, name: str, *columns: str) -> list[list[Any]] | None:
    """Tokens with their figures; None where the tokens are not known."""
    if row[name] is None:
        return None
    figures = [[rounded(value, 3) for value in row[column]] for column in columns]
    return [
        [words.number(text), *values] for text, *values in zip(row[name], *figures, strict=True)
    ]


def _pairs(numbers: Sequence[int] | None, values: Sequence[float] | None) -> list[list[Any]] | None:
    if numbers is None or values is None:
        return None
    return [[one, rounded(value, 3)] for one, value in zip(numbers, values, strict=True)]


def _largest(attributes: Iterable[Row]) -> list[Row]:
    return sorted(attributes, key=lambda row: -abs(row["r"]))[:ATTRIBUTES]


def _attribute(row: Row) -> list[Any]:
    names = ("r", "r_low", "r_high", "r_permuted", "precision", "recall")
    return [shown(row["attribute"]), *(rounded(row[name], 3) for name in names)]


def _description(row: Row) -> dict[str, Any] | None:
    if row.get("description") is None:
        return None
    names = ("score", "low", "high", "control", "n")
    figures = {name: rounded(row[f"detection_{name}"], 3) for name in names}
    return {"text": shown(row["description"]), **figures}


def _context(row: Row, words: Words) -> list[Any]:
    """Band (-1: top), its ends, activation, split, sequence, document, marked place, tokens, and the
    activations that are known: 0 is left out, and a token without a row has none."""
    known = [[place, rounded(value, 3)] for place, value in enumerate(row["activations"]) if value]
    unread = [place for place, value in enumerate(row["activations"]) if value is None]
    band = -1 if row["band"] is None else row["band"]
    pieces = [words.number(piece) for piece in row["tokens"]] or [words.number(row["token"])]
    return [
        band, rounded(row["band_low"], 3), rounded(row["band_high"], 3),
        rounded(row["activation"], 3), row["split"], row["sequence"], row["document"],
        row["marked"] or 0, pieces, known or [[0, rounded(row["activation"], 3)]], len(unread),
    ]  # fmt: skip
