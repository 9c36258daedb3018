"""Charts in a page: one text of JSON for all of them, and the library's script, both without network."""

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

if TYPE_CHECKING:  # Bokeh takes a second to import
    from raysae.report.charts.style import Chart

ESCAPES = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}
"""What could end a script, as JSON writes it too."""
DOCUMENT = "page"
"""Bokeh's name for the charts of a page."""


def chart_id(chart: "Chart") -> str:
    """The id of the element that holds a chart."""
    return f"chart-{chart.name}"


def embedded_charts(charts: "Sequence[Chart]") -> Markup:
    """The charts as JSON for a script element; charts of one page share their data."""
    if not charts:
        return Markup("null")
    from bokeh.core.json_encoder import serialize_json
    from bokeh.document import Document

    document = Document()
    with document.models.freeze():  # else each chart looks through those before it
        for chart in charts:
            document.add_root(chart.model)
    roots = {chart.model.id: chart_id(chart) for chart in charts}
    items = [{"docid": DOCUMENT, "roots": roots, "root_ids": list(roots)}]
    found = {"docs": {DOCUMENT: document.to_json(deferred=False)}, "items": items}
    return json_for_script(serialize_json(found, pretty=False))


def json_for_script(text: str) -> Markup:
    """JSON that no text in it can end a script with."""
    for character, escape in ESCAPES.items():
        text = text.replace(character, escape)
    return Markup(text)


@cache
def library() -> Markup:
    """Bokeh's script. It holds no ``</script``, which would end the element."""
    import bokeh

    file = Path(bokeh.__file__).parent / "server" / "static" / "js" / "bokeh.min.js"
    text = file.read_text(encoding="utf-8")
    return Markup(text.replace("</script", "<\\/script").replace("<!--", "<\\!--"))


def as_data(value: Any) -> Markup:
    """A value of the page's own script, as JSON."""
    return json_for_script(json.dumps(value, ensure_ascii=False))
