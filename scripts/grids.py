"""Grids of d_sae and K that are trained without Ray, as a table of trials, for scripts on the choice."""

import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor, nn

from raysae.records.members import Members
from raysae.records.rows import TrialRow
from raysae.records.tables import read_trials
from raysae.sae import sae_config
from raysae.sae.truth import Truth
from raysae.sites import Site
from raysae.training import TrainingConfig
from raysae.training.ensemble import Ensemble, Member, StatisticsCache
from raysae.training.rows import Rows
from raysae.transformer.loading import load_model, load_tokenizer
from raysae.transformer.model_spec import ModelSpec

SEEDS = (0, 1)


@dataclass(frozen=True)
class Grid:
    """The configs of a grid, and how each is trained with two seeds."""

    sizes: tuple[int, ...]
    ks: tuple[int, ...]
    training: TrainingConfig
    variant: str = "topk"
    most: float = 0.5
    """The largest K, as a part of d_sae."""


def trials_on(
    grid: Grid, x: Tensor, held_out: Tensor, file: Path, truth: Truth | None = None
) -> list[TrialRow]:
    """The trials of ``grid`` on rows ``x [rows, d_in]``; read from ``file`` if they are there, else
    trained and written, each d_sae on its own, so that the same call goes on where it was ended."""
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        rows, validation, cache = Rows(x), Rows(held_out), StatisticsCache()
        parts = {d_sae: file.with_suffix(f".{d_sae}.parquet") for d_sae in grid.sizes}
        for d_sae, part in parts.items():
            if not part.exists():
                _write(part, _of_size(grid, d_sae, (rows, validation), truth, cache))
        found = [one for part in parts.values() for one in pq.read_table(part).to_pylist()]
        _write(file, [{**one, "trial": number} for number, one in enumerate(found)])
        for part in parts.values():
            part.unlink()
    return read_trials(file)


def _write(file: Path, rows: list[dict[str, Any]]) -> None:
    """Write the rows of a table, so that a file that is there is whole."""
    temporary = file.with_suffix(".new")
    pq.write_table(pa.Table.from_pylist(rows), temporary)
    temporary.rename(file)


def _of_size(
    grid: Grid, d_sae: int, rows: tuple[Rows, Rows], truth: Truth | None, cache: StatisticsCache
) -> list[dict[str, Any]]:
    """The trials of one d_sae, with the K that it may have."""
    ks = [k for k in grid.ks if k <= d_sae * grid.most]
    members = {
        (k, seed): Member(
            sae_config({"variant": grid.variant, "d_sae": d_sae, "k": k}), grid.training,
            *rows, seed, truth,
        )
        for k, seed in itertools.product(ks, SEEDS)
    }  # fmt: skip
    started = time.process_time()
    for _ in Ensemble(list(members.values()), statistics=cache).rounds():
        pass
    seconds = (time.process_time() - started) / len(ks)
    return [_columns(grid, (d_sae, k), [members[k, seed] for seed in SEEDS], seconds) for k in ks]


def _columns(
    grid: Grid, config: tuple[int, int], members: Sequence[Member], seconds: float
) -> dict[str, Any]:
    """A trial's row; ``seconds`` are of CPU, which other programs do not change."""
    by_seed = {(Site(0, "all"), seed): one for seed, one in zip(SEEDS, members, strict=True)}
    trained = Members(by_seed, Path("unused"))
    return {
        "trial": 0, "state": "done", "reason": "", "seconds": seconds,
        "sae.variant": grid.variant, "sae.d_sae": config[0], "sae.k": config[1],
        **trained.final_metrics(), "tokens_trained": trained.cost["tokens_trained"],
    }  # fmt: skip


def streams(spec: ModelSpec, texts: Sequence[str], rows: int) -> list[Tensor]:
    """The residual stream after each layer ``[rows, d_in]``, at all tokens but the first of a text."""
    model, tokenizer = load_model(spec).eval(), load_tokenizer(spec)
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    blocks, found, count = max(lists, key=len), list[list[Tensor]](), 0
    seen: dict[int, Tensor] = {}
    for number, block in enumerate(blocks):
        block.register_forward_hook(lambda _, __, out, at=number: _note(seen, at, out))
    with torch.no_grad():
        for text in texts:
            model(torch.tensor([tokenizer(text)["input_ids"][:128]]))
            found.append([seen[number][0, 1:].float() for number in range(len(blocks))])
            count += len(found[-1][0])
            if count >= rows:
                break
    return [torch.cat(layer)[:rows] for layer in zip(*found, strict=True)]


def _note(seen: dict[int, Tensor], number: int, out: Tensor | tuple[Tensor, ...]) -> None:
    seen[number] = out if isinstance(out, Tensor) else out[0]
