"""What phases of the analysis cost, part by part, on the pocket GPT-2.

    python scripts/bench_analysis.py [PART ...] [--features 512] [--sequences 200] [--threads 2]

``ablation``: a TopK SAE (d_sae 512, k 16) is trained briefly at layer 1; each of its features is then
zeroed alone on the first texts, at the token before the last ("-2") and at every token ("all"). Wall
seconds and seconds of the processor are printed, which differ on a machine that others use.

``labels``: an SAE (d_sae 256, k 8) at every token of 4,100 pocket problems, about 200,000 rows, labelled
twice; 24 such sites are the first and 23 times the second. It runs the main job once, on Ray.
"""

import argparse
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from machine import machine

import raysae
from raysae.analysis.ablating import Ablator, Treatment
from raysae.analysis.labelling.settings import LabelsSettings
from raysae.analysis.phase import Item
from raysae.analysis.phases.labels import Labels
from raysae.analysis.spliced_model import SplicedModel
from raysae.analysis.splicing import Change, read_into
from raysae.analysis.subject import Subject
from raysae.analysis.token_batches import Text
from raysae.config import load_recipe
from raysae.pocket.problems import make_problem
from raysae.records.run_files import RunFiles
from raysae.sae import SAE
from raysae.sae.config import TopKConfig
from raysae.sites import Position, Site
from raysae.training import TrainingConfig, fit
from raysae.transformer.loading import ModelSpec, load_model, load_tokenizer
from raysae.transformer.sequence import TokenSequence

LAYER, K, TRAINING_TEXTS, ALLOWED = 1, 16, 600, 120.0
LABEL_SITES, LABEL_FEATURES, ALLOWED_LABELS = 24, 256, 60.0


