"""What makes each product of a run, and whether an existing product is the wanted one.

A product is made by its store, sites, SAE and training settings, seeds, and the generation of the code
for that kind of product. Names, places, resources and records do not count.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from raysae.config import Recipe
from raysae.config.search import SelectConfig, SweepConfig
from raysae.config.source import SourceConfig
from raysae.identity import Made, Same, differences, flat, identifier
from raysae.sae.config import CONFIGS, SAEConfig
from raysae.sites import Site
from raysae.storage.files import sha256_of
from raysae.training.config import TrainingConfig

GENERATIONS = {"trial": 2, "site": 2, "sweep": 1, "selection": 1, "report": 3,
               "controls": 1, "scaling": 1}  # fmt: skip
"""A number for each kind of product, to be raised when its code gives other results than before.

From trial 2 and site 2 on, inputs are centred on the training mean, not only scaled. From report 2 on,
the page has profiles, claims with their spread, health, and the range over seeds. From report 3 on, it
is interactive.
"""
STILL_VALID: Same = {"generation.trial": [1, 2], "generation.site": [1, 2]}
"""Generations that count as the same: their products are not made again, and an old run goes on."""
STEERING = ("objectives", "constraints")
"""Settings that affect both the search, from the first trials on, and the choice."""
NOT_SEARCH = (
    "trials", "max_seconds", "max_tokens", "max_seconds_per_trial", "early_stopping", "grace",
    "warm_start", "layer", "position", "hookpoint", "sites", "seeds_per_trial", "enabled",
    "per_layer", "controls", "loss_texts",
)  # fmt: skip
"""Settings of ``sweep`` that affect the extent or the sites of a search, not which configs it tries."""
STOPPING = ("sweep.early_stopping", "sweep.grace", "sweep.max_seconds_per_trial")
"""Settings by which a trial may be stopped before its end."""
SEARCHED = "sweep.enabled"
"""Whether a run has a search; noted where it has none."""
EXTENT = (*STOPPING, "sweep.max_seconds", "sweep.max_tokens")
"""Settings by which a search or its trials may end early."""


def trained(
    kind: str,
    store: str,
    sites: Sequence[Site],
    seeds: Sequence[int],
    sae: SAEConfig,
    training: TrainingConfig,
) -> dict[str, Any]:
    """What makes a trial or a site of the atlas: SAEs of one config at ``sites`` with ``seeds``.

    ``kind`` is ``trial`` or ``site``; ``store`` is the store's digest.
    """
    return {
        f"generation.{kind}": GENERATIONS[kind],
        "store": store,
        "sites": [site.folder for site in sites],
        "seed": seeds[0],
        "seeds_per_trial": len(seeds),
        **flat({"sae": asdict(sae), "training": asdict(training)}),
    }


def trial_of(
    recipe: Recipe, store: str, sites: Sequence[Site], parameters: Mapping[str, Any]
) -> dict[str, Any]:
    """What makes a trial of the recipe's search with these parameters, and what is measured of it."""
    settings = recipe.with_parameters(dict(parameters))
    return {**trained("trial", store, sites, seeds_of(recipe), *settings), **_in_model(recipe)}


def _in_model(recipe: Recipe) -> dict[str, Any]:
    """Over how many texts the SAEs of trials are put into the model; empty where they are not."""
    return {"in_model.texts": recipe.sweep.loss_texts} if recipe.sweep.in_model else {}


def seeds_of(recipe: Recipe) -> list[int]:
    """The seeds that each config of the search is trained with."""
    return list(range(recipe.seed, recipe.seed + recipe.sweep.seeds_per_trial))


def site_seeds(recipe: Recipe) -> list[int]:
    """The seeds that each site of the atlas is trained with."""
    return list(range(recipe.seed, recipe.seed + recipe.atlas.seeds_per_site))


def stopping(recipe: Recipe) -> dict[str, Any]:
    """The settings by which a trial may be stopped early; they are part of what makes a stopped trial."""
    return {key: getattr(recipe.sweep, key.removeprefix("sweep.")) for key in STOPPING}


