"""The feature browser in a real browser, opened from disk: search, sort, click, filter, address."""

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from raysae.browser.pages import Heading, write_pages
from raysae.browser.tables import Results

HOSTILE = "</script><img src=x onerror=alert(1)>\u2028\u202eabc"
SITE = "layer=01,position=all"
NUMBERS = "[...document.querySelectorAll('.space .row')].map(row => Number(row.dataset.feature))"
READY = "document.querySelectorAll('.space .row').length > 0"


@pytest.fixture(scope="module")
def pages(whole, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pages")
    write_pages(Results(whole), Heading("<script>alert(1)</script>"), folder)
    return folder


def columns(pages: Path) -> dict:
    from tests.browser.test_pages import data

    return data(pages / SITE / "table.js")["columns"]


def opened(page, pages: Path, state: str = "", ready: str = READY) -> None:
    page.size(1280, 800)
    page.open(f"{(pages / SITE / 'index.html').as_uri()}{state}")
    page.wait(ready)


def sorted_by(column: str, order: str) -> str:
    heading = f"document.querySelector('[data-sort={column}]').parentElement"
    return f"{heading}.getAttribute('aria-sort') === '{order}'"


def test_features_are_sorted_by_the_headings(page, pages):
    opened(page, pages)
    density = columns(pages)["density"]
    live = [number for number, value in enumerate(density) if value]
    by_density = sorted(live, key=lambda number: (-density[number], number))
    shown = page.value(NUMBERS)
    assert shown == by_density[: len(shown)]
    page.click("[data-sort='feature']")
    page.wait(sorted_by("feature", "ascending"))
    assert page.value(NUMBERS) == live[: len(shown)]
    page.click("[data-sort='density']")
    page.wait(sorted_by("density", "descending"))
    page.click("[data-sort='density']")
    page.wait(sorted_by("density", "ascending"))
    shown = page.value(NUMBERS)
    assert shown == sorted(live, key=lambda number: (density[number], number))[: len(shown)]


def test_a_click_shows_the_feature_with_its_contexts(page, pages):
    opened(page, pages)
    page.click(".space .row")
    page.wait("document.querySelectorAll('.context').length > 0")
    number = page.value("document.querySelector('.row[aria-selected=true]').dataset.feature")
    assert page.text("h2") == f"Feature {number}"
    assert f"f={number}" in page.value("location.hash")
    sections = page.value("[...document.querySelectorAll('h3')].map(one => one.innerText)")
    assert {"Promoted and suppressed tokens", "Activations", "Alike features", "Causal effect", "Track",
            "Contexts"} <= set(sections)  # fmt: skip
    assert page.value("document.querySelectorAll('.context .fires').length") > 0
    assert page.value("document.querySelectorAll('svg rect.bar').length") > 0
    page.value("document.querySelector('.row[aria-selected=true]').focus()")
    for kind in ("keyDown", "keyUp"):
        page.call("Input.dispatchKeyEvent", type=kind, key="ArrowDown", code="ArrowDown")
    page.wait(f"document.querySelector('h2').innerText !== 'Feature {number}'")
    page.value("history.back()")
    page.wait("document.querySelector('h2').innerText === 'layer 1, position all'")


def test_search_and_filters_are_in_the_address(page, pages):
    opened(page, pages)
    tokens = columns(pages)["tokens"]
    token = next(found[0] for found in tokens if found and found[0].strip())
    page.type("#q", token)
    page.wait("location.hash.includes('q=')")
    listed = int(page.text("#count").split()[0])
    assert 0 < listed < 48
    for number in page.value(NUMBERS):
        assert page.value(f"raysae.texts([...raysae.tables.values()][0])[{number}]").count(
            token.lower()
        )
    opened(page, pages, page.value("location.hash"))
    assert int(page.text("#count").split()[0]) == listed
    opened(page, pages, "#effects=1&effect=0")
    assert page.text("#count").startswith(
        f"{sum(value is not None for value in columns(pages)['effect'])} of"
    )
    opened(page, pages, "#q=nothing+has+this", "document.querySelector('#count').innerText !== ''")
    assert page.text("#count") == "0 of 48 features"


def test_texts_of_contexts_are_searched_when_asked(page, pages):
    opened(page, pages, "#f=0&dead=1", "document.querySelector('h2') !== null")
    text = page.value(
        "raysae.load('features-0000.js').then(() => { const chunk = raysae.chunks.get(0);"
        " const one = chunk.features.find(one => one.contexts.length).contexts[0];"
        " return one[8].map(word => chunk.words[word]).join(''); })"
    )
    page.value(f"raysae.go({{q: {text[2:14]!r}, f: null}})")
    page.wait("document.querySelector('#count').innerText.startsWith('0 of')")
    page.click("#deep")
    page.wait("/^[1-9][0-9]* of/.test(document.querySelector('#count').innerText)")


def test_the_sites_are_a_grid_with_a_search_through_all(page, pages):
    page.size(1280, 800)
    page.open((pages / "index.html").as_uri())
    page.wait("document.querySelectorAll('.heat').length === 4")
    assert page.text("h1") == "Features of <script>alert(1)</script>"
    token = next(found[0] for found in columns(pages)["tokens"] if found and found[0].strip())
    page.type("#q", token)
    page.wait("document.querySelector('#count').innerText.includes('4 of 4 sites')")
    assert page.value("document.querySelectorAll('#found li').length") > 0
    page.click("#found a")
    page.wait("document.querySelector('h2')?.innerText.startsWith('Feature ')")


def test_a_phone_shows_one_of_both(page, pages):
    opened(page, pages)
    page.size(390, 800)
    page.wait("getComputedStyle(document.querySelector('.feature')).display === 'none'")
    page.click(".space .row")
    page.wait("getComputedStyle(document.querySelector('.list')).display === 'none'")
    page.wait("document.querySelectorAll('.context').length > 0")
    assert page.value("document.documentElement.scrollWidth") <= 390
    page.click(".back")
    page.wait("getComputedStyle(document.querySelector('.feature')).display === 'none'")


def test_hostile_texts_stay_texts(page, whole, labelled, tmp_path):
    folder = labelled.copy(tmp_path / "run")
    contexts = folder / "analysis" / "labels" / "result" / "contexts.parquet"
    table = pq.read_table(contexts, partitioning=None)
    hostile = [[HOSTILE for _ in tokens] for tokens in table["tokens"].to_pylist()]
    column = pa.array(hostile, pa.list_(pa.string()))
    place = table.column_names.index("tokens")
    _write_by_site(table.set_column(place, "tokens", column), contexts)
    features = contexts.with_name("features.parquet")
    labels = pq.read_table(features, partitioning=None)
    described = pa.array([HOSTILE] * len(labels), pa.string())
    place = labels.column_names.index("description")
    _write_by_site(labels.set_column(place, "description", described), features)
    write_pages(Results(folder), Heading(HOSTILE), tmp_path / "pages")
    opened(page, tmp_path / "pages")
    page.click(".space .row")
    page.wait("document.querySelectorAll('.context').length > 0")
    shown = page.text(".context p")
    assert "</script><img src=x onerror=alert(1)>\\u2028\\u202eabc" in shown
    assert page.value("document.images.length") == 0


def _write_by_site(table: pa.Table, file: Path) -> None:
    with pq.ParquetWriter(file, table.schema) as writer:
        for site in pc.unique(table["site"]).to_pylist():
            writer.write_table(table.filter(pc.equal(table["site"], site)))


def test_ten_thousand_features_are_a_few_rows_of_the_page(page, labelled, tmp_path):
    folder = labelled.copy(tmp_path / "run")
    file = folder / "analysis" / "labels" / "result" / "features.parquet"
    table = pq.read_table(file, partitioning=None)
    one = table.filter(pc.equal(table["site"], "layer=01/position=all"))
    many = pa.concat_tables([one] * 209)
    numbers = pa.array(range(len(many)), pa.int64())
    many = many.set_column(many.column_names.index("feature"), "feature", numbers)
    pq.write_table(many, file)
    write_pages(Results(folder), Heading("many"), tmp_path / "pages")
    opened(page, tmp_path / "pages", "#sort=feature&dead=1")
    assert page.text("#count") == "10,032 of 10,032 features"
    assert page.value("document.querySelectorAll('.row').length") < 80
    page.value("document.querySelector('.body').scrollTop = 1e9")
    page.wait(f"{NUMBERS}.includes(10031)")
    assert page.value("document.querySelectorAll('.row').length") < 80
    page.click("[data-feature='10031']")
    page.wait("document.querySelector('h2').innerText === 'Feature 10031'")
