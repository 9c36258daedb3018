"""The page's section on the atlas: bounded, whatever the atlas; complete, where it is small."""

import json
import re
from pathlib import Path

import pytest

from raysae.records.run_files import RunFiles
from raysae.report.atlas_section import MOST_ROWS, AtlasSection, draw_atlas, pictures
from raysae.report.page import embedded, template
from raysae.report.seeds import spread_over_seeds
from tests.report.atlases import atlas


def drawn(rows, folder: Path, run=None):
    """The section's plots and its part of the page."""
    draw_atlas(RunFiles(folder / "run") if run is None else run, rows, "store x", folder)
    section = AtlasSection(rows, pictures(embedded(folder), folder))
    return section, template("atlas.html").render(section=section)


def committed(run, rows):
    """Write a record for each site, as far as a training curve needs it."""
    for row in rows:
        folder = run.path / "atlas" / f"layer={row.layer:02d}" / f"position={int(row.position):02d}"
        folder.mkdir(parents=True)
        history = [{"tokens": at, "explained_variance": 0.1 * at} for at in (1, 2, 3)]
        record = {"metrics": {}, "history": history, "steps": 3, "started": 1.0, "seconds": 1.0}
        (folder / "metrics.json").write_text(json.dumps(record))


@pytest.mark.parametrize(
    "layers, positions", [(50, 20), pytest.param(300, 6, marks=pytest.mark.long)]
)
def test_the_section_of_a_large_atlas_is_bounded_and_scrolls(layers, positions, tmp_path):
    holes = {(layer, 1) for layer in range(20)}
    section, text = drawn(atlas(layers, range(positions), holes=holes, stability=0.7), tmp_path)
    assert len(text.encode()) < 4_000_000
    assert len(text.encode()) - sum(len(uri) for _, uri in section.plots.values()) < 1_000_000
    assert text.count(' class="odd">') == 20 and "and 10 more sites without SAE" in text
    assert text.count('class="box"') == 2 and text.count("<thead>") == 2
    assert text.count("<tr") == layers * positions + len(section.claims) + 2


def test_a_huge_table_is_cut_and_says_so():
    rows = atlas(MOST_ROWS + 1, [0])
    text = template("atlas.html").render(section=AtlasSection(rows, {}))
    assert f"The first {MOST_ROWS:,} of {MOST_ROWS + 1:,} sites" in text
    assert len(text.encode()) < 1_500_000


def test_a_small_atlas_has_every_plot_in_order_and_every_claim(tmp_path):
    rows, run = atlas(4, range(4)), RunFiles(tmp_path / "run")
    committed(run, rows)
    section, text = drawn(rows, tmp_path, run)
    names = ["explained_variance", "l0", "dead_fraction", "mse", "profiles", "curves"]
    assert list(section.plots) == [f"atlas_{name}" for name in names]
    assert {*section.narrow, *section.wide} == {*section.plots}
    assert text.count("<img") == 6
    for claim in section.claims:
        assert (re.sub("'", "&#39;", claim.sentence) in text) == claim.told


def test_a_site_whose_record_is_gone_costs_only_its_curve(tmp_path):
    rows, run = atlas(2, range(2)), RunFiles(tmp_path / "run")
    committed(run, rows)
    (run.path / "atlas/layer=00/position=00/metrics.json").write_text("{")
    (run.path / "atlas/layer=00/position=01/metrics.json").unlink()
    section, _ = drawn(rows, tmp_path, run)
    assert "atlas_curves" in section.plots


def test_the_range_over_the_seeds_of_a_site_is_read_and_drawn(tmp_path):
    rows, run = atlas(3, range(3), holes={(2, 2)}), RunFiles(tmp_path / "run")
    committed(run, rows)
    drawn(rows, tmp_path, run)
    plain = {file.name: file.read_bytes() for file in tmp_path.glob("*.png")}
    for folder in run.path.glob("atlas/*/position=0[01]"):
        own = {"metadata": {"metrics": {"mse": 1.0, "l0": 32.0, "degenerate": False}}}
        (folder / "cfg.json").write_text(json.dumps(own))
        for seed, mse in ((1, 3.0), (2, None)):
            other = folder.with_suffix(".members") / f"x,seed={seed}"
            other.mkdir(parents=True)
            (other / "metrics.json").write_text(json.dumps({"mse": mse, "l0": 30.0 + seed}))
    spread = spread_over_seeds(run, rows)
    assert len(spread) == 6
    assert spread[0, "0"] == {"mse": (1.0, 3.0), "l0": (31.0, 32.0)}
    drawn(rows, tmp_path, run)
    changed = {file for file in plain if (tmp_path / file).read_bytes() != plain[file]}
    assert changed == {"atlas_mse.png", "atlas_l0.png", "atlas_profiles.png"}
    next(run.path.rglob("cfg.json")).write_text("{")  # damaged: it costs only its own range
    assert sum(not ranges for ranges in spread_over_seeds(run, rows).values()) == 1


def test_each_hookpoint_has_its_plots_and_a_column(tmp_path):
    rows = [*atlas(3, range(3), hookpoint="mlp_out"), *atlas(3, range(3), hookpoint="../x")]
    section, text = drawn(rows, tmp_path)
    heatmaps = [name for name in section.plots if name.startswith("atlas_mse")]
    assert heatmaps == ["atlas_mse-___x", "atlas_mse-mlp_out"]
    assert '<th scope="col">hookpoint</th>' in text and "<td>mlp_out</td>" in text


def test_one_site_has_its_figures_and_no_nonsense(tmp_path):
    section, text = drawn(atlas(1, ["all"]), tmp_path)
    assert not section.plots and not section.claims and "positions and layers" not in text
    assert text.count("<tr") == 2


def test_an_atlas_without_any_sae_lists_why(tmp_path):
    section, text = drawn(atlas(2, [0], holes={(0, 0), (1, 0)}), tmp_path)
    assert not section.plots and text.count("no rows at this site") == 4
