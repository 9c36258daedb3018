"""The texts to read: the pocket problems, a local file, or any Hugging Face data set."""

import hashlib
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from string import Formatter
from typing import Any

from raysae.config import SourceConfig
from raysae.errors import UserError
from raysae.pocket.problems import stream

FILE_KINDS = {
    ".jsonl": "json", ".json": "json", ".csv": "csv", ".tsv": "csv", ".parquet": "parquet",
    ".txt": "text",
}  # fmt: skip
POCKET_SEED = 1  # not the seed that the pocket GPT-2 was trained on


def read_texts(source: SourceConfig) -> list[str]:
    """At most ``source.sequences`` texts, in the data set's order; empty ones are left out.

    Raises UserError when the data set is missing, unreachable, empty, or lacks a column.
    """
    rows = _pocket_rows() if source.dataset == "pocket" else _dataset_rows(source)
    texts = [text for text in _fill(source, islice(rows, source.sequences)) if text.strip()]
    if not texts:
        raise UserError(
            f"source.dataset {source.dataset!r}: empty, no text to read; "
            "name a data set with at least one row of text"
        )
    return texts


def fingerprint(texts: Iterable[str]) -> str:
    """sha256 over the texts, in order."""
    digest = hashlib.sha256()
    for text in texts:
        digest.update(text.encode() + b"\0")
    return digest.hexdigest()


def _pocket_rows() -> Iterator[dict[str, Any]]:
    return (problem.row() for problem in stream(POCKET_SEED, held_out=True))


def _dataset_rows(source: SourceConfig) -> Iterable[dict[str, Any]]:
    path = Path(source.dataset)
    if path.suffix in FILE_KINDS:
        return _file_rows(path)
    return _hub_rows(source)


def _file_rows(path: Path) -> Iterable[dict[str, Any]]:
    if not path.is_file():
        raise UserError(f"source.dataset {str(path)!r}: no such file")
    if not path.stat().st_size:
        raise UserError(f"source.dataset {str(path)!r}: the file is empty, no text to read")
    from datasets import Dataset, disable_progress_bars
    from datasets.exceptions import DatasetGenerationError

    disable_progress_bars()  # a local file is read at once
    read = getattr(Dataset, f"from_{FILE_KINDS[path.suffix]}")
    options = {"sep": "\t"} if path.suffix == ".tsv" else {}
    try:
        return read(str(path), **options)
    except (DatasetGenerationError, ValueError, OSError) as error:
        reason = str(error.__cause__ or error).splitlines()[0]
        raise UserError(f"source.dataset {str(path)!r}: cannot be read ({reason})") from None


def _hub_rows(source: SourceConfig) -> Iterable[dict[str, Any]]:
    from datasets import load_dataset

    try:
        return load_dataset(
            source.dataset, source.dataset_config, split=source.dataset_split,
            revision=source.dataset_revision, streaming=True,
        )  # fmt: skip
    except Exception as error:  # the hub client raises a dozen unrelated kinds
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"source.dataset {source.dataset!r}: neither 'pocket', nor a file "
            f"({', '.join(FILE_KINDS)}), nor a data set to be had from the hub ({reason}); "
            "check the name, the network and source.dataset_config"
        ) from None


def _fill(source: SourceConfig, rows: Iterable[dict[str, Any]]) -> Iterator[str]:
    columns = [name for _, name, *_ in Formatter().parse(source.text) if name is not None]
    for number, row in enumerate(rows):
        missing = [name for name in columns if name not in row]
        if missing:
            raise UserError(
                f"source.text {source.text!r}: row {number} of {source.dataset!r} has no column "
                f"{', '.join(map(repr, missing))}; it has {', '.join(map(repr, row))}"
            )
        yield source.text.format(**{name: row[name] for name in columns})
