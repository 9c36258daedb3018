"""Reading texts: the pocket problems, a local file or folder, or any Hugging Face data set."""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from itertools import islice
from pathlib import Path
from typing import Any

from raysae.errors import UserError
from raysae.pocket.problems import stream
from raysae.storage.files import expanded
from raysae.storage.untrusted import usable_path
from raysae.text_template import HOW_TO_FILL_IN, Part, columns_of, parts_of
from raysae.transformer.chat import messages_of
from raysae.transformer.plain_folder import plain_folder
from raysae.transformer.text_files import COMPRESSED, FILE_KINDS, file_rows, is_text_file

POCKET = "pocket"
POCKET_SEED = 1  # not the seed that the pocket GPT-2 was trained on
FAITHFUL = ("csv", "json", "text")
"""Formats whose files are read here, wherever they lie: ``datasets`` would guess at their values."""


LONGEST_TEXT = 100_000_000
"""The most characters of a text."""


@dataclass(frozen=True)
class Document:
    """One text of a data set."""

    row: int
    """Row number in the data set, from 0."""
    text: str
    """Empty where there are messages, until a tokenizer has written them out."""
    group: str | None = None
    """What the text belongs to, such as a document or a chat; None without ``split_by``."""
    messages: tuple[dict[str, Any], ...] = ()
    """The messages of a chat: dictionaries with ``role`` and ``content``."""


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
    chat_column: str | None = None
    """The column of messages, which the tokenizer's chat template writes out in place of ``text``."""
    split_by: str | None = None
    """The column of groups."""
    sequences: int | None = None
    """Rows to read, at most."""
    prefix: str = ""
    """What stands before a setting's name in error messages, such as ``source.``."""


def read_documents(spec: TextSpec) -> Iterator[Document]:
    """Yield the data set's texts in order, read on demand; rows without text are left out.

    At most the first ``spec.sequences`` rows are read. Raises UserError when the data set is missing,
    unreachable or empty, cannot be read to its end, lacks a column, or a value is no text.
    """
    found = False
    for _, document in read_rows(spec):
        if document.messages or document.text.strip():
            found = True
            yield document
    if not found:
        raise UserError(
            f"{spec.prefix}dataset {spec.dataset!r}: empty, no text to read; "
            "name a data set with at least one row of text"
        )


def read_rows(spec: TextSpec) -> Iterator[tuple[dict[str, Any], Document]]:
    """Yield the data set's rows in order, each with its text, which may be empty.

    Raises UserError as ``read_documents`` does, but for a data set without text.
    """
    rows = _checked(spec, _pocket_rows() if spec.dataset == POCKET else _dataset_rows(spec))
    return _documents(spec, islice(rows, spec.sequences))


