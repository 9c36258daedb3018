"""Running phases: needs first, each item once, what is committed only read, a failure costs itself."""

import pytest

from raysae import UserError
from raysae.analysis import engine, registry
from raysae.analysis.phase import Item, Phase, Result
from raysae.analysis.registry import check_options, phases_named, settings_of
from raysae.analysis.results import item_folder, made_of, read_result
from raysae.analysis.section import Section, Table
from raysae.analysis.subject import Subject
from raysae.config import ResourcesConfig
from raysae.config.section import Section as Settings
from raysae.pipeline.analysis import options_of
from raysae.records.events import Analysed, Events
from raysae.records.run_files import RunFiles
from raysae.report.analysis_section import cell, not_run, phase_sections
from raysae.storage.files import read_json, write_json
from tests.atlas.library.conftest import run  # noqa: F401
from tests.extraction.local_pool import map_here

DONE: list[str] = []
"""The items that were done, in their order."""


class LiveSettings(Settings):
    """Options of the test's phase."""

    rows: int = 50
    """Rows, at most."""
    refused: tuple[str, ...] = ()
    """Items that fail."""


class Live(Phase):
    """The share of latents that fire on some validation rows."""

    name, title = "live", "Live latents"
    Settings = LiveSettings

    def check(self, subject, settings):
        subject.need_rows()

    def items(self, subject, settings):
        return [Item(site.folder.replace("/", ","), (site,)) for site in subject.sites]

    def work(self, subject, settings, item, folder, alive):
        DONE.append(item.key)
        if item.key in settings.refused:
            raise UserError("it is refused")
        (site,) = item.sites
        z = subject.atlas[site].encode(subject.store.validation(site)[: settings.rows].float())
        write_json(folder / "live.json", {"live": float((z > 0).any(0).float().mean())})

    def collect(self, subject, settings, folders):
        rows = [{"site": i.key, **read_json(f / "live.json")} for i, f in folders.items()]
        mean = sum(row["live"] for row in rows) / len(rows)
        table = Table("Sites", ["site", "live"], [list(row.values()) for row in rows])
        return Result(
            {"live": mean}, Section([f"{mean:.0%} live."], [table]), {"sites": rows}, "ok"
        )

    def draw(self, result, settings, source, folder):
        (folder / "live.png").write_bytes(b"PNG")


class After(Live):
    """A phase that uses another's result."""

    name, title, uses = "after", "After", ("live",)

    def collect(self, subject, settings, folders):
        there = subject.result("live")
        return Result({}, Section(["live is " + ("there" if there else "not there")]))


class Heard:
    """Keeps the events."""

    def __init__(self):
        self.events = []

    def hear(self, event):
        self.events.append(event)


@pytest.fixture
def here(monkeypatch):
    monkeypatch.setattr(engine, "map_committed", map_here)
    monkeypatch.setattr(engine, "prepare_worker", lambda: "cpu")
    monkeypatch.setattr(registry, "known_phases", lambda: {"live": Live(), "after": After()})
    DONE.clear()


@pytest.fixture
def subject(run, tmp_path):  # noqa: F811
    return Subject(str(run.folder), RunFiles(tmp_path), str(run.store.path))


def analysed(subject, names=("live",), listener=None, **options):
    planned, _ = engine.plan(subject, phases_named(names), options, asked=True)
    events = Events(*([listener] if listener else []))
    return engine.run(subject, planned, lambda: None, ResourcesConfig(), events, "test data")


def test_each_item_is_done_once_and_the_result_is_read_afterwards(here, subject):
    heard = Heard()
    first = analysed(subject, listener=heard)
    assert len(DONE) == len(subject.sites) == 3 and not first.failures
    found = read_result(subject.files, "live")
    assert 0 < found["figures"]["live"] <= 1 and found["failed"] == {}
    assert (first.folders["live"] / "sites.parquet").is_file()
    assert [e.phase for e in heard.events if isinstance(e, Analysed)] == ["live"]
    analysed(subject)
    assert len(DONE) == 3


