"""``python -m raysae.store``: import, verify, show and list stores, or make a synthetic one."""

import argparse
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from raysae.activations.importing import import_command
from raysae.activations.importing.import_command import place
from raysae.activations.world_options import add_options, world_of
from raysae.console.board import console, seconds
from raysae.console.command_line import DONE, PARTLY, Parser
from raysae.console.shell import look_at_store

if TYPE_CHECKING:
    from raysae.activations.hard_world import HardWorld
    from raysae.activations.manifest import Manifest
    from raysae.activations.store import Store
    from raysae.activations.synthetic import SuperpositionWorld
    from raysae.activations.verify import Problem, Progress
    from raysae.console.output import Table
    from raysae.sites import Site

LINE_SECONDS = 5.0
WIDE = 120
"""Width of the table of samples, in characters, without a terminal; tables are never cut there."""
SYNTHETIC = """\
Write a store whose true features are known: each row is a sum of some of ATOMS unit vectors, each
present with probability P and a magnitude from 0.5 to 1.5. truth.safetensors in the store holds them.
The options of a hard world make atoms fire at Zipfian rates, in families, together, and so on.
"""


def main(arguments: list[str]) -> int:
    """Run the command; returns its exit code. Raises UserError on unusable input."""
    from raysae.errors import UserError

    args = _parser().parse_args(arguments)
    try:
        return args.run(args)
    except OSError as error:  # a full disk, a folder that may not be read
        raise UserError(f"{error.filename or 'input or output'}: {error.strerror}") from error


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python -m raysae.store",
        description="Activation stores: their format is raysae/activations/FORMAT.md.",
    )
    verbs = parser.add_subparsers(title="verbs", required=True, metavar="VERB")

    def verb(
        name: str, run: Callable[[argparse.Namespace], int], text: str
    ) -> argparse.ArgumentParser:
        added = verbs.add_parser(name, help=text, description=text)
        added.set_defaults(run=run)
        return added

    import_command.add_arguments(
        verb("import", import_command.run, "import activations of another tool into a store")
    )
    for name, run, text in (
        ("verify", _verify, "check every byte, row and statistic of a store; list what is wrong"),
        ("show", _show, "show where a store came from, its sites, and a few rows with their texts"),
        ("sites", _sites, "list a store's sites: folder, train, validation and test rows"),
    ):
        verb(name, run, text).add_argument(
            "store", type=place, metavar="STORE", help="its folder or URI"
        )
    show, sites = verbs.choices["show"], verbs.choices["sites"]
    show.add_argument("--site", metavar="SITE", help="only this site, such as layer=08/position=03")
    show.add_argument("--samples", type=int, default=5, metavar="N", help="rows to show (5)")
    show.add_argument(
        "--all", action="store_true", help="look at the rows of every site, not of some"
    )
    sites.add_argument("--json", action="store_true", help="as JSON, with shards and bytes")
    _add_synthetic(verb("synthetic", _synthetic, "write a store whose true features are known"))
    return parser


def _add_synthetic(parser: argparse.ArgumentParser) -> None:
    parser.description = SYNTHETIC
    add = parser.add_argument
    add("--out", type=place, required=True, metavar="STORE", help="the store's folder")
    add("--d-in", type=int, default=64, metavar="N", help="values per row (64)")
    add("--atoms", type=int, default=128, metavar="N", help="known features (128)")
    add("--p", type=float, help="probability of each atom in a row (0.03)")
    add("--rows", type=int, default=100_000, metavar="N", help="rows per site (100000)")
    add("--sites", type=int, default=1, metavar="N", help="layers, each with other rows (1)")
    add("--seed", type=int, default=0, metavar="N", help="decides atoms and rows (0)")
    add("--dtype", default="float32", choices=("float16", "bfloat16", "float32"), help="(float32)")
    add("--validation", type=float, default=0.1, metavar="FRACTION", help="of the rows (0.1)")
    add("--test", type=float, default=0.1, metavar="FRACTION", help="of the rows (0.1)")
    add("--shard-rows", type=int, metavar="N", help="rows per shard (as many as fit 256 MiB)")
    add_options(parser)


