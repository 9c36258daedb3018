"""How long a dry run says that a run takes, and how long it takes.

    python scripts/forecast.py [--rounds 2]

Each recipe is forecast (python -m raysae.sweep --dry-run) and then run, on a machine that should have
nothing else to do. Prints seconds of each stage, forecast / real. The exit code is 1 when a stage of more
than three seconds is forecast wrongly by more than a third.
"""

import argparse
import re
import subprocess
import sys
import tempfile

RECIPES = {
    "quickstart": [],
    "its store again, 24 trials": [
        "sweep.trials=24", "name=again", "store=stores/quickstart", "source=null"
    ],
    "larger SAEs, two seeds, no atlas": [
        "name=larger", "store=stores/quickstart", "source=null", "atlas.enabled=false",
        "sweep.space.sae.d_sae={choices: [512, 1024]}", "sweep.seeds_per_trial=2",
        "training.epochs=24",
    ],
}  # fmt: skip
STAGES = ("start", "extract", "sweep", "atlas", "report", "whole")
LONG, TOLERANCE = 3.0, 1 / 3
"""Seconds from which a stage counts, and the largest error as a share of what it takes."""


def main() -> int:
    """Forecast and run every recipe, print the table; the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=1, help="how often (1)")
    wrong = 0
    for _ in range(parser.parse_args().rounds):
        with tempfile.TemporaryDirectory() as folder:
            for name, overrides in RECIPES.items():
                said = _forecast(_sweep(folder, [*overrides, "--dry-run"]))
                took = _real(_sweep(folder, overrides))
                print(f"{name}: " + ", ".join(_cell(s, said, took) for s in STAGES if s in took))
                wrong += sum(_is_wrong(said.get(s), took[s]) for s in took)
    print(f"{wrong} stages of over {LONG:.0f} s forecast wrongly by more than a third")
    return int(wrong > 0)


def _sweep(folder: str, arguments: list[str]) -> str:
    command = [sys.executable, "-m", "raysae.sweep", *arguments]
    return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout


def _forecast(printed: str) -> dict[str, float]:
    """The stages that a dry run's last lines name, and the whole."""
    found = _seconds_by_name(" ".join(printed.split("Time ", 1)[1].split()))
    return {**found, "whole": found.pop("about", 0.0)}


def _seconds_by_name(text: str) -> dict[str, float]:
    pairs = re.findall(r"(\w+) ((?:\d+ min )?[\d.]+ s)\b", text)
    return {name: _seconds(value) for name, value in pairs}


def _seconds(text: str) -> float:
    minutes, _, rest = text.rpartition(" min ")
    return 60 * float(minutes or 0) + float(rest.removesuffix(" s"))


def _real(printed: str) -> dict[str, float]:
    """The stages of a run that ended, and the whole, as its last lines say."""
    text = " ".join(printed.split("Time: ", 1)[1].split())
    found = _seconds_by_name(text.split(" in all")[0])
    return {**found, "whole": found.pop("command")}


def _cell(stage: str, said: dict[str, float], took: dict[str, float]) -> str:
    return f"{stage} {said.get(stage, 0.0):.1f} / {took[stage]:.1f}"


def _is_wrong(said: float | None, took: float) -> bool:
    return took > LONG and (said is None or abs(said - took) > TOLERANCE * took)


if __name__ == "__main__":
    sys.exit(main())
