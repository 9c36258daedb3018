"""The pages are kept true: sizes, trees, links, generated references, commands that nothing runs."""

import re
import shlex
import tomllib
from pathlib import Path

import pytest

from raysae.analysis.registry import check_options, phases_named
from raysae.pipeline.analysis import options_of
from raysae.pipeline.sweep_command import main as sweep
from scripts.references import outdated
from tests.pages import FORMAT, PAGES, README, ROOT, anchors, links, others, verb_arguments

LARGEST_README, LARGEST_PICTURE = 12 * 1024, 300_000
"""Bytes."""
ELSEWHERE = ["apt-get install prometheus"]
"""Commands of other programs, which nothing here can run."""


def tree(page: Path, heading: str) -> str:
    """The first block below a heading."""
    pattern = rf"^## {heading}\n.*?```\n(.*?)```"
    found = re.search(pattern, page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    assert found is not None, f"{page}: no tree below {heading!r}"
    return found[1]


def listed_files(lines: list[str]) -> set[str]:
    """The paths of the files of a tree, whose folders are told by two spaces of indent each."""
    folders: list[str] = []
    found = set()
    for line in lines:
        if not line or line.startswith("#"):
            continue
        name, depth = line.split()[0], (len(line) - len(line.lstrip())) // 2
        folders[depth:] = [name] if name.endswith("/") else []
        if name.endswith((".py", ".sh")):
            found.add("".join([*folders[:depth], name]))
    return found


@pytest.mark.parametrize(
    ("folder", "heading"), [("raysae", "The tree"), ("scripts", "The scripts")]
)
def test_every_file_is_in_the_tree(folder, heading):
    """A new file is listed in the README of its folder, with what it is for."""
    root = ROOT / folder
    files = {
        str(path.relative_to(root))
        for path in root.rglob("*")
        if path.suffix in (".py", ".sh") and path.name != "__init__.py"
    }
    assert listed_files(tree(root / "README.md", heading).splitlines()) == files


def test_every_folder_is_in_the_readme():
    lines = tree(README, "The folders").splitlines()
    top = {line.split("/")[0] for line in lines if not line.startswith(" ")}
    inner = {line.split("/")[0].strip() for line in lines if line.startswith("  ")}
    assert top == {"configs", "dashboards", "scripts", "tests", "raysae"}
    package = {path.parent.name for path in (ROOT / "raysae").glob("*/__init__.py")}
    assert inner == package | {"docs"}


def test_every_config_is_listed():
    listed = re.findall(r"^\| `([\w.]+\.yaml)`", (ROOT / "configs/README.md").read_text(), re.M)
    assert sorted(listed) == sorted(path.name for path in (ROOT / "configs").glob("*.yaml"))


def test_the_readme_is_short_and_leads_to_every_page():
    assert len(README.read_bytes()) <= LARGEST_README
    known, new = set(), {README}
    while new:
        known |= new
        targets = {
            (page.parent / link.split("#")[0]).resolve() if link[0] != "#" else page
            for page in new
            for link in links(page)
        }
        new = {target for target in targets if target in PAGES} - known
    assert known == set(PAGES)


@pytest.mark.parametrize("page", [*PAGES, FORMAT], ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    for link in links(page):
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_files_that_are_named_exist():
    """Such as `scripts/demo.sh`, in text as in commands."""
    for page in PAGES:
        named = re.findall(
            r"(?<![\w/.])((?:scripts|configs|tests|raysae|dashboards)/[\w/]+\.\w+)",
            page.read_text(encoding="utf-8"),
        )
        missing = [name for name in named if not (ROOT / name).exists() and "FILE" not in name]
        assert not missing, page


def test_pictures_are_small():
    found = [page.parent / link for page in PAGES for link in links(page)]
    pictures = [path for path in found if path.suffix in (".png", ".svg", ".jpg", ".gif")]
    assert pictures
    for picture in pictures:
        assert picture.stat().st_size < LARGEST_PICTURE, picture


def test_generated_references_are_up_to_date():
    names = [str(file.relative_to(ROOT)) for file in outdated()]
    assert not names, "python scripts/references.py writes them"


def test_the_tables_are_whole():
    """Each row of a table has as many cells as its head."""
    for page in PAGES:
        for block in re.findall(r"(?:^\|.*\n)+", page.read_text(encoding="utf-8"), re.M):
            cells = {len(re.split(r"(?<!\\)\|", line)) for line in block.splitlines()}
            assert len(cells) == 1, (page, block.splitlines()[0])


@pytest.mark.parametrize("arguments", verb_arguments("analyze"), ids=" ".join)
def test_phases_and_options_exist(arguments):
    names = [word for word in arguments[1:] if "=" not in word]
    options = options_of([word for word in arguments[1:] if "=" in word])
    assert names
    check_options(options, phases_named(names))


def test_other_commands_are_there(capsys):
    """Those that ``test_readme.py`` does not run: their files, extras and recipes exist."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    for command in others():
        words = [word for word in command if not re.match(r"[A-Z_]+=", word)]
        if words[0] == "pip":
            extra = re.fullmatch(r"\.\[(\w+)\]", words[-1])
            assert extra is not None and extra[1] in extras, words
        elif words[:3] == ["python", "-m", "raysae.sweep"]:
            assert sweep([*words[3:], "--print-config"]) == 0
        elif words[:3] == ["ray", "job", "submit"]:
            assert words[3:6] == ["--runtime-env", "scripts/job.yaml", "--"]
            assert sweep([*words[9:], "--print-config"]) == 0
        elif words[:2] == ["mlflow", "ui"]:
            assert words[2:] == ["--backend-store-uri", "sqlite:///$PWD/runs/mlflow.db"]
        elif shlex.join(words) not in ELSEWHERE:
            assert (ROOT / words[0]).stat().st_mode & 0o100, words
    assert capsys.readouterr().out
