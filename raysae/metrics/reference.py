"""The reference of all metrics, as Markdown, from the registry."""

from collections.abc import Callable

from raysae.metrics.definitions import FAMILIES
from raysae.metrics.registry import Metric

HEAD = "| metric | unit | better | searched | definition |\n|---|---|---|---|---|"
BETTER = {"maximize": "more", "minimize": "less", None: ""}


def metrics_markdown() -> str:
    """A table of each family of metrics, in the order in which they are shown."""
    return "\n\n".join(map(_table, FAMILIES))


def _table(family: Callable[[], list[Metric]]) -> str:
    about = (family.__doc__ or "").strip().replace("``", "`")
    return "\n".join([about, "", HEAD, *map(_row, family())])


def _row(metric: Metric) -> str:
    cells = [
        f"`{metric.name}`", metric.unit, BETTER[metric.direction],
        "yes" if metric.objective else "", metric.meaning,
    ]  # fmt: skip
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"
