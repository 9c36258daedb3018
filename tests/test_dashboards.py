"""The dashboards: every query is of a gauge that exists, and the files are what their readers take."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from raysae.cluster.gauges import GAUGES, ITEMS, STATES
from raysae.config import parse_recipe
from raysae.pipeline import gauges as gauges_module
from raysae.pipeline.gauges import GaugeListener, wants_gauges
from raysae.records.events import Began, Committed, Ended, Failed, Item, Progressed
from raysae.sites import Site
from tests.programs import needed

FOLDER = Path("dashboards")
DASHBOARD = json.loads((FOLDER / "grafana/dashboards/raysae.json").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
QUERIES = [target["expr"] for panel in PANELS for target in panel["targets"]]


def test_every_gauge_is_shown_and_every_query_is_of_one_that_exists():
    asked = {name for query in QUERIES for name in re.findall(r"ray_(raysae_\w+)", query)}
    assert asked == set(GAUGES)
    assert all(re.search(r"ray_\w+", query) for query in QUERIES)


def test_no_query_names_a_tag_that_a_gauge_has_not():
    own = {"study", "stage", "state"}
    for query in QUERIES:
        if "raysae" in query and "ray_node" not in query:
            tags = {
                tag for group in re.findall(r"by \(([^)]*)\)", query) for tag in group.split(", ")
            }
            tags |= set(re.findall(r"(\w+)[!=]~?=?\"", query))
            assert tags <= own, query


def test_panels_have_titles_units_and_places_of_their_own():
    places = [(p["gridPos"]["x"], p["gridPos"]["y"]) for p in PANELS]
    assert len(set(places)) == len(places) and len({p["id"] for p in DASHBOARD["panels"]}) > 15
    assert all(p["title"] and p["fieldConfig"]["defaults"] for p in PANELS)


def test_a_prometheus_takes_the_configuration_and_every_query(monkeypatch):
    """The configuration as users start it; no Ray is there, so that no query finds a series."""
    needed("prometheus")
    monkeypatch.syspath_prepend("scripts")
    import prometheus
    from s3_server import free_port

    port = free_port()
    with prometheus.prometheus_of(port, f"http://127.0.0.1:{free_port()}"):
        assert {query: prometheus.answer(port, query) for query in prometheus.queries()} == (
            dict.fromkeys(prometheus.queries(), 0)
        )


@pytest.mark.long
def test_queries_have_an_answer_while_a_sweep_runs():
    """Rates need two looks at the same scan: a quick machine is through with each before the second."""
    needed("prometheus")
    ended = subprocess.run(
        [sys.executable, "scripts/prometheus.py", "--epochs", "40"], check=False,
        capture_output=True, text=True,
    )  # fmt: skip
    said = ended.stdout + ended.stderr
    assert "the sweep: 0" in said, said[-4000:]
    series = re.findall(r"^ *(\d+) series  .{36} (.+)$", ended.stdout, re.MULTILINE)
    assert len(series) > 20
    silent = [query for count, query in series if count == "0"]
    assert [query for query in silent if "rate(" not in query and "_node_g" not in query] == []


@pytest.mark.parametrize("file", sorted(FOLDER.rglob("*.y*ml")), ids=str)
def test_yaml_files_are_read(file):
    documents = [one for one in yaml.safe_load_all(file.read_text()) if one]
    assert documents
    for one in documents:
        if "kuberay" in file.parts:
            assert one["apiVersion"] and one["kind"] and one["metadata"]["name"] and one["spec"]


def test_kubernetes_manifests_fit_each_other():
    cluster = yaml.safe_load((FOLDER / "kuberay/raycluster.yaml").read_text())
    job = yaml.safe_load((FOLDER / "kuberay/rayjob.yaml").read_text())
    monitors = list(yaml.safe_load_all((FOLDER / "kuberay/podmonitors.yaml").read_text()))
    name = cluster["metadata"]["name"]
    assert job["spec"]["clusterSelector"]["ray.io/cluster"] == name
    head = cluster["spec"]["headGroupSpec"]["template"]["spec"]["containers"][0]
    ports = {port["name"] for port in head["ports"]}
    for monitor in monitors:
        assert monitor["spec"]["selector"]["matchLabels"]["ray.io/cluster"] == name
        assert {one["port"] for one in monitor["spec"]["podMetricsEndpoints"]} <= ports


class Kept:
    """Keeps what is set, in place of Ray's gauges."""

    def __init__(self, study):
        self.study, self.values = study, {}

    def set(self, name, value, stage, state=""):
        self.values[name, stage, state] = value


@pytest.fixture
def listener(monkeypatch):
    monkeypatch.setattr(gauges_module, "Gauges", Kept)
    made = GaugeListener("mine")
    yield made
    made.close()


def test_a_run_sets_its_gauges(listener):
    first, second = Item("trial/a", "trial 0"), Item("trial/b", "trial 1")
    listener.hear(Began("Sweep", 4))
    listener.hear(
        Progressed(first, {"explained_variance": 0.5, "tokens": 10, "tokens_per_second": 7}, 0.1)
    )
    listener.hear(
        Progressed(second, {"explained_variance": 0.7, "tokens": 20, "tokens_per_second": 8}, 0.1)
    )
    found = listener.gauges.values
    assert found["raysae_tokens_per_second", "trials", ""] == 15
    assert found["raysae_best_explained_variance", "trials", ""] == 0.7
    assert found["raysae_items_expected", "trials", ""] == 4
    listener.hear(Committed(first, {"metrics": {"explained_variance": 0.9}, "tokens": 40}, Path()))
    listener.hear(Failed(second, "worker lost"))
    assert {state: found[ITEMS, "trials", state] for state in STATES} == {
        "running": 0, "done": 1, "failed": 1, "stopped": 0,
    }  # fmt: skip
    assert found["raysae_tokens", "trials", ""] == 60
    assert found["raysae_best_explained_variance", "trials", ""] == 0.9
    assert found["raysae_tokens_per_second", "trials", ""] == 0
    listener.hear(Ended("Sweep"))


def test_sites_and_phases_have_stages_of_their_own(listener):
    listener.hear(Began("Atlas", 1))
    listener.hear(Committed(Item.of_site(Site(0, -1), {"a": 1}), {"metrics": {}}, Path()))
    listener.hear(Committed(Item("analysis/loss/x/1", "loss x"), {}, Path()))
    assert {stage for _, stage, _ in listener.gauges.values} == {"sites", "analysis"}


def test_gauges_are_for_those_who_look(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert not wants_gauges(parse_recipe({}))
    assert wants_gauges(parse_recipe({"resources": {"dashboard": True}}))
    assert wants_gauges(parse_recipe({"resources": {"address": "auto"}}))
