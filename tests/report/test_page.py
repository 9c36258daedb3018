"""The page of a run: complete, self-contained, bounded; names are text wherever they stand."""

import json
import re
from pathlib import Path

import pytest

from raysae.console.command_line import run_command
from raysae.report import report_command
from raysae.report.comparison import write_comparison
from raysae.report.importance import FEWEST_TRIALS, importance_of
from raysae.report.page import write_report
from raysae.report.runs_page import differences_of, write_runs_page
from tests.report.atlases import atlas
from tests.report.pages import Tags, assert_whole
from tests.report.runs import failed, named, page_of, trial, written_run

EVIL = "</script><script>alert(1)</script>"


@pytest.fixture(scope="module")
def tags(small_page) -> Tags:
    return Tags(small_page.read_text())


def charts_in(tags: Tags) -> list[str | None]:
    ids = [one.get("id") for one in tags.all("div") if one.get("class") == "plot"]
    (data,) = [json.loads(text) for script, text in tags.scripts if script.get("id") == "charts"]
    roots = [name for item in data["items"] for name in item["roots"].values()]
    assert sorted(roots) == sorted(ids)
    return ids


def test_the_page_has_its_sections_charts_and_rows(small_page, tags):
    sections = [one["id"] for one in tags.all("section")]
    names = ["run", "sweep", "choice", "controls", "scaling", "atlas", "features", "resources"]
    assert sections == [*names, "repeat"]
    assert set(charts_in(tags)) >= {
        "chart-front", "chart-parallel", "chart-timeline", "chart-slice-0", "chart-slice-1",
        "chart-trials", "chart-grid", "chart-atlas-explained_variance-all", "chart-atlas-mse-all",
        "chart-atlas-dead_fraction-all", "chart-atlas-l0-all", "chart-sites-all",
    }  # fmt: skip
    rows = [one["id"] for one in tags.all("tr") if one.get("id")]
    assert rows == [f"trial-{n}" for n in range(12)] + [f"site-{n}" for n in range(12)]
    text = small_page.read_text()
    assert "11 measured trials are too few to tell" in text and "loss is nan" in text
    assert f"python -m raysae.sweep --resume {small_page.parents[1]}" in text


def test_the_page_needs_nothing_but_files_beside_it(small_page, tags):
    assert_whole(small_page)
    (policy,) = [one["content"] for one in tags.all("meta") if "http-equiv" in one]
    assert "default-src 'none'" in policy and "http" not in policy
    pngs = {file.stem for file in small_page.parent.glob("*.png")}
    assert pngs == {file.stem for file in small_page.parent.glob("*.svg")} and len(pngs) > 6


def test_what_has_a_chart_is_not_shown_as_a_picture_too(tags):
    assert [one["alt"] for one in tags.all("img")] == ["atlas profiles"]


@pytest.mark.long
def test_a_page_of_a_thousand_sites_and_300_trials_is_small(tmp_path):
    trials = [trial(n) if n % 20 else failed(n, "loss is nan") for n in range(300)]
    page = page_of(
        tmp_path, trials=trials, sites=atlas(25, range(40), holes={(3, 4)}, stability=0.6)
    )
    assert page.stat().st_size < 4_000_000
    tags = Tags(page.read_text())
    assert sum(one.get("id", "").startswith("site-") for one in tags.all("tr")) == 1000
    assert {"chart-importance", "chart-atlas-stability-all"} <= set(charts_in(tags))


def test_hostile_names_are_text_everywhere(tmp_path):
    rows = [trial(n, reason=EVIL, figures={**trial(n).figures, "host": EVIL}) for n in range(8)]
    sites = atlas(3, ["-1", "all"], holes={(1, "all")})
    for row in sites:
        row.reason = row.reason and EVIL
    run, store = written_run(tmp_path, trials=[*rows, failed(8, EVIL)], sites=sites, curves=0)
    strange = named(run, EVIL)
    page = write_report(strange, store)
    tags = Tags(page.read_text())
    assert "alert(1)" in page.read_text()
    assert len(tags.all("script")) == 3
    assert not any(data.strip().startswith("alert") for _, data in tags.scripts)
    assert "<h1>&lt;/script&gt;&lt;script&gt;alert(1)" in page.read_text()
    other, _ = written_run(tmp_path, "other")
    compared = write_runs_page([strange, other], tmp_path / "comparison.html")
    tags = Tags(compared.read_text())
    assert len(tags.all("script")) == 3 and EVIL not in compared.read_text()


def test_a_formula_in_a_name_stays_a_name():
    from raysae.report.charts.style import plain

    assert "$$" not in plain("a $$x$$ b") and "\\[" not in plain(r"\[x\]")
    assert plain("sites $1 and $2") == "sites $1 and $2"


