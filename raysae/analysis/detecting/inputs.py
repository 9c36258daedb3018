"""What probes read of sequences at a site, along trajectories and as baselines, and what comes of it.

Shapes: N examples, P examples that have rows there, M columns, D d_in.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from raysae.analysis.detecting.columns import Chosen, chosen, dense_blocks, sparse_blocks
from raysae.analysis.detecting.examples import LEAST, Examples
from raysae.analysis.detecting.pooling import pooled_blocks
from raysae.analysis.detecting.probes import SPARSE, Labelling, predicted, predicted_plain
from raysae.analysis.detecting.scores import Floats, auroc
from raysae.errors import UserError
from raysae.sites import Site

if TYPE_CHECKING:
    from raysae.analysis.subject import Subject

SAE, RAW, TRAJECTORIES = "SAE features", "raw activations", "trajectories"
LENGTH, TOKENS, MAJORITY = "length", "bag of tokens", "majority"
BASELINES = (LENGTH, TOKENS, MAJORITY)
Alive = Callable[[], None]


class TooFewRows(UserError):
    """Too few of the examples have rows at a site, or trajectories."""


def sparse_kind(kind: str, count: int) -> str:
    """The name of the sparse probe on ``count`` columns of an input."""
    return f"{kind}, k={count}"


@dataclass
class Predictions:
    """Out-of-fold probabilities of the examples ``rows`` by kind of input, with its control."""

    rows: NDArray[np.int64]
    """The places ``[P]`` of the sequences among the examples."""
    labelling: Labelling
    """Of these sequences."""
    score: dict[str, Floats] = field(default_factory=dict)
    """By kind, ``[P]``."""
    permuted: dict[str, list[float]] = field(default_factory=dict)
    """By kind, the AUROC for each permutation of the labels."""
    strengths: dict[str, list[float]] = field(default_factory=dict)
    """By kind, the C that each fold chose."""
    picked: dict[str, list[int]] = field(default_factory=dict)
    """By kind, the first column that each fold's sparse probe chose."""


class Prober:
    """Fits probes on the examples' columns, for the labels and for their permutations."""

    def __init__(self, examples: Examples, permutations: int, seed: int, item: str, alive: Alive):
        """The folds follow from ``seed`` alone, so that items can be compared; the permutations also from
        the name of the ``item``, so that its control is one of its own."""
        true = Labelling.of(examples.label_N, examples.group_N, seed)
        self.labellings = [true, *true.permuted(permutations, crc32(item.encode()))]
        self.alive = alive

    def begin(self, rows: NDArray[np.int64], where: str) -> Predictions:
        """Predictions of the examples ``rows``, yet without any.

        Raises TooFewRows when too few of a class are among them.
        """
        labelling = self.labellings[0].take(rows)
        few = min(int(labelling.label_N.sum()), int((~labelling.label_N).sum()))
        if few < LEAST:
            raise TooFewRows(
                f"{where}: of the examples that have rows there, {few} are of one class; at least "
                f"{LEAST} are needed"
            )
        return Predictions(rows, labelling)

    def add(self, to: Predictions, kind: str, columns: Chosen) -> None:
        """Add the probes on all columns of a kind and the sparse ones, with their controls."""
        rows = to.rows
        for number, one in enumerate(self.labellings):
            mine = one.take(rows)
            score, strengths = predicted(columns.many(number, rows), mine, self.alive)
            self._note(to, kind, number, mine, score)
            if not number:
                to.strengths[kind] = strengths
            for count in SPARSE:
                if count <= len(columns.narrow[number][0]):
                    name = sparse_kind(kind, count)
                    score = predicted_plain(columns.few(number, count, rows), mine, self.alive)
                    self._note(to, name, number, mine, score)
        to.picked[kind] = [int(columns.number_U[fold[0]]) for fold in columns.narrow[0]]

    def add_one(self, to: Predictions, kind: str, columns: Chosen) -> None:
        """Add the probe on all columns of a kind alone, with its control."""
        for number, one in enumerate(self.labellings):
            mine = one.take(to.rows)
            score, strengths = predicted(columns.many(number, to.rows), mine, self.alive)
            self._note(to, kind, number, mine, score)
            if not number:
                to.strengths[kind] = strengths

    def add_majority(self, to: Predictions) -> None:
        """Add what knows only how often the label is true."""
        to.score[MAJORITY] = to.labelling.base_rates()
        to.permuted[MAJORITY] = []

    def _note(
        self, to: Predictions, kind: str, number: int, labelling: Labelling, score: Floats
    ) -> None:
        if number:
            found = auroc(labelling.label_N, above_base(score, labelling.base_rates()))
            to.permuted.setdefault(kind, []).append(found)
        else:
            to.score[kind] = score


def above_base(score_N: Floats, base_N: Floats) -> Floats:
    """The log odds of the predictions above those of their training part's share of positives: without
    it, folds with few positives would be ranked above the others."""
    from scipy.special import logit

    tiny = 1e-12
    return logit(score_N.clip(tiny, 1 - tiny)) - logit(base_N)


