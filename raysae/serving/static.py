"""Files of a folder as they are served: nothing outside of it, through no link, whatever is asked for."""

from pathlib import Path
from urllib.parse import unquote

KINDS = {
    ".html": "text/html; charset=utf-8", ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8", ".json": "application/json", ".png": "image/png",
    ".svg": "image/svg+xml", ".txt": "text/plain; charset=utf-8",
}  # fmt: skip
OTHER = "application/octet-stream"


def file_in(root: Path, path: str) -> Path | None:
    """The file that a request's ``path`` names below ``root``, or the ``index.html`` of a folder; None
    when there is none, it is no plain file, or the way to it leads through a link or out of ``root``."""
    parts = unquote(path, errors="surrogateescape").split("/")
    parts = [part for part in parts if part]
    if any(part in (".", "..") or "\0" in part or "\\" in part for part in parts):
        return None
    try:
        wanted = root.resolve(strict=True).joinpath(*parts)
        if wanted.is_dir():
            wanted /= "index.html"
        found = wanted.resolve(strict=True)
    except (OSError, ValueError, RuntimeError):
        return None
    return found if found == wanted and found.is_file() else None


def kind_of(file: Path) -> str:
    """The content type of a file."""
    return KINDS.get(file.suffix.lower(), OTHER)
