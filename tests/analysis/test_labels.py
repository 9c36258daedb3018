"""The phase labels on the pocket GPT-2's texts, and on planted SAEs whose features are tokens."""

import http.server
import json
import threading
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from raysae import Site, UserError
from raysae.activations.splits import SPLITS
from raysae.analysis.labelling import site as site_module
from raysae.analysis.labelling import texts as texts_module
from raysae.analysis.labelling.describer import judgments
from raysae.analysis.labelling.effects import of_table
from raysae.analysis.labelling.endpoint import KEY_VARIABLE
from raysae.analysis.labelling.rows import Rows, read_rows
from raysae.analysis.labelling.token_names import TokenNames, pieces
from raysae.analysis.phase import Item
from raysae.analysis.phases.labels import Labels
from raysae.analysis.results import made_of, write_result
from raysae.sae.config import TopKConfig
from raysae.sae.topk import TopKSAE

ALL, LAST = Site(1, "all"), Site(1, -1)
PHASE, TOKENS = Labels(), 160


def settings(**options):
    return PHASE.Settings(**{"lens": "never", **options})


def worked(subject, folder: Path, site=ALL, **options):
    folder.mkdir(parents=True)
    PHASE.work(subject, settings(**options), Item("item", (site,)), folder, lambda: None)
    return {
        name: pq.read_table(folder / f"{name}.parquet", partitioning=None).to_pylist()
        for name in ("features", "attributes", "contexts")
    }


def rows_of(subject, site=ALL):
    return Rows.joined(list(read_rows(subject.store, site, ("train", "validation"), 10**6)))


@pytest.fixture
def planted(pocket, monkeypatch):
    """The subject, with an SAE whose feature i is active at token i alone, more so in later sequences."""
    sae = TopKSAE(TopKConfig(d_sae=TOKENS, k=1), TOKENS)
    with torch.no_grad():
        sae.W_enc.copy_(torch.eye(TOKENS))
        sae.W_dec.copy_(torch.eye(TOKENS))

    def read(*given):
        for rows in read_rows(*given):
            x = torch.zeros(len(rows), TOKENS)
            x[torch.arange(len(rows)), torch.from_numpy(rows.token_id)] = torch.from_numpy(
                1 + rows.sequence / 100
            ).float()
            yield Rows(x, rows.sequence, rows.token_index, rows.token_id)

    monkeypatch.setattr(site_module, "read_rows", read)
    subject = pocket.sent("cpu")
    monkeypatch.setattr(type(subject.atlas), "__getitem__", lambda _atlas, _site: sae)
    return subject


def test_a_token_s_feature_is_labelled_exactly(planted, tmp_path):
    found, rows = worked(planted, tmp_path / "item"), rows_of(planted)
    ids, counts = np.unique(rows.token_id, return_counts=True)
    count = dict(zip(ids.tolist(), counts.tolist(), strict=True))
    for row in found["features"]:
        feature, n = row["feature"], count.get(row["feature"], 0)
        assert (row["live"], row["active"]) == (n > 0, n)
        assert row["density"] == pytest.approx(n / len(rows))
        if not n:
            assert row["max_activation"] is None and row["tokens"] == []
            continue
        there = rows.sequence[rows.token_id == feature]
        assert row["max_activation"] == pytest.approx(1 + there.max() / 100)
        assert row["mean_activation"] == pytest.approx(1 + there.mean() / 100, rel=1e-5)
        assert (row["token_ids"], row["token_counts"], row["token_entropy"]) == ([feature], [n], 0)
        assert row["token_fires"] == [1.0] and sum(row["histogram"]) == n
        index = rows.token_index[rows.token_id == feature]
        assert row["mean_index"] == pytest.approx(index.mean())
        assert row["first_share"] == pytest.approx((index == 0).mean())
    assert {row["tokens"][0] for row in found["features"] if row["live"]} >= {"=", "+", "\\n"}


