"""Names are text wherever they are shown or used: terminals, plots, pages, paths, shells, MLflow."""

import argparse
import io
import json
import os
import subprocess
import sys
import warnings

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from mlflow import MlflowClient

from raysae.activations import store_command
from raysae.activations.synthetic import SuperpositionWorld, write_synthetic_store
from raysae.config import load_recipe
from raysae.console import board
from raysae.console.command_line import Parser, run_command
from raysae.console.output import SafeConsole, Table, safe_streams, say
from raysae.console.shell import command_line
from raysae.errors import UserError, in_one_line
from raysae.metrics import registered
from raysae.printable import printable, shortened
from raysae.records.events import Failed, Item, RunEnded
from raysae.records.folder import open_run
from raysae.records.mlflow_listener import MLflowRecorder
from raysae.records.tables import read_table, write_table
from raysae.report import plots
from raysae.report.heatmaps import heatmap
from raysae.report.page import template
from raysae.report.profiles import profiles
from raysae.report.site_curves import Curve, site_curves
from raysae.transformer.texts import TextSpec, read_documents

STEERING = {
    "colour": "\x1b[31mred",
    "clear": "\x1b[2J\x1b[H",
    "title": "\x1b]0;owned\x07",
    "link": "\x1b]8;;http://x.example\x1b\\link\x1b]8;;\x1b\\",
    "c1": "\x9b31m",
    "bell": "a\x07b",
    "back": "safe\x08\x08\x08\x08evil",
    "return": "safe\revil",
    "bidi": "abc\u202egpj.exe",
    "isolate": "\u2066x\u2069",
    "invisible": "a\u200bb\ufeffc\u00adc",
    "separator": "a\u2028b",
    "no UTF-8": os.fsdecode(b"\xff\xfe"),
    "null": "a\0b",
}
MARKUP = ["[/b]", "[bold]x", "[link=http://x]y", ":smile:", "[", "\\[x]"]
FORMULAS = ["$", "$x$", "a$b$c", "$\\frac{1}$", "\\$", "\\", "_", "_x", "^", "%", "{x}", "{x:g}"]
LONG = "x" * 10_000
OTHERS = ["日本語", "🦙", "é", "a\nb", "", LONG]

steering = pytest.mark.parametrize("name", STEERING.values(), ids=STEERING)


def is_plain(text):
    return all(c == "\n" or c.isprintable() for c in text)


def shown(name):
    return "".join(printable(name).split())


@steering
def test_what_steers_a_terminal_is_an_escape(name):
    assert is_plain(printable(name)) and printable(printable(name)) == printable(name)
    assert "\\" in printable(name)
    assert str(UserError(f"{name}: x\nsecond line")) == f"{printable(name)}: x\nsecond line"
    assert is_plain(in_one_line(RuntimeError(name))) and in_one_line(RuntimeError(name))


@steering
def test_lines_tables_and_the_live_view_escape_it(name):
    out = io.StringIO()
    console = SafeConsole(file=out, width=10_000)
    table = Table(title=name, caption=name)
    table.add_column(name)
    table.add_row(name)
    console.print(name)
    console.print(f"before {name}", style="red")
    console.rule(name)
    console.print(table)
    assert is_plain(out.getvalue())
    assert "".join(out.getvalue().split()).count(shown(name)) == 7


@steering
def test_the_board_of_a_terminal_escapes_it(name, monkeypatch):
    out = io.StringIO()
    console = SafeConsole(file=out, width=200, force_terminal=True, color_system=None)
    monkeypatch.setattr(board, "console", console)
    drawn = board.Board(name, 2)
    drawn.update(name, {"d_sae": name, name: "3"}, 0.5)
    console.print(drawn._table())
    text = out.getvalue()
    assert is_plain(text) and shown(name)[:6] in "".join(text.split())


@pytest.mark.parametrize("name", MARKUP)
def test_brackets_and_colons_are_no_markup(name):
    out = io.StringIO()
    console = SafeConsole(file=out, width=200)
    table = Table(title=name)
    table.add_column(name)
    table.add_row(name)
    console.print(name)
    console.rule(name)
    console.print(table)
    assert out.getvalue().count(name) == 5


@steering
def test_errors_of_arguments_and_tracebacks_escape_it(name, capsys):
    def refuse(arguments):
        raise UserError(f"{name}: no such thing")

    def full(arguments):
        raise OSError(28, "No space left on device", name)

    def parse(arguments):
        parser = Parser(prog="x")
        parser.add_argument("--number", type=int)
        parser.add_subparsers().add_parser("verb").add_argument("what", type=int)
        parser.parse_args(arguments)

    for command, arguments in [
        (refuse, []), (full, []), (parse, [f"--number={name}"]), (parse, ["verb", name]),
    ]:  # fmt: skip
        try:
            assert run_command(command, arguments) == 2
        except SystemExit as ended:
            assert ended.code == 2
        told = capsys.readouterr().err
        assert is_plain(told) and told