def main() -> int:
    """Print the seconds of each part; returns 1 when one takes more than it may."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; all")
    parser.add_argument("--features", type=int, default=512)
    parser.add_argument("--sequences", type=int, default=200)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    unknown = set(args.parts) - PARTS.keys()
    if unknown:
        parser.error(f"unknown part {sorted(unknown)[0]}; known are {', '.join(PARTS)}")
    torch.set_num_threads(args.threads)
    print(f"{machine()}; {args.threads} threads")
    fine = [PARTS[name](args) for name in args.parts or PARTS]
    return int(not all(fine))


def ablation(args: argparse.Namespace) -> bool:
    """Seconds of zeroing features one at a time; whether the processor took at most 120."""
    texts = problems(TRAINING_TEXTS)
    model = SplicedModel(load_model(ModelSpec("pocket")), ["resid_post"], [LAYER])
    return all([_ablated(args, model, texts, position) for position in (-2, "all")])  # noqa: C419


def _ablated(
    args: argparse.Namespace, model: SplicedModel, texts: list[Text], position: Position
) -> bool:
    sae = trained(model, texts, position, args.features)
    ablator = Ablator(model, Site(LAYER, position), sae, [], Treatment())
    groups, passes = [[feature] for feature in range(args.features)], _Count()
    some = texts[: args.sequences]
    wall, cpu, (_, effects) = timed(lambda: ablator.run(some, groups, passes))
    print(
        f"ablation, position {position}: {args.features} features on {len(some)} sequences of "
        f"{np.mean([len(text) for text in some]):.0f} tokens: {effects.changed.sum():,} pairs in "
        f"{passes.number:,} passes, {wall:.1f} s wall, {cpu:.1f} s of the processor", flush=True,
    )  # fmt: skip
    return cpu / args.threads <= ALLOWED


class _Count:
    """Counts its calls."""

    def __init__(self) -> None:
        self.number = 0

    def __call__(self) -> None:
        self.number += 1


def timed(work: Callable[[], tuple]) -> tuple[float, float, tuple]:
    """Wall seconds, seconds of the processor over all threads, and what ``work`` returns."""
    wall, cpu = time.perf_counter(), time.process_time()
    found = work()
    return time.perf_counter() - wall, time.process_time() - cpu, found


def problems(count: int) -> list[Text]:
    """Prompts of pocket problems, each followed by its answer."""
    tokenizer, found = load_tokenizer(ModelSpec("pocket")), []
    for number in range(count):
        problem = make_problem(7, number)
        ids = np.array(tokenizer(problem.prompt)["input_ids"], np.int32)
        answer = np.array(tokenizer(str(problem.answer))["input_ids"], np.int32)
        is_text, nowhere = np.ones(len(ids), np.bool_), np.full(len(ids), -1, np.int32)
        source = TokenSequence(
            number, [number], problem.prompt, ids, nowhere, nowhere, is_text, np.zeros_like(ids)
        )
        whole = np.concatenate([ids, answer])
        of_answer = np.arange(len(whole)) >= len(ids)
        found.append(Text(source, whole, np.ones(len(whole), np.bool_), of_answer))
    return found


def trained(model: SplicedModel, texts: list[Text], position: Position, d_sae: int) -> SAE:
    """An SAE of the texts' rows."""
    rows: list[torch.Tensor] = []
    for batch in model.batches(texts):
        read = Change(LAYER, batch.places(position, []), read_into(rows))
        with model.splicer.changed([read], batch.size):
            model.clean(batch)
    x_ND = torch.cat(rows)
    epochs = max(1, 20_000 // len(x_ND))
    training = TrainingConfig(epochs=epochs, batch_size=256, lr=3e-3, evaluations=1)
    return fit(
        TopKConfig(d_sae=d_sae, k=min(K, d_sae)),
        x_ND[:-500],
        training,
        validation=x_ND[-500:],
        progress=False,
    ).sae


def labels(args: argparse.Namespace) -> bool:
    """Seconds of labelling a site of 200,000 rows and 256 features, and of 24 such sites by them."""
    with tempfile.TemporaryDirectory() as folder:
        subject, site = _labelled_subject(Path(folder))
        settings = LabelsSettings(lens="never")
        phase, item = Labels(), Item("item", (site,))
        out = Path(folder) / "item"
        seconds = []
        for _ in range(
            2
        ):  # the second finds the texts' attributes in memory, as a worker's later sites do
            shutil.rmtree(out, ignore_errors=True)
            out.mkdir()
            one = timed(lambda: (phase.work(subject, settings, item, out, lambda: None),))
            seconds.append(one[:2])
    (wall, cpu), (later_wall, later_cpu) = seconds
    rows = subject.store.entry(site).rows
    whole = cpu + later_cpu * (LABEL_SITES - 1)
    print(
        f"labels: {rows.train + rows.validation:,} rows, {LABEL_FEATURES} features a site: the first "
        f"{wall:.1f} s wall, {cpu:.1f} s of the processor, each later one {later_wall:.1f} and "
        f"{later_cpu:.1f}; {LABEL_SITES} sites {whole:.0f} s of the processor, {whole / 2:.0f} s on two "
        "cores", flush=True,
    )  # fmt: skip
    return whole / 2 <= ALLOWED_LABELS


def _labelled_subject(folder: Path) -> tuple[Subject, Site]:
    """A run of one site on pocket problems, all tokens pooled, with an SAE trained briefly."""
    texts = 4100
    recipe = load_recipe(
        None,
        [
            "name=bench", f"runs_dir={folder / 'runs'}", f"store={folder / 'store'}",
            f"source.sequences={texts}", "source.positions=[all]", "source.layers=[1]",
            "sweep.enabled=false", f"sae.d_sae={LABEL_FEATURES}", "sae.k=8", "training.epochs=1",
            "records.mlflow=false", "analyze.phases=[]",
        ],
    )  # fmt: skip
    raysae.sweep(recipe)
    subject = Subject(str(recipe.run_folder), RunFiles(recipe.run_folder), str(folder / "store"))
    return subject, subject.sites[0]


PARTS: dict[str, Callable[[argparse.Namespace], bool]] = {"ablation": ablation, "labels": labels}

if __name__ == "__main__":
    sys.exit(main())
