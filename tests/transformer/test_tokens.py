"""Sequences: specials masked, patterns found, texts packed, limits kept, the same every time."""

from dataclasses import astuple

import numpy as np
import pytest
from tokenizers import Tokenizer as RustTokenizer
from tokenizers import models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from raysae.activations.splits import split_of, split_of_key
from raysae.config.source import SourceConfig
from raysae.errors import UserError
from raysae.extraction.plan import token_rules
from raysae.transformer.repeats import same_text
from raysae.transformer.sequence import from_table, to_table
from raysae.transformer.texts import Document
from raysae.transformer.tokens import Tokenizer

WORDS = ["the", "cat", "has", "12", "3", "mice", "+", "=", "15", "####", "."]


@pytest.fixture(scope="module")
def tokenizer():
    """A word tokenizer that puts <s> before a text and </s> after it, and has no pad token."""
    vocabulary = {word: i for i, word in enumerate(["<s>", "</s>", "<unk>", *WORDS])}
    rust = RustTokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    rust.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    rust.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=rust, bos_token="<s>", eos_token="</s>")


def sequences(tokenizer, texts, **source):
    made = Tokenizer(tokenizer, token_rules(SourceConfig(**{"context_length": 16, **source})))
    return list(made.sequences(Document(i, text) for i, text in enumerate(texts)))


def marked(sequence, position, names=()):
    """The pieces of text at the places that ``position`` means."""
    return [
        sequence.text[sequence.token_start[i] : sequence.token_end[i]]
        for i in sequence.places(position, names)
    ]


def test_special_tokens_are_not_text(tokenizer):
    (found,) = sequences(tokenizer, ["the cat has mice"])
    assert tokenizer.pad_token_id is None
    assert found.token_id.tolist()[0] == 0 and found.token_id.tolist()[-1] == 1
    assert marked(found, "all") == ["the", "cat", "has", "mice"]
    assert marked(found, 0) == ["the"] and marked(found, -1) == ["mice"]
    assert marked(found, 4) == [] and marked(found, -5) == []


def test_special_tokens_count_when_asked_for(tokenizer):
    (found,) = sequences(tokenizer, ["the cat"], special_tokens=True)
    assert len(found.places("all")) == 4
    assert found.token_id[found.places(0)].tolist() == [0]


def test_patterns_mark_the_tokens_that_they_touch(tokenizer):
    names = ["answer", "numbers", "operators"]
    (found,) = sequences(
        tokenizer, ["the cat has 12 + 3 = 15 mice #### 15 ."], positions=tuple(names)
    )
    assert marked(found, "numbers", names) == ["12", "3", "15", "15"]
    assert marked(found, "operators", names) == ["+", "="]
    assert marked(found, "answer", names) == ["15", "."]


def test_patterns_of_ones_own(tokenizer):
    (found,) = sequences(
        tokenizer, ["the cat has mice"], positions=("animals",), patterns={"animals": "cat|mice"}
    )
    assert marked(found, "animals", ["animals"]) == ["cat", "mice"]


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ({"positions": ["verbs"]}, "'verbs', which is no pattern; known are all, answer, numbers"),
        ({"patterns": {"broken": "("}}, "no regular expression"),
        ({"patterns": {"all": "x"}}, "cannot be a pattern's name"),
        ({"max_bytes": "many"}, "max_bytes"),
    ],
)
def test_unusable_settings_are_told(source, words):
    with pytest.raises(ValueError, match=words):
        SourceConfig(**source)


def test_sizes_have_units():
    source = SourceConfig(max_bytes="1.5 GB", max_tokens="10M")
    assert (source.max_bytes, source.max_tokens, source.sequences) == (1_500_000_000, 10**7, None)
    assert SourceConfig(max_tokens=5, sequences=7).sequences == 7


def test_a_text_longer_than_the_context_is_cut_and_counted(tokenizer):
    made = Tokenizer(tokenizer, token_rules(SourceConfig(context_length=4)))
    found = list(made.sequences([Document(0, "the cat has mice ."), Document(1, "the cat")]))
    assert marked(found[0], "all") == ["the", "cat"] and found[0].text == "the cat"
    assert (made.counts.documents, made.counts.cut) == (2, 1)


PACKED = {"packing": True, "context_length": 6, "validation": 0.3, "test": 0.2}


def packed(tokenizer, count=60):
    texts = [" ".join(WORDS[i % 5 : i % 5 + 3 + i % 4]) for i in range(count)]
    return texts, sequences(tokenizer, texts, **PACKED)


def test_packed_sequences_hold_every_text_once(tokenizer):
    texts, found = packed(tokenizer)
    full = [sequence for sequence in found if len(sequence) == 6]
    assert len(found) - len(full) <= 3  # what is left over in each split
    assert all(s.token_id[0] == 0 and s.token_id[-1] == 1 for s in found)
    words = sorted(word for sequence in found for word in marked(sequence, "all"))
    assert words == sorted(word for text in texts for word in text.split())


def test_packed_sequences_never_mix_splits(tokenizer):
    texts, found = packed(tokenizer)
    ids = np.array([sequence.sequence for sequence in found])
    assert len(set(ids.tolist())) == len(ids)
    split = split_of(ids, 0.3, 0.2)
    assert set(split.tolist()) == {0, 1, 2}
    home: dict[int, set[int]] = {}
    for sequence, code in zip(found, split.tolist(), strict=True):
        of_texts = [split_of_key(same_text(texts[i]), 0.3, 0.2) for i in sequence.documents]
        assert of_texts == [code] * len(of_texts)
        for document in sequence.documents:
            home.setdefault(document, set()).add(code)
    assert all(len(codes) == 1 for codes in home.values())