def defaults_of(made: Made) -> dict[str, Any]:
    """Defaults of all settings, for products in ``made`` that are older than a setting."""
    variant: Any = CONFIGS.get(made.get("sae.variant", ""))
    sections: dict[str, Any] = {
        "training": asdict(TrainingConfig()),
        "source": SourceConfig().model_dump(mode="json"),
        "sweep": SweepConfig().model_dump(mode="json", exclude={"space"}),
        "select": SelectConfig().model_dump(mode="json"),
    }
    if variant is not None:
        sections["sae"] = asdict(variant())
    return flat(sections)


def searched_keys(recipe: Recipe) -> set[str]:
    """The dotted keys of the settings that the search varies."""
    if recipe.sweep.sampler == "list":
        return {key for config in recipe.sweep.configs for key in config}
    return set(recipe.sweep.space)


def shared_settings(recipe: Recipe, store: str | None, sites: Sequence[Site]) -> dict[str, Any]:
    """What all trained products of a run share; it must not change while the run has its name.

    ``store`` is the store's digest, None if not known. Settings that the search varies are left out, and
    are named under ``searched``.
    """
    searched = searched_keys(recipe)
    made = trained("trial", store or "", sites, seeds_of(recipe), recipe.sae, recipe.training)
    made["generation.site"] = GENERATIONS["site"]
    if not recipe.sweep.enabled:
        made[SEARCHED] = False
    made = {key: value for key, value in made.items() if key not in searched}
    if store is None:
        del made["store"]
    left_out = {"keep"}  # it does not change the results
    source = recipe.source.model_dump(mode="json", exclude=left_out) if recipe.source else {}
    return {**made, **flat({"source": source}), "searched": sorted(searched)}


def shared_differences(there: Made, wanted: Made, same: Same) -> dict[str, tuple[Any, Any]]:
    """The shared settings that differ, each with the value in ``there`` and in ``wanted``.

    If both name a store, the settings of the source are not compared, since the store depends on them.
    """
    ignored = {"searched", *there.get("searched", []), *wanted.get("searched", [])}
    there, wanted = {SEARCHED: True, **there}, {SEARCHED: True, **wanted}
    keys = {*there, *wanted}
    stores = "store" in there and "store" in wanted
    if not stores:
        ignored.add("store")
    if not (there.get("sites") and wanted.get("sites")):  # not known before the store is there
        ignored.add("sites")
    if stores or not any(key.startswith("source.") for key in wanted):
        ignored |= {key for key in keys if key.startswith("source.")}
    if "sae.variant" in ignored:
        ignored |= {key for key in keys if key.startswith("sae.")}
    found = differences(there, wanted, defaults_of({**there, **wanted}), with_valid(same))
    return {key: pair for key, pair in found.items() if key not in ignored}


def with_valid(same: Same) -> Same:
    """``same``, with the generations whose products are still valid."""
    return {**same, **{key: [*same.get(key, []), *valid] for key, valid in STILL_VALID.items()}}


def search(
    recipe: Recipe, store: str, sites: Sequence[Site], known: Sequence[Any] = ()
) -> dict[str, Any]:
    """What makes the proposals and outcomes of a search, whatever its length.

    ``store`` is the store's digest; ``known`` are the trials of earlier runs that the search learns from.
    """
    unused = {"space"} if recipe.sweep.sampler == "list" else set()
    settings = recipe.sweep.model_dump(mode="json", exclude={*NOT_SEARCH, *unused})
    shared = shared_settings(recipe, store, sites)
    own = {key: value for key, value in shared.items() if not key.startswith("source.")}
    learnt = [[dict(parameters), dict(figures)] for parameters, figures in known]
    return {
        "generation.sweep": GENERATIONS["sweep"],
        **own,
        **_in_model(recipe),
        **flat({"sweep": settings}),
        "known": identifier({"trials": learnt}) if learnt else "",
    }


def search_differences(there: Made, wanted: Made, same: Same) -> dict[str, tuple[Any, Any]]:
    """The differences that make two searches propose different configs.

    A list of configs that only became longer is no difference.
    """
    found = differences(there, wanted, defaults_of({**there, **wanted}), with_valid(same))
    ignored = {"searched", "trials", *EXTENT, *there.get("searched", []), *wanted["searched"]}
    found = {key: pair for key, pair in found.items() if key not in ignored}
    lists = [made.get("sweep.configs") or [] for made in (there, wanted)]
    shorter = min(map(len, lists))
    if lists[0][:shorter] == lists[1][:shorter]:
        found.pop("sweep.configs", None)
    return found


