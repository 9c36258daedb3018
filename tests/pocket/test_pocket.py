"""The pocket GPT-2: it loads like any hub model, it is small, and it has learned."""

import json
import math
import sys
from itertools import islice

import pytest

from raysae.pocket import POCKET_FOLDER
from raysae.pocket.problems import LARGEST, make_problem, stream


@pytest.fixture(scope="module")
def pocket():
    from transformers import AutoModelForCausalLM, AutoTokenizer

    return (
        AutoModelForCausalLM.from_pretrained(POCKET_FOLDER),
        AutoTokenizer.from_pretrained(POCKET_FOLDER),
    )


def test_the_weights_are_small():
    assert (POCKET_FOLDER / "model.safetensors").stat().st_size <= 4_000_000
    assert json.loads((POCKET_FOLDER / "config.json").read_text())["model_type"] == "gpt2"


def test_it_answers_held_out_problems_far_above_chance_and_not_all(pocket):
    sys.path.insert(0, "scripts")
    try:
        from train_pocket import evaluate
    finally:
        sys.path.remove("scripts")
    score = evaluate(*pocket, problems=300)
    margin = 3 * math.sqrt(0.9 * 0.1 / 300)
    assert 0.6 < score["accuracy"] < 0.95 + margin
    assert score["accuracy"] > 10 * score["chance"]


def test_text_comes_back_exactly(pocket):
    _, tokenizer = pocket
    for index in range(300):
        text = make_problem(7, index).text
        ids = tokenizer(text)["input_ids"]
        assert tokenizer.decode(ids) == text
        assert tokenizer.unk_token_id not in ids and len(ids) < 128


def test_labels_are_right():
    for index in range(500):
        problem = make_problem(3, index)
        results = []
        total = problem.numbers[0]
        for operator, number in zip(problem.operators, problem.numbers[1:], strict=True):
            total = {"+": total + number, "-": total - number, "*": total * number}[operator]
            results.append(total)
        assert tuple(results) == problem.intermediates
        assert min(results) >= 0 and max(results) <= LARGEST and min(problem.numbers) > 0
        assert problem.text.endswith(f"#### {problem.answer}")
        assert problem.text.startswith(problem.prompt)
        assert problem.text[len(problem.prompt) :].startswith(str(problem.answer))
        assert all(str(number) in problem.question for number in problem.numbers)


def test_a_problem_follows_from_seed_and_index():
    assert make_problem(1, 5) == make_problem(1, 5) != make_problem(2, 5)


def test_held_out_expressions_are_a_tenth_and_never_trained_on():
    problems = [make_problem(0, index) for index in range(4000)]
    share = sum(problem.held_out for problem in problems) / len(problems)
    assert 0.08 < share < 0.12
    seen = {(p.numbers, p.operators) for p in islice(stream(0, held_out=False), 3000)}
    fresh = {(p.numbers, p.operators) for p in islice(stream(1, held_out=True), 1000)}
    assert not seen & fresh
