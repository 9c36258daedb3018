"""The recipe: one typed, frozen description of a run. Its defaults are the quickstart.

YAML in, dotted ``key=value`` overrides on top, a resolved copy out. Unknown keys are refused with
the nearest known one, and the field docstrings are the command's help.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, Union

import yaml
from pydantic import (
    AfterValidator,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    field_validator,
    model_validator,
)

from raysae.config.analyze import AnalyzeConfig
from raysae.config.atlas import AtlasConfig
from raysae.config.keys import Row, describe
from raysae.config.mistakes import explain, field_names, refuse_unknown
from raysae.config.overrides import merged, overridden
from raysae.config.places import path_in, tracking_in
from raysae.config.resources import ResourcesConfig
from raysae.config.search import Choices, SelectConfig, SweepConfig
from raysae.config.searched import as_number, with_searched_defaults
from raysae.config.section import Section
from raysae.config.source import SourceConfig
from raysae.errors import UserError
from raysae.printable import printable
from raysae.sae.config import CONFIGS, DEFAULT_VARIANT, SAEConfig, TopKConfig
from raysae.sites import Position, Site, chosen_hookpoints
from raysae.storage.remote import is_uri, join, local_copy
from raysae.training.config import TrainingConfig

AnySection = TypeVar("AnySection", bound=Section)
NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}"
MOST_LINES = 20
"""The most mistakes that one message lists."""
LARGEST_SEED = 2**32 - 1
"""Optuna's samplers take no larger one."""


def _folder_name(name: str) -> str:
    if not re.fullmatch(NAME, name):
        raise ValueError(
            "it is no name of a folder: at most 100 letters, digits, dots, '_' and '-', with a letter "
            "or digit first; other folders are named in runs_dir"
        )
    return name


FolderName = Annotated[str, AfterValidator(_folder_name)]


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


class TrialSettings(Section):
    """The settings of one trial."""

    sae: AnySAEConfig
    training: TrainingConfig


class RecordsConfig(Section):
    """MLflow."""

    mlflow: bool = True
    """Whether to record the run in MLflow."""
    tracking_uri: str | None = None
    """Where; null takes MLFLOW_TRACKING_URI, or a SQLite file in ``runs_dir``. A password belongs in the
    environment, not here."""
    experiment: str = "raysae"
    """The MLflow experiment."""
    system_metrics: bool = False
    """Whether to record the processor, memory, disk, network and GPUs of the driver's machine too."""


QUICKSTART_TRAINING = TrainingConfig(epochs=12, batch_size=256, lr=3e-3)


