"""The recipe's source: which model, which texts, which activations."""

import re
from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    Discriminator,
    Field,
    Tag,
    WithJsonSchema,
    field_validator,
    model_validator,
)

from raysae.config.section import Fraction, PositionKey, Positive, Section, Size
from raysae.sites import ALL, CHAT_ROLES, PATTERNS, POOL_NAME, ROLE
from raysae.text_template import HOW_TO_FILL_IN, parts_of

LONGEST_PATTERN = 2000
"""The most characters of a pattern."""


def _yes_or_no(value: Any) -> Any:
    """YAML reads ``yes`` and ``no`` as true and false."""
    return ("yes" if value else "no") if isinstance(value, bool) else value


Hookpoint = Literal["resid_pre", "resid_post", "mlp_out", "attn_out"]


def _one_or_several(value: Any) -> Any:
    """A list of one is that one, so that it stands for the same store."""
    several = isinstance(value, list | tuple)
    if several and not value:
        raise ValueError("names nothing; give at least one")
    return value[0] if several and len(value) == 1 else value


Hookpoints = Annotated[
    Annotated[Hookpoint, Tag("str")] | Annotated[tuple[Hookpoint, ...], Tag("tuple[str]")],
    Discriminator(lambda value: "tuple[str]" if isinstance(value, list | tuple) else "str"),
    BeforeValidator(_one_or_several),
]

Keep = Annotated[
    Literal["auto", "yes", "no"],
    BeforeValidator(_yes_or_no),
    WithJsonSchema(
        {"anyOf": [{"type": "string", "enum": ["auto", "yes", "no"]}, {"type": "boolean"}]}
    ),
]