def test_every_parser_of_a_command_is_safe():
    parsers = [store_command._parser()]
    for parser in parsers:
        assert isinstance(parser, Parser)
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                assert all(isinstance(one, Parser) for one in action.choices.values())


def test_tracebacks_warnings_and_logs_escape_it_too():
    program = (
        "import warnings, logging, sys\n"
        "from raysae.console.command_line import run_command\n"
        "name = sys.argv[1] + chr(27) + '[31m'\n"
        "def command(arguments):\n"
        "    warnings.warn(name)\n"
        "    logging.getLogger('x').error(name)\n"
        "    raise RuntimeError(name)\n"
        "sys.exit(run_command(command, []))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, os.fsdecode(b"\xff\x9b")], capture_output=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr.count(b"\\x1b[31m") == 3 and b"RuntimeError" in done.stderr
    assert is_plain(done.stderr.decode())


def test_an_encoding_without_the_character_stops_nothing():
    program = (
        "from raysae.console.command_line import run_command\n"
        "from raysae.console.board import console\n"
        "run_command(lambda arguments: console.print('K or λ 日') or 0, [])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, check=True,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
    )  # fmt: skip
    assert done.stdout == b"K or \\u03bb \\u65e5\n"


def test_a_terminal_that_is_gone_stops_nothing():
    class Gone(io.StringIO):
        def write(self, text):
            raise OSError(28, "No space left on device")

    console = SafeConsole(file=Gone())
    console.print("one")
    console.print("two")


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hostile") / "[/b] \x1b[31m$x$"
    write_synthetic_store(
        folder, SuperpositionWorld(d_in=8, atoms=8, p=0.2), 60, validation=0.2, test=0.2
    )
    return folder


@pytest.mark.parametrize("verb", ["show", "sites", "verify", "import"])
def test_the_store_commands_show_names_as_text(verb, store, tmp_path, capsys):
    (store / "\x1b]0;owned\x07.txt").write_text("x")
    arguments = [verb, str(store)]
    if verb == "import":
        arguments += ["--out", str(tmp_path / "out"), "--layer", "\x1b[31m"]
    try:
        code = run_command(store_command.main, arguments)
    except SystemExit as ended:
        code = ended.code
    out, err = capsys.readouterr()
    assert code in ((2,) if verb == "import" else (0,))
    assert is_plain(out) and is_plain(err) and "\x1b" not in out + err


ROWS = [
    {"trial": 0, "sae.d_sae": 8, "l0": 1.5, "explained_variance": 0.5},
    {"trial": 1, "sae.d_sae": 16, "l0": 3.5, "explained_variance": 0.6},
]


@pytest.mark.parametrize(
    "name", [*STEERING.values(), *MARKUP, *FORMULAS, *OTHERS], ids=lambda name: ascii(name)[:20]
)
def test_plots_show_names_as_text(name):
    text = plots.plot_text(name, 40)
    assert len(text.replace("\\$", "$")) <= 41 and "\n" not in text
    assert not text.startswith("_")
    assert text.count("$") == text.count("\\$")


@pytest.mark.parametrize(
    "name", ["$x$ \\frac $", "_x", "日本語 🦙 \x1b[31m\n" + os.fsdecode(b"\xff"), LONG]
)
def test_every_plot_is_drawn_whatever_the_names(name, tmp_path):
    file = tmp_path / "x.png"
    sites = [{"layer": 0, "position": name, "explained_variance": 0.5}]
    grid = [{**sites[0], "layer": layer, "position": at} for layer in (0, 1) for at in (name, "0")]
    history = [{"tokens": 1, "explained_variance": 0.1}, {"tokens": 2, "explained_variance": 0.2}]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plots.ev_against_l0(ROWS, 0, name, file)
        plots.training_curves({name: history, f"{name}2": history}, [8, 16], name, file)
        for rows in (sites, grid):
            heatmap(rows, registered()["explained_variance"], name, name, file)
        profiles(grid, name, name, file)
        site_curves([Curve(name, history)], 1, name, file)
        plots.ev_by_model({name: ROWS}, {name: 1}, file)
        plots.atlas_by_depth({name: sites}, {name: None}, file)
    assert file.stat().st_size > 1000


def test_a_long_text_keeps_its_start_and_its_end():
    assert shortened("a" * 50 + "z" * 50, 10) == "aaaaaa…zzz"
    assert shortened("short", 10) == "short"


@steering
def test_the_page_shows_names_as_text(name):
    row = {
        "model": name + "</script><script>alert(1)</script>\"'><img src=x>", "d_in": 1, "trials": 1,
        "trial": None, "reason": name, "config": "", "atlas.sites": 0, "atlas.mean": None,
        "atlas.lowest": None, "atlas.highest": None, "source": name,
        "report": "javascript:alert(1)//#?%" + name,
    }  # fmt: skip
    page = template("models.html").render(
        title=name, kind="model", rows=[row], refused={name: name}, stability=False, charts=[],
        written=name,
    )  # fmt: skip
    assert is_plain(page) and page.encode()
    assert "<script>alert" not in page and "<img src=x" not in page
    assert 'href="javascript:' not in page and printable(name)[:4] in page


FILES = [
    "a[1]", "[!a]", "a*", "a?", "a#b", "100%41", "x=1", "a b", "a::b", "{a,b}", "~x", "file:x", "a\\b",
    "$HOME", "\x1b[31m", "a\nb", os.fsdecode(b"\xff"), "-x", "日本",
]  # fmt: skip


@pytest.mark.parametrize("name", FILES, ids=ascii)
@pytest.mark.parametrize("kind", ["jsonl", "csv", "txt", "parquet"])
def test_a_data_file_may_have_any_name(name, kind, tmp_path):
    for other in ("a1", "aa", "ab", "x"):  # what a pattern would find
        (tmp_path / f"{other}.{kind}").write_text("other")
    file = tmp_path / f"{name}.{kind}"
    with file.open("wb") as out:
        if kind == "parquet":
            pq.write_table(pa.table({"text": ["hello"]}), out)
        else:
            out.write(
                {"jsonl": b'{"text": "hello"}\n', "csv": b"text\nhello\n"}.get(kind, b"hello\n")
            )
    spec = TextSpec(dataset=str(file), text="text")
    assert [document.text for document in read_documents(spec)] == ["hello"]


@pytest.mark.parametrize("name", FILES, ids=ascii)
def test_a_folder_of_data_may_have_any_name(name, tmp_path):
    for folder in ("a1", "aa", "ab", name):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "train.jsonl").write_text(json.dumps({"text": ascii(folder)}) + "\n")
    spec = TextSpec(dataset=str(tmp_path / name), text="text")
    assert [document.text for document in read_documents(spec)] == [ascii(name)]


def test_an_equals_sign_in_a_folder_is_no_column(tmp_path):
    file = tmp_path / "layer=3" / "who=me" / "trials.parquet"
    write_table(file, [{"trial": 1}])
    assert read_table(file) == [{"trial": 1}]


@pytest.mark.parametrize("name", [*STEERING.values(), *FILES, "a'b", 'a"b', "`id`"], ids=ascii)
def test_a_printed_command_is_taken_as_it_stands(name):
    if "\0" in name:
        return
    line = command_line("printf", "%s", name)
    assert is_plain(line)
    done = subprocess.run(["bash", "-c", line], capture_output=True, check=True)
    assert done.stdout == os.fsencode(name)


@steering
def test_a_recipe_keeps_such_a_name(name, tmp_path):
    if "\udcff" in name:  # no text: the recipe says so
        with pytest.raises(UserError, match="holds half a character"):
            load_recipe(None, [f"records.experiment={json.dumps(name)}"])
        return
    recipe = load_recipe(None, [f"records.experiment={json.dumps(name)}"])
    text = recipe.to_yaml()
    assert is_plain(text)
    (tmp_path / "x.yaml").write_text(text, encoding="utf-8")
    assert load_recipe(tmp_path / "x.yaml").records.experiment == name


def test_mlflow_takes_records_of_runs_with_such_names(tmp_path):
    name = "it's é #1 a?c%41 [x] $x$ \x1b[31m"
    given = [f"runs_dir={json.dumps(str(tmp_path / name))}", "name=r", f"store={json.dumps(name)}"]
    with open_run(load_recipe(None, given)) as run:
        recorder = MLflowRecorder(run)
        recorder.hear(Failed(Item("trial/1", "trial 1", {"sae.k": name}), f"{name}\n{LONG}"))
        recorder.hear(
            RunEnded({"l0": 1.0}, {"raysae.reason": name + LONG}, [run.path / "config.yaml"])
        )
        assert (recorder.close(), recorder.reason) == (0, "")
        client = MlflowClient(recorder.uri)
        runs = client.search_runs([e.experiment_id for e in client.search_experiments()])
        assert sorted(one.info.run_name for one in runs) == ["r", "trial 1"]
        files = [one for one in runs if one.info.run_name == "r"]
        assert [f.path for f in client.list_artifacts(files[0].info.run_id)] == ["config.yaml"]


def test_say_and_streams_are_safe(capsys):
    with safe_streams():
        say("\x1b[31m", sys.stderr)
        print("\x1b[31m\r1%", file=sys.stderr)
    assert capsys.readouterr().err == "\\x1b[31m\n\\x1b[31m\r1%\n"
