"""What is known of a token from the text that it stands in: numbers, operators, steps of a calculation.

Shapes: T tokens of all sequences of a part, C characters of their texts, A attributes.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raysae.pocket.problems import ITEMS, NAMES
from raysae.transformer.sequence import TokenSequence

BETWEEN = "\0"
"""Stands between the texts of a part: no pattern crosses it."""
NUMBER = r"\d+(?:[.,]\d+)*"
STEP = re.compile(
    rf"(?P<left>{NUMBER}) ?(?P<operator>[-+*/×÷]) ?(?P<right>{NUMBER}) ?(?P<equals>=) ?"
    rf"\$?(?P<result>{NUMBER})?"
)
"""A written step such as ``23+14=37``, or its beginning, ``23+14=``."""
PLAIN = {
    "number": r"\d+",
    "operator": r"[-+*/×÷=](?= ?\$?\d)|(?<=\d)[-+*/×÷=]|(?<=\d )[-+*/×÷=]",
    "letter": r"[^\W\d_]+",
    "capital": r"(?<!\w)[A-Z]",
    "punctuation": r"[.,;:!?\"'()]+",
    "line end": r"\n+",
}
"""Attributes of the characters of a token, by name."""
POCKET = {
    "name": rf"\b(?:{'|'.join(NAMES)})\b",
    "item": rf"\b(?:{'|'.join(ITEMS)})\b",
}
"""Those of pocket problems alone."""
OPERATIONS: dict[str, Callable[[float, float], float]] = {
    "+": lambda left, right: left + right,
    "-": lambda left, right: left - right,
    "*": lambda left, right: left * right,
    "×": lambda left, right: left * right,
    "/": lambda left, right: left / right if right else np.nan,
    "÷": lambda left, right: left / right if right else np.nan,
}
KINDS = {"+": "step adds", "-": "step subtracts", "*": "step multiplies", "/": "step divides"}
ALIKE = {"×": "*", "÷": "/"}
PARTS = {"left": "operand", "right": "operand", "result": "result"}
"""The groups of a step, with the attribute of their tokens."""
VALUES = ("left operand", "right operand", "step's result")
"""Numbers that a token has where it is in a step, or after it in its line."""


@dataclass(frozen=True)
class Marked:
    """Attributes of the tokens of a part's sequences."""

    names: tuple[str, ...]
    values_TA: NDArray[np.float32]
    """1 or 0, or a number; NaN where the token has none."""


def attribute_names(patterns: Sequence[str], pocket: bool) -> tuple[str, ...]:
    """The attributes of a token, in order; ``patterns`` are those of the store."""
    steps = (*dict.fromkeys(PARTS.values()), "intermediate", *KINDS.values(), *VALUES)
    plain = (*PLAIN, *(POCKET if pocket else ()))
    return ("special", *plain, *steps, *(f"pattern {name}" for name in sorted(patterns)))


def marked(sequences: Sequence[TokenSequence], patterns: Sequence[str], pocket: bool) -> Marked:
    """The attributes of all tokens of ``sequences``, one sequence after the other.

    ``special`` is a token that stands for no text; ``intermediate`` a number of a step that is the result
    of an earlier step of its text.
    """
    names = attribute_names(patterns, pocket)
    text = BETWEEN.join(one.text for one in sequences)
    starts, ends, known = _places(sequences)
    found: dict[str, NDArray[Any]] = {"special": _special(sequences)}
    for name, expression in {**PLAIN, **(POCKET if pocket else {})}.items():
        spans = [match.span() for match in re.finditer(expression, text)]
        found[name] = _touched(spans, len(text), starts, ends) & known
    for name, values in _of_steps(text, starts, ends).items():
        whole = values.dtype == bool
        found[name] = values & known if whole else np.where(known, values, np.nan)
    bits = np.concatenate([one.patterns for one in sequences]) if sequences else np.empty(0, int)
    for number, name in enumerate(sorted(patterns)):
        found[f"pattern {name}"] = (bits >> number) & 1
    values_TA = np.stack([found[name].astype(np.float32) for name in names], axis=1)
    return Marked(names, values_TA)


