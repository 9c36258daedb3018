"""``raysae serve``: its pages and endpoints, and what it refuses."""

import http.client
import json
import re
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from raysae import UserError, open_atlas
from raysae.console.command_line import run_command
from raysae.serving.encoder import MOST_CHARACTERS
from raysae.serving.serve_command import main, server_of
from raysae.serving.server import MOST_BYTES, Server
from tests.pages import verb_arguments

TEXT = "Tom has 3 eggs. He buys 4 eggs.\n3+4=7"
ALL, LAST = "layer=01,position=all", "layer=02,position=-1"


@contextmanager
def served(folder: Path, model: str | None = None, force: bool = False) -> Iterator[Server]:
    with ExitStack() as stack:
        server = server_of(str(folder), 0, model, force, stack)
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        stack.callback(thread.join)
        stack.callback(server.shutdown)
        server.api.encoder.load()
        yield server


@pytest.fixture(scope="module")
def server(labelled) -> Iterator[Server]:
    with served(labelled.folder) as one:
        yield one


def asked(server: Server, path: str, body=None, method="", **headers) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=60)
    content = json.dumps(body).encode() if isinstance(body, dict | list) else body
    given = {"Content-Type": "application/json"} if content is not None else {}
    given |= {name.replace("_", "-"): value for name, value in headers.items()}
    connection.request(method or ("GET" if content is None else "POST"), path, content, given)
    answer = connection.getresponse()
    return answer.status, answer.read()


def found(server: Server, path: str, body=None) -> dict:
    status, content = asked(server, path, body)
    assert status == 200, content
    return json.loads(content)


def refused(server: Server, path: str, body=None, **headers) -> tuple[int, str]:
    status, content = asked(server, path, body, **headers)
    return status, json.loads(content)["error"]


def test_a_text_s_features_are_those_of_the_atlas(server, labelled):
    answer = found(server, "/api/encode", {"text": TEXT, "sites": [ALL, LAST], "top": 5})
    assert "".join(answer["tokens"]) == TEXT and answer["cut"] is False
    atlas = open_atlas(labelled.folder)
    for site, key in ((ALL, (1, "all")), (LAST, (2, -1))):
        (mine,) = (one for one in answer["sites"] if one["site"] == site)
        dense = atlas.encode(TEXT, [key])[atlas.site(key)].dense()
        most = dense.amax(0)
        strongest = most.topk(min(5, int((most > 0).sum())))
        assert [one["activation"] for one in mine["features"]] == pytest.approx(
            strongest.values.tolist(), rel=1e-3
        )
        for one in mine["features"]:
            row = {place: number for number, place in enumerate(mine["read"])}
            for place, value in one["activations"]:
                assert float(dense[row[place], one["feature"]]) == pytest.approx(value, rel=1e-3)
    assert all(one["label"] for one in mine["features"])
    token = found(server, "/api/encode", {"text": TEXT, "sites": [ALL], "top": 1, "token": 3})
    (site,) = token["sites"]
    at_token = dict(site["features"][0]["activations"])[3]
    assert at_token == pytest.approx(site["features"][0]["activation"])


def test_the_endpoints_list_and_show_features(server):
    run = found(server, "/api/run")
    assert ALL in run["sites"] and run["model"]["state"] == "ready"
    assert set(found(server, "/api")) >= {"GET /api/run", "POST /api/encode"}
    listed = found(server, f"/api/features/{ALL}?sort=-density&limit=3")
    density = [row["density"] for row in listed["features"]]
    assert len(density) == 3 and density == sorted(density, reverse=True)
    token = listed["features"][0]["tokens"][0]
    some = found(server, f"/api/features/{ALL}?q={token}&limit=1000")
    assert 0 < some["found"] == len(some["features"]) <= listed["found"]
    one = found(server, f"/api/features/{ALL}/{listed['features'][0]['feature']}")
    assert one["contexts"] and one["words"] and one["figures"]["density"] == density[0]
    assert refused(server, f"/api/features/{ALL}/48")[0] == 404
    assert refused(server, "/api/features/layer=99,position=-1")[0] == 404
    assert refused(server, f"/api/features/{ALL}?sort=colour")[0] == 400
    assert refused(server, f"/api/features/{ALL}?limit=-1")[0] == 400
    assert refused(server, "/api/nothing")[0] == 404


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"text": " "}, 400), ({"text": 3}, 400), ({}, 400), ([], 400), (b"{", 400),
        ({"text": "x", "top": -1}, 400), ({"text": "x", "token": True}, 400),
        ({"text": "x", "sites": ["layer=99,position=-1"]}, 404), ({"text": "x", "sites": 3}, 400),
        ({"text": "x" * (MOST_CHARACTERS + 1)}, 413), (b" " * (MOST_BYTES + 1), 413),
    ],
)  # fmt: skip
def test_what_cannot_be_encoded_is_refused(server, body, status):
    said = refused(server, "/api/encode", body)
    assert said[0] == status and "Traceback" not in said[1]


def test_odd_texts_are_encoded(server):
    for text in ("\u202e\u2028</script>", "\ud800 1", "e\u0301 \N{FLEXED BICEPS}", "1 " * 500):
        answer = found(server, "/api/encode", {"text": text, "sites": [ALL]})
        assert answer["tokens"] and "\u202e" not in "".join(answer["tokens"])
    assert answer["cut"] is True  # longer than the context