def _verify(args: argparse.Namespace) -> int:
    from raysae.activations.manifest import manifest_of
    from raysae.activations.show import unlisted
    from raysae.activations.store_files import files_at
    from raysae.activations.verify import verify

    started, files = time.monotonic(), files_at(args.store)
    manifest = manifest_of(files)
    with _progress() as progress:
        problems = verify(files, progress)
    for note in unlisted(files, manifest):
        _say(f"note: {note}")
    if problems:
        _print(_problems_table(problems))
    verdict = f"{len(problems)} problem{'s' * (len(problems) > 1)}" if problems else "sound"
    _say(f"{files.place}: {_size(manifest)} in {seconds(time.monotonic() - started)}: {verdict}")
    return PARTLY if problems else DONE


def _problems_table(problems: "list[Problem]") -> "Table":
    from raysae.console.output import Table

    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("file", no_wrap=True)
    for head in ("found", "expected"):
        table.add_column(head, overflow="fold")
    for problem in problems:
        table.add_row(problem.file, problem.found, problem.expected)
    return table


def _show(args: argparse.Namespace) -> int:
    from raysae.activations import open_store
    from raysae.activations.show import draw_samples, facts, samples_table, sites_table

    store = open_store(args.store)
    sites = [_site(args.site)] if args.site else store.sites
    entries = [store.entry(site) for site in sites]
    lines = facts(store)
    width = max(len(name) for name, _ in lines)
    for name, text in lines:
        _say(f"{name:<{width}}  {text}")
    _say("")
    _print(sites_table(entries))
    _show_health(store, sites, args.all)
    samples = draw_samples(store, sites[0], args.samples) if sites else []
    if samples:
        _say(f"\n{len(samples)} rows of {sites[0].folder}, picked at random")
        bold = console.is_terminal
        _print(samples_table(samples, console.width if bold else WIDE, bold))
    return DONE


def _show_health(store: "Store", sites: "list[Site]", every: bool) -> None:
    """Print what is unusual about the rows of each site, and what to do about it."""
    from raysae.activations.health import health_of_store, health_table

    found = health_of_store(store, sites, every=every)
    _say(f"\nHealth of the data, {found.how}")
    _print(health_table(found))
    for note in found.notes:
        _say(f"  {note}")
    if found.others:
        _say(f"  {found.others} sites were not looked at; --all looks at every one")


def _site(folder: str) -> "Site":
    from raysae.errors import UserError
    from raysae.sites import Site

    try:
        return Site.of_folder(folder.strip("/"))
    except ValueError as error:
        raise UserError(f"--site {folder}: {error}; store sites lists them") from None


def _sites(args: argparse.Namespace) -> int:
    from raysae.activations import open_store
    from raysae.activations.splits import SPLITS

    store = open_store(args.store)
    entries = [store.entry(site) for site in store.sites]
    if args.json:
        rows = [
            {
                "site": entry.site.folder, **entry.site.columns,
                "rows": entry.rows.model_dump(), "shards": len(entry.shards),
                "bytes": sum(shard.bytes for shard in entry.shards),
                **({"head": store.head_rows(entry.site)} if store.computes_rows else {}),
            }
            for entry in entries
        ]  # fmt: skip
        _say(json.dumps(rows, indent=2))
        return DONE
    for entry in entries:
        _say("  ".join([entry.site.folder, *(str(getattr(entry.rows, name)) for name in SPLITS)]))
    if store.computes_rows:
        _say("(live: the training rows are computed while training)")
    return DONE


