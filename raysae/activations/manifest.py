"""The manifest: what is in a store and where it came from. It is written last; no manifest, no store."""

import hashlib
import json
import unicodedata
from collections import Counter
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    model_serializer,
)

from raysae.activations.schema import Dtype
from raysae.activations.store_files import LocalFiles, StoreFiles
from raysae.errors import UserError
from raysae.sites import POOL_NAME, Site, hookpoints_in_sites
from raysae.storage.files import json_from, read_json, write_json
from raysae.storage.untrusted import usable_path

FORMAT_VERSION = 2
HOOKPOINTS_VERSION = 3
"""The version of stores of several hookpoints, whose sites name theirs; it is otherwise version 2."""
HOOKPOINT_SEPARATOR = ", "
"""Between the hookpoints of a store of several."""
MANIFEST_FILE = "manifest.json"
SEQUENCES_FOLDER = "sequences"


Count = Annotated[int, Field(ge=0, lt=2**62)]
"""A number of rows, bytes or the like; sums of them fit 64 bits in practice."""
LARGEST_D_IN = 2**24
"""Values per activation, at most."""
LONGEST_NAME = 200
"""Characters of a file's name, at most."""


class _Record(BaseModel):
    # strict: true is no number of rows, and "3" is no layer
    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, strict=True, allow_inf_nan=False
    )
    added: ClassVar[frozenset[str]] = frozenset()
    """Fields that the format did not have at first. They are in a file, and count in the digest, where
    they are set."""

    @model_serializer(mode="wrap")
    def _without_missing(self, handler: Any) -> dict[str, Any]:
        """Leave out fields that did not exist when the file was written, or that were not set."""
        missing = self.added - self.model_fields_set
        return {name: value for name, value in handler(self).items() if name not in missing}


class SplitRows(_Record):
    """Numbers of rows in each split."""

    train: Count
    validation: Count
    test: Count

    @property
    def total(self) -> int:
        """Rows of all splits together."""
        return self.train + self.validation + self.test


class ShardEntry(_Record):
    """One Parquet file; its rows are ordered train, validation, test, each in row groups of its own."""

    file: str
    """Path relative to the store, such as ``layer=08/position=03/part-00000.parquet``."""
    rows: SplitRows
    bytes: Count
    sha256: str


class SiteEntry(_Record):
    """The activations of one site. The statistics are over all its rows, in float64."""

    layer: Count
    position: int | Annotated[str, Field(pattern=f"^{POOL_NAME}$")]
    hookpoint: Annotated[str, Field(pattern=f"^{POOL_NAME}$")] | None = None
    """In a store of several hookpoints, the site's. None in other stores."""
    rows: SplitRows
    mean: list[float]
    mean_square_norm: float
    """Mean over rows of the squared norm."""
    total_variance: float
    """Mean over rows of the squared distance from ``mean``."""
    dropped: Count = 0
    """Rows left out because they held NaN or infinite values."""
    too_large: Count = 0
    """Rows left out because their norm was too large (``source.max_norm_ratio``)."""
    shards: list[ShardEntry]
    added: ClassVar[frozenset[str]] = frozenset({"too_large", "hookpoint"})

    @property
    def site(self) -> Site:
        """The entry's layer and position, and its hookpoint in a store of several."""
        return Site(self.layer, self.position, self.hookpoint)


class SequencesEntry(_Record):
    """One Parquet file of sequences: the texts and tokens that the transformer read."""

    file: str
    """Path relative to the store, such as ``sequences/part-00000.parquet``."""
    sequences: Count
    tokens: Count
    """Tokens that the transformer read, special ones included, padding excluded."""
    bytes: Count
    sha256: str


class LiveShard(_Record):
    """The training rows that the forward passes over one file of sequences give."""

    sequences: Count
    """Training sequences in the file."""
    tokens: Count
    """Tokens of these sequences."""
    rows: dict[str, Count]
    """By position (as text): rows of each layer. Rows that are left out are replaced by others of the
    same file, so that the number is exact."""


class LiveEntry(_Record):
    """What is known of training rows that are computed while training, without having them."""

    head: Count
    """Files of sequences, from the first, whose training rows were written with the store."""
    shards: list[LiveShard]
    """One for each file of sequences, in order."""
    kept: bool = False
    """Whether all training rows have been written since, so that the store is read like any other."""


