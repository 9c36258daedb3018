"""The parts of labelling: events by key, attributes of texts, pieces of tokens, coherence, the lens."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from raysae.analysis.labelling.best import Best, Events
from raysae.analysis.labelling.coherence import jaccard
from raysae.analysis.labelling.lens import Lens
from raysae.analysis.labelling.text_attributes import marked
from raysae.analysis.labelling.token_names import TokenNames, pieces
from raysae.transformer.loading import load_model
from raysae.transformer.model_spec import ModelSpec
from raysae.transformer.sequence import TokenSequence


def characters(text: str) -> TokenSequence:
    """A sequence with a token for each character."""
    n = len(text)
    place = np.arange(n, dtype=np.int32)
    ids = np.array([ord(one) for one in text], np.int32)
    return TokenSequence(
        0, [0], text, ids, place, place + 1, np.ones(n, bool), np.zeros(n, np.int32)
    )


def drawn_events(n: int, seed: int) -> Events:
    random = np.random.default_rng(seed)
    ids = random.integers(5, size=n)
    value = random.integers(1, 50, n).astype(np.float32)
    return Events(ids, value, random.integers(9, size=n), np.arange(n), ids)


@pytest.mark.parametrize("distinct", [True, False])
def test_the_best_events_are_those_of_a_sort_in_any_order(distinct):
    events = drawn_events(400, 1)
    for order in (np.arange(400), np.arange(400)[::-1]):
        best = Best(5, 4, distinct)
        best._limit = 50
        for some in np.array_split(order, 7):
            part = events.taken(some)
            best.add(part, -part.value.astype(float))
        kept = best.kept()
        for feature in range(5):
            rows = np.flatnonzero(events.feature == feature)
            rows = sorted(rows, key=lambda n: (-events.value[n], events.sequence[n], n))
            seen, wanted = set(), []
            for row in rows:
                if not distinct or events.sequence[row] not in seen:
                    wanted.append(row)
                seen.add(events.sequence[row])
            assert kept.token_index[kept.feature == feature].tolist() == wanted[:4]


def test_steps_of_a_calculation_are_found():
    text = "23+14=37\n37*2="
    found = marked([characters(text), characters("9-4=5")], [], pocket=True)
    of = {name: found.values_TA[:, n] for n, name in enumerate(found.names)}
    first = {name: values[: len(text)] for name, values in of.items()}

    def where(name: str) -> str:
        return "".join(text[n] if first[name][n] else " " for n in range(len(text))).strip()

    assert where("operand") == "23 14    37 2" and where("result") == "37"
    assert where("intermediate") == "37" and first["intermediate"][9:11].all()
    assert where("step multiplies") == "37*2=" and where("operator") == "+  =     * ="
    assert first["step's result"][:8].tolist() == [37.0] * 8
    assert np.isnan(first["step's result"][8]) and first["step's result"][-1] == 74
    assert of["step's result"][-1] == 5 and not of["intermediate"][len(text) :].any()


def test_pieces_of_a_character_are_escapes():
    names = {1: "\\xe2\\x82", 2: "\\xac", 3: "a", 4: "<|end|>"}
    starts, ends = np.array([-1, 0, 0, 1], np.int32), np.array([-1, 1, 1, 3], np.int32)
    ids = np.array([4, 1, 2, 3], np.int32)
    sequence = TokenSequence(
        0, [0], "€ a", ids, starts, ends, np.ones(4, bool), np.zeros(4, np.int32)
    )
    assert pieces(sequence, TokenNames(None, names)) == ["<|end|>", "\\xe2\\x82", "\\xac", " a"]


@pytest.mark.parametrize(
    ("raw", "shown"),
    [("âĤ", "\\xe2\\x82"), ("<0xE2>", "\\xe2"), ("odd\u4e00", "odd\u4e00")],
)  # fmt: skip
def test_tokens_that_do_not_decode_are_escapes(raw, shown):
    tokenizer = SimpleNamespace(
        convert_ids_to_tokens=lambda _id: raw,
        decode=lambda _ids, **_options: "\N{REPLACEMENT CHARACTER}",
    )
    assert TokenNames(tokenizer)[3] == shown and TokenNames()[3] == "#3"


def test_coherence_is_undefined_with_one_text():
    assert math.isnan(jaccard([frozenset("ab")]))
    assert jaccard([frozenset("ab"), frozenset("bc")]) == pytest.approx(1 / 3)
    assert jaccard([frozenset("ab")] * 3) == 1


def test_the_lens_ranks_as_norm_and_unembedding_do():
    model = load_model(ModelSpec("pocket"))
    lens = Lens(model)
    directions = torch.randn(
        3, model.config.hidden_size, generator=torch.Generator().manual_seed(0)
    )
    found = lens.promoted(directions, 5, lambda: None)
    norm, head = model.transformer.ln_f, model.lm_head
    with torch.no_grad():
        centred = directions - directions.mean(1, keepdim=True)
        effect = (norm.weight * centred) @ head.weight.T
        effect -= effect.mean(1, keepdim=True)
    assert found.up.tolist() == effect.topk(5).indices.tolist()
    assert found.down.tolist() == effect.topk(5, largest=False).indices.tolist()
