"""Descriptions of features by a language model, and whether they tell where a feature is active.

The model sees contexts of a feature and writes what they share. Then it gets other contexts, half of them
with the feature, and its description alone, and says which have it: the detection score (Paulo et al.
2024, "Automatically Interpreting Millions of Features in Large Language Models"). The control is the same
question with the description of another feature.
"""

import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from raysae.analysis.labelling.contexts import Chosen, Window, windows
from raysae.analysis.labelling.endpoint import Endpoint
from raysae.analysis.labelling.rows import Rows
from raysae.analysis.labelling.site import SiteLabels
from raysae.errors import UserError
from raysae.printable import printable, shortened

LONGEST = 300
"""Characters of a description, at most."""
SHOWN = 8
"""Contexts that a description is written from, at most."""
DESCRIBE = """A feature of a neural network is active at the token between << and >> in each of these \
texts. The number after each is its activation, from 1 to 10.

{examples}

In one short sentence, say what these tokens or texts have in common. Answer with the sentence alone."""
DETECT = """A feature of a neural network is described so: {description}

Below are {n} texts, each with one token between << and >>. Say for each whether the feature is active \
at that token.

{examples}

Answer with a JSON list of {n} numbers alone: 1 where it is active and 0 where it is not."""
DRAWS = 1000


@dataclass
class Described:
    """What the endpoint made of a feature."""

    description: str
    score: float = math.nan
    """Balanced accuracy."""
    low: float = math.nan
    high: float = math.nan
    n: int = 0
    """Contexts that were judged."""
    control: float = math.nan
    """Balanced accuracy with the description of another feature."""


@dataclass(frozen=True)
class Example:
    """A context as the endpoint reads it."""

    text: str
    has: bool


@dataclass
class Describing:
    """Describes the features of a site."""

    labels: SiteLabels
    endpoint: Endpoint
    alive: Callable[[], None]

    def described(self) -> tuple[dict[int, Described], str]:
        """What became of the features, and why it ended early where the endpoint failed."""
        features = self.labels.labelled[: self.labels.settings.describer_features].tolist()
        found: dict[int, Described] = {}
        drawn = self._drawn()
        try:
            for feature in features:
                found[feature] = Described(self._describe(feature))
            order = list(found)
            for place, feature in enumerate(order):
                other = order[(place + 1) % len(order)]
                self._score(feature, found, other, drawn)
        except UserError as error:
            return found, str(error)
        return found, ""

    def _describe(self, feature: int) -> str:
        examples = "\n".join(
            f"{number}. {marked_text(window)} ({level})"
            for number, (window, level) in enumerate(self._shown(feature), 1)
        )
        answer = self.endpoint.ask(DESCRIBE.format(examples=examples), 120, self.alive)
        return shortened(printable(" ".join(answer.split())), LONGEST)

    def _shown(self, feature: int) -> list[tuple[Window, int]]:
        """The contexts that the description is written from: every second of the top ones."""
        chosen, most = self.labels.chosen, float(self.labels.tallies.most_F[feature])
        rows = self._rows(feature, top=True)[::2][:SHOWN]
        levels = np.ceil(10 * chosen.events.value[rows] / most).astype(int).clip(1, 10)
        return [
            (self.labels.windows[row], level)
            for row, level in zip(rows, levels.tolist(), strict=True)
        ]

    def _rows(self, feature: int, top: bool) -> NDArray[np.int64]:
        chosen = self.labels.chosen
        return np.flatnonzero((chosen.events.feature == feature) & ((chosen.band < 0) == top))

    def _drawn(self) -> "Drawn":
        """Rows drawn from all, with the features that are active there."""
        labels, drawn = self.labels, self.labels.drawn
        names = (drawn.sequence.astype(np.int64), drawn.token_index)
        place = {
            pair: number
            for number, pair in enumerate(zip(*map(np.ndarray.tolist, names), strict=True))
        }
        wanted = np.unique(drawn.sequence)
        active_RF = np.zeros((len(drawn), labels.d_sae), bool)

        def of_drawn(rows: Rows) -> Rows:
            pairs = zip(rows.sequence.tolist(), rows.token_index.tolist(), strict=True)
            near = np.isin(rows.sequence, wanted)
            hit = [n for n, pair in enumerate(pairs) if near[n] and pair in place]
            return rows.taken(np.array(hit, np.int64))

        for chunk in labels.chunks(of_drawn):
            pairs = zip(chunk.rows.sequence.tolist(), chunk.rows.token_index.tolist(), strict=True)
            numbers = np.array([place[pair] for pair in pairs], np.int64)
            active_RF[numbers[chunk.row], chunk.feature] = True
        nothing = np.full(len(drawn), np.nan)
        as_chosen = Chosen(
            drawn, np.zeros(len(drawn), np.int64), np.arange(len(drawn)), nothing, nothing
        )
        assert labels.texts is not None
        made = windows(
            as_chosen, labels.texts, labels.names, labels.settings.window, None, self.alive
        )
        return Drawn(made, active_RF)

    def _score(self, feature: int, found: dict[int, Described], other: int, drawn: "Drawn") -> None:
        """Ask which contexts have the feature, with its own description and with another's."""
        examples = self._examples(feature, drawn)
        has = np.array([example.has for example in examples], bool)
        if not has.any() or has.all():
            return
        one = found[feature]
        told = self._judged(one.description, examples)
        if told is not None:
            one.score, one.n = balanced_accuracy(has, told), len(has)
            one.low, one.high = interval(has, told, self.labels.seed + feature)
        if other != feature:
            wrong = self._judged(found[other].description, examples)
            one.control = math.nan if wrong is None else balanced_accuracy(has, wrong)

    def _examples(self, feature: int, drawn: "Drawn") -> list[Example]:
        """Contexts with the feature that the description was not written from, and as many without it."""
        settings, chosen = self.labels.settings, self.labels.chosen
        shown = self._rows(feature, top=True)[::2][:SHOWN]
        hidden = set(chosen.events.sequence[shown].tolist())
        others = np.r_[self._rows(feature, top=False), self._rows(feature, top=True)[1::2]]
        unseen = [row for row in others.tolist() if chosen.events.sequence[row] not in hidden]
        texts = dict.fromkeys(marked_text(self.labels.windows[row]) for row in unseen)
        with_it = list(texts)[: settings.describer_examples]
        without = [
            text
            for number, window in enumerate(drawn.windows)
            if not drawn.active_RF[number, feature] and (text := marked_text(window)) not in texts
        ][: len(with_it)]
        examples = [*(Example(t, True) for t in with_it), *(Example(t, False) for t in without)]
        order = np.random.default_rng(self.labels.seed + feature).permutation(len(examples))
        return [examples[number] for number in order]

    def _judged(self, description: str, examples: Sequence[Example]) -> NDArray[np.bool_] | None:
        """Which of the examples the endpoint says have the feature; None when it does not say it."""
        listed = "\n".join(f"{number}. {one.text}" for number, one in enumerate(examples, 1))
        question = DETECT.format(description=description, n=len(examples), examples=listed)
        return judgments(
            self.endpoint.ask(question, 8 * len(examples) + 64, self.alive), len(examples)
        )


