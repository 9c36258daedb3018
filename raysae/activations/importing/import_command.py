"""``python -m raysae.store import FILE --out STORE``: import activations of another tool."""

import argparse
import time
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

from raysae.console.board import console, seconds
from raysae.console.command_line import DONE
from raysae.console.shell import look_at_store
from raysae.storage.local_copies import is_uri

if TYPE_CHECKING:
    from raysae.activations.importing.options import ImportOptions
    from raysae.activations.importing.run import Imported, ImportPlan

LINE_SECONDS = 5.0
DESCRIPTION = """\
Import activations that another tool wrote into a new store, or add sites to an imported store.
FILE is a .pt, .npy, .npz, .safetensors, Parquet or HDF5 file, a raw memory map (.bin .dat .mmap .raw), a
folder of Parquet or .npy files, or a folder of SAELens' cached activations. Rows are [rows, d_in] or
[sequences, tokens, d_in], or a list of [tokens, d_in]. An attention mask beside them is used. The split
follows from the ids of groups (documents, chats) or sequences, or from the token ids. Pickled code is
never run.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments to ``parser``."""
    parser.description = DESCRIPTION
    parser.add_argument("file", type=Path, metavar="FILE", help="what to import")
    add = parser.add_argument
    add("--out", type=place, required=True, metavar="STORE", help="the store's folder or URI")
    add("--layer", type=int, metavar="L", help="the layer, if the file does not give it")
    add("--position", metavar="P", help="a token's number (-1 is the last), all, or a pool's name")
    add("--key", action="append", default=[], dest="keys", metavar="ROLE=NAME",
        help="the tensor or column that is the activation, sequence, group, mask (1 is a token), "
        "padding (1 is padding), layer, position, token_index or token_id; NAME none ignores it; "
        "sequence=item makes each item of a list a sequence; may be repeated")  # fmt: skip
    add("--axes", metavar="NAMES", help="the array's dimensions: sequence,layer,position,token,d_in, "
        "in its order, 1 for one of size 1")  # fmt: skip
    add("--pad-token", type=int, metavar="ID", help="the padding's token id, without a mask")
    add("--sequences", type=Path, metavar="FILE.npy", help="sequence ids, one per row or sequence")
    add("--d-in", type=int, metavar="N", help="raw files: values per row")
    add("--raw-dtype", metavar="DTYPE", help="raw files: float16, bfloat16 or float32")
    add(
        "--dtype",
        metavar="DTYPE",
        help="the store's: float16, bfloat16 or float32 (default: the file's)",
    )
    add("--validation", type=float, default=0.1, metavar="FRACTION", help="of the sequences (0.1)")
    add("--test", type=float, default=0.1, metavar="FRACTION", help="of the sequences (0.1)")
    add("--seed", type=int, default=0, help="decides the order of the rows (0)")
    add("--non-finite", default="refuse", metavar="refuse|drop", help="rows with NaN or infinity")
    add("--max-norm-ratio", type=float, metavar="N",
        help="leave out rows with a norm over N times their shard's median norm, such as 10")  # fmt: skip
    add("--shard-rows", type=int, metavar="N", help="most rows per shard (as many as fit 256 MiB)")
    add("--model", metavar="ID", help="the transformer's id, for the manifest")
    add("--dataset", metavar="ID", help="the data set's id, for the manifest")
    add("--hookpoint", metavar="NAME", help="for the manifest (the file's, or unknown)")


def place(name: str) -> Path | str:
    """A folder as a path; a URI as it is."""
    return name if is_uri(name) else Path(name)


def run(args: argparse.Namespace) -> int:
    """Run the import; returns the exit code. Raises UserError on unusable input."""
    from raysae.activations.importing.run import plan_import, run_import

    started, meter = time.monotonic(), Meter()
    plan = plan_import(args.file, args.out, options_of(args), meter)
    _say(found(plan))
    _print_result(run_import(plan, meter), time.monotonic() - started)
    return DONE


def options_of(args: argparse.Namespace) -> "ImportOptions":
    """The options in the parsed arguments. Raises UserError when one is out of range."""
    from raysae.activations.importing.options import ImportOptions

    values = {field.name: getattr(args, field.name) for field in fields(ImportOptions)}
    return ImportOptions(**{**values, "keys": _keys(args.keys)})


def found(plan: "ImportPlan") -> str:
    """A description of the file and of the sites it makes, to be printed."""
    from raysae.activations.importing.source import dtype_name

    source = plan.source
    columns = [f"{role} from {column.name}" for role, column in (source.columns or {}).items()]
    named = [f"activations from {source.activation}"] if source.activation else []
    lines = [
        f"Found: {source.path} ({source.format}), {source.rows:,} rows, d_in {source.d_in}, "
        f"{dtype_name(source.dtype)}, shape {list(source.shape)}",
        *([f"  {', '.join([*named, *columns])}"] if named or columns else []),
        *(f"  {said}" for said in source.said),
        *([f"  the split follows from {source.ids.name}"] if source.ids else []),
        f"  {_sites(plan)}: {plan.rows:,} rows, {plan.bytes / 1e9:.3f} GB as {plan.dtype}",
    ]
    return "\n".join(lines)


class Meter:
    """Prints the progress of a long import every few seconds."""

    def __init__(self) -> None:
        self._stage, self._started, self._printed = "", 0.0, 0.0

    def __call__(self, stage: str, done: int, total: int) -> None:
        now = time.monotonic()
        if stage != self._stage:
            self._stage, self._started, self._printed = stage, now, now
        if now - self._printed < LINE_SECONDS:
            return
        self._printed = now
        passed = max(now - self._started, 1e-9)
        left = passed * (total - done) / max(done, 1)
        _say(
            f"  {stage}: {done:,} of {total:,} rows, {done / passed:,.0f} rows/s, "
            f"ETA {seconds(left)}"
        )


def _keys(pairs: list[str]) -> dict[str, str]:
    from raysae.errors import UserError

    keys: dict[str, str] = {}
    for pair in pairs:
        role, equals, name = pair.partition("=")
        if not equals or not name:
            raise UserError(f"--key {pair}: expected ROLE=NAME, such as activation=acts")
        if role in keys:
            raise UserError(f"--key {role}=...: given twice ({keys[role]} and {name})")
        keys[role] = name
    return keys


def _sites(plan: "ImportPlan") -> str:
    if len(plan.sites) == 1:
        return str(plan.sites[0])
    layers = len({site.layer for site in plan.sites})
    positions = len({site.position for site in plan.sites})
    return f"{len(plan.sites)} sites ({layers} layers, {positions} positions)"


def _print_result(done: "Imported", passed: float) -> None:
    for note in done.notes:
        _say(f"  note: {note}")
    size = done.bytes / 1e9
    large = f", {_count(done.too_large, 'row')} too large" if done.too_large else ""
    _say(
        f"Store: {done.store}\n"
        f"  {_count(len(done.entries), 'site')} added, {_count(done.rows, 'row')} of {done.d_in} "
        f"{done.dtype}, {_count(done.dropped, 'row')} dropped{large}\n"
        f"  {size:.3f} GB in {seconds(passed)}, {size / max(passed, 1e-9):.2f} GB/s\n"
        f"{look_at_store(done.store)}"
    )


def _count(number: int, thing: str) -> str:
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


def _say(text: str) -> None:
    console.print(text)
