"""``raysae serve RUN``: look at a run's features, with texts of your own, in this machine's browser."""

import signal
import sys
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from raysae.browser.browse_command import files_of, heading_of
from raysae.console.command_line import DONE, Parser
from raysae.console.output import say
from raysae.errors import UserError

if TYPE_CHECKING:
    from raysae.browser.pages import Heading
    from raysae.browser.tables import Results
    from raysae.serving.server import Server

PORT = 8765


def main(arguments: list[str]) -> int:
    """Run the command and return its exit code once it is interrupted.

    Raises UserError when the run has no labels, or the port is taken.
    """
    parser = Parser(
        prog="python -m raysae.serve",
        description="Show a run's report and its features on this machine alone (127.0.0.1), and which "
        "features are active in a text that you type. Interrupt it to end it.",
    )
    parser.add_argument("run", metavar="RUN", help="a run with labels: its folder or URI")
    parser.add_argument("--port", type=int, default=PORT, help=f"0: any that is free ({PORT})")
    parser.add_argument(
        "--model", metavar="DIR", help="the model, where it is not where the run found it"
    )
    parser.add_argument(
        "--force", action="store_true", help="use a model whose weights are not the store's"
    )
    args = parser.parse_args(arguments)
    with ExitStack() as stack:
        server = server_of(args.run, args.port, args.model, args.force, stack)
        say(f"{args.run}: {server.url} (ctrl-c ends it)")
        sys.stdout.flush()
        _serve(server)
    return DONE


def server_of(place: str, port: int, model: str | None, force: bool, stack: ExitStack) -> "Server":
    """A server of the run, which listens and loads the model; ``stack`` closes it.

    Raises UserError when the run has no labels, or the port cannot be used.
    """
    from raysae.browser.tables import Results
    from raysae.serving.answers import Api
    from raysae.serving.catalog import Catalog
    from raysae.serving.encoder import Encoder
    from raysae.serving.server import Folders, Server

    if not 0 <= port < 2**16:
        raise UserError(f"--port {port}: expected a number from 0 to 65535")
    files = files_of(place)
    results, heading = Results(files.path), heading_of(files)
    results.need_labels()
    encoder = Encoder(str(files.path), model, force)
    made = Path(stack.enter_context(TemporaryDirectory(prefix="raysae-serve-")))
    folders = Folders(made, files.report_page.parent, files.report_page.parent / "features")
    server = Server(port, folders, Api(Catalog(results, heading), encoder))
    stack.callback(server.server_close)
    folders.features = _features(results, heading, folders.features, made)
    encoder.start()
    return server


def _features(results: "Results", heading: "Heading", there: Path, made: Path) -> Path:
    """The folder of the feature browser: the run's, or one that is made for the time of serving."""
    from raysae.browser.pages import ASSETS, asset, page, write_pages

    for name in (*ASSETS, "serve.js"):
        (made / name).write_text(asset(name), encoding="utf-8")
    (made / "serve.html").write_text(page("serve.html", heading.name), encoding="utf-8")
    if (there / "index.html").is_file():
        return there
    say(
        "making the pages of the features, as the run has none (python -m raysae.browse keeps them)"
    )
    write_pages(results, heading, made / "features")
    return made / "features"


def _serve(server: "Server") -> None:
    def stop(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, stop)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        say("ended")
