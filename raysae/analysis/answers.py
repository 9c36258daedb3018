"""Whether the model answers right: questions and answers of a data set's rows, what the model writes.

What it wrote is kept in ``analysis/answers`` of the subject's folder, a file for each batch of questions,
so that an interrupted pass goes on, and every phase reads the same.
"""

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from raysae.errors import UserError
from raysae.storage.files import read_json
from raysae.text_template import parts_of
from raysae.transformer.answering import ANSWER_MARK, TOGETHER, stated_answer, written_texts

if TYPE_CHECKING:
    from raysae.analysis.subject import Subject
    from raysae.config.source import SourceConfig

FOLDER = "answers"
GENERATION = 1
"""To be raised when a question is put, or an answer written, otherwise than before."""
QUESTION, ANSWERS = "question", ("answer", "solution", "final_answer")
"""The columns of a question and, the first that has one, of its answer."""
NUMBER = re.compile(r"-?\d+(\.\d+)?")


@dataclass(frozen=True)
class Asked:
    """A question as the model is given it, and the right answer."""

    prompt: str
    answer: str


def final_answer(row: Mapping[str, Any], text: str) -> str | None:
    """The right answer of a row: what its solution ends with after ``####``, or a column ``answer`` that
    is a number; else what ``text``, made of the row, ends with. None where there is none."""
    for name in ANSWERS:
        value = row.get(name)
        if isinstance(value, str) and ANSWER_MARK in value:
            return stated_answer(value)
        number = str(value).strip().replace(",", "")
        if not isinstance(value, bool) and NUMBER.fullmatch(number):
            return number
    return stated_answer(text)


def asked(row: Mapping[str, Any], text: str, source: "SourceConfig") -> Asked | None:
    """The question of a row; None where it has none, or no answer.

    It is the text up to the column that follows ``question`` in the recipe's template; or the column
    and a line's end where the template has no such column; or else the first line of a text that ends
    with ``#### ANSWER``.
    """
    answer = final_answer(row, text)
    question = row.get(QUESTION)
    if answer is None:
        return None
    if isinstance(question, str) and question.strip():
        return Asked(_prompt(question, source.text), answer)
    first, line_end, _ = text.partition("\n")
    return Asked(f"{first}\n", answer) if line_end and stated_answer(text) is not None else None


def _prompt(question: str, template: str) -> str:
    """The template filled in up to what follows the question; the texts before it are part of it."""
    parts = parts_of(template)
    columns = [column for _, column in parts]
    if columns.count(QUESTION) != 1 or columns[0] != QUESTION:
        return f"{question}\n"
    after = parts[1][0] if len(parts) > 1 else ""
    return f"{parts[0][0]}{question}{after or chr(10)}".rstrip(" ")


def right_answers(
    subject: "Subject", questions: Sequence[Asked], new_tokens: int, alive: Callable[[], None]
) -> list[bool | None]:
    """Whether the model's answer to each question is right; None where its context has no room for one.

    Raises UserError when the model is not at hand, is another than the store's, or writes no texts.
    """
    found: list[bool | None] = []
    for start in range(0, len(questions), TOGETHER):
        part = questions[start : start + TOGETHER]
        texts = _written(subject, [one.prompt for one in part], new_tokens)
        found += [
            None if text is None else stated_answer(text) == one.answer
            for text, one in zip(texts, part, strict=True)
        ]
        alive()
    return found


def _written(subject: "Subject", prompts: list[str], new_tokens: int) -> list[str | None]:
    """What the model writes after the prompts of one batch, from its file where there is one."""
    made = {
        "generation": GENERATION, "store": subject.store_digest, "new_tokens": new_tokens,
        "prompts": prompts,
    }  # fmt: skip
    name = hashlib.sha256(json.dumps(made, sort_keys=True).encode()).hexdigest()[:24]
    file = subject.files.path / "analysis" / FOLDER / f"{name}.json"
    if not file.is_file():
        subject.files.fetch(file)
    texts = _kept(file, len(prompts)) if file.is_file() else None
    if texts is None:
        known = subject.transformer
        texts = written_texts(known.model, known.tokenizer, prompts, new_tokens)
        subject.files.write_json(file, {**made, "texts": texts})
    return texts


def _kept(file: Any, count: int) -> list[str | None] | None:
    try:
        texts = read_json(file)["texts"]
    except (UserError, KeyError, TypeError):
        return None
    sound = isinstance(texts, list) and len(texts) == count
    return texts if sound and all(isinstance(text, str | None) for text in texts) else None