class Manifest(_Record):
    """The content of ``manifest.json``; FORMAT.md describes every field."""

    added: ClassVar[frozenset[str]] = frozenset({"live"})
    format_version: int
    provenance: Literal["model", "imported", "synthetic"]
    source: dict[str, Any]
    """What the activations were made from: the recipe's source, without the store's folder."""
    model: dict[str, Any] | None
    """Id, revision, architecture, number of layers, hash of the weights, hash of the tokenizer."""
    dataset: dict[str, Any] | None
    """Id, hash of the texts, and the numbers of documents, cut ones, sequences and tokens."""
    hookpoint: str
    """Of a store of several, all of them, with ``, `` between."""
    dtype: Dtype
    d_in: Annotated[int, Field(le=LARGEST_D_IN)]
    context_length: Annotated[int, Field(ge=1, lt=2**31)] | None = None
    """Largest number of tokens in a sequence; null when it is not known."""
    patterns: dict[str, str] = {}
    """The regular expression behind each named position other than ``all``."""
    split: dict[str, float]
    """Expected fractions of the sequences in ``validation`` and ``test``."""
    sequences: list[SequencesEntry] = []
    """Empty when the texts are not known, as in imported and synthetic stores."""
    sites: list[SiteEntry]
    live: LiveEntry | None = None
    """Of a live store: the training rows, which are computed while training. None of other stores."""

    @property
    def hookpoints(self) -> tuple[str, ...]:
        """The store's hookpoints, in the order of its source."""
        if self.format_version != HOOKPOINTS_VERSION:
            return (self.hookpoint,)
        return tuple(self.hookpoint.split(HOOKPOINT_SEPARATOR))

    def digest(self) -> str:
        """A sha256 of the whole manifest, and through its checksums of every byte in the store.

        Fields that did not exist when the file was written do not count. Of a live store only what does
        not change counts: neither the files of training rows, nor the statistics, which follow them.
        """
        values = self.model_dump()
        if self.live is not None:
            values = _without_training_files(values)
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()

    def rows_on_disk(self, entry: SiteEntry) -> SplitRows:
        """The rows of a site that the files hold: of a live store, the training rows of its head alone,
        until all are kept."""
        if self.live is None or self.live.kept:
            return entry.rows
        head = self.live.shards[: self.live.head]
        train = sum(shard.rows.get(str(entry.position), 0) for shard in head)
        return entry.rows.model_copy(update={"train": train})

    def write(self, store: Path) -> None:
        """Write ``manifest.json`` into the store's folder; from then on, the store is complete."""
        write_json(
            store / MANIFEST_FILE, self.model_dump(exclude={"live"} if self.live is None else None)
        )


def read_manifest(store: Path) -> Manifest:
    """Read the store's manifest. Raises UserError when it is missing, malformed, contradicts itself or
    has another format version."""
    path = usable_path(store) / MANIFEST_FILE
    if not usable_path(path).is_file():
        raise _no_store(store, "check the path, or extract into it again")
    return _manifest(path, read_json(path))


def manifest_of(files: StoreFiles) -> Manifest:
    """The manifest of the store that ``files`` are. Raises UserError as ``read_manifest`` does."""
    if isinstance(files, LocalFiles):
        return read_manifest(files.folder)
    file = files.file(MANIFEST_FILE)
    if not file.is_file():
        raise _no_store(files.place, "check the URI, or extract to it again (store=URI)")
    return _manifest(str(file), json_from(str(file), file.size(), file.content))


def _no_store(place: Path | str, advice: str) -> UserError:
    return UserError(
        f"{place}: no {MANIFEST_FILE}, so this is not a finished activation store; {advice}"
    )


def _manifest(path: Path | str, raw: Any) -> Manifest:
    version = raw.get("format_version") if isinstance(raw, dict) else None
    if version not in (FORMAT_VERSION, HOOKPOINTS_VERSION):
        raise UserError(
            f"{path}: format_version {version!r}; this raysae reads {FORMAT_VERSION} and "
            f"{HOOKPOINTS_VERSION}; {_way_out(version)}"
        )
    try:
        manifest = Manifest.model_validate(raw)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UserError(f"{path}: {where}: {first['msg']}") from None
    _check_hookpoints(path, manifest)
    _check_entries(path, manifest)
    if manifest.live is not None:
        _check_live(path, manifest, manifest.live)
    return manifest


