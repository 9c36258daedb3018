"""One attempt at a run: what its stages share."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from raysae.activations import Store, open_store
from raysae.activations.manifest import MANIFEST_FILE
from raysae.config import Recipe
from raysae.console.board import console
from raysae.pipeline.begun import Begun
from raysae.pipeline.plan import RunPlan
from raysae.pipeline.result import SweepResult
from raysae.records.events import Events
from raysae.records.folder import RunFolder

if TYPE_CHECKING:
    from raysae.cluster.placement import Placement


@dataclass
class Attempt:
    """One attempt at a run: its plan, its result so far, and how to start and stop Ray."""

    plan: RunPlan
    result: SweepResult
    events: Events
    start_ray: Callable[[], None]
    """Connects to Ray, unless it is connected."""
    stop_ray: Callable[[], None]
    """Disconnects from Ray, if it is connected."""
    begun: Begun
    """Whether this attempt has begun to make anything."""
    worked: bool = False
    """Whether this attempt has made a product."""

    @property
    def run(self) -> RunFolder:
        """The run folder."""
        return self.result.run

    @property
    def recipe(self) -> Recipe:
        """The checked recipe."""
        return self.plan.recipe

    @property
    def store(self) -> Store:
        """The store; it exists once the first stage is done."""
        assert self.plan.store is not None
        return self.plan.store

    def look_at_store_again(self) -> None:
        """Open a live store anew: its training rows may have been kept since."""
        if self.store.computes_rows:
            self.plan = self.plan.with_store(open_store(self.store.opened_by))
            self.__dict__.pop("checked_store", None)

    @cached_property
    def checked_store(self) -> Store:
        """The store, after a check that its shards at all sites of this run are unaltered.

        Raises UserError that names the first altered shard.
        """
        from raysae.cluster.reading import check_sites

        check_sites(self.store, list(self.plan.all_sites()))
        return self.store

    @cached_property
    def placement(self) -> "Placement":
        """How many workers fit and what each reserves; starts Ray to find out.

        Raises UserError when no trial fits, or a node of the cluster cannot reach the run's files.
        """
        from raysae.cluster.nodes import check_nodes
        from raysae.cluster.session import dashboard_url
        from raysae.pipeline.admission import admit

        self.start_ray()
        admitted = admit(self.recipe, self.plan.needs)
        store = self.plan.store
        stored = None if store is None or self.recipe.store_uri else store.path / MANIFEST_FILE
        uris, read = (
            [uri for uri in (one,) if uri] for one in (self.recipe.run_uri, self.recipe.store_uri)
        )
        check_nodes(self.run.path, stored, uris, read)
        url = dashboard_url()
        console.print(f"Ray: {admitted}" + (f"; dashboard {url}" if url else ""))
        return admitted.placement
