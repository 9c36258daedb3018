"""``raysae runs``, ``raysae show RUN``, ``raysae failures RUN``: looking at runs, changing nothing."""

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raysae.console.command_line import DONE, PARTLY, Parser
from raysae.console.output import Table, say, table_lines
from raysae.errors import UserError

if TYPE_CHECKING:
    from raysae.pipeline.result import SweepResult
    from raysae.records.folder import RunFolder

LAST_LINES = 5
"""Lines of a traceback that ``failures`` shows; the file has them all."""
COLUMNS = ("name", "state", "trials", "failed", "chosen", "explained_variance", "sites", "made")


def runs(arguments: list[str]) -> int:
    """``raysae runs [FOLDER]``: the runs in a folder, one a line. Raises UserError without the folder."""
    parser = Parser(prog="raysae runs", description="List the runs in a folder, and their states.")
    parser.add_argument("folder", nargs="?", default="runs", help="the folder of runs (runs)")
    _add_json(parser)
    args = parser.parse_args(arguments)
    rows = [_listed(folder) for folder in _run_folders(args.folder)]
    if args.json:
        say(json.dumps(rows))
    elif not rows:
        say(f"no runs in {args.folder}")
    else:
        say(_as_table(COLUMNS, [[_text(row[name]) for name in COLUMNS] for row in rows]))
    return DONE


def show(arguments: list[str]) -> int:
    """``raysae show RUN``: the last screen of a run, from its files. Raises UserError for no run."""
    parser = Parser(prog="raysae show", description="Show the last screen of a run again.")
    parser.add_argument("run", metavar="RUN", help="a run folder, or its URI")
    _add_json(parser)
    args = parser.parse_args(arguments)
    result = read_result(args.run)
    if args.json:
        say(json.dumps(_content(result), default=str))
        return DONE
    from raysae.pipeline.summary import print_summary

    _tell_states(result.run)
    print_summary(result, None)
    return DONE


def failures(arguments: list[str]) -> int:
    """``raysae failures RUN``: each failed trial and site with its last words; exit code 1 if there is
    any. Raises UserError for no run."""
    parser = Parser(
        prog="raysae failures",
        description="Show what failed in a run: trials, sites and stages, with their last words.",
    )
    parser.add_argument("run", metavar="RUN", help="a run folder, or its URI")
    _add_json(parser)
    args = parser.parse_args(arguments)
    result = read_result(args.run)
    found = [*_failed_items(result), *_failed_stages(result.run)]
    if args.json:
        say(json.dumps(found))
    elif not found:
        say("nothing failed")
    for one in [] if args.json else found:
        say(f"{one['what']}: {one['reason']}")
        for line in one["last_words"]:
            say(f"    {line}")
        if one["file"]:
            say(f"    ({one['file']})")
    return PARTLY if found else DONE


def read_result(place: str) -> "SweepResult":
    """What a run has so far, from its files. Raises UserError when it is no run."""
    from raysae.pipeline.result import SweepResult
    from raysae.records.choice import given_config, read_choice
    from raysae.records.folder import read_run
    from raysae.records.tables import read_sites, read_trials

    run = read_run(place)
    searched = run.recipe.sweep.enabled
    trials = read_trials(run.trials_file) if searched and run.trials_file.is_file() else []
    chosen = not searched or run.selection_file.is_file()
    nothing = {"trial": None, "reason": "nothing was chosen yet"}
    unchosen = {"rule": run.recipe.select.rule, "choice": nothing, "choices": {}}
    selection = read_choice(run) if chosen else unchosen
    return SweepResult(
        run, trials, selection if searched else given_config(),
        controls=_content_of(run.controls_file), scaling=_content_of(run.scaling_file),
        atlas=read_sites(run.atlas_metrics_file),
    )  # fmt: skip


def _content_of(file: Path) -> dict[str, Any]:
    from raysae.records.damage import read_object

    return read_object(file) if file.is_file() else {}


