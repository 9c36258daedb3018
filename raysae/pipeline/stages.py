"""The stages of a run. Each stage says what makes its product; only missing products are made.

A stage imports slow modules only when it works, so that a finished run is read at once.
"""

import logging
from functools import partial
from pathlib import Path
from typing import Any

from raysae.config import Recipe
from raysae.console.board import console
from raysae.errors import UserError, in_one_line
from raysae.identity import Made
from raysae.pipeline.after_choice import CONTROLS, SCALING, parameters_of
from raysae.pipeline.analysis import Analyze
from raysae.pipeline.atlas_words import tell_aside, tell_atlas
from raysae.pipeline.attempt import Attempt
from raysae.pipeline.outcome import emit_outcome
from raysae.pipeline.stage import Stage
from raysae.records import products
from raysae.records.damage import check_commit, check_database, read_selection
from raysae.records.environment import read_environment, write_environment
from raysae.records.folder import RunFolder
from raysae.records.status import ENVIRONMENT_FILE
from raysae.records.tables import read_sites, read_trials
from raysae.report.analysis_section import result_files
from raysae.sites import Site


class Extract(Stage):
    """Extracts the store, unless it exists."""

    name = "extract"

    def made(self, attempt: Attempt) -> Made:
        """The identity of the extraction; empty when the store exists or is imported."""
        extraction = attempt.plan.extraction
        return {} if extraction is None else extraction.identity()

    def products(self, attempt: Attempt) -> list[Path]:
        """None: the store lies outside the run folder."""
        return []

    def is_missing(self, attempt: Attempt) -> bool:
        """Whether the store does not exist, or the run has not marked this stage as done."""
        return attempt.plan.store is None or attempt.run.state(self.name) != "done"

    def work(self, attempt: Attempt) -> list[str]:
        """Extract the store and check the sites of the sweep.

        Raises UserError when something does not fit, or nothing can be trained at a site.
        """
        from raysae.extraction.extract_command import extract_with
        from raysae.pipeline.live_checks import check_live_rows
        from raysae.pipeline.preflight import check_site

        plan = attempt.plan
        if plan.store is None:
            assert plan.extraction is not None
            _ = attempt.placement  # refuses trials that do not fit, before the extraction
            attempt.plan = plan.with_store(extract_with(plan.extraction, attempt.recipe))
            attempt.begun.mark()
        else:
            console.print(f"Store: {plan.store.place} is there already")
        check_live_rows(attempt.recipe, attempt.store, attempt.plan.sites)
        for site in attempt.plan.sites:
            check_site(attempt.store, site)
        return []

    def read(self, attempt: Attempt) -> None:
        """Say where the store is."""
        console.print(f"Store: {attempt.store.place} is there already")


class Sweep(Stage):
    """Runs the trials and writes their table."""

    name = "sweep"

    def made(self, attempt: Attempt) -> Made:
        """What makes the search, and how far it goes."""
        extent = products.extent(attempt.recipe, attempt.plan.proposer.trials)
        return {**self._search(attempt), **extent}

    def products(self, attempt: Attempt) -> list[Path]:
        """``trials.parquet``."""
        return [attempt.run.trials_file]

    def prepare(self, attempt: Attempt) -> None:
        """Set aside the trials of another search."""
        attempt.run.begin_search(self._search(attempt))

    def work(self, attempt: Attempt) -> list[str]:
        """Run the trials that are not committed; returns those that failed."""
        from raysae.pipeline.in_model import judge_of
        from raysae.sweep.trials.tuning import SweepJob, run_trials

        plan, store = attempt.plan, attempt.checked_store
        job = SweepJob(
            attempt.run,
            store,
            plan.sites,
            plan.proposer,
            attempt.placement,
            attempt.events,
            plan.live,
            judge_of(attempt.recipe, store, plan.sites),
            partial(_before_atlas, attempt),
        )
        attempt.result.trials = run_trials(job, attempt.begun.mark)
        attempt.look_at_store_again()
        return attempt.result.failed_trials

    def check(self, attempt: Attempt) -> None:
        """Check the table, and the copy of the study beside it."""
        super().check(attempt)
        check_database(attempt.run.study_file)

    def read(self, attempt: Attempt) -> None:
        """Read the rows of ``trials.parquet``."""
        attempt.result.trials = read_trials(attempt.run.trials_file)

    def _search(self, attempt: Attempt) -> Made:
        plan = attempt.plan
        return products.search(plan.recipe, attempt.store.digest, plan.sites, plan.known)


def _before_atlas(attempt: Attempt) -> None:
    """Let processes get ready for the atlas, if there will be one."""
    from raysae.atlas.training import warm_up
    from raysae.cluster.placement import beside_live

    if attempt.recipe.atlas.enabled:
        live = attempt.checked_store.computes_rows
        placement = beside_live(attempt.recipe.resources)[0] if live else attempt.placement
        warm_up(placement)


