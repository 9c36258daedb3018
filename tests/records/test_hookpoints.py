"""Sites with a hookpoint in a run folder, its table and its events; those without one as before."""

from raysae.records.events import Item
from raysae.records.permission import WRITTEN
from raysae.records.rows import SiteRow
from raysae.records.run_files import RunFiles
from raysae.records.tables import read_sites, read_table, write_table
from raysae.sae.checkpoint import METRICS_FILE
from raysae.sites import Site, site_folders

NAMED, PLAIN = Site(8, 3, "mlp_out"), Site(8, 3)


def test_a_table_has_the_column_where_sites_have_a_hookpoint(tmp_path):
    rows = [SiteRow(8, "3", "done", "", {"l0": 2.0}, name) for name in ("mlp_out", "resid_post")]
    write_table(tmp_path / "two", rows)
    assert read_sites(tmp_path / "two") == rows
    assert [row.site for row in read_sites(tmp_path / "two")] == [NAMED, Site(8, 3, "resid_post")]
    assert list(rows[0]) == ["layer", "position", "hookpoint", "state", "reason", "l0"]
    write_table(tmp_path / "one", [SiteRow(8, "3", "done", "", {"l0": 2.0})])
    assert list(read_table(tmp_path / "one")[0]) == ["layer", "position", "state", "reason", "l0"]
    assert read_sites(tmp_path / "one")[0].site == PLAIN


def test_names_and_columns():
    assert str(NAMED) == "mlp_out, layer 8, position 3" and str(PLAIN) == "layer 8, position 3"
    assert PLAIN.columns == {"layer": 8, "position": 3}
    assert NAMED.columns == {"layer": 8, "position": 3, "hookpoint": "mlp_out"}
    assert Item.of_site(NAMED, None) == Item(f"atlas/{NAMED.folder}", str(NAMED))
    places = [Site(1, 0), Site(0, "all", "b"), Site(0, "all", "a"), Site(0, -1, "b"), Site(0, 2)]
    assert [str(site) for site in sorted(places)] == [
        "b, layer 0, position -1", "layer 0, position 2", "a, layer 0, position all",
        "b, layer 0, position all", "layer 1, position 0",
    ]  # fmt: skip


def test_committed_and_damaged_sites_are_found_with_and_without_a_hookpoint(tmp_path):
    files = RunFiles(tmp_path)
    for site in (NAMED, PLAIN):
        folder = files.atlas_site(site)
        folder.mkdir(parents=True)
        (folder / METRICS_FILE).write_text("damaged")
    assert files.committed_sites() == [files.atlas_site(site) for site in (NAMED, PLAIN)]
    assert set(site_folders(tmp_path / "atlas")) == set(files.committed_sites())
    assert len(files.set_damaged_aside()) == 2
    assert not files.atlas_site(NAMED).exists()
    assert {"atlas/layer=*", "atlas/hookpoint=*/layer=*"} < set(WRITTEN)
