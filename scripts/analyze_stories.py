"""What the features of stories260K mean: loss, labels, tracking and transfer over two kinds of text.

    python scripts/analyze_stories.py [--texts 600] [--folder KEPT] [--shared ../shared]

The model (``../shared/models``) samples stories of its own. SAEs (topk, d_sae 256, k 8) are trained on
its layers 1 to 4 at all tokens, over these and over the questions of GSM8K, and SAEs of the pocket GPT-2
over the same questions. Every phase is run by ``python -m raysae.analyze``; its figures are printed.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from machine import machine

from raysae.storage.files import read_json
from raysae.transformer.loading import ModelSpec, load_model, load_tokenizer

SHARED = Path(__file__).parents[2] / "shared"
LAYERS = (1, 2, 3, 4)
LONGEST, TOGETHER = 200, 100
CONFIG = (
    "sweep.enabled=false", "sae.d_sae=256", "sae.k=8", "training.epochs=2", "training.batch_size=512",
    "training.lr=0.003", "source.positions=[all]", "source.validation=0.2", "records.mlflow=false",
    "analyze.phases=[]",
)  # fmt: skip
SHOWN = {
    "loss": (
        "ce_recovered_mean",
        "ce_recovered_worst",
        "ce_recovered_together_all",
        "with_error_term",
    ),
    "labels": None,
    "tracking": None,
    "transfer": None,
}


def main() -> int:
    """Make the runs, run the phases, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--texts", type=int, default=600)
    parser.add_argument("--shared", type=Path, default=SHARED)
    parser.add_argument("--folder", type=Path, help="kept; what is there is not made again")
    args = parser.parse_args()
    print(machine(), flush=True)
    with tempfile.TemporaryDirectory() as temporary:
        everything((args.folder or Path(temporary)).absolute(), args.shared.absolute(), args.texts)
    return 0


def everything(folder: Path, shared: Path, texts: int) -> None:
    """All runs and phases in ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    model, questions = shared / "models" / "stories260K", shared / "data" / "gsm8k" / "train.jsonl"
    stories = sampled(model, folder / "stories.jsonl", texts)
    here = (f"source.model={model}", f"source.layers={list(LAYERS)}", "source.context_length=256")
    on_stories = ("source.text=text", f"source.dataset={stories}")
    on_questions = ("source.text=question", f"source.dataset={questions}")
    there = {
        "stories": (*on_stories, *here),
        "questions": (*on_questions, *here),
        "pocket": (*on_questions, "source.model=pocket", "source.context_length=128"),
    }
    for name, source in there.items():
        ran(folder, "raysae.sweep", f"name={name}", f"runs_dir={folder / 'runs'}",
            f"store={folder / 'stores' / name}", f"source.sequences={texts}",
            *source, *CONFIG)  # fmt: skip
    runs = folder / "runs"
    for name in ("stories", "questions"):
        other = "questions" if name == "stories" else "stories"
        ran(folder, "raysae.analyze", runs / name, "loss", "labels", "tracking", "transfer",
            f"transfer.store={folder / 'stores' / other}", f"transfer.atlas={runs / other}")  # fmt: skip
        tell(runs / name, ("loss", "labels", "tracking", "transfer"))
    ran(
        folder,
        "raysae.analyze",
        runs / "questions",
        "transfer",
        f"transfer.other={runs / 'pocket'}",
    )
    tell(runs / "questions", ("transfer",))


def sampled(model: Path, file: Path, texts: int) -> Path:
    """Stories that the model writes at temperature 1, as JSON lines."""
    if file.is_file():
        return file
    torch.manual_seed(0)
    torch.set_num_threads(1)  # its matrices are small
    spec = ModelSpec(str(model))
    network, tokenizer = load_model(spec).eval(), load_tokenizer(spec)
    start = torch.full((TOGETHER, 1), tokenizer.bos_token_id)
    lines: list[str] = []
    while len(lines) < texts:
        ids = network.generate(
            start, attention_mask=torch.ones_like(start), do_sample=True, temperature=1.0, top_k=0,
            max_new_tokens=LONGEST, pad_token_id=tokenizer.eos_token_id,
        )  # fmt: skip
        told = tokenizer.batch_decode(ids, skip_special_tokens=True)
        lines += [json.dumps({"text": text.strip()}) for text in told if text.strip()]
    file.write_text("\n".join(lines[:texts]) + "\n")
    return file


def ran(folder: Path, module: str, *words: object) -> None:
    """Run a command of raysae; ends the script when it fails."""
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", module, *map(str, words)], cwd=folder, check=False,
        capture_output=True, text=True,
    )  # fmt: skip
    if done.returncode:
        sys.exit(done.stdout[-3000:] + done.stderr[-3000:])
    named = " ".join(str(word) for word in words[:1])
    print(f"{module} {named}: {time.perf_counter() - began:.0f} s", flush=True)


def tell(run: Path, phases: Sequence[str]) -> None:
    """Print the sentences and figures of phases."""
    for phase in phases:
        found = read_json(run / "analysis" / phase / "result" / "result.json")
        print(f"\n{run.name}: {found['title']}")
        for sentence in found["section"]["sentences"]:
            print(f"  {sentence}")
        print(f"  {figures(found['figures'])}", flush=True)


def figures(found: Mapping[str, Any]) -> str:
    """The figures that are known, in a line."""
    told = {name: value for name, value in found.items() if value is not None}
    return ", ".join(f"{name} {value:.4g}" for name, value in told.items())


if __name__ == "__main__":
    sys.exit(main())
