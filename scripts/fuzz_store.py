"""Damage small stores and SAEs in many ways, read them in every way, and list what comes out.

    python scripts/fuzz_store.py --mutations 20000 --seed 0 [--only 1234]

The sizes and checksums in the manifest are made to fit each damaged file. A reader must either raise
UserError, or give the rows that pyarrow gives for the same file. The exit code is 1 when another error,
another row, a hang or too much memory was found; the mutation's number, file and description are
printed, and --only repeats one of them. Each mutation depends on the seed and its own number alone.
"""

import argparse
import faulthandler
import hashlib
import json
import os
import resource
import shutil
import signal
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from fuzz_mutations import BYTES, JSON, PARQUET, SAFETENSORS, Mutation

import raysae
from raysae.activations import store_command
from raysae.activations.manifest import FORMAT_VERSION, Manifest
from raysae.activations.schema import SEQUENCES_SCHEMA
from raysae.activations.show import draw_samples, facts, samples_table, sites_table
from raysae.activations.splits import SPLITS
from raysae.activations.store import Store, open_store
from raysae.activations.streaming import StreamedRows
from raysae.activations.synthetic import SuperpositionWorld
from raysae.activations.verify import verify
from raysae.activations.writer import ShardFormat, SiteRows, SiteWriter, write_sequences
from raysae.cluster.reading import check_sites
from raysae.cluster.sharing import pieces_of, read_piece
from raysae.console.command_line import run_command
from raysae.errors import UserError
from raysae.sae.interchange import FORMATS
from raysae.sites import Site
from raysae.storage.files import write_json

D_IN, ROWS, SEQUENCES = 4, 24, 12
SECONDS = 30
"""The longest that one mutation may take."""
MEMORY = 3 << 30
"""Address space that the process may take beyond what it has at the start, in bytes."""
RESIDENT = 1 << 30
"""Memory that the process may use at most, in bytes."""
SPLIT = {"validation": 0.3, "test": 0.2}
SAES = {
    "raysae": ("topk", "batch_topk", "matryoshka", "jumprelu", "gated", "relu_l1"),
    **{name: tuple(form.variants) for name, form in FORMATS.items()},
}
MANIFEST, STORE = "manifest.json", "store"
UNREAD = (pa.ArrowException, OSError, ValueError, LookupError)
PIECE_ROWS = 100
"""Rows of a piece when a site is shared."""
COMMANDS = 20
"""The commands read each store whose mutation's number is a multiple of this."""


@dataclass
class Case:
    """One mutation: the folder's kind, the file in it, and how it was damaged."""

    number: int
    folder: Path
    file: str
    kind: str
    words: str

    def __str__(self) -> str:
        return f"mutation {self.number}, {self.folder.name}/{self.file}, {self.kind}: {self.words}"


class TooSlow(BaseException):
    """A reader took longer than ``SECONDS``. No reader may catch it."""


# What is damaged


