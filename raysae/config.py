"""The recipe: one typed, frozen description of a run. Its defaults are the quickstart.

YAML in, dotted ``key=value`` overrides on top, a resolved copy out. Unknown keys are refused with
the nearest known one, and the field docstrings are the command's help.
"""

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union

import yaml
from pydantic import (
    BaseModel,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    field_validator,
    model_validator,
)

from raysae.errors import UserError
from raysae.keys import Row, describe
from raysae.remote import is_uri, join, local_copy
from raysae.sae.config import CONFIGS, DEFAULT_VARIANT, SAEConfig, TopKConfig
from raysae.search import Choices, SelectConfig, SweepConfig
from raysae.sites import Position, Site
from raysae.source import PositionKey, Positive, Section, Size, SourceConfig
from raysae.training.config import TrainingConfig

UNION_TAG = re.compile(
    r"choices|range|int|float|str|tuple\[.*|literal\[.*|constrained-.*|" + "|".join(CONFIGS)
)
"""Parts of a pydantic location that name the branch of a union and not a key."""

NAME = r"[A-Za-z0-9][A-Za-z0-9._-]*"
TEMPLATE_KEY = "source.text"


def _variant_of(value: Any) -> str:
    named = value.get("variant", DEFAULT_VARIANT) if isinstance(value, dict) else value
    return named.variant if isinstance(named, SAEConfig) else str(named)


if TYPE_CHECKING:
    AnySAEConfig = SAEConfig
else:
    AnySAEConfig = Annotated[
        Union[tuple(Annotated[config, Tag(name)] for name, config in CONFIGS.items())],  # noqa: UP007
        Discriminator(
            _variant_of,
            custom_error_type="unknown_variant",
            custom_error_message=f"variant is unknown; known are {', '.join(CONFIGS)}",
        ),
    ]


class AtlasConfig(Section):
    """Where the sweet spot is trained."""

    enabled: bool = True
    """Whether to train the atlas."""
    layers: tuple[int, ...] | None = None
    """Layers of the store; null takes every one."""
    positions: tuple[PositionKey, ...] | None = None
    """Positions of the store; null takes every one."""


class ResourcesConfig(Section):
    """What a trial gets, and which Ray it runs on."""

    cpus_per_trial: Annotated[float, Field(gt=0)] = 1
    """CPU cores a trial (and a worker of the atlas and of extraction) reserves; its threads."""
    gpus_per_trial: Annotated[float, Field(ge=0)] | Literal["auto"] = "auto"
    """GPUs or a fraction of one a trial reserves; ``auto``: a quarter where Ray has any, else none."""
    reading: Literal["auto", "shared", "streaming"] = "auto"
    """How trials come by their rows: one shared copy in memory, or streamed from disk; ``auto``
    shares what fits. The results are the same to the bit."""
    memory: Size | None = None
    """Bytes that shared rows may take, such as ``8 GB``; null takes 80% of Ray's object store."""
    max_concurrent: Positive | None = None
    """Trials at once; null takes what fits."""
    cpus: Positive | None = None
    """CPU cores of the Ray started here; null takes the machine's."""
    gang: Positive = 1
    """Trials that are trained side by side in one worker, each batch read once for all of them, for
    where reading costs more than training. Proposed together, so at most ``sweep.proposal_lag``."""
    checkpoint_seconds: Annotated[float, Field(ge=0)] = 60
    """How often a running trial or site is saved, so that it goes on from there when cut off."""
    hang_seconds: Annotated[float, Field(gt=0)] | None = 1800
    """A trial, site or shard that has made no step for so long is given up; null waits for ever."""
    retries: Annotated[int, Field(ge=0)] = 2
    """How often a trial, a site or a shard whose worker was lost is given to another worker."""
    address: str | None = None
    """A Ray cluster to join (``auto`` finds it); null takes RAY_ADDRESS, or starts Ray here."""
    dashboard: bool = False
    """Whether the Ray started here serves its dashboard, on loopback."""
    lean: bool = True
    """Whether the Ray started here leaves out processes and steps that a sweep does not use, which saves
    seconds of each start. This changes Ray's internals; when it fails, Ray starts plainly."""

    @field_validator("gpus_per_trial")
    @classmethod
    def _whole_or_a_part_of_one(cls, value: float | str) -> float | str:
        if isinstance(value, float | int) and value > 1 and value != int(value):
            raise ValueError("a trial takes a fraction of one GPU, or whole ones, such as 2")
        return value