def _places(sequences: Sequence[TokenSequence]) -> tuple[NDArray, NDArray, NDArray[np.bool_]]:
    """Where each token starts and ends in the joined text, and whether that is known."""
    starts, ends, known, offset = [], [], [], 0
    for one in sequences:
        there = one.token_start >= 0
        starts.append(np.where(there, one.token_start + offset, 0))
        ends.append(np.where(there, one.token_end + offset, 0))
        known.append(there)
        offset += len(one.text) + len(BETWEEN)
    return np.concatenate(starts), np.concatenate(ends), np.concatenate(known)


def _special(sequences: Sequence[TokenSequence]) -> NDArray[np.bool_]:
    """Which tokens stand for no text, of sequences where the places of tokens are known at all."""
    return np.concatenate(
        [(one.token_start < 0) & bool((one.token_start >= 0).any()) for one in sequences]
    )


def _touched(
    spans: Sequence[tuple[int, int]], characters: int, starts: NDArray, ends: NDArray
) -> NDArray[np.bool_]:
    """Which tokens share a character with one of the spans."""
    edges = np.zeros(characters + 1, np.int64)
    if spans:
        first, last = np.array(spans).T
        np.add.at(edges, first, 1)
        np.add.at(edges, last, -1)
    before = np.concatenate([[0], np.cumsum(np.cumsum(edges[:-1]) > 0)])
    return before[ends] > before[starts]


def _of_steps(text: str, starts: NDArray, ends: NDArray) -> dict[str, NDArray[Any]]:
    """The attributes that written steps give their tokens."""
    spans: dict[str, list[tuple[int, int]]] = {
        name: [] for name in (*PARTS.values(), *KINDS.values())
    }
    spans["intermediate"] = []
    values_3C = np.full((len(VALUES), len(text) + 1), np.nan, np.float32)
    for step, earlier in _steps(text):
        left, right = _number(step["left"]), _number(step["right"])
        operator = ALIKE.get(step["operator"], step["operator"])
        for group, name in PARTS.items():
            if step[group] is not None:
                spans[name].append(step.span(group))
        spans["intermediate"] += [
            step.span(group) for group in ("left", "right") if _number(step[group]) in earlier
        ]
        spans[KINDS[operator]].append(step.span())
        reach = _line_end(text, step)
        result = OPERATIONS[operator](left, right)
        values_3C[:, step.start() : reach] = np.array([[left], [right], [result]], np.float32)
    found: dict[str, NDArray[Any]] = {
        name: _touched(where, len(text), starts, ends) for name, where in spans.items()
    }
    # a token's first character may be the space before what it stands for
    last = np.maximum(ends - 1, 0)
    for name, values_C in zip(VALUES, values_3C, strict=True):
        found[name] = values_C[last]
    return found


def _line_end(text: str, step: re.Match[str]) -> int:
    """Where the line of a step ends, or the next step begins."""
    end = step.end()
    ends = [place for place in (text.find("\n", end), text.find(BETWEEN, end)) if place >= 0]
    line = min(ends, default=len(text))
    following = STEP.search(text, end, line)
    return following.start() if following else line


def _steps(text: str) -> Iterator[tuple[re.Match[str], set[float]]]:
    """The written steps, each with the results of the steps before it in its text."""
    results: set[float] = set()
    end = 0
    for step in STEP.finditer(text):
        if BETWEEN in text[end : step.start()]:
            results = set()
        yield step, results
        end = step.end()
        if step["result"] is not None:
            results = results | {_number(step["result"])}


def _number(written: str) -> float:
    """The number of a text such as ``1,250``; NaN when it is none."""
    try:
        return float(written.replace(",", ""))
    except ValueError:
        return np.nan
