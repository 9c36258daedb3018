"""The pages for people: README.md and those that it leads to, their links, commands and Python."""

import re
import shlex
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
FORMAT = ROOT / "raysae" / "activations" / "FORMAT.md"
"""The format of the store; its Python is run by ``tests/activations/test_format_page.py``."""
PAGES = [
    README,
    *sorted((ROOT / "raysae" / "docs").glob("*.md")),
    *(
        ROOT / folder / "README.md"
        for folder in ("raysae", "configs", "scripts", "tests", "dashboards")
    ),
    ROOT / "configs" / "REFERENCE.md",
]
RUN_BY_README = (
    "atlas", "sweep", "extract", "store", "export", "report", "analyze", "browse", "serve",
)  # fmt: skip


def blocks(page: Path, kind: str) -> list[str]:
    """The code blocks of a page that are ``bash`` or ``python``."""
    return re.findall(rf"```{kind}\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)


def commands() -> list[list[str]]:
    """Every command of a block of every page, once, in the order of the pages."""
    lines = [
        line for page in PAGES for block in blocks(page, "bash") for line in block.splitlines()
    ]
    words = [tuple(shlex.split(line, comments=True)) for line in lines]
    return [list(one) for one in dict.fromkeys(words) if one]


def verb_arguments(verb: str) -> list[list[str]]:
    """The arguments of each ``python -m raysae.VERB``."""
    start = ["python", "-m", f"raysae.{verb}"]
    return [words[3:] for words in commands() if words[:3] == start]


def others() -> list[list[str]]:
    """The commands that are not ``python -m raysae.VERB``."""
    starts = [["python", "-m", f"raysae.{verb}"] for verb in RUN_BY_README]
    return [words for words in commands() if words[:3] not in starts]


def text_without_code(page: Path) -> str:
    """A page's text without its code blocks."""
    return re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)


def links(page: Path) -> list[str]:
    """The targets of a page's links and pictures, but for those into the web."""
    found = re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`\n]*`", "", text_without_code(page)))
    return [target for target in found if not target.startswith(("http://", "https://"))]


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives a page's headings."""
    headings = re.findall(r"^#+ (.*)$", text_without_code(page), re.MULTILINE)
    plain = [re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings]
    return {heading.strip().replace(" ", "-") for heading in plain}
