"""Reading texts: the pocket problems, a local file or folder, or any Hugging Face data set."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from string import Formatter
from typing import Any

from raysae.errors import UserError
from raysae.pocket.problems import stream

FILE_KINDS = {
    ".jsonl": "json", ".json": "json", ".csv": "csv", ".tsv": "csv", ".parquet": "parquet",
    ".txt": "text",
}  # fmt: skip
POCKET_SEED = 1  # not the seed that the pocket GPT-2 was trained on


@dataclass(frozen=True)
class Document:
    """One text of a data set."""

    row: int
    """Row number in the data set, from 0."""
    text: str


@dataclass(frozen=True)
class TextSpec:
    """Which texts to read: ``pocket``, a local file or folder, or a hub data set, and how a row becomes
    a text."""

    dataset: str
    dataset_config: str | None = None
    """A hub data set's configuration."""
    dataset_split: str = "train"
    dataset_revision: str | None = None
    text: str = "{prompt}"
    """A template over the columns, or one column's name."""
    sequences: int | None = None
    """Rows to read, at most."""
    prefix: str = ""
    """What stands before a setting's name in error messages, such as ``source.``."""


def read_documents(spec: TextSpec) -> Iterator[Document]:
    """Yield the data set's texts in order, read on demand; rows without text are left out.

    At most the first ``spec.sequences`` rows are read. Raises UserError when the data set is missing,
    unreachable or empty, cannot be read to its end, or lacks a column.
    """
    rows = _checked(spec, _pocket_rows() if spec.dataset == "pocket" else _dataset_rows(spec))
    found = False
    for number, text in enumerate(_fill(spec, islice(rows, spec.sequences))):
        if text.strip():
            found = True
            yield Document(number, text)
    if not found:
        raise UserError(
            f"{spec.prefix}dataset {spec.dataset!r}: empty, no text to read; "
            "name a data set with at least one row of text"
        )


def _checked(spec: TextSpec, rows: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield the rows. An error while reading becomes a UserError that names the row."""
    number = 0
    try:
        for row in rows:
            yield row
            number += 1
    except UserError:
        raise
    except Exception as error:  # files and networks raise many unrelated errors
        reason = str(error.__cause__ or error).splitlines()[0] if str(error) else repr(error)
        raise UserError(
            f"{spec.prefix}dataset {spec.dataset!r}: cannot be read beyond row {number} ({reason}); "
            "check the file or the network, then repeat the command"
        ) from None


def _pocket_rows() -> Iterator[dict[str, Any]]:
    return (problem.row() for problem in stream(POCKET_SEED, held_out=True))


def _dataset_rows(spec: TextSpec) -> Iterable[dict[str, Any]]:
    path = Path(spec.dataset).expanduser()
    if spec.dataset_revision is not None and (path.suffix in FILE_KINDS or path.is_dir()):
        raise UserError(
            f"{spec.prefix}dataset_revision {spec.dataset_revision!r}: {spec.dataset!r} is on this "
            "machine and has no revisions; leave it out, or name a hub data set"
        )
    if path.suffix in FILE_KINDS:
        return _file_rows(spec, path)
    if (path / "dataset_info.json").is_file() or (path / "dataset_dict.json").is_file():
        return _saved_rows(spec, path)
    return _hub_rows(spec)


def _saved_rows(spec: TextSpec, path: Path) -> Iterable[dict[str, Any]]:
    """The rows of a folder that ``save_to_disk`` wrote."""
    from datasets import load_from_disk

    saved = load_from_disk(str(path))
    if not isinstance(saved, dict):
        return saved
    if spec.dataset_split not in saved:
        raise UserError(
            f"{spec.prefix}dataset_split {spec.dataset_split!r}: {spec.dataset!r} has "
            f"{', '.join(saved)}"
        )
    return saved[spec.dataset_split]


def _file_rows(spec: TextSpec, path: Path) -> Iterable[dict[str, Any]]:
    if not path.is_file():
        raise UserError(f"{spec.prefix}dataset {str(path)!r}: no such file")
    if not path.stat().st_size:
        raise UserError(f"{spec.prefix}dataset {str(path)!r}: the file is empty, no text to read")
    from datasets import Dataset, disable_progress_bars, logging
    from datasets.exceptions import DatasetGenerationError

    disable_progress_bars()  # a local file is read at once
    logging.set_verbosity(logging.CRITICAL)  # the error below says what is wrong
    read = getattr(Dataset, f"from_{FILE_KINDS[path.suffix]}")
    options = {"sep": "\t"} if path.suffix == ".tsv" else {}
    try:
        return read(str(path), **options)
    except (DatasetGenerationError, ValueError, OSError) as error:
        reason = str(error.__cause__ or error).splitlines()[0]
        raise UserError(f"{spec.prefix}dataset {str(path)!r}: cannot be read ({reason})") from None


def _hub_rows(spec: TextSpec) -> Iterable[dict[str, Any]]:
    from datasets import load_dataset

    try:
        return load_dataset(
            spec.dataset, spec.dataset_config, split=spec.dataset_split,
            revision=spec.dataset_revision, streaming=True,
        )  # fmt: skip
    except Exception as error:  # the hub client raises many unrelated errors
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"{spec.prefix}dataset {spec.dataset!r}: neither 'pocket', nor a file "
            f"({', '.join(FILE_KINDS)}), nor a folder or a hub data set that can be loaded "
            f"({reason}); check the name, the network, {spec.prefix}dataset_config and dataset_split"
        ) from None


def _fill(spec: TextSpec, rows: Iterable[dict[str, Any]]) -> Iterator[str]:
    template = spec.text if "{" in spec.text else f"{{{spec.text}}}"
    try:
        columns = [name for _, name, *_ in Formatter().parse(template) if name is not None]
    except ValueError as error:
        raise _no_template(spec, error) from None
    for number, row in enumerate(rows):
        missing = [name for name in columns if name not in row]
        if missing:
            raise UserError(
                f"{spec.prefix}text {spec.text!r}: row {number} of {spec.dataset!r} has no column "
                f"{', '.join(map(repr, missing))}; it has {', '.join(map(repr, row))}"
            )
        values = {name: "" if row[name] is None else row[name] for name in columns}
        try:
            yield template.format(**values)
        except (ValueError, LookupError, TypeError) as error:
            raise _no_template(spec, error) from None


def _no_template(spec: TextSpec, error: Exception) -> UserError:
    return UserError(
        f"{spec.prefix}text {spec.text!r}: cannot be filled in ({error}); expected columns in braces, "
        "such as {question} (a brace of the text itself is written twice: {{)"
    )