def _run_folders(name: str) -> list[Path]:
    from raysae.records.run_files import RECIPE_FILE
    from raysae.storage.files import expanded
    from raysae.storage.remote import is_uri

    if is_uri(name):
        raise UserError(
            f"{name}: runs are listed in a folder; name a run at a URI: raysae show URI"
        )
    folder = expanded(name)
    if not folder.is_dir():
        raise UserError(f"{name}: no such folder; give the folder that holds the runs (runs_dir)")
    found = [file.parent for file in folder.glob(f"*/{RECIPE_FILE}")]
    found += [file.parent for file in folder.glob(f"*/*/{RECIPE_FILE}")]  # of several models
    return sorted(found)


def _listed(folder: Path) -> dict[str, Any]:
    """A run's line; one that cannot be read has the reason as its state."""
    row: dict[str, Any] = dict.fromkeys(COLUMNS)
    row["name"] = folder.name
    try:
        result = read_result(str(folder))
    except (UserError, OSError, KeyError) as error:
        return {**row, "state": f"cannot be read: {error}"}
    number = result.selection["choice"]["trial"]
    chosen = next((one for one in result.trials if one.trial == number), None)
    sites = [one for one in result.atlas if one.done]
    return {
        **row, "state": _state(result.run), "trials": len(result.trials) or None,
        "failed": len(result.failed_trials) + len(result.failed_sites),
        "chosen": chosen.config if chosen else None,
        "explained_variance": round(chosen.explained_variance, 4) if chosen else None,
        "sites": len(sites) or None,
        "made": time.strftime("%Y-%m-%d %H:%M", time.localtime(result.run.started)),
    }  # fmt: skip


def _state(run: "RunFolder") -> str:
    """``done``, or the first stage that is not, with its state."""
    for stage in _stages(run):
        if run.state(stage) != "done":
            return f"{stage} {run.state(stage)}"
    return "done"


def _stages(run: "RunFolder") -> Sequence[str]:
    from raysae.pipeline.stages import stages_of

    return ("extract", *(stage.name for stage in stages_of(run.recipe)))


def _tell_states(run: "RunFolder") -> None:
    states = ", ".join(f"{stage} {run.state(stage)}" for stage in _stages(run))
    say(f"{run.recipe.name}: {states}")


def _content(result: "SweepResult") -> dict[str, Any]:
    run = result.run
    return {
        "name": run.recipe.name, "id": run.id, "run": run.recipe.run_place,
        "stages": {stage: run.state(stage) for stage in _stages(run)}, "choice": result.selection,
        "trials": [row.columns for row in result.trials],
        "atlas": [row.columns for row in result.atlas],
    }  # fmt: skip


def _failed_items(result: "SweepResult") -> list[dict[str, Any]]:
    run = result.run
    undone = [row for row in result.atlas if not row.done]
    sites = [(str(row.site), row.reason, run.atlas_site(row.site)) for row in undone]
    trials = [
        (row.name, row.reason, run.trial(row.trial))
        for row in result.trials
        if not row.done and row.state != "stopped"
    ]
    return [_failure(run, *one) for one in [*trials, *sites]]


def _failure(run: "RunFolder", what: str, reason: str, folder: Path) -> dict[str, Any]:
    """A failed item, with the end of the traceback that lies beside its folder."""
    files = sorted(folder.parent.glob(f"{folder.name}.*.txt"))
    file = files[-1] if files else None
    lines = [] if file is None else file.read_text(errors="replace").rstrip().splitlines()
    shown = None if file is None else file.relative_to(run.path).as_posix()
    return {"what": what, "reason": reason, "last_words": lines[-LAST_LINES:], "file": shown}


def _failed_stages(run: "RunFolder") -> list[dict[str, Any]]:
    states = {stage: run.status["stages"][stage] for stage in _stages(run)}
    return [
        {
            "what": f"stage {name}",
            "reason": str(entry.get("reason", "")),
            "last_words": [],
            "file": None,
        }
        for name, entry in states.items()
        if entry["state"] == "failed"
    ]


def _as_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    table = Table(box=None, padding=(0, 2, 0, 0))
    for name in columns:
        table.add_column(name.replace("_", " "))
    for row in rows:
        table.add_row(*row)
    return "\n".join(table_lines(table))


def _text(value: Any) -> str:
    return "" if value is None else str(value)


def _add_json(parser: Parser) -> None:
    parser.add_argument("--json", action="store_true", help="as JSON, for machines")