class SourceConfig(Section):
    """Where the activations come from."""

    model: str = "pocket"
    """``pocket``, a folder in Hugging Face format, or a hub id."""
    revision: str | None = None
    """The hub model's revision."""
    trust_remote_code: bool = False
    """Whether Python code that lies beside the model or its tokenizer (``auto_map``) may run here. Say
    true only of code that you have read: it can do whatever you can."""
    dataset: str = "pocket"
    """``pocket``, a local .jsonl, .json, .csv, .tsv, .parquet or .txt file (compressed or not), a folder,
    or a hub id."""
    dataset_config: str | None = None
    """The hub data set's configuration."""
    dataset_split: str = "train"
    """The hub data set's split."""
    dataset_revision: str | None = None
    """The hub data set's revision."""
    text: str = "{prompt}"
    """How a row becomes a text: a template with columns' names in braces, or one column's name. Text goes
    in as it is, whole numbers as they are written, null as nothing; other types are refused."""
    chat_column: str | None = None
    """A column of chat messages, which the tokenizer's chat template writes out; ``text`` is then not
    used. Roles such as ``assistant`` become positions."""
    split_by: str | None = None
    """A column whose value (a document, a chat) decides the split, so that all its texts lie in one;
    without it, the text itself decides."""
    repeats: Literal["keep", "drop"] = "keep"
    """Whether a text that came before is read again. Either way all its copies lie in one split."""
    sequences: Positive | None = 4000
    """Rows of the data set to read, at most; null reads on to the end, or to another limit below."""
    max_tokens: Size | None = None
    """Tokens that the model reads, at most, special ones included."""
    max_rows: Size | None = None
    """Rows a site, at most."""
    max_bytes: Size | None = None
    """Size of the store, at most; such as ``50 GB``."""
    context_length: Positive = 128
    """Tokens a sequence, at most; a longer text is cut, or with ``packing`` continues in the next
    sequence."""
    cut: Literal["end", "start"] = "end"
    """Which end of a text longer than ``context_length`` is cut off, whatever the tokenizer says."""
    packing: bool = False
    """Whether texts are joined, with the model's separator between, into sequences of full length;
    texts of different splits never meet in one."""
    hookpoint: Hookpoints = "resid_post"
    """Where in each layer the activations are taken: ``resid_pre``, ``resid_post``, ``mlp_out``,
    ``attn_out``, or a list of them, which one forward pass reads into one store."""
    layers: Literal["all"] | tuple[int, ...] = "all"
    """Layers to read, counted from 0."""
    positions: tuple[PositionKey, ...] = (-6, -5, -4, -3, -2, -1)
    """Text tokens to read, one site each: from 0, or from the end from -1; ``all`` pools them, a
    pattern's name (``numbers``, ``operators``, ``answer`` or your own) those that it matches, with
    ``chat_column`` a role (``assistant``, ``user``, ``system``, ...) its messages' content."""
    patterns: dict[Annotated[str, Field(pattern=f"^{POOL_NAME}$")], str] = {}  # noqa: RUF012  (pydantic copies it)
    """Patterns of your own: names with regular expressions (a first group, where there is one, is
    what counts)."""
    special_tokens: bool = False
    """Whether BOS and other special tokens count as tokens of a text; padding never does."""
    dtype: Literal["float16", "bfloat16", "float32"] = "float16"
    """The store's number format."""
    model_dtype: Literal["float16", "bfloat16", "float32"] = "float32"
    """The number format in which the model computes."""
    non_finite: Literal["refuse", "drop"] = "refuse"
    """What becomes of rows with NaN or infinite values; what is dropped is counted in the manifest."""
    max_norm_ratio: Annotated[float, Field(gt=1)] | None = None
    """Leave out rows whose norm is over so many times the median norm of the rows of their file at their
    site, such as attention sinks (10 is usual); they are counted in the manifest. Null: keep all."""
    validation: Fraction = 0.1
    """Fraction of the sequences held out for validation."""
    test: Fraction = 0.1
    """Fraction of the sequences reserved for a last test."""
    sequences_per_shard: Positive = 2000
    """Sequences whose activations go into one file a site, at most; of a small data set fewer go in, so
    that many workers share it."""
    shard_bytes: Size = 512_000_000
    """Bytes that go into one file of every site together, at most: what a worker holds in memory."""
    live: bool = False
    """Whether training rows are computed while they are trained on: only tokens, held-out rows and the
    first training rows are on disk. Every wave of trials is then a forward pass over the texts."""
    keep: Keep = "auto"
    """With ``live``, whether the first pass also writes the training rows, so that later passes read
    them: yes, no, or auto (where the disk holds them). It does not change the results."""

    @model_validator(mode="before")
    @classmethod
    def _another_limit_stands_alone(cls, data: Any) -> Any:
        limits = ("max_tokens", "max_rows", "max_bytes")
        if isinstance(data, dict) and "sequences" not in data and any(map(data.get, limits)):
            return {**data, "sequences": None}
        return data

    @field_validator("positions", mode="before")
    @classmethod
    def _one_alone(cls, value: Any) -> Any:
        return (value,) if isinstance(value, int | str) else value

    @field_validator("hookpoint", "layers", "positions")
    @classmethod
    def _some_and_once(cls, value: Any) -> Any:
        if not value:
            raise ValueError("names nothing; give at least one, or 'all'")
        if isinstance(value, tuple) and len(set(value)) != len(value):
            raise ValueError(f"names one twice: {list(value)}")
        return value

    @field_validator("text")
    @classmethod
    def _can_be_filled_in(cls, value: str) -> str:
        try:
            parts_of(value)
        except ValueError as error:
            raise ValueError(f"cannot be filled in ({error}); {HOW_TO_FILL_IN}") from None
        return value

    @field_validator("patterns")
    @classmethod
    def _compile(cls, value: dict[str, str]) -> dict[str, str]:
        for name, pattern in value.items():
            if len(pattern) > LONGEST_PATTERN:
                raise ValueError(
                    f"{name}: has {len(pattern):,} characters; expected at most {LONGEST_PATTERN:,}"
                )
            try:
                re.compile(pattern)
            except (re.error, OverflowError, RecursionError, MemoryError) as error:
                raise ValueError(f"{name}: {pattern!r} is no regular expression: {error}") from None
            if pattern.startswith(ROLE):
                raise ValueError(
                    f"{name}: {pattern!r} names a role; set source.chat_column, and name the role in "
                    "positions"
                )
        if ALL in value:
            raise ValueError("'all' means every token and cannot be a pattern's name")
        return value

    @model_validator(mode="after")
    def _known_names(self) -> "SourceConfig":
        known = [ALL, *sorted(self._patterns)]
        for name in self.positions:
            if isinstance(name, str) and name not in known:
                raise ValueError(
                    f"positions names {name!r}, which is no pattern; known are {', '.join(known)} "
                    "(source.patterns adds more)"
                )
        return self

    @model_validator(mode="after")
    def _keep_what_is_live(self) -> "SourceConfig":
        if self.keep == "yes" and not self.live:
            raise ValueError(
                "keep is yes, but live is false: every row is written anyway; leave it out"
            )
        return self

    @model_validator(mode="after")
    def _leave_something_to_train_on(self) -> "SourceConfig":
        if self.validation + self.test >= 1:
            raise ValueError(
                f"validation {self.validation} and test {self.test} leave nothing to train on"
            )
        if not self.validation:
            raise ValueError("validation is 0; every figure is measured on held-out sequences")
        return self

    @property
    def hookpoints(self) -> tuple[str, ...]:
        """The hookpoints, in the order given."""
        return (self.hookpoint,) if isinstance(self.hookpoint, str) else self.hookpoint

    @property
    def used_patterns(self) -> dict[str, str]:
        """The patterns that ``positions`` names, by name in sorted order."""
        known = self._patterns
        return {name: known[name] for name in sorted(known) if name in self.positions}

    @property
    def _patterns(self) -> dict[str, str]:
        """All patterns that ``positions`` may name, and the roles of a chat."""
        roles = {role: f"{ROLE}{role}" for role in CHAT_ROLES} if self.chat_column else {}
        return {**PATTERNS, **roles, **self.patterns}