def test_a_pattern_goes_on_into_the_next_packed_sequence(tokenizer):
    texts = ["#### " + "the cat has mice . " * 3]
    found = sequences(tokenizer, texts, packing=True, context_length=6, positions=("answer",))
    assert [marked(s, "answer", ["answer"]) for s in found][1] == ["mice", ".", "the", "cat"]


def test_a_context_that_specials_fill_is_refused(tokenizer):
    with pytest.raises(UserError, match="special tokens alone fill it"):
        sequences(tokenizer, ["the"], packing=True, context_length=2)


def test_a_slow_tokenizer_cannot_find_patterns(tokenizer, monkeypatch):
    monkeypatch.setattr(type(tokenizer), "is_fast", False)
    (found,) = sequences(tokenizer, ["the cat"])
    assert found.token_start.tolist() == [-1] * 4 and len(found.places("all")) == 2
    with pytest.raises(UserError, match="need a tokenizer that tells where"):
        sequences(tokenizer, ["the cat"], positions=("numbers",))


def test_sequences_survive_their_table(tokenizer):
    _, found = packed(tokenizer, 9)
    again = from_table(to_table(found))
    for one, other in zip(found, again, strict=True):
        for here, there in zip(astuple(one), astuple(other), strict=True):
            assert np.array_equal(here, there)


def splits_of(found, validation=0.1, test=0.1):
    return split_of(np.array([s.sequence for s in found]), validation, test).tolist()


@pytest.mark.parametrize("packing", [False, True])
def test_a_text_that_repeats_lies_in_one_split(tokenizer, packing):
    texts = [" ".join(WORDS[i % 7 : i % 7 + 2 + i % 3]) for i in range(84)]
    found = sequences(tokenizer, texts, packing=packing, validation=0.3, test=0.3, context_length=8)
    home = {}
    for sequence, code in zip(found, splits_of(found, 0.3, 0.3), strict=True):
        for row in sequence.documents:
            home.setdefault(texts[row], set()).add(code)
    assert len(home) == 21 and all(len(codes) == 1 for codes in home.values())
    assert len({s.sequence for s in found}) == len(found)


def test_texts_that_are_cut_to_the_same_tokens_lie_in_one_split(tokenizer):
    texts = [f"the cat has mice {' '.join(WORDS[i : i + 1])} ." for i in range(9)] * 3
    found = sequences(tokenizer, texts, context_length=6, validation=0.4, test=0.2)
    assert len({tuple(s.token_id.tolist()) for s in found}) == 1
    assert len(set(splits_of(found, 0.4, 0.2))) == 1


def test_a_texts_split_does_not_depend_on_the_texts_before_it(tokenizer):
    texts = [f"the cat has {w} {v} ." for w in WORDS for v in WORDS]
    for some in (texts, texts[::-1], texts[17:40]):
        found = sequences(tokenizer, some, validation=0.3, test=0.2)
        expected = [split_of_key(same_text(some[s.documents[0]]), 0.3, 0.2) for s in found]
        assert splits_of(found, 0.3, 0.2) == expected


def test_repeats_are_counted_and_left_out_on_request(tokenizer):
    texts = ["the cat", "the  Cat", "12 mice", "the cat"]
    for choice, kept in (("keep", 4), ("drop", 2)):
        made = Tokenizer(tokenizer, token_rules(SourceConfig(context_length=16, repeats=choice)))
        assert len(list(made.sequences(Document(i, t) for i, t in enumerate(texts)))) == kept
        record = made.found.record()
        assert (record["repeated"], record["dropped"]) == (2, 4 - kept)


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_key_says_which_end_is_cut_whatever_the_tokenizer_says(tokenizer, side, monkeypatch):
    monkeypatch.setattr(tokenizer, "truncation_side", side)
    text = " the cat has mice ."
    (end,) = sequences(tokenizer, [text], context_length=4)
    (start,) = sequences(tokenizer, [text], context_length=4, cut="start")
    assert marked(end, "all") == ["the", "cat"] and end.text == " the cat"
    assert marked(start, "all") == ["mice", "."] and start.text == "mice ."
    assert start.token_id.tolist()[0] == 0 and start.token_id.tolist()[-1] == 1


def test_special_tokens_of_the_text_are_special(tokenizer):
    made = Tokenizer(tokenizer, token_rules(SourceConfig(context_length=16)))
    (found,) = made.sequences([Document(0, "<s> the cat </s> has </s>")])
    assert marked(found, "all") == ["the", "cat", "has"]
    assert marked(found, 0) == ["the"] and marked(found, -1) == ["has"]
    assert made.counts.double_bos == 1


def test_a_token_for_unknown_words_is_text(tokenizer):
    rust = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )  # fmt: skip
    (found,) = sequences(rust, ["the dog has"])
    assert marked(found, "all") == ["the", "dog", "has"]


def test_special_tokens_within_packed_texts_are_special(tokenizer):
    found = sequences(
        tokenizer, ["<s> the cat </s>", "12 mice </s> 3"], packing=True, context_length=32
    )
    assert sorted(w for s in found for w in marked(s, "all")) == ["12", "3", "cat", "mice", "the"]