def test_what_is_committed_is_not_done_again_after_an_interruption(here, subject, tmp_path):
    def killed(folder):
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Live, "collect", lambda *_: killed(None))
        with pytest.raises(KeyboardInterrupt):
            analysed(subject)
    assert len(DONE) == 3 and read_result(subject.files, "live") is None
    analysed(subject)
    assert len(DONE) == 3 and read_result(subject.files, "live") is not None


def test_other_options_and_other_saes_make_items_again(here, subject):
    analysed(subject)
    analysed(subject, live={"rows": 20})
    assert len(DONE) == 6
    phase, item = Live(), Live().items(subject, LiveSettings())[0]
    made = made_of(subject, phase, LiveSettings(), item)
    assert made["live.rows"] == 50 and made["store"] == subject.store.digest
    assert [key for key in made if key.startswith("sae.")] == [f"sae.{item.sites[0].folder}"]


def test_a_failed_item_costs_itself_and_is_tried_again(here, subject):
    key = Live().items(subject, LiveSettings())[1].key
    found = analysed(subject, live={"refused": [key]})
    assert found.failures == [f"live, {key}: it is refused"]
    assert read_result(subject.files, "live")["failed"] == {key: "it is refused"}
    assert not item_folder(subject.files, Live(), Item(key, ())).exists()
    analysed(subject, live={"refused": [key]})
    assert DONE.count(key) == 2 and len(DONE) == 4


def test_a_phase_that_uses_another_runs_after_it(here, subject):
    planned, _ = engine.plan(subject, phases_named(["after", "live"]), {}, asked=True)
    names = [[one.phase.name for one in together] for together in engine.rounds(planned)]
    assert names == [["live"], ["after"]]
    analysed(subject, ["after", "live"])
    assert read_result(subject.files, "after")["section"]["sentences"] == ["live is there"]


def test_needs_are_checked_before_anything_runs(here, run, tmp_path):  # noqa: F811
    subject = Subject(str(run.folder), RunFiles(tmp_path))
    with pytest.raises(UserError, match=r"phase live: .*name it with --store STORE"):
        engine.plan(subject, phases_named(["live"]), {}, asked=True)
    planned, skipped = engine.plan(subject, phases_named(["live"]), {}, asked=False)
    assert not planned and "--store STORE" in skipped["live"] and not DONE


def test_names_and_options_are_checked(here):
    with pytest.raises(UserError, match="'lvie' is no phase of the analysis; did you mean live"):
        phases_named(["lvie"])
    with pytest.raises(
        UserError, match=r"analyze.options.live: row: unknown key; did you mean rows"
    ):
        settings_of(Live(), {"row": 3})
    with pytest.raises(UserError, match=r"analyze.options.after: the phase does not run"):
        check_options({"after": {}}, [Live()])
    with pytest.raises(UserError, match=r"expected PHASE.KEY=VALUE"):
        options_of(["rows=3"])
    assert options_of(["live.rows=3", "live.refused=[a]"]) == {
        "live": {"rows": 3, "refused": ["a"]}
    }


def test_the_main_job_runs_the_quick_phases_of_itself():
    assert registry.quick_phases() == ["labels", "loss"]


def test_the_page_takes_what_a_phase_says(here, subject, tmp_path):
    analysed(subject)
    write_json(tmp_path / "analysis/phases.json", {"not_run": {"after": "no model", "live": ""}})
    (section,) = phase_sections(tmp_path)
    assert section.title == "Live latents" and list(section.plots) == ["live"]
    assert section.tables[0]["columns"] == ["site", "live"]
    assert not_run(tmp_path) == {"after": "no model"}
    assert [cell(value) for value in (None, 0.12345678, 12345, "a")] == [
        "",
        "0.1235",
        "12,345",
        "a",
    ]
    (tmp_path / "analysis/live/result/result.json").write_text("{")
    assert phase_sections(tmp_path) == []
