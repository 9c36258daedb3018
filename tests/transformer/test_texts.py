"""Texts from local files in every format, and what is said when there are none."""

import json

import pytest

from raysae.config.source import SourceConfig
from raysae.errors import UserError
from raysae.extraction.plan import text_spec
from raysae.transformer.texts import read_documents


def read_texts(source):
    return [document.text for document in read_documents(text_spec(source))]


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


def test_a_column_can_be_named_alone(tmp_path):
    source = SourceConfig(dataset=write(tmp_path / "d.jsonl"), text="answer")
    assert read_texts(source) == [f"a{i}" for i in range(5)]


def test_a_folder_of_files_is_streamed_as_a_hub_data_set_is(tmp_path):
    (tmp_path / "hub").mkdir()
    write(tmp_path / "hub" / "train.jsonl")
    source = SourceConfig(dataset=str(tmp_path / "hub"), text="question")
    assert read_texts(source) == [f"q{i}" for i in range(5)]


def test_a_split_that_is_not_there_is_named(tmp_path):
    (tmp_path / "hub").mkdir()
    write(tmp_path / "hub" / "train.jsonl")
    source = SourceConfig(dataset=str(tmp_path / "hub"), text="question", dataset_split="nope")
    with pytest.raises(UserError, match="nope"):
        read_texts(source)


@pytest.mark.parametrize("split", [None, "train"])
def test_a_folder_that_save_to_disk_wrote(tmp_path, split):
    from datasets import Dataset, DatasetDict

    rows = Dataset.from_list(ROWS)
    (rows if split is None else DatasetDict({split: rows})).save_to_disk(tmp_path / "saved")
    source = SourceConfig(dataset=str(tmp_path / "saved"), text="question")
    assert read_texts(source) == [f"q{i}" for i in range(5)]
    if split:
        with pytest.raises(UserError, match="has train"):
            read_texts(source.model_copy(update={"dataset_split": "test"}))


def test_rows_are_numbered_as_in_the_data_set(tmp_path):
    lines = ['{"q": "one"}', '{"q": " "}', '{"q": "three"}']
    (tmp_path / "d.jsonl").write_text("\n".join(lines))
    source = SourceConfig(dataset=str(tmp_path / "d.jsonl"), text="q")
    assert [(d.row, d.text) for d in read_documents(text_spec(source))] == [
        (0, "one"),
        (2, "three"),
    ]


def test_a_data_set_that_breaks_off_says_where(tmp_path):
    """A stream whose second file is damaged, as a dropped connection leaves it."""
    (tmp_path / "hub").mkdir()
    write(tmp_path / "hub" / "train-0.jsonl")
    (tmp_path / "hub" / "train-1.jsonl").write_text('{"question": "q5", "answer": "a5"}\n{"quest')
    source = SourceConfig(dataset=str(tmp_path / "hub"), text="question")
    with pytest.raises(
        UserError, match=r"train-1.jsonl: cannot be read: line 2 \(row 1\) is not JSON"
    ):
        read_texts(source)
    for name in ("train-0", "train-1"):
        (tmp_path / "hub" / f"{name}.jsonl").unlink()
        write(tmp_path / "hub" / f"{name}.parquet")
    cut = (tmp_path / "hub" / "train-1.parquet").read_bytes()[:-40]
    (tmp_path / "hub" / "train-1.parquet").write_bytes(cut)
    with pytest.raises(UserError, match=r"cannot be read beyond row 5 .*; check the file"):
        read_texts(source)


def test_a_hub_data_set_without_a_network(monkeypatch):
    import datasets
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="nor a folder or a hub data set that can be loaded"):
        read_texts(SourceConfig(dataset="nobody/no-such-data-set-at-all"))


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
