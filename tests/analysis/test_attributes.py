"""Attributes of the store's sequences: columns, what follows from a text, the model's answers."""

import json
from dataclasses import replace

import pytest

from raysae.analysis import answers
from raysae.analysis.answers import Asked, asked
from raysae.analysis.attributes import (
    DIFFER,
    Attribute,
    attribute_names,
    check_names,
    labels_of,
    read_attributes,
)
from raysae.analysis.subject import Subject
from raysae.config.source import SourceConfig
from raysae.errors import UserError
from raysae.pocket.problems import stream
from raysae.records.run_files import RunFiles
from raysae.transformer.answering import stated_answer
from raysae.transformer.texts import POCKET_SEED
from tests.atlas.library.conftest import made

SMALL = ["source.layers=[1]", "source.positions=[-1]"]


def subject_of(run):
    return Subject(str(run.folder), RunFiles(run.folder), str(run.store.path))


@pytest.fixture(scope="module")
def pocket(tmp_path_factory):
    return subject_of(made(tmp_path_factory.mktemp("pocket"), SMALL))


@pytest.fixture(scope="module")
def rows():
    """Solutions with their verdicts, as GSM8K's example solutions have them."""
    problems = stream(POCKET_SEED, held_out=True)
    return [
        {
            "question": problem.question, "answer": problem.solution, "is_correct": number % 3 == 0,
            "score": number / 2, "kind": ["easy", "hard", "odd"][number % 5 % 3],
            "inner": {"right": number % 2 == 0},
        }
        for number, problem in zip(range(120), problems, strict=False)
    ]  # fmt: skip


