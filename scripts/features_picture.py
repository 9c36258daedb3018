"""Take a picture of a feature's page, with Chromium: python scripts/features_picture.py RUN PAGE.

PAGE is an address below RUN/report/features, such as layer=01,position=all/index.html#f=7.
"""

import argparse
import shutil
import subprocess
from pathlib import Path
from tempfile import TemporaryDirectory

from PIL import Image

OUT = Path(__file__).parents[1] / "raysae" / "docs" / "features.png"
SIZE, COLOURS, MILLISECONDS = "1280,1420", 128, 4000


def take(page: str, out: Path) -> None:
    """Write the picture of the page at an address to ``out``, with few colours so that it is small."""
    program = shutil.which("chromium") or shutil.which("google-chrome")
    if program is None:
        raise SystemExit("no Chromium on this machine; install one (apt-get install chromium)")
    with TemporaryDirectory() as folder:
        whole = Path(folder) / "whole.png"
        subprocess.run(
            [program, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
             f"--window-size={SIZE}", f"--virtual-time-budget={MILLISECONDS}",
             f"--user-data-dir={folder}", f"--screenshot={whole}", page],
            check=True, stderr=subprocess.DEVNULL, timeout=120,
        )  # fmt: skip
        Image.open(whole).convert("RGB").quantize(COLOURS).save(out, optimize=True)


def main() -> None:
    """Take the picture that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("page")
    parser.add_argument("--out", type=Path, default=OUT)
    arguments = parser.parse_args()
    file, _, state = arguments.page.partition("#")
    page = (arguments.run / "report" / "features" / file).resolve().as_uri()
    take(f"{page}#{state}", arguments.out)


if __name__ == "__main__":
    main()
