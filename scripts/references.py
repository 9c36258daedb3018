"""Write the references that are generated, or check that they are up to date.

``python scripts/references.py`` writes the parts between ``<!-- begin NAME`` and ``<!-- end NAME -->``;
with ``--check`` it writes nothing, and exits with 1 when a part is not up to date.
"""

import argparse
import re
import sys
from collections.abc import Callable
from pathlib import Path

from raysae.analysis.registry import known_phases
from raysae.config.reference import keys_markdown, settings_markdown
from raysae.metrics.reference import metrics_markdown

ROOT = Path(__file__).parents[1]


def phases_markdown() -> str:
    """The options of each phase of the analysis."""
    parts = [
        f"### {phase.name}\n\n{phase.title}.\n\n{settings_markdown(phase.Settings, f'{phase.name}.')}"
        for phase in known_phases().values()
    ]
    return "\n\n".join(parts)


PARTS: tuple[tuple[str, str, Callable[[], str]], ...] = (
    ("configs/REFERENCE.md", "keys", keys_markdown),
    ("configs/REFERENCE.md", "phases", phases_markdown),
    ("raysae/docs/metrics.md", "metrics", metrics_markdown),
)
"""File, name of the part, what belongs there."""


def outdated() -> dict[Path, str]:
    """The files that are not up to date, with their right text."""
    texts: dict[Path, str] = {}
    for name, part, write in PARTS:
        file = ROOT / name
        text = texts.get(file) or file.read_text(encoding="utf-8")
        texts[file] = _replaced(text, part, write())
    return {file: text for file, text in texts.items() if file.read_text(encoding="utf-8") != text}


def _replaced(text: str, part: str, content: str) -> str:
    pattern = rf"(<!-- begin {part}\b[^\n]*-->\n)(?:.*\n)?(<!-- end {part} -->)"
    new, count = re.subn(pattern, lambda m: f"{m[1]}\n{content}\n\n{m[2]}", text, flags=re.S)
    if count != 1:
        raise ValueError(f"expected one part {part!r}, found {count}")
    return new


def main() -> int:
    """Write or check; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing")
    check = parser.parse_args().check
    files = outdated()
    for file, text in files.items():
        print(f"{file.relative_to(ROOT)}: {'not up to date' if check else 'written'}")
        if not check:
            file.write_text(text, encoding="utf-8")
    return 1 if check and files else 0


if __name__ == "__main__":
    sys.exit(main())
