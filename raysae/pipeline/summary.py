"""The last screen: the trials, the choice and its reason, the time, what to do next."""

from typing import Any

from raysae.browser.pages import FEATURES
from raysae.console.board import console, seconds
from raysae.console.output import Table
from raysae.console.shell import look_at_records, raysae_command
from raysae.metrics import CONSOLE, labels, registered
from raysae.pipeline.result import SweepResult
from raysae.records.folder import STAGES
from raysae.records.rows import SiteRow, TrialRow
from raysae.redaction import redacted
from raysae.report.claims import in_brief

LISTED = 30
"""The most trials that the last screen lists."""


def print_summary(result: SweepResult, total_seconds: float | None, short: bool = False) -> None:
    """Print the last screen; if ``short``, only the choice, what failed, and the report's path.

    ``total_seconds`` is how long the command has taken; None of a run that is only shown.
    """
    if short:
        if result.run.recipe.sweep.enabled:
            console.print(
                f"Rule {result.selection['rule']}: {result.selection['choice']['reason']}"
            )
        _print_failures(result)
        _print_report(result)
        return
    chosen = result.selection["choice"]["trial"]
    if result.run.recipe.sweep.enabled:
        _print_choice(result)
        _print_controls(result.controls)
        _print_scaling(result)
    _print_atlas(result.atlas)
    _print_failures(result)
    _print_time(result, total_seconds)
    _print_next(result, chosen)


def print_selection(result: SweepResult) -> None:
    """Print the screen of ``--select``."""
    _print_choice(result)
    if result.broken:
        _print_failures(result)
    console.print()
    _print_report(result)
    if result.selection["choice"]["trial"] is not None and result.run.recipe.atlas.enabled:
        console.print(
            f"Atlas    {raysae_command('sweep', '--resume', result.run.recipe.run_place)} trains it"
        )


def _print_report(result: SweepResult) -> None:
    if "report" in result.broken:
        console.print("Report   not made; the same command tries it again, and trains nothing anew")
    else:
        console.print(f"Report   {result.run.report_page}")
        if (result.run.report_page.parent / FEATURES / "index.html").is_file():
            console.print(f"Features {raysae_command('serve', result.run.recipe.run_place)}")


def _print_choice(result: SweepResult) -> None:
    shown = listed_trials(result.trials, result.selection)
    console.print(_trials(shown, result.selection["choice"]["trial"]))
    if len(shown) < len(result.trials):
        console.print(
            f"{len(result.trials) - len(shown)} more of {len(result.trials)} trials are in "
            f"{result.run.trials_file}", style="dim",
        )  # fmt: skip
    console.print(f"\nRule {result.selection['rule']}: {result.selection['choice']['reason']}")
    for line in indicator_lines(result.selection["choice"]):
        console.print(f"  {line}")
    if cost := _second_seed(result):
        console.print(f"  {cost}")
    for name, choice in result.selection["choices"].items():
        if name != result.selection["rule"]:
            console.print(f"  {name}: {_short(choice)}", style="dim")


def _second_seed(result: SweepResult) -> str:
    """What a second seed would take here; empty where there are several, or the rule asks for none."""
    took = [row.seconds for row in result.trials if row.seconds is not None]
    if (
        result.selection["rule"] != "auto"
        or result.run.recipe.sweep.seeds_per_trial > 1
        or not took
    ):
        return ""
    return f"a second seed would take about {seconds(sum(took))} of one worker"


def _print_controls(controls: dict[str, Any]) -> None:
    """What the controls explain, and the verdict, in two lines."""
    if not controls:
        return
    parts = []
    for name, one in controls["controls"].items():
        label = CONTROL_LABELS.get(name, name).format(k=controls["components"])
        if one.get("explained_variance") is None:
            parts.append(f"{label}: not made")
            continue
        share = f" ({one['share']:.0%})" if "share" in one else ""
        reach = one.get("components_to_reach")
        more = f"; {reach} components reach the SAE's" if reach is not None else ""
        parts.append(f"{label} {one['explained_variance']:.4f}{share}{more}")
    console.print(f"Controls, explained variance (of the SAE's): {', '.join(parts)}")
    colour = "" if controls["verdict"] == "better" else "yellow"
    console.print(f"       {controls['words']}", style=colour)


CONTROL_LABELS = {
    "frozen_decoder": "random dictionary", "gaussian": "Gaussian rows",
    "pca": "PCA with {k} components", "shuffled_model": "shuffled model",
}  # fmt: skip
"""The controls on the console."""


def _print_scaling(result: SweepResult) -> None:
    """What twice the largest dictionary would give at the chosen K, or why nobody can say."""
    scaling = result.scaling
    if not scaling:
        return
    if scaling["refused"] is not None or not scaling["predictions"]:
        console.print(f"Scaling: no law: {scaling['refused']}", style="dim")
        return
    number = result.selection["choice"]["trial"]
    wanted = next((row.k for row in result.trials if row.trial == number), None) or 0
    one = min(scaling["predictions"], key=lambda p: (p["d_sae"], abs(p["k"] - wanted)))
    low, high = one["interval"]
    cost = f", in about {seconds(one['seconds'])} a trial here" if "seconds" in one else ""
    console.print(
        f"Scaling: d_sae {one['d_sae']} at K {one['k']} would leave {one['fvu']:.4f} unexplained "
        f"({low:.4f} to {high:.4f}){cost}; checked on d_sae {scaling['check']['d_sae']}, "
        f"{scaling['check']['error']:.1%} off"
    )


