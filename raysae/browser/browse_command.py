"""``python -m raysae.browse RUN``: the pages on which a run's features are looked through, from disk."""

from pathlib import Path
from typing import TYPE_CHECKING

from raysae.console.command_line import DONE, Parser
from raysae.console.output import say

if TYPE_CHECKING:
    from raysae.browser.pages import Heading
    from raysae.records.run_files import RunFiles


def main(arguments: list[str]) -> int:
    """Run the command and return its exit code. Raises UserError when the features have no labels."""
    parser = Parser(
        prog="python -m raysae.browse",
        description="Write the pages on which the features of a run are looked through, into "
        "RUN/report/features: open index.html from disk, or see them with raysae serve RUN.",
    )
    parser.add_argument(
        "run", metavar="RUN", help="a run with labels (its folder or URI), or an analysed atlas"
    )
    parser.add_argument(
        "--saedashboard", metavar="DIR",
        help="instead of the pages, write the features into DIR in the format that SAEDashboard "
        "converts for Neuronpedia: a folder a site",
    )  # fmt: skip
    args = parser.parse_args(arguments)
    if args.saedashboard is not None:
        from raysae.browser.saedashboard import export_features
        from raysae.storage.files import expanded

        say(str(export_features(files_of(args.run).path, expanded(args.saedashboard))))
        return DONE
    say(str(write_browser(args.run)))
    return DONE


def files_of(place: str) -> "RunFiles":
    """The files of a run, or of an atlas that was analysed outside a run; of a URI with all that it has.

    Raises UserError when the URI cannot be reached.
    """
    from raysae.records.run_files import RunFiles
    from raysae.storage.files import expanded
    from raysae.storage.remote import is_uri

    if not is_uri(place):
        return RunFiles(expanded(place).absolute())
    files = RunFiles.at(place)
    files.fetch()
    return files


def heading_of(files: "RunFiles") -> "Heading":
    """The name of the run in these files, and what its recipe says of the data, in one line."""
    from raysae.browser.pages import Heading
    from raysae.config.loading import load_run
    from raysae.records.run_files import RECIPE_FILE

    if not (files.path / RECIPE_FILE).is_file():
        return Heading(files.path.name, report=False)
    recipe = load_run(files.path)
    source = recipe.source
    hookpoint = "" if source is None else source.hookpoint
    said = hookpoint if isinstance(hookpoint, str) else ", ".join(hookpoint)
    parts = [] if source is None else [str(source.model), said, str(source.dataset)]
    return Heading(recipe.name, " · ".join(parts))


def write_browser(place: str) -> Path:
    """Write the pages of a run; returns the path of the first. Raises UserError when it has no labels."""
    from raysae.browser.pages import FEATURES, write_pages
    from raysae.browser.tables import Results

    files = files_of(place)
    results = Results(files.path)
    results.need_labels()
    target = files.report_page.parent / FEATURES
    with files.replacing_folder(target) as folder:
        write_pages(results, heading_of(files), folder)
    return target / "index.html"