class Select(Stage):
    """Chooses the sweet spot and copies its SAE."""

    name = "select"

    def made(self, attempt: Attempt) -> Made:
        """What makes the choice: the table of trials, the rule and its settings."""
        return products.selection(attempt.recipe, attempt.run.trials_file)

    def products(self, attempt: Attempt) -> list[Path]:
        """``selection.json``."""
        return [attempt.run.selection_file]

    def work(self, attempt: Attempt) -> list[str]:
        """Apply every rule; returns a line when the recipe's rule chose nothing."""
        from raysae.sweep.selection.rules import select

        run, result, sweep = attempt.run, attempt.result, attempt.recipe.sweep
        attempt.begun.mark()
        result.selection = select(
            result.trials, attempt.recipe.select, sweep.constraints, sweep.objectives
        )
        run.write_json(run.selection_file, result.selection)
        run.copy_sweet_spot(result.selection["choice"]["trial"])
        return result.missing_choice

    def check(self, attempt: Attempt) -> None:
        """Check the choice, and that the sweet spot is complete."""
        super().check(attempt)
        if attempt.result.selection["choice"]["trial"] is not None:
            check_commit(attempt.run.sweet_spot)

    def read(self, attempt: Attempt) -> None:
        """Read ``selection.json``."""
        attempt.result.selection = read_selection(attempt.run.selection_file)


class Atlas(Stage):
    """Trains the chosen config at every site of the atlas."""

    name = "atlas"

    def made(self, attempt: Attempt) -> Made:
        """What makes the atlas: the chosen config, its sites and the seed; no sites without a choice."""
        choice = chosen_parameters(attempt)
        if choice is None:
            return products.no_atlas()
        recipe, plan = attempt.recipe, attempt.plan
        settings = recipe.with_parameters(choice)
        digest, seeds = attempt.store.digest, products.site_seeds(recipe)
        return products.trained("site", digest, plan.atlas_sites, seeds, *settings)

    def products(self, attempt: Attempt) -> list[Path]:
        """``atlas/metrics.parquet``; nothing when no atlas is wanted."""
        wanted = chosen_parameters(attempt) is not None
        return [attempt.run.atlas_metrics_file] if wanted else []

    def prepare(self, attempt: Attempt) -> None:
        """Set aside the sites of another choice, and remove its table."""
        run, wanted = attempt.run, self.made(attempt)
        run.remove_atlas_metrics()
        aside = 0
        for folder in run.committed_sites():
            site = folder.relative_to(run.path / "atlas").as_posix()
            record = run.record(folder)
            if record is None or not run.identities.is_wanted(record, {**wanted, "sites": [site]}):
                run.set_aside(folder)
                aside += 1
        if aside:
            tell_aside(run, aside)

    def work(self, attempt: Attempt) -> list[str]:
        """Train the sites that are not committed; returns those that failed."""
        from raysae.atlas.training import AtlasJob, train_atlas
        from raysae.atlas.worker import SiteSettings

        choice, recipe = chosen_parameters(attempt), attempt.recipe
        if choice is None:
            return []
        store = attempt.checked_store
        settings = SiteSettings(
            store.digest, tuple(products.site_seeds(recipe)), *recipe.with_parameters(choice),
            parameters=choice,
        )  # fmt: skip
        job = AtlasJob(attempt.run, store, settings, attempt.plan.live)
        sites = sorted({*attempt.plan.atlas_sites, *_committed_sites(attempt.run)})
        tell_atlas(attempt, settings.sae, sites)
        placement = attempt.placement
        attempt.begun.mark()
        attempt.result.atlas = train_atlas(job, sites, placement, attempt.events)
        return attempt.result.failed_sites

    def read(self, attempt: Attempt) -> None:
        """Read the rows of ``atlas/metrics.parquet``; none when no atlas is wanted."""
        file = attempt.run.atlas_metrics_file
        attempt.result.atlas = read_sites(file) if self.products(attempt) else []


def _committed_sites(run: RunFolder) -> list[Site]:
    """The sites that are committed with the wanted settings; others are set aside by then."""
    atlas = run.path / "atlas"
    return [Site.of_folder(f.relative_to(atlas).as_posix()) for f in run.committed_sites()]


def chosen_parameters(attempt: Attempt) -> dict[str, Any] | None:
    """The parameters of the atlas's config: those of the chosen trial, none without a search.

    None when there is no choice, or no atlas is wanted.
    """
    if not attempt.recipe.atlas.enabled:
        return None
    if not attempt.recipe.sweep.enabled:
        return {}
    number = attempt.result.selection["choice"]["trial"]
    if number is None:
        return None
    return parameters_of(attempt.run, number)