@dataclass(frozen=True)
class Drawn:
    """Rows drawn from all of a site's."""

    windows: list[Window]
    active_RF: NDArray[np.bool_]


def marked_text(window: Window) -> str:
    """A window's text in one line, its token between << and >>."""
    if not window.pieces:
        return ""
    place = window.marked
    parts = (window.pieces[:place], [window.pieces[place]], window.pieces[place + 1 :])
    before, token, after = (printable("".join(part)) for part in parts)
    return f"{before}<<{token}>>{after}"


def judgments(answer: str, n: int) -> NDArray[np.bool_] | None:
    """The list of ``n`` zeros and ones in an answer; None when it has none."""
    for found in re.finditer(r"\[[\d,\s]*\]", answer):
        try:
            values = json.loads(found[0])
        except ValueError:
            continue
        if len(values) == n and set(values) <= {0, 1}:
            return np.array(values, bool)
    return None


def balanced_accuracy(has: NDArray[np.bool_], told: NDArray[np.bool_]) -> float:
    """The mean of the shares of right answers among those that have it, and those that have not."""
    return float((told[has].mean() + (~told[~has]).mean()) / 2)


def interval(has: NDArray[np.bool_], told: NDArray[np.bool_], seed: int) -> tuple[float, float]:
    """The 95% interval of the balanced accuracy: percentiles of 1,000 bootstrap samples of both kinds."""
    random = np.random.default_rng(seed)
    right, wrong = told[has], ~told[~has]
    shares = [
        some[random.integers(len(some), size=(DRAWS, len(some)))].mean(axis=1)
        for some in (right, wrong)
    ]
    low, high = np.quantile(sum(shares) / 2, [0.025, 0.975])
    return float(low), float(high)
