"""Pages as tests read them: their tags, scripts and addresses."""

from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

PICTURE = "data:image/png;base64,"


class Tags(HTMLParser):
    """The tags of a page with their attributes, and the text of the script elements by id."""

    def __init__(self, text: str):
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self._script: dict[str, str | None] | None = None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        self._script = dict(attrs) if tag == "script" else None

    def handle_data(self, data):
        if self._script is not None:
            self.scripts.append((self._script, data))

    def handle_endtag(self, tag):
        self._script = None

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.found if name == tag]


def assert_whole(page: Path) -> None:
    """The page loads nothing, and its links lead to places on it and to files that are there."""
    tags = Tags(page.read_text())
    for tag, attributes in tags.found:
        address = attributes.get("src") or attributes.get("href") or "#"
        if address.startswith("#"):
            assert address == "#" or any(one.get("id") == address[1:] for _, one in tags.found)
        elif not address.startswith(PICTURE):
            assert tag == "a" and (page.parent / unquote(address)).is_file(), address