@pytest.fixture(scope="module")
def file(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("data") / "solutions.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def solutions(tmp_path_factory, file):
    text = "source.text={question}\n{answer}"
    return subject_of(
        made(tmp_path_factory.mktemp("solutions"), [*SMALL, f"source.dataset={file}", text])
    )


def sequences(subject):
    return [one for split in ("train", "validation", "test") for one in subject.sequences(split)]


def test_attributes_of_the_pocket_problems(pocket):
    names = ["answer", "operators", "operand_1", "last_operator", "steps", "text_characters"]
    there = sequences(pocket)
    found = read_attributes(pocket, names, there)
    problems = list(zip(range(120), stream(POCKET_SEED, held_out=True), strict=False))
    for one in there:
        problem = problems[one.documents[0]][1]
        assert found["answer"].values[one.sequence] == problem.answer
        assert found["operators"].values[one.sequence] == " ".join(problem.operators)
        assert found["operand_1"].values[one.sequence] == problem.numbers[0]
        assert found["last_operator"].values[one.sequence] == problem.operators[-1]
        assert found["steps"].values[one.sequence] == len(problem.operators)
        assert found["text_characters"].values[one.sequence] == len(one.text)
    assert {found["answer"].kind, found["operators"].kind} == {"number", "text"}
    assert {"question", "model_correct", "operand_3", "text_tokens"} <= set(attribute_names(pocket))


def test_columns_of_a_file(solutions, rows):
    there = sequences(solutions)
    found = read_attributes(solutions, ["is_correct", "score", "kind", "inner.right"], there)
    for one in there:
        row = rows[one.documents[0]]
        assert found["is_correct"].values[one.sequence] is row["is_correct"]
        assert found["score"].values[one.sequence] == row["score"]
        assert found["inner.right"].values[one.sequence] is row["inner"]["right"]
    assert labels_of(found["is_correct"]).meaning == "true"
    assert labels_of(found["score"]).meaning == "above the median, 29.75"
    assert labels_of(found["kind"], "hard").meaning == "'hard' against the others"


@pytest.mark.parametrize(
    "name, said",
    [("is_corect", "did you mean is_correct"), ("inner.rihgt", "did you mean inner.right")],
)
def test_a_column_that_does_not_exist_is_refused_with_the_nearest(solutions, name, said):
    with pytest.raises(UserError, match=said):
        read_attributes(solutions, [name], sequences(solutions))


def test_keys_and_values_are_refused_with_what_to_name(solutions):
    check_names(solutions, ["inner"], "detection.label")
    with pytest.raises(UserError, match=r"column\.key"):
        read_attributes(solutions, ["inner"], sequences(solutions))


def test_a_data_set_that_changed_is_refused(solutions, file, rows):
    there, before = sequences(solutions), file.read_text()
    try:
        file.write_text("".join(f"{json.dumps(row)}\n" for row in rows[::-1]))
        with pytest.raises(UserError, match="no longer the text"):
            read_attributes(solutions, ["is_correct"], there)
        file.write_text("".join(f"{json.dumps(row)}\n" for row in rows[:50]))
        with pytest.raises(UserError, match="rows fewer"):
            read_attributes(solutions, ["is_correct"], there)
    finally:
        file.write_text(before)


def test_a_sequence_of_several_documents_has_a_value_where_they_agree(solutions):
    one = sequences(solutions)[0]
    packed = [
        replace(one, sequence=0, documents=[0, 3, 6]), replace(one, sequence=1, documents=[0, 1]),
        replace(one, sequence=2, documents=[1, 2]),
    ]  # fmt: skip
    found = read_attributes(solutions, ["is_correct"], packed)["is_correct"]
    assert found.values == {0: True, 2: False}
    assert found.left_out == {DIFFER: 1}


def test_the_models_answers_are_those_of_generating_alone_and_are_kept(solutions, monkeypatch):
    there = sequences(solutions)[:12]
    found = read_attributes(solutions, ["model_correct"], there)["model_correct"]
    model, tokenizer = solutions.transformer.model, solutions.transformer.tokenizer
    problems = [p for _, p in zip(range(120), stream(POCKET_SEED, held_out=True), strict=False)]
    for one in there:
        problem = problems[one.documents[0]]
        asked_ids = tokenizer(f"{problem.question}\n", return_tensors="pt")
        written = model.generate(**asked_ids, max_new_tokens=48, do_sample=False)[0]
        text = tokenizer.decode(
            written[asked_ids["input_ids"].shape[1] :], skip_special_tokens=True
        )
        assert found.values[one.sequence] is (text.split("####")[-1].strip() == str(problem.answer))
    monkeypatch.setattr(answers, "written_texts", None)  # a second pass reads what was kept
    assert read_attributes(solutions, ["model_correct"], there)["model_correct"] == found


@pytest.mark.parametrize(
    "template, row, prompt",
    [
        ("{question}\n{answer}", {"question": "Two and 2?", "answer": "2+2=4\n#### 4"}, "Two and 2?\n"),
        ("Q: {question}\nA: {answer}", {"question": "Q", "answer": "#### 4"}, "Q: Q\nA:"),
        ("{prompt}", {"question": "Q", "answer": 4, "prompt": "Q\n2+2="}, "Q\n"),
        ("text", {"text": "How many?\n2+2=4\n#### 4"}, "How many?\n"),
    ],
)  # fmt: skip
def test_the_question_alone_is_put(template, row, prompt):
    text = row.get("text", "")
    assert asked(row, text, SourceConfig(text=template)) == Asked(prompt, "4")


def test_a_row_without_an_answer_asks_nothing():
    assert asked({"question": "Q", "answer": "none"}, "Q", SourceConfig()) is None
    assert [stated_answer("a #### $1,234 \nx"), stated_answer("#### "), stated_answer("4")] == [
        "1234", None, None,
    ]  # fmt: skip


def test_labels_are_two_classes_or_refused():
    def attribute(kind, *values):
        return Attribute("it", kind, dict(enumerate(values)))

    assert labels_of(attribute("number", 0.0, 1.0, 1.0)).values == {0: False, 1: True, 2: True}
    assert labels_of(attribute("number", 1.0, 3.0, 3.0, 3.0, 2.0)).meaning == "the median, 3"
    assert labels_of(attribute("text", "no", "yes")).meaning == "'yes' against the others"
    assert labels_of(attribute("text", "a", "b", "c", "b")).values[1]
    with pytest.raises(UserError, match="name another label"):
        labels_of(attribute("bool", True, True))
    with pytest.raises(UserError, match="25 different texts"):
        labels_of(attribute("text", *map(str, range(25))))
    with pytest.raises(UserError, match="did you mean 'hard'"):
        labels_of(attribute("text", "easy", "hard"), "hrd")
