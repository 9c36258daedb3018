"""The pages: ``index.html`` with the sites, a folder a site, its features in files that load when needed.

They open from disk, where a page may read nothing but scripts: all data are calls in ``.js`` files. The
pages hold no data, and allow no script but those files, so that no text can act.
"""

import html
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from raysae.browser.details import Words
from raysae.browser.site_data import SiteData
from raysae.browser.tables import ABLATION, LABELS, Results, site_key
from raysae.browser.tracks import Tracks
from raysae.console.shell import raysae_command
from raysae.errors import in_one_line
from raysae.printable import printable
from raysae.redaction import redacted

FEATURES = "features"
"""The folder of the pages in the folder of the report."""
CHUNK = 64
"""Features whose details are in one file."""
MOST_CONTEXTS = 300_000
"""Contexts of all sites, at most, for which the report's stage writes the pages unasked."""
ASSETS = ("style.css", "common.js", "table.js", "charts.js", "feature.js", "site.js", "sites.js")
PAGES = "raysae.browser"


@dataclass(frozen=True)
class Heading:
    """What every page says of where it is from."""

    name: str
    source: str = ""
    """What the data is, in one line."""
    report: bool = True
    """Whether a report lies beside the pages."""


def write_pages(
    results: Results, heading: Heading, folder: Path, told: Callable[[int, int], None] | None = None
) -> None:
    """Write the pages into ``folder``. ``told`` is called with the sites done and all, after each.

    Raises UserError when the features have no labels, or a table is damaged.
    """
    results.need_labels()
    tracks = Tracks(results.phases["tracking"])
    (folder / "assets").mkdir(parents=True, exist_ok=True)
    for name in ASSETS:
        (folder / "assets" / name).write_text(asset(name), encoding="utf-8")
    facts = []
    for number, site in enumerate(results.sites, 1):
        facts.append(_write_site(SiteData(results, tracks, site), folder, heading))
        if told is not None:
            told(number, len(results.sites))
    _write(folder / "sites.js", "sites", {**run_facts(results, heading), "sites": facts})
    (folder / "index.html").write_text(page("index.html", heading.name), encoding="utf-8")


def _write_site(data: SiteData, folder: Path, heading: Heading) -> dict[str, Any]:
    place = folder / site_key(data.site)
    place.mkdir(parents=True, exist_ok=True)
    for number, chunk in chunks(data):
        _write(place / f"features-{number:04d}.js", "chunk", {"chunk": number, **chunk})
    facts = data.facts()
    table = {**facts, "chunk_size": CHUNK, "measure": data.measure, "columns": data.table()}
    _write(place / "table.js", "table", table)
    title = f"{data.site} of {heading.name}"
    (place / "index.html").write_text(page("site.html", title), encoding="utf-8")
    return facts


def chunks(data: SiteData) -> Iterator[tuple[int, dict[str, Any]]]:
    """The details of all features, ``CHUNK`` at a time, with the texts that they number."""
    for start in range(0, len(data.rows), CHUNK):
        words = Words()
        numbers = range(start, min(start + CHUNK, len(data.rows)))
        details = data.details(numbers, words)
        yield start // CHUNK, {"words": words.texts, "features": details}


def run_facts(results: Results, heading: Heading) -> dict[str, Any]:
    """What all pages say: names, which phases were run and how, and why the others were not."""
    ablation = results.phases[ABLATION]
    return {
        "name": _safe(heading.name), "source": _safe(heading.source), "report": heading.report,
        "missing": {
            name: _safe(phase.missing or "")
            for name, phase in results.phases.items()
            if not phase.there
        },
        "ablation": {
            key: ablation.setting(key) for key in ("mode", "value", "rank", "split", "sequences")
        },
        "lens": _lens(results),
    }  # fmt: skip


def _lens(results: Results) -> str:
    """Why there are no promoted tokens, or how they are computed, as the labels say it."""
    notes = results.phases[LABELS].record.get("section", {}).get("notes", [])
    found = [str(note) for note in notes if "romoted tokens" in str(note)]
    return _safe(found[0]) if found else ""


def page(name: str, title: str) -> str:
    """A page with its title."""
    return asset(name).replace("{{title}}", html.escape(_safe(title)))


def asset(name: str) -> str:
    """A file of the pages."""
    return files(PAGES).joinpath("page", name).read_text(encoding="utf-8")


def as_json(value: Any) -> str:
    """JSON in ASCII, which is also a value of JavaScript, and in HTML closes nothing."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _write(file: Path, function: str, value: Mapping[str, Any]) -> None:
    file.write_text(f"raysae.take.{function}({as_json(value)});\n", encoding="ascii")


def _safe(text: str) -> str:
    return printable(redacted(text))


def pages_beside_report(
    place: Path, folder: Path, heading: Heading, say: Callable[[str], None]
) -> bool:
    """Write the pages into ``folder/features`` where the run in ``place`` has labels; whether they are.

    What cannot be read, or is too much to be written unasked, is said and costs only these pages.
    """
    results = Results(place)
    if not results.labels.there:
        return False
    again = raysae_command("browse", place)
    try:
        if results.contexts.rows > MOST_CONTEXTS:
            say(f"no feature browser yet: {results.contexts.rows:,} contexts; {again} makes it")
            return False
        write_pages(results, heading, folder / FEATURES)
        return True
    except Exception as error:  # whatever is wrong with the results, the report is made
        with suppress(OSError):
            _remove(folder / FEATURES)
        say(f"no feature browser: {in_one_line(error)}; {again} tries again")
        return False


def _remove(folder: Path) -> None:
    from raysae.storage.files import remove_folder

    remove_folder(folder)
