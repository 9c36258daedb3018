"""The page's section on how to repeat a run: the commands, as a shell takes them."""

from dataclasses import dataclass
from typing import Any

from raysae.activations import Store
from raysae.console.shell import command_line, raysae_command
from raysae.records.folder import RunFolder


@dataclass(frozen=True)
class Step:
    """A command, and what it is for."""

    what: str
    command: str


def steps_of(run: RunFolder, store: Store, environment: dict[str, Any], chosen: bool) -> list[Step]:
    """What repeats, continues, checks and uses a run."""
    place, recipe = run.recipe.run_place, run.path / "config.yaml"
    called = environment.get("command")
    steps = [
        Step("The command that made it", command_line(*map(str, called)) if called else ""),
        Step("The same again, as a new run", raysae_command("sweep", recipe, "name=NEW_NAME")),
        Step("Continue or extend it", raysae_command("sweep", "--resume", place)),
        Step("Check the data it read", raysae_command("store", "verify", store.place)),
        Step("Write this page again", raysae_command("report", place)),
        Step("Compare it with another run", raysae_command("report", place, "ANOTHER_RUN")),
    ]
    if chosen:
        export = raysae_command("export", run.sweet_spot, "--to", "saelens", "--out", "FOLDER")
        steps.append(Step("Take the chosen SAE to SAELens", export))
    return [step for step in steps if step.command]