def selection(recipe: Recipe, trials: Path) -> dict[str, Any]:
    """What makes the choice: the file ``trials``, the rule and its settings."""
    sweep = recipe.sweep.model_dump(mode="json")
    return {
        "generation.selection": GENERATIONS["selection"],
        "trials": sha256_of(trials),
        **flat({"select": recipe.select.model_dump(mode="json")}),
        **{f"sweep.{name}": sweep[name] for name in STEERING},
    }


def controls(
    recipe: Recipe, store: str, sites: Sequence[Site], trial: int | None, made: Made
) -> dict[str, Any]:
    """What makes the controls: the chosen trial, its settings ``made``, and which controls are wanted.

    ``store`` is the store's digest; ``trial`` is None without a choice, and nothing is made then.
    """
    own = {key: value for key, value in made.items() if key.startswith(("sae.", "training."))}
    return {
        "generation.controls": GENERATIONS["controls"],
        "controls": list(recipe.sweep.wanted_controls),
        "store": store,
        "sites": [site.folder for site in sites],
        "trial": trial,
        **({"seeds": seeds_of(recipe)} if trial is not None else {}),
        **own,
    }


def scaling(trials: Path) -> dict[str, Any]:
    """What makes the law of scaling: the file ``trials``."""
    return {"generation.scaling": GENERATIONS["scaling"], "trials": sha256_of(trials)}


def extent(recipe: Recipe, trials: int) -> dict[str, Any]:
    """The extent of a search: its number of trials and its budgets."""
    return {
        "trials": trials,
        **{key: getattr(recipe.sweep, key.removeprefix("sweep.")) for key in EXTENT},
    }


def no_atlas() -> dict[str, Any]:
    """What makes an atlas without sites: it is not wanted, or no trial was chosen."""
    return {"generation.site": GENERATIONS["site"], "sites": []}


def report(*tables: Path, analysis: Sequence[Path] = ()) -> dict[str, Any]:
    """What makes the report: the content of the files that it shows, ``analysis`` those of the phases."""
    digests = {path.name: sha256_of(path) for path in tables if path.is_file()}
    phases = {f"analysis.{path.parent.parent.name}": sha256_of(path) for path in analysis}
    return {"generation.report": GENERATIONS["report"], **digests, **phases}


@dataclass(frozen=True)
class EarlierVersion:
    """Finds what made the products of a run of version 0.1.0, whose records hold only a fingerprint."""

    fingerprints: tuple[str, ...]
    recipe: Recipe
    store: str
    sites: tuple[Site, ...]

    def made(self, record: Mapping[str, Any]) -> dict[str, Any] | None:
        """What made a trial or a site, from its record; None when it is not of this run."""
        if record.get("fingerprint") not in self.fingerprints or "parameters" not in record:
            return None
        settings = self.recipe.with_parameters(record["parameters"])
        if "trial" in record:
            return trained("trial", self.store, self.sites, seeds_of(self.recipe), *settings)
        site = Site(record["layer"], record["position"])
        return trained("site", self.store, [site], [self.recipe.seed], *settings)


@dataclass(frozen=True)
class Identities:
    """Decides whether an existing product of a run is the wanted one."""

    same: Same = field(default_factory=dict)
    """Values that count as equal since the run was continued with ``--force``."""
    earlier: EarlierVersion | None = None
    """For records of version 0.1.0; None when the run has none."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "same", with_valid(self.same))

    def made(self, record: Mapping[str, Any]) -> dict[str, Any] | None:
        """What made the product of a record; None when the record does not say."""
        if "made" in record:
            return record["made"]
        return self.earlier.made(record) if self.earlier is not None else None

    def is_wanted(self, record: Mapping[str, Any], wanted: Made) -> bool:
        """Whether the product of a record was made as ``wanted``."""
        made = self.made(record)
        return made is not None and not differences(made, wanted, defaults_of(wanted), self.same)
