"""Train the pocket GPT-2 from scratch and save it into the package, or measure the saved one.

    python scripts/train_pocket.py                    # about 12 minutes on two cores
    python scripts/train_pocket.py --evaluate         # held-out answer accuracy against chance

For the measurement, the model writes steps and answer (greedy decoding, given only the question)
for expressions that were not in training; an answer counts when the number after ``####`` is right.
"""

import argparse
import json
import math
import time
from collections import Counter
from itertools import islice
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel

from raysae.pocket import POCKET_FOLDER
from raysae.pocket.problems import Problem, stream
from raysae.pocket.tokenizer import END, build_tokenizer
from raysae.transformer.answering import stated_answer, written_texts

CONTEXT = 128
TRAIN_SEED, EVALUATION_SEED = 0, 1


def train(steps: int, batch_size: int, lr: float, seed: int) -> tuple[GPT2LMHeadModel, float]:
    """Train on next tokens of solutions in the problem stream; returns model and last loss."""
    torch.manual_seed(seed)
    tokenizer = build_tokenizer(CONTEXT)
    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=len(tokenizer), n_positions=CONTEXT, n_embd=128, n_layer=4, n_head=4,
            resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, activation_function="gelu_pytorch_tanh",
            attn_implementation="eager",  # under bfloat16 autocast on CPUs, 3 times faster than sdpa
            bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
        )
    )  # fmt: skip
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=lr, betas=(0.9, 0.98), weight_decay=0.01, fused=True
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _lr_fraction(step, steps))
    problems = stream(TRAIN_SEED, held_out=False)
    started = time.time()
    loss = torch.tensor(math.nan)
    for step in range(steps):
        tokens, labels = _batch(tokenizer, list(islice(problems, batch_size)))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = model(input_ids=tokens, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 0 or step == steps - 1:
            print(
                f"step {step:5d}  loss {loss.item():.4f}  {time.time() - started:.0f} s", flush=True
            )
        if step and step % 1000 == 0:
            print(f"   {evaluate(model, tokenizer, 200)}", flush=True)
    return model, loss.item()


def evaluate(model: GPT2LMHeadModel, tokenizer, problems: int) -> dict[str, float]:
    """Accuracy of greedy answers to held-out questions, and of always the most common one."""
    held_out = list(islice(stream(EVALUATION_SEED, held_out=True), problems))
    right = sum(_answers(model, tokenizer, held_out))
    commonest = Counter(problem.answer for problem in held_out).most_common(1)[0][1]
    share = right / problems
    return {
        "held_out_problems": problems,
        "accuracy": share,
        "standard_error": math.sqrt(share * (1 - share) / problems),
        "chance": commonest / problems,
    }


def _answers(model: GPT2LMHeadModel, tokenizer, problems: list[Problem]) -> list[bool]:
    questions = [f"{problem.question}\n" for problem in problems]
    texts = written_texts(model, tokenizer, questions, new_tokens=48)
    return [
        text is not None and stated_answer(text) == str(problem.answer)
        for text, problem in zip(texts, problems, strict=True)
    ]


def _batch(tokenizer, problems: list[Problem]) -> tuple[torch.Tensor, torch.Tensor]:
    tokenizer.padding_side = "right"
    rows = tokenizer([f"{p.text}{END}" for p in problems], return_tensors="pt", padding=True)
    questions = tokenizer([f"{p.question}\n" for p in problems])["input_ids"]
    labels = rows["input_ids"].masked_fill(rows["attention_mask"] == 0, -100)
    for row, question in enumerate(questions):
        labels[row, : len(question)] = -100
    return rows["input_ids"], labels


def _lr_fraction(step: int, steps: int) -> float:
    warm_up = min(1.0, (step + 1) / 100)
    return warm_up * 0.5 * (1 + math.cos(math.pi * step / steps))


def main() -> None:
    """Train and save, or only measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--evaluate", action="store_true", help="measure the saved model only")
    parser.add_argument("--steps", type=int, default=2600)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--problems", type=int, default=2000, help="held-out problems to answer")
    parser.add_argument("--out", type=Path, default=POCKET_FOLDER)
    args = parser.parse_args()
    if not args.evaluate:
        model, loss = train(args.steps, args.batch_size, args.lr, args.seed)
        model.save_pretrained(args.out)
        build_tokenizer(CONTEXT).save_pretrained(args.out)
        print(f"final loss {loss:.4f}, saved to {args.out}")
    model = AutoModelForCausalLM.from_pretrained(args.out)
    tokenizer = AutoTokenizer.from_pretrained(args.out)
    print(json.dumps(evaluate(model, tokenizer, args.problems), indent=2))


if __name__ == "__main__":
    main()