class Recipe(Section):
    """Everything that a run is made from."""

    name: FolderName = "quickstart"
    """The run's name and folder; a config file without one lends its own."""
    runs_dir: Annotated[str, Field(min_length=1)] = "runs"
    """The folder of run folders, or a URI such as ``s3://BUCKET/runs``."""
    working_dir: str | None = None
    """The folder that relative paths start from; null takes the one where the command is given. A run
    records it, and so does not depend on where it is resumed."""
    store: Annotated[str, Field(min_length=1)] | None = None
    """The activation store's folder or URI, such as ``s3://BUCKET/store``; null takes ``stores/NAME``."""
    seed: Annotated[int, Field(ge=0, le=LARGEST_SEED)] = 0
    """The seed of everything random; from 0 up to below 2^32."""
    source: SourceConfig | None = SourceConfig()
    """What to extract the store from; null when the store is there already."""
    models: dict[FolderName, dict[str, Any]] = {}  # noqa: RUF012  (pydantic copies it)
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
    analyze: AnalyzeConfig = AnalyzeConfig()
    """What the features mean."""
    resources: ResourcesConfig = ResourcesConfig()
    """The machine."""
    records: RecordsConfig = RecordsConfig()
    """The records."""

    @model_validator(mode="before")
    @classmethod
    def _as_the_search_has_it(cls, data: Any) -> Any:
        return with_searched_defaults(data) if isinstance(data, Mapping) else data

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
    def _seeds(self) -> "Recipe":
        most = max(self.sweep.seeds_per_trial, self.atlas.seeds_per_site)
        if self.seed + most - 1 > LARGEST_SEED:
            raise ValueError(f"seed is {self.seed}; the seeds of a run are below 2^32")
        return self

    @model_validator(mode="after")
    def _something_to_train(self) -> "Recipe":
        if not (self.sweep.enabled or self.atlas.enabled):
            raise ValueError(
                "sweep.enabled and atlas.enabled are both false; nothing is left to train"
            )
        return self

    @model_validator(mode="after")
    def _gangs(self) -> "Recipe":
        gang, sweep = self.resources.gang, self.sweep
        if gang > 1 and sweep.early_stopping is not None:
            raise ValueError(
                f"resources.gang is {gang}, but sweep.early_stopping ends trials one by one; give up "
                "one of them"
            )
        follows = sweep.sampler in ("tpe", "gp", "nsga2") and sweep.reproducible
        if follows and gang > sweep.proposal_lag:
            raise ValueError(
                f"resources.gang is {gang}, but sweep.proposal_lag is {sweep.proposal_lag}: trials that "
                f"train together are proposed together; give sweep.proposal_lag={gang} or more"
            )
        return self

    @model_validator(mode="after")
    def _models(self) -> "Recipe":
        if self.models and self.sweep.per_layer is not None:
            raise ValueError(
                "models and sweep.per_layer are both given; make a recipe with per_layer for each model"
            )
        for name in self.models:
            try:
                self.of_model(name)
            except UserError as error:
                raise ValueError(str(error)) from None
        return self

    @model_validator(mode="after")
    def _carried(self) -> "Recipe":
        self.atlas.check_carry(self.sweep.per_layer)
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
        reserved = sorted({"models", "name", "runs_dir", "working_dir"} & own.keys())
        if reserved:
            raise UserError(f"models.{name}: {', '.join(reserved)} cannot be a model's own")
        return parse_recipe(merged(data, own), f"models.{name}")

    def of_layer(self, layer: int) -> "Recipe":
        """The recipe of one of the layers of ``sweep.per_layer``: its search and its atlas."""
        data = self.dump()
        data |= {"name": f"layer-{layer:02d}", "runs_dir": self.run_uri or str(self.run_folder)}
        data["store"] = self.store_uri or str(self.store_folder)
        data["sweep"] |= {"per_layer": None, "layer": layer}
        data["atlas"] |= {"layers": [layer], "carry": "same"}
        return parse_recipe(data, f"sweep.per_layer: layer {layer}")

    def of_carried_layer(self, layer: int, sae: SAEConfig, training: TrainingConfig) -> "Recipe":
        """The recipe of a layer that is not swept, when ``atlas.carry`` gives its config: its atlas."""
        data = self.of_layer(layer).dump()
        data |= {"sweep": {"enabled": False}, "sae": asdict(sae), "training": asdict(training)}
        return parse_recipe(data, f"atlas.carry: layer {layer}")

    @property
    def several(self) -> bool:
        """Whether it stands for several runs: one for each model, or for each layer."""
        return bool(self.models) or self.sweep.per_layer is not None

    @property
    def base(self) -> Path:
        """The folder that relative paths start from."""
        return Path.cwd() if self.working_dir is None else path_in(Path.cwd(), self.working_dir)

    def anchored(self) -> "Recipe":
        """The same recipe with ``working_dir``, so that its paths are the same from any folder."""
        return self.model_copy(update={"working_dir": str(self.base)})

    def folder(self, name: str) -> Path:
        """The folder that ``name`` is, or this node's copy of the one that lives at a URI."""
        return local_copy(name) if is_uri(name) else path_in(self.base, name)

    @property
    def run_folder(self) -> Path:
        """The run's folder; of a run that lives at a URI, this node's copy."""
        return self.folder(join(self.runs_dir, self.name))

    @property
    def store_folder(self) -> Path:
        """The store's folder; of a store that lives at a URI, this node's copy."""
        return self.folder(self.store or f"stores/{self.name}")

    @property
    def tracking_uri(self) -> str | None:
        """``records.tracking_uri``, with an absolute path if it is a local file or folder."""
        named = self.records.tracking_uri
        return None if named is None else tracking_in(self.base, named)

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
        data = {"sae": asdict(self.sae), "training": asdict(self.training)}
        parameters = {key: as_number(value) for key, value in parameters.items()}
        variant = parameters.get("sae.variant", self.sae.variant)
        if variant in CONFIGS:
            refuse_unknown(parameters, variant)
            # another variant is tried with those of the recipe's settings that it has, too
            common = field_names(CONFIGS[variant])
            data["sae"] = {key: value for key, value in data["sae"].items() if key in common}
        replaced = validated(TrialSettings, overridden(data, parameters), "sweep")
        return replaced.sae, replaced.training

    def dump(self) -> dict[str, Any]:
        """The recipe as plain JSON values."""
        return self.model_dump(mode="json")

    def to_yaml(self) -> str:
        """The recipe as YAML; ``load_recipe`` reads it back."""
        text = yaml.safe_dump(self.dump(), sort_keys=False, allow_unicode=True)
        if printable(text, lines=True) == text:
            return text
        return yaml.safe_dump(
            self.dump(), sort_keys=False
        )  # invisible characters as YAML's escapes

    def sites_of(
        self,
        layers: Sequence[int],
        positions: Sequence[Position],
        hookpoints: Sequence[str],
    ) -> list[Site]:
        """The sites that the sweep runs at, given the store's layers, positions and hookpoints.

        Raises UserError when it names a hookpoint that the store lacks, or one site twice.
        """
        sweep = self.sweep
        if sweep.sites:
            named = [_hookpoint(one.hookpoint, hookpoints, "sweep.sites") for one in sweep.sites]
            pairs = zip(sweep.sites, named, strict=True)
            sites = [Site(one.layer, one.position, name) for one, name in pairs]
            if len(set(sites)) < len(sites):
                raise UserError(f"sweep.sites names one site twice: {'; '.join(map(str, sites))}")
            return sites
        layer = layers[(len(layers) - 1) // 2] if sweep.layer is None else sweep.layer
        position = positions[-1] if sweep.position is None else sweep.position
        return [Site(layer, position, _hookpoint(sweep.hookpoint, hookpoints, "sweep.hookpoint"))]


def _hookpoint(wanted: str | None, there: Sequence[str], key: str) -> str | None:
    """How the sites of the sweep name their hookpoint: by default the first that is there."""
    return chosen_hookpoints(None if wanted is None else [wanted], there, key)[0]


def parse_recipe(data: Mapping[str, Any], where: str = "recipe") -> Recipe:
    """A recipe from plain data. Raises UserError, a line for each thing that is wrong."""
    return validated(Recipe, data, where)


def validated(model: type[AnySection], data: Mapping[str, Any], where: str) -> AnySection:
    """A section from plain data. Raises UserError, a line for each thing that is wrong."""
    try:
        return model.model_validate(data)
    except ValidationError as error:
        whole = issubclass(model, Recipe | TrialSettings)
        known = [row[0] for row in describe_fields()] if whole else list(model.model_fields)
        mistakes = error.errors(include_url=False)
        lines = [explain(dict(item), known) for item in mistakes[:MOST_LINES]]
        if len(mistakes) > MOST_LINES:
            lines.append(f"and {len(mistakes) - MOST_LINES:,} more of the kind")
        lines = list(dict.fromkeys(lines))
        raise UserError("\n".join(f"{where}: {line}" for line in lines)) from None


def describe_fields() -> list[Row]:
    """Every key of a recipe with its default and its meaning, for ``--help``."""
    return describe(Recipe, Recipe().dump())
