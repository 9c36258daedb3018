"""Texts from local files in every format, and what is said when there are none."""

import json

import pytest

from raysae.activations.texts import read_texts
from raysae.config import SourceConfig
from raysae.errors import UserError

ROWS = [{"question": f"q{i}", "answer": f"a{i}"} for i in range(5)]


def write(path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    if path.suffix == ".jsonl":
        path.write_text("\n".join(json.dumps(row) for row in ROWS))
    elif path.suffix in (".csv", ".tsv"):
        mark = "," if path.suffix == ".csv" else "\t"
        lines = [mark.join(row.values()) for row in [{"q": "question", "a": "answer"}, *ROWS]]
        path.write_text("\n".join(lines))
    elif path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(ROWS), path)
    else:
        path.write_text("\n".join(row["question"] for row in ROWS))
    return str(path)


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".tsv", ".parquet"])
def test_local_files_are_read(tmp_path, suffix):
    source = SourceConfig(dataset=write(tmp_path / f"d{suffix}"), text="{question}: {answer}")
    assert read_texts(source) == [f"q{i}: a{i}" for i in range(5)]


def test_plain_text_has_a_text_column(tmp_path):
    assert read_texts(SourceConfig(dataset=write(tmp_path / "d.txt"), text="{text}"))[0] == "q0"


def test_the_number_of_sequences_is_a_limit(tmp_path):
    dataset = write(tmp_path / "d.jsonl")
    assert len(read_texts(SourceConfig(dataset=dataset, text="{answer}", sequences=3))) == 3


def test_pocket_problems_are_held_out_from_the_models_training():
    from raysae.pocket.problems import make_problem

    texts = read_texts(SourceConfig(sequences=20))
    problems = [make_problem(1, index) for index in range(2000)]
    assert texts == [p.prompt for p in problems if p.held_out][:20]
    assert all(text.endswith("=") for text in texts)


@pytest.mark.parametrize(
    ("name", "content", "text", "words"),
    [
        ("none.jsonl", None, "{question}", "no such file"),
        ("empty.jsonl", "", "{question}", "empty"),
        ("blank.jsonl", '{"question": " "}', "{question}", "empty"),
        ("broken.jsonl", '{"question": ', "{question}", "cannot be read"),
        ("other.jsonl", '{"question": "q"}', "{answer}", "no column 'answer'; it has 'question'"),
    ],
)
def test_unusable_data_sets_are_named(tmp_path, name, content, text, words):
    path = tmp_path / name
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=words):
        read_texts(SourceConfig(dataset=str(path), text=text))
