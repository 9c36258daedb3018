"""Arithmetic word problems with written-out steps, generated from a seed, each with its labels.

One problem, as the pocket GPT-2 reads it::

    Ana has 23 apples. Ana buys 14 more. Ben takes 9. How many apples are there now?
    23+14=37
    37-9=28
    #### 28

As in GSM8K, the solution ends with ``#### ANSWER``. A problem is a pure function of ``(seed, index)``,
so any part of the stream can be made alone, on any machine.
"""

import random
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count

NAMES = ("Ana", "Ben", "Cal", "Dee", "Eli", "Fay", "Gus", "Hal", "Ida", "Jon", "Kim", "Leo")
ITEMS = ("apples", "books", "cards", "coins", "cups", "eggs", "hats", "keys", "pens", "shells")
START = (
    "{name} has {n} {items}.",
    "There are {n} {items} in the shop of {name}.",
    "{name} starts the day with {n} {items}.",
)
SENTENCES = {
    "+": ("{name} buys {n} more.", "{friend} brings {n} more.", "Then {n} more arrive."),
    "-": ("{name} gives {n} away.", "{friend} takes {n}.", "Then {n} are lost."),
    "*": (
        "Then the number grows {n} times.",
        "{friend} makes it {n} times as many.",
    ),
}
ASK = ("How many {items} are there now?", "How many {items} does {name} have in the end?")

LARGEST = 999  # the largest number that a problem contains
ONE_HELD_OUT_IN = 10  # one expression in this many is never trained on


@dataclass(frozen=True)
class Problem:
    """A word problem, its written solution, and the labels that both are made from."""

    question: str
    numbers: tuple[int, ...]
    operators: tuple[str, ...]
    intermediates: tuple[int, ...]
    """The result of each step; the last one is the answer."""

    @property
    def answer(self) -> int:
        """The final result."""
        return self.intermediates[-1]

    @property
    def steps(self) -> list[str]:
        """The written steps, such as ``["23+14=37", "37-9=28"]``."""
        lefts = (self.numbers[0], *self.intermediates)
        rows = zip(lefts, self.operators, self.numbers[1:], self.intermediates, strict=False)
        return [f"{left}{operator}{right}={result}" for left, operator, right, result in rows]

    @property
    def solution(self) -> str:
        """The steps and the answer, one per line."""
        return "\n".join([*self.steps, f"#### {self.answer}"])

    @property
    def text(self) -> str:
        """Question and solution, as the pocket GPT-2 reads them."""
        return f"{self.question}\n{self.solution}"

    @property
    def prompt(self) -> str:
        """The text up to the equals sign of the last step; the answer comes next."""
        steps = "\n".join(self.steps)
        return f"{self.question}\n{steps[: steps.rindex('=') + 1]}"

    @property
    def held_out(self) -> bool:
        """Whether this expression (numbers and operators) is left out of the pocket GPT-2's training."""
        return is_held_out(self.numbers, self.operators)

    def row(self) -> dict[str, object]:
        """The problem as a dataset row, labels included."""
        return {
            "text": self.text,
            "question": self.question,
            "prompt": self.prompt,
            "solution": self.solution,
            "numbers": list(self.numbers),
            "operators": list(self.operators),
            "intermediates": list(self.intermediates),
            "answer": self.answer,
        }


def make_problem(seed: int, index: int) -> Problem:
    """Make problem ``index`` of the stream of ``seed``. It has two or three steps with +, - and *."""
    return _Draft(seed, index).problem()


def stream(seed: int, *, held_out: bool) -> Iterator[Problem]:
    """The endless stream of ``seed``: only its held-out problems, or only the others."""
    drafts = (_Draft(seed, index) for index in count())
    return (
        draft.problem()
        for draft in drafts
        if is_held_out(draft.numbers, draft.operators) == held_out
    )


def is_held_out(numbers: tuple[int, ...], operators: tuple[str, ...]) -> bool:
    """Whether this expression is left out of the pocket GPT-2's training."""
    return zlib.crc32(f"{numbers}{operators}".encode()) % ONE_HELD_OUT_IN == 0


class _Draft:
    """A problem without its words, which are only put to a problem that is wanted."""

    def __init__(self, seed: int, index: int):
        self._rng = rng = random.Random(f"raysae-pocket-{seed}-{index}")
        numbers = [rng.randint(2, 99)]
        operators: list[str] = []
        intermediates: list[int] = []
        total = numbers[0]
        for _ in range(rng.choice((2, 2, 3))):
            operator, operand = _draw_step(rng, total)
            total = _apply(total, operator, operand)
            operators.append(operator)
            numbers.append(operand)
            intermediates.append(total)
        self.numbers, self.operators = tuple(numbers), tuple(operators)
        self.intermediates = tuple(intermediates)

    def problem(self) -> Problem:
        """The problem with its question; to be called once."""
        question = _question(self._rng, self.numbers, self.operators)
        return Problem(question, self.numbers, self.operators, self.intermediates)


def _draw_step(rng: random.Random, total: int) -> tuple[str, int]:
    choices = []
    if total <= LARGEST - 2:
        choices.append("+")
    if total > 2:
        choices.append("-")
    if 2 <= total <= LARGEST // 9:
        choices.append("*")
    operator = rng.choice(choices)
    if operator == "*":
        return operator, rng.randint(2, 9)
    if operator == "-":
        return operator, rng.randint(2, min(99, total))
    return operator, rng.randint(2, min(99, LARGEST - total))


def _apply(left: int, operator: str, right: int) -> int:
    return {"+": left + right, "-": left - right, "*": left * right}[operator]


def _question(rng: random.Random, numbers: tuple[int, ...], operators: tuple[str, ...]) -> str:
    name, friend = rng.sample(NAMES, 2)
    words = {"name": name, "friend": friend, "items": rng.choice(ITEMS)}
    sentences = [rng.choice(START).format(n=numbers[0], **words)]
    for operator, number in zip(operators, numbers[1:], strict=True):
        sentences.append(rng.choice(SENTENCES[operator]).format(n=number, **words))
    sentences.append(rng.choice(ASK).format(**words))
    return " ".join(sentences)