def _checked(spec: TextSpec, rows: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield the rows. An error while reading becomes a UserError that names the row."""
    number = 0
    try:
        for row in rows:
            yield row
            number += 1
    except UserError as error:
        if str(error).startswith(spec.prefix):
            raise
        raise UserError(f"{spec.prefix}dataset {error}") from None
    except Exception as error:  # files and networks raise many unrelated errors
        reason = str(error.__cause__ or error).splitlines()[0] if str(error) else repr(error)
        raise UserError(
            f"{spec.prefix}dataset {spec.dataset!r}: cannot be read beyond row {number} ({reason}); "
            "check the file or the network, then repeat the command"
        ) from None


def _pocket_rows() -> Iterator[dict[str, Any]]:
    return (problem.row() for problem in stream(POCKET_SEED, held_out=True))


def _dataset_rows(spec: TextSpec) -> Iterable[dict[str, Any]]:
    path = _on_this_machine(spec)
    if spec.dataset_revision is not None and (is_text_file(path.name) or path.is_dir()):
        raise UserError(
            f"{spec.prefix}dataset_revision {spec.dataset_revision!r}: {spec.dataset!r} is on this "
            "machine and has no revisions; leave it out, or name a hub data set"
        )
    if path.is_file() or is_text_file(path.name):
        return _file_rows(spec, path)
    if (path / "dataset_info.json").is_file() or (path / "dataset_dict.json").is_file():
        return _saved_rows(spec, path)
    return _hub_rows(spec)


def _on_this_machine(spec: TextSpec) -> Path:
    """The data set's path here, if it is there. Raises UserError when it, or a file below it, is a FIFO,
    a socket or a device."""
    path = usable_path(expanded(spec.dataset))
    for place, _, names in os.walk(path):
        for name in names:
            usable_path(Path(place, name))
    return path


def _saved_rows(spec: TextSpec, path: Path) -> Iterable[dict[str, Any]]:
    """The rows of a folder that ``save_to_disk`` wrote."""
    from datasets import load_from_disk

    saved = load_from_disk(str(path))
    if not isinstance(saved, dict):
        return saved
    if spec.dataset_split not in saved:
        raise _no_split(spec, saved)
    return saved[spec.dataset_split]


def _no_split(spec: TextSpec, there: Iterable[str]) -> UserError:
    return UserError(
        f"{spec.prefix}dataset_split {spec.dataset_split!r}: {spec.dataset!r} has "
        f"{', '.join(map(str, there))}"
    )


def _file_rows(spec: TextSpec, path: Path) -> Iterable[dict[str, Any]]:
    if not path.is_file():
        raise UserError(f"{spec.prefix}dataset {str(path)!r}: no such file")
    if not is_text_file(path.name):
        raise UserError(
            f"{spec.prefix}dataset {str(path)!r}: unknown kind of file; expected one of "
            f"{', '.join(FILE_KINDS)}, alone or followed by {', '.join(COMPRESSED)}"
        )
    if not path.stat().st_size:
        raise UserError(f"{spec.prefix}dataset {str(path)!r}: the file is empty, no text to read")
    return file_rows(str(path))


def _hub_rows(spec: TextSpec) -> Iterable[dict[str, Any]]:
    """The rows of a hub data set, or of a folder that ``load_dataset`` understands."""
    from datasets import load_dataset, load_dataset_builder

    folder = str(expanded(spec.dataset)) if spec.dataset.startswith("~") else spec.dataset
    # datasets takes [ for a pattern
    name = plain_folder(folder) if Path(folder).is_dir() else folder
    try:
        builder = load_dataset_builder(name, spec.dataset_config, revision=spec.dataset_revision)
        files = _files_of(builder, spec)
        if files is not None:
            there = (
                f"{folder}{file.removeprefix(name)}" if name != folder else file for file in files
            )
            return (row for file in there for row in file_rows(file))
        return load_dataset(
            name, spec.dataset_config, split=spec.dataset_split,
            revision=spec.dataset_revision, streaming=True,
        )  # fmt: skip
    except UserError:
        raise
    except Exception as error:  # the hub client raises many unrelated errors
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"{spec.prefix}dataset {spec.dataset!r}: neither 'pocket', nor a file "
            f"({', '.join(FILE_KINDS)}), nor a folder or a hub data set that can be loaded "
            f"({reason}); check the name, the network, {spec.prefix}dataset_config and dataset_split"
        ) from None


def _files_of(builder: Any, spec: TextSpec) -> list[str] | None:
    """The files of the wanted split, where all are of a format that ``datasets`` would guess at; None
    where it need not guess."""
    if builder.name not in FAITHFUL or builder.config.features is not None:
        return None
    splits = {str(name): files for name, files in (builder.config.data_files or {}).items()}
    if spec.dataset_split not in splits:
        if spec.dataset_split.isidentifier():
            raise _no_split(spec, splits)
        return None  # a slice such as train[:10%], which datasets understands
    files = [str(file) for file in splits[spec.dataset_split]]
    changed = _changed_settings(builder.config, "\t" if files[0].endswith(".tsv") else ",")
    if not all(map(is_text_file, files)) or (changed and builder.name == "text"):
        return None
    if changed:
        raise UserError(
            f"{spec.prefix}dataset {spec.dataset!r}: its own settings say how its {builder.name} files "
            f"are to be read ({', '.join(changed)}), and numbers, dates and missing values would be "
            "guessed; save the texts as JSON lines or Parquet, and name that file"
        )
    return files


def _changed_settings(config: Any, mark: str) -> list[str]:
    """The settings of a data set's configuration that change how its files are read."""
    usual = type(config)(**({"sep": mark} if hasattr(config, "sep") else {}))
    where = ("name", "version", "data_dir", "data_files", "description")
    return [f.name for f in fields(config) if f.name not in where
            and getattr(config, f.name) != getattr(usual, f.name)]  # fmt: skip


def _documents(
    spec: TextSpec, rows: Iterable[dict[str, Any]]
) -> Iterator[tuple[dict[str, Any], Document]]:
    parts = [] if spec.chat_column else _parts(spec)
    columns = columns_of(parts)
    for number, row in enumerate(rows):
        where = f"row {number} of {spec.dataset!r}"
        _refuse_missing(spec, where, row, columns)
        group = None if spec.split_by is None else _group(spec, row[spec.split_by], where)
        if spec.chat_column:
            column = f"{spec.prefix}chat_column {spec.chat_column!r}: {where}"
            messages = messages_of(row[spec.chat_column], column)
            yield row, Document(number, "", group, messages)
            continue
        values = {name: _text(spec, name, row[name], where) for name in columns}
        _refuse_long(
            spec, where, sum(len(text) + len(values.get(c or "", "")) for text, c in parts)
        )
        text = "".join(text + ("" if c is None else values[c]) for text, c in parts)
        yield row, Document(number, text, group)


def _refuse_long(spec: TextSpec, where: str, length: int) -> None:
    """Raise UserError when a text is longer than any that is read."""
    if length > LONGEST_TEXT:
        raise UserError(
            f"{spec.prefix}dataset: {where} has a text of {length:,} characters; expected at most "
            f"{LONGEST_TEXT:,}: cut the row into several"
        )


def _parts(spec: TextSpec) -> list[Part]:
    try:
        return parts_of(spec.text)
    except ValueError as error:
        raise UserError(
            f"{spec.prefix}text {spec.text!r}: cannot be filled in ({error}); {HOW_TO_FILL_IN}"
        ) from None


def _refuse_missing(spec: TextSpec, where: str, row: dict[str, Any], columns: list[str]) -> None:
    wanted: dict[str, list[str | None]] = {
        "text": [*columns],
        "chat_column": [spec.chat_column],
        "split_by": [spec.split_by],
    }
    for key, names in wanted.items():
        missing = [name for name in names if name is not None and name not in row]
        if missing:
            raise UserError(
                f"{spec.prefix}{key} {getattr(spec, key)!r}: {where} has no column "
                f"{', '.join(map(repr, missing))}; it has {', '.join(map(repr, row))}"
            )


def _text(spec: TextSpec, name: str, value: Any, where: str) -> str:
    """A value as text: text as it is, whole numbers as they are written, null as nothing."""
    if value is None:
        return ""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        raise UserError(
            f"{spec.prefix}text {spec.text!r}: column {name!r} of {where} is {_kind(value)}; expected "
            f"text; {_way_out(spec, value)}"
        )
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"{spec.prefix}text {spec.text!r}: column {name!r} of {where} is no valid text ({error}); "
            "mend the row, or leave it out"
        ) from None
    return value


def _kind(value: Any) -> str:
    items = f" of {type(value[0]).__name__}" if isinstance(value, list) and value else ""
    return f"{type(value).__name__}{items}"


def _way_out(spec: TextSpec, value: Any) -> str:
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return f"for a chat's messages set {spec.prefix}chat_column instead"
    if isinstance(value, list):
        return "write one text a row (a file that holds whole columns must be saved by rows)"
    if isinstance(value, dict):
        return "write the parts that you want into a column of text"
    return "save the column as text, as you want it to be read"


def _group(spec: TextSpec, value: Any, where: str) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise UserError(
            f"{spec.prefix}split_by {spec.split_by!r}: {where} has {_kind(value)} there; expected the "
            "name or number of the group that the row belongs to"
        )
    return str(value)