def at_site(
    subject: "Subject", site: Site, examples: Examples, prober: Prober, splits: Sequence[str],
    most: int,
) -> Predictions:  # fmt: skip
    """Predictions from a site's features (their means and maxima over each sequence's rows) and from its
    raw activations (their means), at most ``most`` columns of features a fold."""
    sae, n = subject.atlas[site], len(examples.sequence_N)
    one_row = isinstance(site.position, int)  # so the maximum is the mean
    raw_ND = np.zeros((n, subject.store.d_in), np.float32)
    there_N = np.zeros(n, bool)

    def blocks() -> Iterator[tuple[NDArray[np.int64], NDArray[Any]]]:
        for block in pooled_blocks(
            subject.store, site, sae, examples.sequence_N, splits, prober.alive
        ):
            raw_ND[block.rows], there_N[block.rows] = block.raw_SD, True
            pooled = [block.mean_SF] if one_row else [block.mean_SF, block.max_SF]
            yield block.rows, np.concatenate(pooled, axis=1)

    d_sae = sae.config.d_sae
    shape = n, d_sae * (1 if one_row else 2)
    features = chosen(blocks, shape, prober.labellings, most, d_sae)
    rows = np.flatnonzero(there_N)
    found = prober.begin(rows, str(site))
    prober.add(found, SAE, features)
    raw = chosen(dense_blocks(raw_ND, rows), raw_ND.shape, prober.labellings, raw_ND.shape[1])
    prober.add(found, RAW, raw)
    return found


def baselines(
    subject: "Subject", examples: Examples, prober: Prober, splits: Sequence[str], most: int
) -> Predictions:
    """Predictions from the number of tokens and characters alone, from how often each token is there, and
    from the share of positives."""
    length_N2, tokens_NM = _texts(subject, examples, splits, prober.alive)
    rows = np.arange(len(examples.sequence_N))
    found = prober.begin(rows, "the baselines")
    length = chosen(dense_blocks(length_N2, rows), length_N2.shape, prober.labellings, 2)
    prober.add_one(found, LENGTH, length)
    tokens = chosen(sparse_blocks(tokens_NM, rows), tokens_NM.shape, prober.labellings, most)
    prober.add(found, TOKENS, tokens)
    prober.add_majority(found)
    return found


def _texts(
    subject: "Subject", examples: Examples, splits: Sequence[str], alive: Alive
) -> tuple[NDArray[Any], Any]:
    """The tokens and characters of each example, ``[N, 2]``, and how often it has each token, sparse
    ``[N, M]``."""
    from scipy.sparse import csr_array

    place = {number: row for row, number in enumerate(examples.sequence_N.tolist())}
    length_N2 = np.zeros((len(place), 2))
    rows, tokens = [], []
    for split in splits:
        for one in subject.sequences(split):
            row = place.get(one.sequence)
            if row is None:
                continue
            token_id = one.token_id[one.is_text]
            length_N2[row] = len(token_id), len(one.text)
            rows.append(np.full(len(token_id), row))
            tokens.append(token_id)
            alive()
    _, number = np.unique(np.concatenate(tokens), return_inverse=True)
    ones = np.ones(len(number), np.float32)
    where = np.concatenate(rows), number
    return length_N2, csr_array((ones, where), shape=(len(place), int(number.max()) + 1))


def trajectories_file(subject: "Subject") -> Path:
    """Where the phase ``tracking`` leaves the trajectories of sequences."""
    return subject.files.path / "analysis" / "tracking" / "result" / "trajectories.parquet"


def along_trajectories(file: Path, examples: Examples, prober: Prober, most: int) -> Predictions:
    """Predictions from the trajectories of features through the layers: a column for each feature that is
    followed, and layer.

    ``file`` has the columns ``chain``, ``sequence`` and ``activation`` (a list, by layer); a sequence
    that is in it but not with some feature has zeros there.
    """
    x_NM, rows = _trajectory_columns(file, examples, prober.alive)
    found = prober.begin(rows, "the trajectories")
    columns = chosen(sparse_blocks(x_NM, rows), x_NM.shape, prober.labellings, most)
    prober.add(found, TRAJECTORIES, columns)
    return found


def _trajectory_columns(
    file: Path, examples: Examples, alive: Alive
) -> tuple[Any, NDArray[np.int64]]:
    import pyarrow.parquet as pq
    from scipy.sparse import csr_array

    n = len(examples.sequence_N)
    there_N, width = np.zeros(n, bool), 0
    starts: dict[int, int] = {}
    parts: list[tuple[Any, Any, Any]] = []
    for batch in pq.ParquetFile(file).iter_batches(columns=["chain", "sequence", "activation"]):
        sequence = batch["sequence"].to_numpy()
        place = np.searchsorted(examples.sequence_N, sequence).clip(max=n - 1)
        mine = examples.sequence_N[place] == sequence
        there_N[place[mine]] = True
        lists = batch["activation"]
        ends = lists.offsets.to_numpy()
        values, chains = lists.values.to_numpy(), batch["chain"].to_numpy()
        for chain in np.unique(chains):
            of_chain = np.flatnonzero(chains == chain)
            length = int(ends[of_chain[0] + 1] - ends[of_chain[0]])
            if int(chain) not in starts:
                starts[int(chain)], width = width, width + length
            here = of_chain[mine[of_chain]]
            at = ends[here][:, None] + np.arange(length)
            columns = np.broadcast_to(starts[int(chain)] + np.arange(length), at.shape)
            parts.append((values[at].ravel(), np.repeat(place[here], length), columns.ravel()))
        alive()
    value, row, column = (np.concatenate(one) for one in zip(*parts, strict=True)) if parts else (
        np.zeros(0), np.zeros(0, int), np.zeros(0, int)
    )  # fmt: skip
    x_NM = csr_array((value, (row, column)), shape=(n, max(width, 1)))
    return x_NM, np.flatnonzero(there_N)
