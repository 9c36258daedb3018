"""``python -m raysae.analyze RUN [PHASE ...]``: what the features of an atlas mean."""

import argparse
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

from raysae.console.command_line import DONE, INTERRUPTED, PARTLY, Parser, add_log_options
from raysae.errors import UserError

if TYPE_CHECKING:
    from raysae.analysis.phase import Phase


def main(arguments: list[str]) -> int:
    """Run the command and return its exit code. Raises UserError on unusable input."""
    parser = Parser(
        prog="python -m raysae.analyze",
        description="Analyse the features of an atlas: each PHASE alone, or all whose needs are met. "
        "The same command resumes; what is done is only read.",
        epilog=_phases_help() if {"-h", "--help"} & set(arguments) else None,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "atlas", metavar="RUN",
        help="a run with an atlas, an exported atlas, SAEs of SAELens, or the folder of a single SAE",
    )  # fmt: skip
    parser.add_argument(
        "words", nargs="*", default=[], metavar="PHASE",  # without a default it is said to be required
        help="phases, and options PHASE.KEY=VALUE",
    )  # fmt: skip
    parser.add_argument(
        "--store", help="the store of the activations, of an atlas outside a run (or store=STORE)"
    )
    parser.add_argument(
        "--out", metavar="DIR",
        help="where the folder analysis is written, of an atlas outside a run (by default beside it)",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, help="of an atlas outside a run (0)")
    add_log_options(parser)
    args = parser.parse_intermixed_args(arguments)  # phases may follow options
    return _carry_out(args)


def _carry_out(args: argparse.Namespace) -> int:
    import sys

    from raysae.analysis.registry import check_options, known_phases, phases_named
    from raysae.console.board import console, set_log
    from raysae.console.output import say
    from raysae.pipeline.analysis import options_of
    from raysae.storage.remote import is_uri

    set_log(args.log)
    _take_store(args)
    names = [word for word in args.words if "=" not in word]
    options = options_of([word for word in args.words if "=" in word])
    phases = phases_named(names or known_phases())
    check_options(options, phases)
    wanted = [phase.name for phase in phases]
    of_run = is_uri(args.atlas) or (_run_folder(args.atlas) / "config.yaml").is_file()
    try:
        return (_of_run if of_run else _alone)(args, wanted, options, bool(names))
    except KeyboardInterrupt:
        say("interrupted; the same command continues where it stopped", sys.stderr)
        return INTERRUPTED
    finally:
        console.quiet = False


def _take_store(args: argparse.Namespace) -> None:
    """Take ``store=STORE`` among the words as ``--store``, as the other commands spell it."""
    given = [word for word in args.words if word.startswith("store=")]
    args.words = [word for word in args.words if word not in given]
    for word in given:
        args.store = word.partition("=")[2] or None


def _run_folder(name: str) -> Path:
    from raysae.storage.files import expanded

    folder = expanded(name)
    return folder.parent if folder.name == "atlas" else folder


def _of_run(args: argparse.Namespace, names: list[str], options: dict, asked: bool) -> int:
    from raysae.pipeline.analysis import as_override, tell_results
    from raysae.pipeline.run import analyze_run
    from raysae.pipeline.sweep_command import recipe_of_run

    for name in ("store", "out"):
        if getattr(args, name) is not None:
            raise UserError(f"--{name} is for an atlas outside a run; this run has its own")
    place = args.atlas.rstrip("/").removesuffix("/atlas")
    recipe = recipe_of_run(place, as_override(options))
    if recipe.several:
        raise UserError(
            f"{place}: holds a run for each of several models or layers; name one: {place}/NAME"
        )
    result, failures = analyze_run(recipe, names, asked)
    tell_results(result.run, names)
    return _end(failures)


def _alone(args: argparse.Namespace, names: list[str], options: dict, asked: bool) -> int:
    from raysae.analysis.engine import plan
    from raysae.analysis.registry import phases_named
    from raysae.analysis.subject import Subject
    from raysae.pipeline.analysis import analyze_alone, note_phases, tell_results
    from raysae.records.run_files import RunFiles
    from raysae.storage.files import expanded

    out = expanded(args.out or args.atlas).absolute()
    subject = Subject(str(expanded(args.atlas).absolute()), RunFiles(out), _store(args), args.seed)
    if (run := subject.atlas.files.run) is not None and args.out is None:
        raise UserError(
            f"{args.atlas}: lies in the run {run}, into which nothing else is written; give --out DIR "
            "for the results"
        )
    skipped: dict[str, str] = {}
    if not asked:
        planned, skipped = plan(subject, phases_named(names), options, asked=False)
        names = [one.phase.name for one in planned]
    found = analyze_alone(subject, names, options)
    note_phases(subject.files, skipped)
    tell_skipped(skipped)
    tell_results(subject.files, names)
    return _end(found.failures)


def _store(args: argparse.Namespace) -> str | None:
    """The store that is named, or that of the run in which the SAE lies; None where neither is there."""
    from raysae.atlas.library.files import find_atlas
    from raysae.config.loading import load_run

    if args.store is not None:
        return args.store
    run = find_atlas(args.atlas).run
    return None if run is None else str(load_run(run).store_place)


def tell_skipped(skipped: dict[str, str]) -> None:
    """Print which phases were not run, and why."""
    from raysae.console.board import console

    for name, reason in skipped.items():
        console.print(f"{name}: not run: {reason}", style="yellow")


def _end(failures: list[str]) -> int:
    from raysae.console.board import console

    for line in failures:
        console.print(f"failed: {line}", style="red")
    return PARTLY if failures else DONE


def _phases_help() -> str:
    from raysae.analysis.registry import known_phases

    lines = ["phases, with their options and defaults:"]
    for phase in known_phases().values():
        lines += ["", f"  {phase.name}: {phase.title}", *_options_help(phase)]
    return "\n".join(lines)


def _options_help(phase: "Phase") -> list[str]:
    lines: list[str] = []
    for key, field in phase.Settings.model_fields.items():
        lines.append(f"    {phase.name}.{key}={field.default}")
        said = " ".join((field.description or "").split())
        lines += textwrap.wrap(said, 84, initial_indent=" " * 8, subsequent_indent=" " * 8)
    return lines