def test_only_this_machine_s_own_pages_are_answered(server):
    port = server.server_port
    for host in (
        "evil.example",
        "evil.example:80",
        f"127.0.0.1.evil.example:{port}",
        "127.0.0.1:1",
    ):
        assert refused(server, "/api/run", Host=host)[0] == 403
        assert refused(server, "/", Host=host)[0] == 403
    for host in (f"localhost:{port}", f"127.0.0.1:{port}", f"LOCALHOST:{port}"):
        assert asked(server, "/api", Host=host)[0] == 200
    body = {"text": TEXT}
    assert refused(server, "/api/encode", body, Origin="http://evil.example")[0] == 403
    assert refused(server, "/api/encode", body, Origin="null")[0] == 403
    assert refused(server, "/api/encode", body, Content_Type="text/plain")[0] == 415
    assert server.server_address[0] == "127.0.0.1"


def test_nothing_outside_the_report_is_served(labelled, tmp_path):
    folder = labelled.copy(tmp_path / "run")
    report = folder / "report"
    report.mkdir()
    (report / "index.html").write_text("the report")
    (tmp_path / "secret.txt").write_text("secret")
    with served(folder) as server:
        (report / "link.txt").symlink_to(tmp_path / "secret.txt")
        (report / "folder").symlink_to(tmp_path)
        assert asked(server, "/report/") == (200, b"the report")
        assert asked(server, "/report")[0] == 301
        for path in (
            "/report/../config.yaml", "/report/%2e%2e/config.yaml", "/report/..%2fconfig.yaml",
            "/report/..%5cconfig.yaml", "/report/%00", "/report/link.txt", "/report/folder/secret.txt",
            "/config.yaml", "//etc/passwd", "/report//etc/passwd", "/assets/../run",
            "/report/" + "a" * 5000, "/report/%ff", "/assets/serve.js/..",
        ):  # fmt: skip
            status, error = refused(server, path)
            assert status == 404 and str(tmp_path) not in error and "secret" not in error, path
        assert asked(server, "/report/features/")[0] == 200
        assert asked(server, f"/report/features/{ALL}/table.js")[0] == 200
        assert not (report / "features").exists()  # made beside the run, not in it
        assert asked(server, "/", method="HEAD") == (200, b"")
        assert asked(server, "/", method="DELETE")[0] == 501


def test_requests_that_are_none_do_not_stop_it(server):
    for content in (b"\r\n\r\n", b"GET\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"\xff\xfe\r\n\r\n"):
        with socket.create_connection(("127.0.0.1", server.server_port), 10) as connection:
            connection.sendall(content)
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(4096):
                pass
    assert found(server, "/api/run")


def test_without_its_model_the_rest_is_served(labelled, tiny_models, tmp_path):
    with served(labelled.folder, model=str(tmp_path / "nothing")) as server:
        assert found(server, "/api/run")["model"]["state"] == "missing"
        status, error = refused(server, "/api/encode", {"text": TEXT})
        assert status == 503 and "nothing" in error
        assert asked(server, "/report/features/")[0] == 200
    with served(labelled.folder, model=str(tiny_models["gpt2"])) as server:
        status, error = refused(server, "/api/encode", {"text": TEXT})
        assert status == 503 and "sha256" in error and "--force" in error


def test_a_taken_port_is_a_sentence(server, labelled, tmp_path, capsys):
    assert run_command(main, [str(labelled.folder), "--port", str(server.server_port)]) == 2
    said = capsys.readouterr().err
    assert f"port {server.server_port} is taken" in said and "--port 0" in said
    assert run_command(main, [str(labelled.folder), "--port", "70000"]) == 2
    (tmp_path / "empty").mkdir()
    assert run_command(main, [str(tmp_path / "empty")]) == 2
    assert "no labels" in capsys.readouterr().err
    with ExitStack() as stack, pytest.raises(UserError, match="65535"):
        server_of(str(labelled.folder), -1, None, False, stack)


def test_a_text_in_a_real_browser(server, page):
    page.size(1280, 900)
    page.open(f"http://127.0.0.1:{server.server_port}/")
    page.wait("document.querySelector('#model').innerText === 'model ready'")
    page.type("#text", TEXT)
    page.click("#go")
    page.wait("document.querySelectorAll('.site').length === 4")
    assert "text=" in page.value("location.hash")
    page.click(".chip:not([disabled])")
    page.wait("document.querySelector('.chip.chosen') && location.hash.includes('token=')")
    page.wait("document.querySelector('#said').innerText.includes('ranked at token')")
    page.value("location.hash = 'text=%3Cscript%3Ealert(1)%3C%2Fscript%3E&layer=1'; 1")
    page.wait("document.querySelector('#tokens').textContent.includes('<script>')")
    page.click(".site a")
    page.wait("document.querySelectorAll('.space .row').length > 0")


def test_the_commands_of_the_pages_are_these():
    assert {tuple(words) for words in verb_arguments("serve")} == {("runs/quickstart",)}


@pytest.mark.long
def test_the_command_serves_until_it_is_interrupted(labelled):
    command = [sys.executable, "-m", "raysae", "serve", str(labelled.folder), "--port", "0"]
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's job may ignore it
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    signal.signal(signal.SIGINT, before)
    with process:
        assert process.stdout is not None
        said = iter(process.stdout.readline, "")
        url = next(found[0] for line in said if (found := re.search(r"http://127[^ ]+", line)))
        with urllib.request.urlopen(f"{url}api/run") as answer:
            assert json.load(answer)["name"] == "small"
        process.send_signal(signal.SIGINT)
        assert process.stdout.read() == "ended\n" and process.wait(30) == 0