class RecordsConfig(Section):
    """MLflow."""

    mlflow: bool = True
    """Whether to record the run in MLflow."""
    tracking_uri: str | None = None
    """Where; null takes MLFLOW_TRACKING_URI, or a SQLite file in ``runs_dir``."""
    experiment: str = "raysae"
    """The MLflow experiment."""


QUICKSTART_TRAINING = TrainingConfig(epochs=12, batch_size=256, lr=3e-3)


class Recipe(Section):
    """Everything that a run is made from."""

    name: Annotated[str, Field(pattern=f"^{NAME}$", max_length=100)] = "quickstart"
    """The run's name and folder; a config file without one lends its own."""
    runs_dir: str = "runs"
    """The folder of run folders, or a URI such as ``s3://BUCKET/runs``."""
    store: str | None = None
    """The activation store's folder, or the URI of one that is there; null takes ``stores/NAME``."""
    seed: int = 0
    """The seed of everything random."""
    source: SourceConfig | None = SourceConfig()
    """What to extract the store from; null when the store is there already."""
    models: dict[str, dict[str, Any]] = {}  # noqa: RUF012  (pydantic copies it)
    """Several models in one recipe: for each name the keys of the recipe that are its own, such as
    ``{source: {model: gpt2}, sweep: {layer: 8}}``; a run for each, in a folder of this one."""
    sae: AnySAEConfig = TopKConfig()
    """The SAE, with the keys of its variant; the search replaces the keys in ``sweep.space``."""
    training: TrainingConfig = QUICKSTART_TRAINING
    """How every SAE is trained."""
    sweep: SweepConfig = SweepConfig()
    """The search."""
    select: SelectConfig = SelectConfig()
    """The choice."""
    atlas: AtlasConfig = AtlasConfig()
    """The sweet spot at every site."""
    resources: ResourcesConfig = ResourcesConfig()
    """The machine."""
    records: RecordsConfig = RecordsConfig()
    """The records."""

    @field_validator("training", mode="before")
    @classmethod
    def _on_top_of_the_quickstart(cls, value: Any) -> Any:
        return {**asdict(QUICKSTART_TRAINING), **value} if isinstance(value, dict) else value

    @model_validator(mode="after")
    def _store_or_source(self) -> "Recipe":
        if self.source is None and self.store is None:
            raise ValueError("neither source nor store is given; give one of them")
        return self

    @model_validator(mode="after")
    def _gangs(self) -> "Recipe":
        gang, sweep = self.resources.gang, self.sweep
        if gang > 1 and sweep.early_stopping is not None:
            raise ValueError(
                f"resources.gang is {gang}, but sweep.early_stopping ends trials one by one; give up "
                "one of them"
            )
        follows = sweep.sampler in ("tpe", "nsga2") and sweep.reproducible
        if follows and gang > sweep.proposal_lag:
            raise ValueError(
                f"resources.gang is {gang}, but sweep.proposal_lag is {sweep.proposal_lag}: trials that "
                f"train together are proposed together; give sweep.proposal_lag={gang} or more"
            )
        return self

    @model_validator(mode="after")
    def _models(self) -> "Recipe":
        for name in self.models:
            if not re.fullmatch(NAME, name):
                raise ValueError(f"models: {name!r} is no name of a folder")
            try:
                self.of_model(name)
            except UserError as error:
                raise ValueError(str(error)) from None
        return self

    def of_model(self, name: str) -> "Recipe":
        """The recipe of one of ``models``."""
        own = self.models[name]
        data = {
            **self.dump(),
            "models": {},
            "name": name,
            "runs_dir": self.run_uri or str(self.run_folder),
        }
        if "store" not in own:
            data["store"] = None if self.store is None else join(self.store, name)
            data["store"] = data["store"] or f"stores/{self.name}/{name}"
        reserved = sorted({"models", "name", "runs_dir"} & own.keys())
        if reserved:
            raise UserError(f"models.{name}: {', '.join(reserved)} cannot be a model's own")
        return parse_recipe(_deep(data, own), f"models.{name}")

    @property
    def run_folder(self) -> Path:
        """The run's folder; of a run that lives at a URI, this node's copy."""
        return _folder(join(self.runs_dir, self.name))

    @property
    def store_folder(self) -> Path:
        """The store's folder; of a store that lives at a URI, this node's copy."""
        return _folder(self.store or f"stores/{self.name}")

    @property
    def run_uri(self) -> str | None:
        """Where the run lives, when that is no folder here."""
        return join(self.runs_dir, self.name) if is_uri(self.runs_dir) else None

    @property
    def run_place(self) -> str | Path:
        """Where the run is to be found: its URI, or its folder."""
        return self.run_uri or self.run_folder

    @property
    def store_uri(self) -> str | None:
        """Where the store lives, when that is no folder here."""
        return self.store if is_uri(self.store) else None

    @property
    def store_place(self) -> str | Path:
        """What opens the store: its URI, or its folder."""
        return self.store_uri or self.store_folder

    @property
    def variants_searched(self) -> tuple[str, ...]:
        """The variants that the search may propose."""
        values = self.sweep.space.get("sae.variant")
        named = values.choices if isinstance(values, Choices) else (self.sae.variant,)
        return tuple(str(name) for name in named)

    def with_parameters(self, parameters: Mapping[str, Any]) -> tuple[SAEConfig, TrainingConfig]:
        """The SAE and training configs with dotted ``sae.`` and ``training.`` keys replaced.

        Raises UserError when a key is unknown or the values cannot be together (``k > d_sae``).
        """
        data, variant = self.dump(), parameters.get("sae.variant", self.sae.variant)
        if variant in CONFIGS:
            _refuse_unknown(parameters, variant)
            # another variant is tried with those of the recipe's settings that it has, too
            kept = _fields_of(CONFIGS[variant])
            data["sae"] = {key: value for key, value in data["sae"].items() if key in kept}
        replaced = parse_recipe(_overridden(data, parameters), "sweep")
        return replaced.sae, replaced.training

    def dump(self) -> dict[str, Any]:
        return self.model_dump(mode="json")

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.dump(), sort_keys=False, allow_unicode=True)

    def sites_of(self, layers: Sequence[int], positions: Sequence[Position]) -> list[Site]:
        """The sites that the sweep runs at, given the store's layers and positions."""
        if self.sweep.sites:
            return [Site(site.layer, site.position) for site in self.sweep.sites]
        layer = layers[(len(layers) - 1) // 2] if self.sweep.layer is None else self.sweep.layer
        position = positions[-1] if self.sweep.position is None else self.sweep.position
        return [Site(layer, position)]


def load_recipe(path: str | Path | None = None, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe in a YAML file (the quickstart without one) with ``key=value`` overrides applied.

    Raises UserError naming the file and the key when something in it is wrong.
    """
    data: dict[str, Any] = {}
    if path is not None:
        data = _read_yaml(Path(path))
        data.setdefault("name", re.sub(r"[^A-Za-z0-9._-]", "-", Path(path).stem))
    parsed = dict(_parse_override(override) for override in overrides)
    return parse_recipe(_overridden(data, parsed), str(path) if path else "recipe")


def parse_recipe(data: Mapping[str, Any], where: str = "recipe") -> Recipe:
    """A recipe from plain data. Raises UserError, a line for each thing that is wrong."""
    try:
        return Recipe.model_validate(data)
    except ValidationError as error:
        lines = [_explain(dict(item)) for item in error.errors(include_url=False)]
        raise UserError("\n".join(f"{where}: {line}" for line in dict.fromkeys(lines))) from None


def describe_fields() -> list[Row]:
    """Every key of a recipe with its default and its meaning, for ``--help``."""
    return describe(Recipe, Recipe().dump())


def _read_yaml(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise UserError(f"{path}: no such config file")
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise UserError(f"{path}: expected keys and values, found a {type(data).__name__}")
    return data


def _parse_override(override: str) -> tuple[str, Any]:
    key, equals, value = override.partition("=")
    if not equals or not key:
        raise UserError(f"{override!r}: expected key=value, such as sweep.trials=16")
    try:
        parsed = yaml.safe_load(value)
    except yaml.YAMLError:
        parsed = None
        if key != TEMPLATE_KEY:
            raise UserError(f"{override!r}: {value!r} is not a valid YAML value") from None
    # "Question: {question}" is a template to whoever types it, and no text to YAML
    return key, value if key == TEMPLATE_KEY and not isinstance(parsed, str) else parsed


def _overridden(data: dict[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """``data`` with dotted keys replaced; keys of ``sweep.space`` keep their own dots."""
    result = dict(data)
    for key, value in overrides.items():
        head, _, rest = key.partition(".")
        if not rest:
            result[head] = value
        elif key.startswith("sweep.space.") and head == "sweep":
            sweep = dict(result.get("sweep") or {})
            default = {k: v.model_dump() for k, v in SweepConfig().space.items()}
            sweep["space"] = {**(sweep.get("space") or default), key[len("sweep.space.") :]: value}
            result["sweep"] = sweep
        else:
            inner = result.get(head)
            result[head] = _overridden(inner if isinstance(inner, dict) else {}, {rest: value})
    return result


def _deep(data: Mapping[str, Any] | None, more: Mapping[str, Any]) -> dict[str, Any]:
    """``data`` with the keys of ``more`` replaced, section by section; a search space as a whole."""
    result = dict(data or {})
    for key, value in more.items():
        inner = result.get(key)
        whole = key == "space" or not isinstance(value, Mapping) or not isinstance(inner, Mapping)
        result[key] = value if whole else _deep(inner, value)
    return result


def _explain(item: dict[str, Any]) -> str:
    """One pydantic complaint as a line: the key, what was found, what to do."""
    parts = [str(part) for part in item["loc"] if not UNION_TAG.fullmatch(str(part))]
    key = ".".join(parts) or "the whole"
    if item["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        known = [row[0] for row in describe_fields()]
        if key in known:  # a setting of another variant
            variant = str(item["loc"][1])
            names = _fields_of(CONFIGS[variant])
            return f"{key}: {variant} has no such setting; it has {', '.join(names)}"
        return f"{key}: unknown key{_nearest(key, known)}"
    message = item["msg"].removeprefix("Value error, ")
    found = "" if isinstance(item["input"], dict | BaseModel) else f" (found {item['input']!r})"
    return f"{key}: {message}{found}"


def _fields_of(config: Any) -> list[str]:
    return [field.name for field in fields(config)]


def searchable_keys(variant: str) -> set[str]:
    """The keys that a search over SAEs of ``variant`` may have."""
    training = {f"training.{name}" for name in _fields_of(TrainingConfig)}
    return training | {f"sae.{name}" for name in _fields_of(CONFIGS[variant])}


def _refuse_unknown(parameters: Mapping[str, Any], variant: str) -> None:
    """Raise UserError when a key is none that can be searched with ``variant``."""
    own = _fields_of(CONFIGS[variant])
    all_sae = [f"sae.{name}" for sae in CONFIGS.values() for name in _fields_of(sae)]
    training = [f"training.{name}" for name in _fields_of(TrainingConfig)]
    for key in parameters:
        if key not in [*all_sae, *training]:
            raise UserError(
                f"sweep: {key}: only keys under sae. and training. can be searched"
                f"{_nearest(key, [*dict.fromkeys(all_sae), *training])}"
            )
        if key not in training and key.removeprefix("sae.") not in own:
            raise UserError(f"sweep: {key}: {variant} has no such setting; it has {', '.join(own)}")


def _nearest(key: str, known: Sequence[str]) -> str:
    sections = {name.rsplit(".", 1)[0] for name in known if "." in name}
    close = difflib.get_close_matches(key, [*known, *sorted(sections)], n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else f"; known: {', '.join(known)}"


def _folder(name: str) -> Path:
    """The folder that ``name`` is, or this node's copy of the one that lives at a URI."""
    return local_copy(name) if is_uri(name) else Path(name).expanduser().absolute()