def _without_training_files(values: dict[str, Any]) -> dict[str, Any]:
    """A live store's manifest without what changes when its training rows are written."""
    of_rows = ("mean", "mean_square_norm", "total_variance", "dropped", "too_large", "shards")
    sites = []
    for entry in values["sites"]:
        held_out = [shard for shard in entry["shards"] if not shard["rows"]["train"]]
        kept = {key: value for key, value in entry.items() if key not in of_rows}
        sites.append({**kept, "shards": held_out})
    live = {key: value for key, value in values["live"].items() if key != "kept"}
    return {**values, "sites": sites, "live": live}


def _way_out(version: Any) -> str:
    newer = isinstance(version, int) and version > HOOKPOINTS_VERSION
    return "upgrade raysae" if newer else "extract or import the store again"


def _check_entries(path: Path | str, manifest: Manifest) -> None:
    sites = [str(entry.site) for entry in manifest.sites]
    placed = [(shard.file, entry.site.folder) for entry in manifest.sites for shard in entry.shards]
    placed += [(part.file, SEQUENCES_FOLDER) for part in manifest.sequences]
    for kind, names in (("site", sites), ("shard", [_same_name(file) for file, _ in placed])):
        twice = sorted(name for name, count in Counter(names).items() if count > 1)
        if twice:
            raise UserError(f"{path}: {kind} listed twice: {', '.join(twice)}")
    for file, folder in placed:
        name = file.removeprefix(f"{folder}/")
        if name == file or "/" in name.lstrip("/"):
            raise UserError(f"{path}: file {file!r} lies outside {folder}/; make the store again")
        if not _is_plain(name):
            raise UserError(
                f"{path}: file {file!r} counts as missing, as no shard has such a name; expected one "
                f"such as {folder}/part-00000.parquet; make the store again"
            )


def _check_hookpoints(path: Path | str, manifest: Manifest) -> None:
    """Raise UserError when the sites' hookpoints are not among those of the store."""
    several = manifest.format_version == HOOKPOINTS_VERSION
    names = manifest.hookpoints
    if several and (len(names) < 2 or len(set(names)) < len(names)):
        raise UserError(
            f"{path}: hookpoint {manifest.hookpoint!r}; expected two or more names, with "
            f"{HOOKPOINT_SEPARATOR!r} between, in format_version {HOOKPOINTS_VERSION}; make the store "
            "again"
        )
    for entry in manifest.sites:
        if entry.hookpoint not in hookpoints_in_sites(names):
            expected = (
                f"one of {manifest.hookpoint}" if several else "none, as the store has but one"
            )
            raise UserError(
                f"{path}: {entry.site}: hookpoint {entry.hookpoint!r}; expected {expected}; make the "
                "store again"
            )


def _check_live(path: Path | str, manifest: Manifest, live: LiveEntry) -> None:
    """Raise UserError when the plan of the training rows does not fit the sequences or the sites."""
    if not live.head <= len(live.shards) == len(manifest.sequences):
        raise UserError(
            f"{path}: live: a head of {live.head} of {len(live.shards)} shards, and "
            f"{len(manifest.sequences)} files of sequences; expected one shard for each file and a head "
            "within them; make the store again"
        )
    for entry in manifest.sites:
        planned = sum(shard.rows.get(str(entry.position), 0) for shard in live.shards)
        if planned != entry.rows.train:
            raise UserError(
                f"{path}: {entry.site}: {entry.rows.train} training rows, but live plans {planned}; make "
                "the store again"
            )


def _same_name(file: str) -> str:
    """The name in a form that is equal for two names that some file system takes for one."""
    return unicodedata.normalize("NFKC", file).casefold()


def _is_plain(name: str) -> bool:
    """Whether a file's name stands for that file alone, in its folder, on every system."""
    odd = name in ("", ".", "..") or "/" in name or "\\" in name
    return not odd and name.isprintable() and len(name.encode()) <= LONGEST_NAME