def _synthetic(args: argparse.Namespace) -> int:
    from raysae.activations.synthetic import TRUTH_FILE, write_synthetic_store
    from raysae.storage.files import replacing_folder

    started, world = time.monotonic(), _world(args)
    _check_folder(args.out)
    with replacing_folder(args.out) as folder:
        manifest = write_synthetic_store(
            folder, world, args.rows, sites=args.sites, shard_rows=args.shard_rows, dtype=args.dtype,
            validation=args.validation, test=args.test,
        )  # fmt: skip
    counts = manifest.sites[0].rows
    _say(
        f"Store: {args.out}, synthetic\n"
        f"  {_size(manifest)} in {seconds(time.monotonic() - started)}\n"
        f"  a site: {counts.train:,} train, {counts.validation:,} validation, {counts.test:,} test "
        f"rows of {world.d_in} {manifest.dtype}\n"
        f"  truth:  {args.out / TRUTH_FILE}, {world.atoms} atoms, {_rates(args.out, world)}\n"
        f"{look_at_store(args.out)}"
    )
    return DONE


def _rates(out: Path, world: "SuperpositionWorld | HardWorld") -> str:
    """How often the atoms of a written store fire, in words."""
    from raysae.activations.hard_world import HardWorld
    from raysae.activations.truth_files import FAMILIES_FILE
    from raysae.storage.files import read_json

    if not isinstance(world, HardWorld):
        return f"each in a row with p {world.p}"
    measured = read_json(out / FAMILIES_FILE)["measured_l0"]
    return f"{measured:.2f} in a row on average; their families are in {FAMILIES_FILE}"


def _world(args: argparse.Namespace) -> "SuperpositionWorld | HardWorld":
    """The synthetic world of the options. Raises UserError on a value out of range."""
    from raysae.errors import UserError

    for option in ("d_in", "atoms", "rows", "sites", "shard_rows", "seed"):
        value, least = getattr(args, option), 0 if option == "seed" else 1
        if value is not None and value < least:
            flag = "--" + option.replace("_", "-")
            raise UserError(f"{flag} {value}: expected a whole number from {least}")
    if args.p is not None and not 0 < args.p <= 1:
        raise UserError(f"--p {args.p}: expected a probability above 0 and at most 1")
    fractions = args.validation, args.test
    if not all(0 <= fraction < 1 for fraction in fractions) or sum(fractions) >= 1:
        raise UserError(
            f"--validation {args.validation} and --test {args.test}: expected fractions of at "
            "least 0 that leave rows for training, such as 0.1 and 0.1"
        )
    return world_of(args)


def _check_folder(out: Path | str) -> None:
    """Raise UserError unless a new store can be written to ``out``."""
    from raysae.activations.writer import refuse_existing
    from raysae.errors import UserError

    if isinstance(out, str):
        raise UserError(f"--out {out}: a synthetic store is written to a folder; name one")
    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: is a file; name a folder for the store")
    refuse_existing(out)
    if out.exists() and any(out.iterdir()):
        raise UserError(
            f"{out}: holds files but no finished store; name another folder with --out, or remove it"
        )


def _size(manifest: "Manifest") -> str:
    rows = sum(shard.rows.total for entry in manifest.sites for shard in entry.shards)
    size = sum(shard.bytes for entry in manifest.sites for shard in entry.shards)
    count = len(manifest.sites)
    return f"{count} site{'s' * (count != 1)}, {rows:,} rows, {size / 1e9:.3f} GB"


@contextmanager
def _progress() -> "Iterator[Progress]":
    """Show the bytes checked: a bar in a terminal, a line every few seconds elsewhere."""
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn

    if not console.is_terminal:
        yield _lines()
        return
    columns = BarColumn(), DownloadColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("verify", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _lines() -> "Progress":
    started = printed = time.monotonic()

    def report(done: int, total: int) -> None:
        nonlocal printed
        now = time.monotonic()
        if now - printed > LINE_SECONDS and done < total:
            printed = now
            left = seconds((now - started) * (total - done) / max(done, 1))
            _say(f"  {done / 1e9:.3f} of {total / 1e9:.3f} GB, ETA {left}")

    return report


def _print(table: "Table") -> None:
    """Print a table: fitted to the terminal, or at full width without one, so nothing is cut."""
    from raysae.console.output import table_lines

    if console.is_terminal:
        console.print(table)
        return
    for line in table_lines(table):
        _say(line)


def _say(text: str) -> None:
    console.print(text)
