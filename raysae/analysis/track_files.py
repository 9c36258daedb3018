"""What tracking keeps of a pair of sites: its matches, its facts, and the means of each sequence."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from raysae.analysis.intervals import known
from raysae.analysis.matching import Features, Matched
from raysae.records.tables import read_table, write_table
from raysae.sites import Site
from raysae.storage.files import read_json, write_json

FACTS, MATCHES = "facts.json", "matches.parquet"


@dataclass(frozen=True)
class Pair:
    """Two neighbouring sites whose features were matched."""

    first: Site
    second: Site
    rows: int
    """Rows that both have and that were compared."""
    sequences: int
    live: tuple[int, int]
    """Features that are active on any of the rows, at either site."""
    features: tuple[list[int], list[int]]
    """Those that were matched: active often enough, and among the densest."""
    matches: list[dict[str, Any]]
    """A row a pair of features: first, second, cosine, correlation, score, kept."""
    threshold: float
    null_mean: float
    control_kept: int
    """Matches above the threshold in a permutation that did not choose it."""

    @classmethod
    def of(
        cls, sites: tuple[Site, Site], sides: tuple[Features, Features], live: tuple[int, int],
        found: Matched, sequences: int,
    ) -> "Pair":  # fmt: skip
        """The pair of two sites from what matching found."""
        numbers = [side.number.tolist() for side in sides]
        rows = [
            {
                "first": numbers[0][one], "second": numbers[1][other], "cosine": known(cosine),
                "correlation": known(correlation), "score": score, "kept": kept,
            }
            for one, other, cosine, correlation, score, kept in zip(
                found.pairs.first, found.pairs.second, found.cosine.tolist(),
                found.correlation.tolist(), found.pairs.score.tolist(), found.kept.tolist(),
                strict=True,
            )
        ]  # fmt: skip
        return cls(
            *sites, len(sides[0].rows), sequences, live, (numbers[0], numbers[1]), rows,
            found.threshold, found.null_mean, found.control_kept,
        )  # fmt: skip

    @property
    def by_position(self) -> bool:
        """Whether it is a pair of positions, and not of layers."""
        return self.first.layer == self.second.layer

    @property
    def links(self) -> dict[int, int]:
        """The second site's feature of each feature of the first that is kept."""
        return {row["first"]: row["second"] for row in self.matches if row["kept"]}

    @property
    def kept(self) -> int:
        """Features that are kept."""
        return len(self.links)

    @property
    def compared(self) -> int:
        """The matches, kept or not."""
        return len(self.matches)


def save_pair(folder: Path, pair: Pair) -> None:
    """Write a pair to an item's folder."""
    facts = {name: value for name, value in asdict(pair).items() if name != "matches"}
    sites = {"first": pair.first.folder, "second": pair.second.folder}
    write_json(folder / FACTS, {**facts, **sites})
    write_table(folder / MATCHES, pair.matches)


def read_pair(folder: Path) -> Pair:
    """The pair in an item's folder. Raises UserError when it is damaged."""
    facts = dict(read_json(folder / FACTS))
    first, second = (Site.of_folder(facts.pop(name)) for name in ("first", "second"))
    facts["live"], facts["features"] = tuple(facts["live"]), tuple(facts["features"])
    return Pair(first, second, matches=read_table(folder / MATCHES), **facts)


def save_means(folder: Path, site: Site, sequence: NDArray[np.int64], mean_SF: Any) -> None:
    """Write each latent's mean over the rows of each sequence at a site: those above 0."""
    found = mean_SF.tocoo()
    table = pa.table(
        {
            "sequence": sequence[found.row], "feature": found.col.astype(np.int32),
            "activation": found.data.astype(np.float32),
        }
    )  # fmt: skip
    width = {b"d_sae": str(mean_SF.shape[1]).encode()}
    pq.write_table(table.replace_schema_metadata(width), folder / _means_name(site))


def read_means(folders: Iterable[Path], site: Site) -> tuple[NDArray[np.int64], Any] | None:
    """What ``save_means`` wrote of a site, in whichever folder it is; None where it is in none."""
    from scipy.sparse import csc_array

    for folder in folders:
        file = folder / _means_name(site)
        if file.is_file():
            table = pq.read_table(file, partitioning=None)
            sequence, row = np.unique(table["sequence"].to_numpy(), return_inverse=True)
            places = (row, table["feature"].to_numpy())
            shape = len(sequence), int(table.schema.metadata[b"d_sae"])
            return sequence, csc_array((table["activation"].to_numpy(), places), shape=shape)
    return None


def _means_name(site: Site) -> str:
    return f"means,{site.folder.replace('/', ',')}.parquet"
