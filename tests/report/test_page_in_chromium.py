"""The page in a real browser, opened from disk without network: sort, search, hover, click, isolate."""

import pytest

from raysae.report.page import write_report
from scripts.chromium import NAMES, chromium
from tests.programs import needed
from tests.report.atlases import atlas
from tests.report.runs import named, trial, written_run

DRAWN = "document.body.dataset.drawn === 'yes'"
DEEP = """
window.deep = (root, selector) => [...root.querySelectorAll("*")].flatMap((one) =>
  [...(one.matches(selector) ? [one] : []), ...(one.shadowRoot ? deep(one.shadowRoot, selector) : [])]);
window.models = (start) => [...Bokeh.documents[0]._all_models.values()].filter(
  (one) => (one.name ?? "").startsWith(start));
window.tooltip = () => deep(document, ".bk-Tooltip, .bk-tooltip-content").map((one) =>
  one.shadowRoot?.textContent + one.textContent).join(" ");
"""
HEATMAP = "#chart-atlas-explained_variance-all"


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    needed(*NAMES)
    with chromium(tmp_path_factory.mktemp("profile")) as page:
        yield page
        assert page.errors == []


@pytest.fixture
def page(browser, small_page):
    shown(browser, small_page)
    return browser


def shown(browser, file, width=1280, dark=False):
    browser.size(width, 900, dark)
    browser.call("Page.navigate", url="about:blank")
    browser.wait("location.href === 'about:blank' && document.readyState === 'complete'")
    browser.open(file.as_uri())
    browser.wait(DRAWN)
    browser.value(DEEP)


def column(page, table, number):
    return page.value(
        f"[...document.querySelector('table[aria-label=\"{table}\"]').tBodies[0].rows]"
        f".filter((row) => !row.hidden).map((row) => row.cells[{number}].textContent)"
    )


def move(page, selector):
    """Put the pointer on the middle of an element."""
    x, y = page.value(
        f"(() => {{ const one = document.querySelector('{selector}');"
        "one.scrollIntoView({block: 'center'});"
        "const box = one.getBoundingClientRect();"
        "return [box.x + box.width * 0.45, box.y + box.height / 2]; })()"
    )
    for step in (4, 0):
        page.call("Input.dispatchMouseEvent", type="mouseMoved", x=x + step, y=y)
    return x, y


def test_a_head_sorts_its_table_and_what_has_no_value_stays_last(page):
    head = "table[aria-label=trials] th:nth-child(4) button"
    page.click(head)
    rising = column(page, "trials", 3)
    page.click(head)
    falling = column(page, "trials", 3)
    numbers = [float(value) for value in rising[:-1]]
    assert numbers == sorted(numbers) and falling[:-1] == rising[-2::-1]
    assert rising[-1] == falling[-1] == "failed: loss is nan"
    assert page.value(f"document.querySelector('{head}').parentElement.ariaSort") == "descending"


def test_a_search_leaves_the_rows_with_all_its_words(page):
    field = "input[aria-label$='sites']"
    page.type(field, "done 0.9")
    page.wait("document.querySelector('.find output').textContent || true")
    page.type(field, "zzz")
    page.wait(f"document.querySelector(\"{field}\").nextSibling.textContent === '0 of 12 rows'")
    assert column(page, "sites", 0) == []
    page.type(field, "done")
    page.wait(f"document.querySelector(\"{field}\").nextSibling.textContent === '12 of 12 rows'")


def test_hover_tells_the_figures_of_a_site(page):
    move(page, HEATMAP)
    page.wait("tooltip().includes('position')")
    told = page.value("tooltip()")
    assert "layer" in told and "EV" in told and "0.9" in told


def test_a_click_on_a_site_goes_to_its_row(page):
    x, y = move(page, HEATMAP)
    for kind in ("mousePressed", "mouseReleased"):
        page.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)
    name = page.wait("document.querySelector('tr.picked')?.id")
    top = page.value(f"document.getElementById('{name}').getBoundingClientRect().top")
    assert name.startswith("site-") and 0 < top < 900


def test_the_legend_isolates_a_curve_and_shows_all_again(page):
    legend = "[aria-label='legend: Training curves of the trials'] button:nth-child(3)"
    visible = "models('trials-').filter((one) => one.visible).map((one) => one.name)"
    everything = page.value(visible)
    page.click(legend)
    assert set(page.value(visible)) == {"trials-2"}
    assert page.value(f'document.querySelector("{legend}").ariaPressed') == "true"
    page.click(legend)
    assert page.value(visible) == everything and len(set(everything)) == 11


def test_nothing_is_wider_than_a_phone_and_the_dark_scheme_is_dark(browser, small_page):
    shown(browser, small_page, 390, dark=True)
    assert browser.value("document.documentElement.scrollWidth") <= 390
    assert browser.value("getComputedStyle(document.body).backgroundColor") == "rgb(20, 23, 28)"
    inks = "[...new Set([...Bokeh.documents[0]._all_models.values()].filter((one) =>"
    inks += " one.type === 'LinearAxis').map((one) => one.axis_label_text_color))].map(String)"
    assert browser.value(inks) == ["#e6e9ef"]


def test_hostile_names_do_nothing_in_a_browser(browser, tmp_path):
    evil = "</script><img src=x onerror=\"document.title='owned'\">$$x$$"
    rows = [trial(0, reason=evil, figures={**trial(0).figures, "host": evil})]  # one wide bar
    run, store = written_run(tmp_path, trials=rows, sites=atlas(2, [0]), curves=0)
    shown(browser, write_report(named(run, evil), store))
    move(browser, "#chart-timeline")
    browser.wait("tooltip().includes('host')")
    assert "$" in browser.value("tooltip()") and "<img src" in browser.value("tooltip()")
    assert browser.value("deep(document, 'img[src=x]').length") == 0
    assert browser.value("document.title") == f"raysae: {evil}"
    assert browser.value("document.querySelector('h1').textContent") == evil