def indicator_lines(choice: dict[str, Any]) -> list[str]:
    """What the indicators behind a choice say, a line each; none of a rule without indicators."""
    return [
        f"{said['indicator']} ({said['of'].removeprefix('sae.')}): {said['says']}"
        for said in choice.get("indicators", [])
    ]


def listed_trials(trials: list[TrialRow], selection: dict[str, Any]) -> list[TrialRow]:
    """The trials that the table lists: all of a few; of many the chosen one, those on the front and
    those that failed first, ``LISTED`` in all, in the order of their numbers."""
    if len(trials) <= LISTED:
        return trials
    first = dict.fromkeys(selection.get("pareto", {}).get("front", []), 1)
    first[selection["choice"]["trial"]] = 0

    def rank(row: TrialRow) -> tuple[int, int]:
        return first.get(row.trial, 3 if row.done else 2), row.trial

    return sorted(sorted(trials, key=rank)[:LISTED], key=lambda row: row.trial)


def _trials(trials: list[TrialRow], chosen: int | None) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), whole_cells=True)
    several = len({row.variant for row in trials}) > 1
    sparsity = {row.sparsity_setting[0] for row in trials}
    shown = [*labels(CONSOLE, trials), registered()["seconds"]]
    keys = ["variant"] if several else []
    keys += ["d_sae", sparsity.pop() if len(sparsity) == 1 else "K or λ"]
    table.add_column("trial", justify="right")
    for key in [*keys, *(metric.title for metric in shown)]:
        table.add_column(key, justify="right")
    table.add_column("")
    for row in trials:
        note = "<- chosen" if row.trial == chosen else ""
        note = note if row.done else row.state
        cells = [row.variant] if several else []
        cells += [str(row.d_sae), str(row.sparsity_setting[1])]
        cells += [metric.text(row.get(metric.name)) for metric in shown]
        style = "bold" if row.trial == chosen else ""
        table.add_row(str(row.trial), *cells, note, style=style)
    return table


def _short(choice: dict[str, Any]) -> str:
    return f"none ({choice['reason']})" if choice["trial"] is None else f"trial {choice['trial']}"


def _print_atlas(atlas: list[SiteRow]) -> None:
    done = [row.explained_variance for row in atlas if row.measured]
    if done:
        console.print(
            f"Atlas: {len(done)} sites, explained variance {sum(done) / len(done):.3f} on average, "
            f"{min(done):.3f} to {max(done):.3f}"
        )
    for sentence in in_brief(atlas):
        console.print(f"       {sentence}", style="dim")
    name = "explained_variance_ordinary"
    apart = [row[name] for row in atlas if row.measured and row.get("sink_fraction")]
    if apart:
        console.print(
            f"       {len(apart)} with sink rows; without those, explained variance there is "
            f"{sum(apart) / len(apart):.3f} on average, {min(apart):.3f} to {max(apart):.3f}"
        )


def _print_failures(result: SweepResult) -> None:
    if result.failures:
        console.print("\nNot done (run the same command again to retry):", style="bold red")
        console.print(_failures(result.failures))
    if result.records_lost:
        where = redacted(result.tracking_uri or "")
        console.print(
            f"MLflow at {where} did not take {result.records_lost} records: "
            f"{result.records_reason or 'it does not answer'}. The run folder has them all, and the same "
            "command sends them once MLflow takes them", style="yellow",
        )  # fmt: skip


def _failures(lines: list[str]) -> Table:
    """A table of what failed, why, and what helps, from lines ``what: why; what helps``."""
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for _ in ("what", "why", "what helps"):
        table.add_column(overflow="fold")
    for line in lines:
        what, _, reason = line.partition(": ")
        why, _, helps = reason.partition("; ")
        table.add_row(what, why, helps, style="red")
    return table


def _print_time(result: SweepResult, total: float | None) -> None:
    stages = {stage: result.run.seconds(stage) for stage in STAGES}
    parts = {stage: value for stage, value in stages.items() if value is not None}
    if (
        total is not None and sum(parts.values()) <= total
    ):  # else the stages ran in an earlier attempt
        parts = {"start": total - sum(parts.values()), **parts}
    text = ", ".join(f"{stage} {seconds(value)}" for stage, value in parts.items())
    whole = "" if total is None else f"; this command {seconds(total)} in all"
    console.print(f"\nTime: {text}{whole}")


def _print_next(result: SweepResult, chosen: int | None) -> None:
    if result.run.recipe.run_uri is not None:
        console.print(f"\nRun      {result.run.recipe.run_uri}; the files below are copies:")
    console.print()
    _print_report(result)
    if result.tracking_uri:
        console.print(f"MLflow   {look_at_records(result.tracking_uri)}")
    if chosen is not None:
        load = f"import raysae; sae = raysae.load_sae({str(result.run.sweet_spot)!r})"
        console.print(f"Load     {load}; reconstruction, features, metrics = sae(x)")