def test_the_importance_of_settings_is_that_of_the_search():
    rows = [trial(n) for n in range(60)]
    settings = ["sae.d_sae", "sae.k", "training.lr"]
    shares = importance_of(rows, settings).shares
    assert list(shares) == ["sae.k", "sae.d_sae"] and sum(shares.values()) == pytest.approx(1)
    assert shares["sae.k"] > 0.6
    assert importance_of(rows, settings) == importance_of(rows, settings)


@pytest.mark.parametrize(
    ("rows", "settings", "why"),
    [
        (range(FEWEST_TRIALS - 1), ["sae.d_sae", "sae.k"], "too few"),
        (range(40), ["sae.k"], "sae.k alone was varied"),
        (range(40), ["training.lr"], "no setting was varied"),
    ],
)
def test_no_importance_has_a_reason(rows, settings, why):
    found = importance_of([trial(n) for n in rows], settings)
    assert not found.shares and why in found.reason


def test_sites_with_pages_of_features_link_to_them_and_the_pages_stay(tmp_path):
    run, store = written_run(tmp_path, sites=atlas(2, range(3)), curves=0)
    site = run.report_page.parent / "features" / "layer=01,position=02"
    site.mkdir(parents=True)
    for file in (site / "index.html", site.parent / "index.html"):
        file.write_text("features")
    tags = Tags(write_report(run, store).read_text())
    assert (site / "index.html").read_text() == "features"
    links = [one["href"] for one in tags.all("a") if "features/" in (one["href"] or "")]
    assert links.count("features/index.html") == 2
    assert links.count("features/layer%3D01%2Cposition%3D02/index.html") == 1
    (row,) = [one for one in tags.all("tr") if "data-href" in one]
    assert row["id"] == "site-5"


def test_several_runs_are_compared_on_one_page(tmp_path, capsys):
    one, _ = written_run(tmp_path, "one", sites=atlas(2, [0]), curves=0)
    few = [trial(n) for n in range(6)]
    two, _ = written_run(tmp_path, "two", trials=few, sites=atlas(2, [0]), curves=0)
    assert run_command(report_command.main, [str(one.path), str(two.path)]) == 0
    told = capsys.readouterr().out.split()
    assert told == [
        str(one.report_page),
        str(two.report_page),
        str(tmp_path / "runs/comparison.html"),
    ]
    text = Path(told[-1]).read_text()
    tags = Tags(text)
    assert charts_in(tags) == ["chart-run-trials", "chart-run-atlases", "chart-run-sites"]
    assert {"one/report/index.html", "two/report/index.html"} <= {a["href"] for a in tags.all("a")}
    assert "Nowhere, but for their names and places" in text and "same store" not in text


def test_models_are_compared_on_one_page(tmp_path):
    runs = {name: written_run(tmp_path, name, curves=0)[0] for name in ("one", "two")}
    rows = [
        {
            "model": name, "d_in": 8, "trials": 12, "trial": 3, "config": "d_sae 256, K 1",
            "explained_variance": 0.7, "l0": 1.0, "dead_fraction": 0.1, "reason": "why",
            "atlas.sites": 12, "atlas.mean": 0.9, "atlas.lowest": 0.8, "atlas.highest": 1.0,
        }
        for name in runs
    ]  # fmt: skip
    for run in runs.values():
        run.report_page.parent.mkdir()
        run.report_page.touch()
    page = tmp_path / "report" / "index.html"
    write_comparison(page, "two models", rows, runs, {"three": EVIL})
    assert_whole(page)
    tags = Tags(page.read_text())
    assert charts_in(tags) == ["chart-run-trials", "chart-run-atlases"]
    assert len(tags.all("script")) == 3 and EVIL not in page.read_text()


def test_the_comparison_goes_where_it_is_asked_for(tmp_path, capsys):
    few = [trial(n) for n in range(3)]
    runs = [str(written_run(tmp_path, name, few, [], 0)[0].path) for name in ("one", "two")]
    asked = tmp_path / "new folder" / "page.html"
    assert run_command(report_command.main, [*runs, "--out", str(asked)]) == 0
    assert asked.is_file() and capsys.readouterr().out.splitlines()[-1] == str(asked)
    assert run_command(report_command.main, [*runs, "--out", str(tmp_path)]) == 1
    assert "Traceback" not in capsys.readouterr().err


def test_recipes_differ_by_key():
    recipes = [{"seed": seed, "name": f"n{seed}", "sae": {"variant": "topk"}} for seed in (0, 1)]
    assert differences_of(recipes) == [("seed", ["0", "1"])]


def test_an_atlas_of_one_layer_is_a_line(tmp_path):
    tags = Tags(page_of(tmp_path, sites=atlas(1, range(5)), curves=0).read_text())
    assert "chart-atlas-explained_variance-all" in charts_in(tags)


def test_a_run_without_any_trial_that_finished_has_a_page(tmp_path):
    page = page_of(tmp_path, trials=[failed(n, "loss is nan") for n in range(3)], sites=[])
    text = page.read_text()
    assert "nothing was chosen" in text and not re.search("Traceback|None<", text)