def test_contexts_mark_the_token_and_lie_in_their_bands(planted, tmp_path):
    found, rows = worked(planted, tmp_path / "item", top=5, bands=4, per_band=2), rows_of(planted)
    texts = {
        one.sequence: one for split in ("train", "validation") for one in planted.sequences(split)
    }
    for row in found["contexts"]:
        assert row["token_id"] == row["feature"]
        sequence, place = texts[row["sequence"]], row["token_index"]
        start, end = sequence.token_start[place], sequence.token_end[place]
        assert row["tokens"][row["marked"]] == sequence.text[start:end]
        assert row["text"] == "".join(row["tokens"]) and row["text"] in sequence.text
        first = place - row["marked"]
        same = sequence.token_id[first : first + len(row["tokens"])] == row["feature"]
        wanted = np.where(same, 1 + row["sequence"] / 100, 0)
        assert row["activations"] == pytest.approx(wanted.tolist(), rel=1e-6)
        if row["kind"] == "quantile":
            assert row["band_low"] <= row["activation"] <= row["band_high"]
    feature = min(
        set(rows.token_id.tolist()), key=lambda one: abs((rows.token_id == one).sum() - 150)
    )
    mine = [row for row in found["contexts"] if row["feature"] == feature]
    values = np.sort(1 + rows.sequence[rows.token_id == feature] / 100)
    top = [row["activation"] for row in mine if row["kind"] == "top"]
    assert top == pytest.approx(sorted(set(values), reverse=True)[:5])
    assert [row["band"] for row in mine if row["kind"] == "quantile"] == [0, 0, 1, 1, 2, 2, 3, 3]
    edges = {
        row["band"]: (row["band_low"], row["band_high"])
        for row in mine
        if row["kind"] == "quantile"
    }
    if len(values) <= site_module.SAMPLE:
        for band, (low, high) in edges.items():
            part = values[-(-band * len(values) // 4) : -(-(band + 1) * len(values) // 4)]
            assert (low, high) == pytest.approx((part[0], part[-1]))


def test_attributes_of_planted_features(planted, tmp_path):
    found = worked(planted, tmp_path / "item")
    names = {row["feature"]: row["tokens"][0] for row in found["features"] if row["live"]}
    of = {(names[row["feature"]], row["attribute"]): row for row in found["attributes"]}
    assert of["3", "number"]["precision"] == 1 and of["3", "number"]["r"] > 0.1
    assert of["=", "operator"]["precision"] == 1 and of["=", "number"]["r"] < 0
    assert of["\\n", "line end"]["recall"] == 1
    assert all(abs(row["r_permuted"]) < 0.1 for row in found["attributes"])
    assert all(row["r_low"] <= row["r"] <= row["r_high"] for row in found["attributes"])


def test_an_item_done_again_has_the_same_files(pocket, tmp_path):
    for name in ("one", "two"):
        subject = pocket.sent("cpu")  # as a worker after a kill has it: nothing is open
        worked(subject, tmp_path / name, features=20)
    for file in (tmp_path / "one").iterdir():
        assert file.read_bytes() == (tmp_path / "two" / file.name).read_bytes(), file.name


def test_the_result_has_tables_plots_and_a_section(pocket, tmp_path):
    options = settings(features=8, lens="auto")
    PHASE.check(pocket, options)
    items, folders = PHASE.items(pocket, options), {}
    for item in items:
        folders[item] = tmp_path / item.key
        folders[item].mkdir()
        PHASE.work(pocket, options, item, folders[item], lambda: None)
    result = PHASE.collect(pocket, options, folders)
    assert result.figures["live_features"] > 0 and result.figures["seed_agreement"] is None
    folder = write_result(
        pocket.files, PHASE, made_of(pocket, PHASE, options), result, {},
        lambda where: PHASE.draw(result, options, "pocket", where),
    )  # fmt: skip
    features = pq.read_table(folder / "features.parquet", partitioning=None)
    assert len(features) == 48 * len(items)
    labelled = features.filter(features["labelled"])
    assert len(labelled) <= 8 * len(items) and labelled["promotes"].null_count == 0
    assert {file.name for file in folder.glob("*.png")} == {"density.png", "coherence.png"}
    last = pq.read_table(folder / "contexts.parquet", partitioning=None).to_pylist()
    numbered = [row for row in last if row["position"] == "-1"]
    assert all(sum(value is not None for value in row["activations"]) == 1 for row in numbered)
    assert any("permuted" in sentence for sentence in result.section.sentences)


def test_effects_of_the_ablation_stand_beside_the_features():
    columns = {"layer": [1], "position": ["-1"], "feature": [2], "kind": ["chosen"], "ce": [0.5]}
    effects = of_table(pa.table({**columns, "density": [0.1]}))
    features = pa.table({"site": [LAST.folder] * 3, "feature": [0, 1, 2]})
    assert effects.beside(features)["ablation_ce"].to_pylist() == [None, None, 0.5]


def test_columns_of_the_data_set_are_attributes(pocket, tmp_path):
    found = worked(pocket, tmp_path / "item", LAST, attributes=("steps", "operator_1"), features=4)
    names = {row["attribute"] for row in found["attributes"]}
    assert "steps" in names and "operator_1 = +" in names
    with pytest.raises(UserError, match=r"labels.attributes.*'stepz'; did you mean steps"):
        PHASE.check(pocket, settings(attributes=("stepz",)))


@pytest.mark.parametrize(
    ("url", "model", "said"),
    [("ftp://x", "m", "describer_url"), ("http://x", None, "describer_model")],
)
def test_half_an_endpoint_is_refused(pocket, url, model, said):
    with pytest.raises(UserError, match=said):
        PHASE.check(pocket, settings(describer_url=url, describer_model=model))


@contextmanager
def endpoint(status=200):
    """A local endpoint that describes a feature by its first context's token, and finds that token."""
    seen = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            seen.append((self.path, self.headers.get("Authorization")))
            question = body["messages"][0]["content"]
            if "In one short sentence" in question:
                token = question.partition("1. ")[2].partition("<<")[2].partition(">>")[0]
                answer = f"the token <<{token}>>"
            else:
                word = question.partition("so: the token <<")[2].partition(">>")[0]
                lines = [line for line in question.split("\n") if line[:1].isdigit()]
                answer = str([int(f"<<{word}>>" in line) for line in lines])
            content = json.dumps({"choices": [{"message": {"content": answer}}]}).encode()
            self.send_response(status)
            self.end_headers()
            self.wfile.write(content if status == 200 else b"")

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1", seen
    finally:
        server.shutdown()
        server.server_close()


def test_an_endpoint_describes_features_and_is_scored(planted, tmp_path, monkeypatch):
    monkeypatch.setenv(KEY_VARIABLE, "a-secret-key-1")
    with endpoint() as (url, seen):
        options = {"describer_url": url, "describer_model": "m", "describer_features": 4}
        found = worked(planted, tmp_path / "item", **options)
    described = [row for row in found["features"] if row["description"]]
    words = [row for row in described if row["tokens"][0].isalnum()]
    assert len(described) == 4 and words
    for row in words:
        assert row["description"] == f"the token <<{row['tokens'][0]}>>"
        assert (row["detection_score"], row["detection_low"], row["detection_high"]) == (1, 1, 1)
        assert row["detection_n"] >= 4 and row["detection_control"] == 0.5
    assert set(seen) == {("/v1/chat/completions", "Bearer a-secret-key-1")}
    assert not any(b"a-secret-key-1" in file.read_bytes() for file in (tmp_path / "item").iterdir())


def test_without_its_endpoint_the_phase_goes_on_and_says_so(pocket, tmp_path):
    with endpoint(status=401) as (url, seen):
        options = {"describer_url": url, "describer_model": "m"}
        found = worked(pocket, tmp_path / "item", features=4, **options)
    assert len(seen) == 1  # what is refused is not sent again
    assert all(row["description"] is None for row in found["features"])
    summary = json.loads((tmp_path / "item" / "summary.json").read_text())
    assert "HTTPError" in summary["notes"]["describer"] and "401" in summary["notes"]["describer"]


def test_judgments_are_read_from_an_answer():
    assert judgments("Sure: [1, 0,1]", 3).tolist() == [True, False, True]
    assert judgments("[1, 2, 0]", 3) is None and judgments("no", 3) is None


@pytest.mark.parametrize("kept", [0, 2**20])
def test_texts_that_are_kept_are_those_of_the_files(pocket, monkeypatch, kept):
    monkeypatch.setattr(texts_module, "CACHED_TOKENS", kept)
    texts = texts_module.Texts(pocket.store)
    known = {one.sequence: one for split in SPLITS for one in pocket.sequences(split)}
    wanted = np.array(sorted(known)[::3])
    for _ in range(2):
        found = {one.sequence: one for one in texts.sequences(wanted)}
        assert sorted(found) == wanted.tolist()
        for number, one in found.items():
            assert one.text == known[number].text and len(one) == len(known[number])
            shown = texts.pieces(one, TokenNames())
            assert shown == pieces(known[number], TokenNames())