class Report(Stage):
    """Writes the page of the run."""

    name = "report"

    def made(self, attempt: Attempt) -> Made:
        """What makes the page: the tables, the choice, its controls and the law of scaling."""
        run = attempt.run
        more = run.controls_file, run.scaling_file
        return products.report(
            run.trials_file, run.selection_file, run.atlas_metrics_file, *more,
            analysis=result_files(run.path),
        )  # fmt: skip

    def products(self, attempt: Attempt) -> list[Path]:
        """``report/index.html``."""
        return [attempt.run.report_page]

    def read(self, attempt: Attempt) -> None:
        """Read nothing: no later step uses the page."""

    def work(self, attempt: Attempt) -> list[str]:
        """Write the page."""
        from raysae.report.page import write_report

        attempt.begun.mark()
        write_report(attempt.run, attempt.store, attempt.result.selection)
        return []


EXTRACT, SWEEP, SELECT, ATLAS, REPORT = Extract(), Sweep(), Select(), Atlas(), Report()
ANALYZE = Analyze()


def stages_of(recipe: Recipe) -> tuple[Stage, ...]:
    """The stages of a recipe's run, after the extraction; without a search, from the atlas on."""
    last = (ATLAS, ANALYZE, REPORT)
    return (SWEEP, SELECT, CONTROLS, SCALING, *last) if recipe.sweep.enabled else last


def run_stages(attempt: Attempt) -> None:
    """Run the stages in order; each makes only what is missing."""
    ensure_store(attempt)
    if not attempt.recipe.sweep.enabled:
        atlas_and_analysis(attempt)
    else:
        run_stage(SWEEP, attempt)
        if not (attempt.recipe.atlas.enabled or attempt.recipe.sweep.wanted_controls):
            attempt.stop_ray()
        if try_stage(SELECT, attempt):
            try_stage(CONTROLS, attempt)
            atlas_and_analysis(attempt)
        try_stage(SCALING, attempt)
    attempt.stop_ray()
    end_run(attempt)


def atlas_and_analysis(attempt: Attempt) -> None:
    """Train the sites that are missing; if that succeeds, analyse them."""
    if try_stage(ATLAS, attempt):
        try_stage(ANALYZE, attempt)


def end_run(attempt: Attempt) -> None:
    """Write the page if it is missing, and emit the outcome of the run then, with a page or without."""
    try_stage(REPORT, attempt)
    if not attempt.worked and not attempt.result.broken:
        return
    try:
        emit_outcome(attempt.result, attempt.events)
    except Exception as error:  # records never cost the run
        attempt.result.broken["records"] = in_one_line(error)


def try_stage(stage: Stage, attempt: Attempt) -> bool:
    """Run a stage that comes after the training; returns whether it succeeded.

    Whatever it raises costs only its own product: the stage is marked as failed, and the same command
    tries it again. Raises UserError when that is a refusal before any work.
    """
    try:
        run_stage(stage, attempt)
        return True
    except UserError as error:
        if not attempt.worked and stage is not REPORT:
            raise
        reason = in_one_line(error)
    except (Exception, SystemExit) as error:
        logging.getLogger(__name__).debug("stage %s failed", stage.name, exc_info=True)
        reason = in_one_line(error)
    attempt.result.stage_failed(stage.name, reason)
    return False


def ensure_store(attempt: Attempt) -> None:
    """Extract the store if it does not exist, and tie the run to it.

    Raises UserError when the run was made from another store.
    """
    run_stage(EXTRACT, attempt)
    attempt.run.bind_data(attempt.plan.data)
    write_environment(attempt.run, attempt.store.digest, attempt.recipe.seed, attempt.run.id)


def run_stage(stage: Stage, attempt: Attempt) -> None:
    """Make what is missing of a stage's product; if nothing is, read it."""
    if not stage.is_missing(attempt):
        stage.read(attempt)
        return
    stage.prepare(attempt)
    files = () if stage is REPORT else stage.products(attempt)
    with attempt.run.stage(stage.name, stage.made(attempt), files) as undone:
        undone.extend(stage.work(attempt))
        attempt.worked = True


def is_finished(attempt: Attempt) -> bool:
    """Whether nothing is missing in the run; its products are then read into the result."""
    if EXTRACT.is_missing(attempt) or is_damaged(attempt.run):
        return False
    for stage in stages_of(attempt.recipe):
        if stage.is_missing(attempt):
            return False
        stage.read(attempt)
    return True


def is_damaged(run: RunFolder) -> bool:
    """Whether a record of a finished run is damaged, so that another attempt writes it again."""
    try:
        read_environment(run.path / ENVIRONMENT_FILE)
    except UserError as error:
        console.print(f"{error}; it is written again, as of this attempt", style="yellow")
        return True
    return False


def set_damaged_aside(run: RunFolder) -> None:
    """Let trials and sites whose files were damaged be made again; what was damaged is printed."""
    damaged = run.set_damaged_aside()
    for line in damaged:
        console.print(line, style="yellow")
    if damaged:
        run.begin_again("sweep", "atlas", "report")