def make_store(folder: Path) -> None:
    """A store of two sites with two shards each, texts, and the truth of a synthetic world."""
    world, lines = SuperpositionWorld(D_IN, 8, 0.3), torch.arange(ROWS)
    sequence, index = (lines // 2).numpy(), (lines % 2).int().numpy()
    entries = []
    for layer in range(2):
        writer = SiteWriter(folder, Site(layer, "all"), ShardFormat("float32", SPLIT), ROWS // 2)
        writer.add(SiteRows(world.rows(ROWS, layer), sequence, index, index + 5))
        entries.append(writer.finish())
    write_sequences(folder, 0, _texts())
    Manifest(
        format_version=FORMAT_VERSION, provenance="synthetic", source={"world": {"seed": 1}},
        model={"id": "m", "layers": 2}, dataset={"id": "d", "sequences": SEQUENCES}, hookpoint="none",
        dtype="float32", d_in=D_IN, context_length=4, split=SPLIT,
        sequences=[write_sequences(folder, 0, _texts())], sites=entries,
    ).write(folder)  # fmt: skip
    from safetensors.torch import save_file

    save_file({"atoms": world.truth()}, folder / "truth.safetensors")


def _texts() -> pa.Table:
    per_token = {"token_id": [5, 6], "token_start": [0, 1], "token_end": [1, 2]}
    columns: dict[str, Any] = {
        "sequence": list(range(SEQUENCES)), "documents": [[n] for n in range(SEQUENCES)],
        "text": ["ab"] * SEQUENCES, **{name: [one] * SEQUENCES for name, one in per_token.items()},
        "is_text": [[True, True]] * SEQUENCES, "patterns": [[0, 0]] * SEQUENCES,
    }  # fmt: skip
    return pa.table(columns, schema=SEQUENCES_SCHEMA)


def make_saes(folder: Path) -> list[Path]:
    """A folder for each format and variant of an SAE."""
    from raysae.sae.config import sae_config
    from raysae.sae.variants import build_sae

    made = []
    for form, variants in SAES.items():
        for variant in variants:
            settings = {"variant": variant, "d_sae": 6}
            if "topk" in variant or variant == "matryoshka":
                settings["k"] = 2
            path = folder / f"{form}-{variant}"
            sae = build_sae(sae_config(settings), D_IN)
            sae.save(path) if form == "raysae" else raysae.export_sae(sae, path, form)
            made.append(path)
    return made


def mutations_of(file: str) -> dict[str, Mutation]:
    """The mutations that fit a file, by its name."""
    if file.endswith(".parquet"):
        return {**BYTES, **PARQUET}
    return {".json": JSON, ".safetensors": SAFETENSORS}.get(Path(file).suffix, BYTES)


def damaged(number: int, seed: int, whole: dict[Path, dict[str, bytes]]) -> tuple[Case, bytes]:
    """Mutation ``number``: which file of which folder, and its damaged bytes."""
    random = Random(f"{seed} {number}")
    stores = [folder for folder in whole if MANIFEST in whole[folder]]
    folder = random.choice(stores if random.random() < 0.8 else list(whole))
    shards = [file for file in whole[folder] if file.endswith(".parquet")]
    file = random.choice(shards if shards and random.random() < 0.75 else list(whole[folder]))
    kinds = mutations_of(file)
    kind = random.choice(list(kinds))
    data, words = kinds[kind](random, whole[folder][file])
    return Case(number, folder, file, kind.strip(), words), data


def fit_manifest(folder: Path, file: str, manifest: bytes) -> None:
    """Write the manifest with the size and the checksum of the damaged ``file``."""
    content, data = json.loads(manifest), (folder / file).read_bytes()
    entries = [shard for site in content["sites"] for shard in site["shards"]]
    for entry in [*entries, *content["sequences"]]:
        if entry["file"] == file:
            entry.update(bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
    write_json(folder / MANIFEST, content)


# How it is read


def expected_rows(store: Store, site: Site) -> dict[str, bytes | None]:
    """The bytes of each split's rows as pyarrow reads them; None where it does not read them."""
    found: dict[str, bytes | None] = dict.fromkeys(SPLITS, b"")
    for shard in store.entry(site).shards:
        rows, start = _rows_of(store.path / shard.file), 0
        for split in SPLITS:
            part = rows[start : start + getattr(shard.rows, split)]
            start += getattr(shard.rows, split)
            before, whole = found[split], None not in part and start <= len(rows)
            found[split] = (
                before + b"".join(map(bytes, part)) if whole and before is not None else None
            )
    return found


def _rows_of(path: Path) -> list[bytes | None]:
    """The rows of a shard as pyarrow reads them; None for each row of a group that it refuses."""
    rows: list[bytes | None] = []
    try:
        file = pq.ParquetFile(path)
        for number in range(min(file.num_row_groups, 9)):
            wanted = min(file.metadata.row_group(number).num_rows, 10 * ROWS)
            try:
                group = file.read_row_group(number, columns=["activation"])["activation"]
                # a group of fewer rows than its footer says is none that can be compared
                rows += group.to_pylist() if len(group) == wanted else [None] * wanted
            except UNREAD:
                rows += [None] * wanted
    except UNREAD:
        pass
    return rows


def _joined(blocks: Any) -> bytes:
    return b"".join(block.contiguous().numpy().tobytes() for block in blocks)


def ways_of(store: Store, site: Site, split: str) -> Iterator[tuple[str, Callable[[], bytes]]]:
    """Every way of reading a split's rows, by name; each gives the rows' bytes."""

    def streamed() -> StreamedRows:
        return StreamedRows(store, site, split)

    yield "blocks", lambda: _joined(store.blocks(site, split))
    yield "streamed", lambda: _joined([streamed().read(0, len(streamed()))])
    if split == "train":
        yield "batches", lambda: _joined(streamed().batches(5))
    yield (
        "table",
        lambda: b"".join(
            bytes(value)
            for shard in store.entry(site).shards
            for value in store.read(shard, split)["activation"].to_pylist()
        ),
    )
    yield (
        "shared",
        lambda: b"".join(
            bytes(value)
            for piece in pieces_of(store, site, PIECE_ROWS, (split,))
            for value in read_piece(store, site, piece)["activation"].to_pylist()
        ),
    )


def read_store(case: Case) -> Counter[str]:
    """Read a store in every way. Returns the outcomes. Raises AssertionError on other rows, and any
    error that is no UserError."""
    outcomes: Counter[str] = Counter()
    _refused_or(outcomes, "verify", lambda: verify(case.folder))
    if case.number % COMMANDS == 0:  # slow, and its parts are called for every mutation
        for verb in ("show", "sites", "verify"):
            run_command(store_command.main, [verb, str(case.folder)])
    store = _refused_or(outcomes, "open", lambda: open_store(case.folder))
    if store is None:
        return outcomes
    _refused_or(outcomes, "show", lambda: (facts(store), sites_table(store.manifest.sites)))
    _refused_or(outcomes, "truth", store.truth)
    for part in store.manifest.sequences:
        _refused_or(outcomes, "sequences", lambda part=part: store.sequences(part).to_pylist())
    for site in store.sites:
        if case.file == MANIFEST or case.file.startswith((site.folder, "sequences")):
            read_site(store, site, outcomes)
    return outcomes


def read_site(store: Store, site: Site, outcomes: Counter[str]) -> None:
    """Read a site in every way; raises as ``read_store`` does."""
    _refused_or(outcomes, "show", lambda: samples_table(draw_samples(store, site, 5), 90, False))
    _refused_or(outcomes, "check", lambda: check_sites(store, [site]))
    _refused_or(outcomes, "site", lambda: store.site(site, 0))
    expected = expected_rows(store, site)
    for split in SPLITS:
        for name, read in ways_of(store, site, split):
            found = _refused_or(outcomes, "rows", read)
            if found and expected[split] is None:
                outcomes["rows that pyarrow refuses"] += 1
            elif found is not None:
                assert found == (expected[split] or b""), f"other rows: {name}, {site}, {split}"


def read_sae(case: Case) -> Counter[str]:
    """Load an SAE and use it."""
    outcomes: Counter[str] = Counter()
    folder, form = case.folder, case.folder.name.partition("-")[0]
    sae = _refused_or(outcomes, "sae", lambda: raysae.load_sae(folder, format=form))
    _refused_or(outcomes, "sae", lambda: raysae.load_sae(folder))
    if sae is not None:
        values = [tensor.isfinite().all() for tensor in sae.state_dict().values()]
        assert all(values), "weights that are not finite"
        reconstruction, features, _ = sae(torch.randn(3, sae.d_in))
        assert not bool((features < 0).any()) and reconstruction.shape == (3, sae.d_in)
    return outcomes


def _refused_or(outcomes: Counter[str], what: str, read: Callable[[], Any]) -> Any:
    try:
        value = read()
    except UserError as error:
        assert str(error).strip(), "an empty message"
        outcomes[f"{what}: refused"] += 1
        return None
    outcomes[f"{what}: read"] += 1
    return value


# The campaign


@contextmanager
def limited() -> Iterator[None]:
    """Raise TooSlow after ``SECONDS``; a call that never comes back ends the process."""

    def stop(*_: Any) -> None:
        raise TooSlow

    signal.signal(signal.SIGALRM, stop)
    faulthandler.dump_traceback_later(4 * SECONDS, exit=True)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        faulthandler.cancel_dump_traceback_later()


def attempt(case: Case, outcomes: Counter[str]) -> str | None:
    """Read what was damaged; says what went wrong, or None."""
    try:
        with limited():
            outcomes.update(read_store(case) if case.folder.name == STORE else read_sae(case))
    except TooSlow:
        return f"longer than {SECONDS} s"
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        ours = [f for f in traceback.extract_tb(error.__traceback__) if "/raysae/" in f.filename]
        line = f"{Path(ours[-1].filename).name}:{ours[-1].lineno}" if ours else str(place.lineno)
        return f"{type(error).__name__} at {line}: {str(error)[:150]}"
    resident = peak_memory()
    return f"{resident >> 20} MiB of memory" if resident > RESIDENT else None


def peak_memory() -> int:
    """The most bytes of memory that this process has had; a parent's are not counted."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) * 1024


def campaign(place: Path, mutations: int, seed: int, only: int | None) -> int:
    """Run the mutations; prints each failure and a table. Returns the number of failures."""
    make_store(place / STORE)
    whole = {
        folder: {
            str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()
        }
        for folder in (place / STORE, *make_saes(place))
    }
    assert not verify(place / STORE), "the store is sound before it is damaged"
    table, failures = Counter[tuple[str, str]](), 0
    for number in range(mutations) if only is None else [only]:
        case, data = damaged(number, seed, whole)
        file = case.folder / case.file
        file.write_bytes(data)
        if case.file.endswith(".parquet"):
            fit_manifest(case.folder, case.file, whole[case.folder][MANIFEST])
        print(case, file=LAST, flush=True)
        outcomes: Counter[str] = Counter()
        with open(os.devnull, "w") as quiet, redirect_stdout(quiet), redirect_stderr(quiet):
            wrong = attempt(case, outcomes)
        kind = f"{Path(case.file).suffix} {case.kind}"
        refused = any(name.endswith("refused") for name in outcomes)
        table[kind, "failed" if wrong else "refused" if refused else "read"] += 1
        table[kind, "rows that pyarrow refuses"] += outcomes["rows that pyarrow refuses"] > 0
        if wrong:
            failures += 1
            print(f"{case}\n    {wrong}")
        for name in (case.file, MANIFEST):
            if name in whole[case.folder]:
                (case.folder / name).write_bytes(whole[case.folder][name])
        LAST.seek(0)
        LAST.truncate()
    _print(table)
    return failures


def _print(table: Counter[tuple[str, str]]) -> None:
    heads = ("refused", "read", "rows that pyarrow refuses", "failed")
    print(f"{'':28}" + "".join(f"{head:>{len(head) + 3}}" for head in heads))
    for kind in sorted({kind for kind, _ in table}):
        print(f"{kind:28}" + "".join(f"{table[kind, h]:>{len(h) + 3}}" for h in heads))
    print(f"{'all':28}" + "".join(
        f"{sum(n for (_, o), n in table.items() if o == h):>{len(h) + 3}}" for h in heads
    ))  # fmt: skip


def main() -> int:
    """Run the command; the exit code is 1 when something failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mutations", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="the number of the one mutation to repeat")
    args = parser.parse_args()
    torch.set_num_threads(1)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    place = Path(tempfile.mkdtemp(prefix="fuzz-store-"))
    try:
        failures = campaign(place, args.mutations, args.seed, args.only)
    finally:
        shutil.rmtree(place)
    print(f"{args.mutations if args.only is None else 1} mutations, {failures} failed")
    return 1 if failures else 0


LAST = tempfile.TemporaryFile("w+")  # noqa: SIM115  (the case that a crash leaves)

if __name__ == "__main__":
    sys.exit(main())
