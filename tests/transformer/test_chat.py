"""Chats: written out by the tokenizer's template, with the roles as positions."""

import json

import numpy as np
import pytest
from tokenizers import Tokenizer as RustTokenizer
from tokenizers import decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from raysae.activations.splits import split_of
from raysae.config.source import SourceConfig
from raysae.errors import UserError
from raysae.extraction.plan import text_spec, token_rules
from raysae.transformer.texts import read_documents
from raysae.transformer.tokens import Tokenizer

TEMPLATE = (
    "{{ '<s>' }}{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] | trim + "
    "'<|im_end|>\n' }}{% endfor %}"
)
CHAT = [
    {"role": "system", "content": "Be short. "},
    {"role": "user", "content": "What is 3 + 4?"},
    {"role": "assistant", "content": "3 + 4 is 7."},
    {"role": "user", "content": "3 + 4 is 7."},
]


@pytest.fixture(scope="module")
def tokenizer():
    """A byte tokenizer with the special tokens of ChatML, added as people add them."""
    alphabet = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    rust = RustTokenizer(models.BPE(alphabet, []))
    rust.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    rust.decoder = decoders.ByteLevel()
    made = PreTrainedTokenizerFast(tokenizer_object=rust, bos_token="<s>")
    made.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    made.chat_template = TEMPLATE
    return made


def write(path, chats):
    path.write_text(
        "\n".join(json.dumps({"messages": chat, "id": i}) for i, chat in enumerate(chats))
    )
    return str(path)


def sequences(tokenizer, path, **source):
    config = SourceConfig(dataset=path, chat_column="messages", **{"context_length": 512, **source})
    made = Tokenizer(tokenizer, token_rules(config))
    return made, list(made.sequences(read_documents(text_spec(config))))


def marked(sequence, position, names):
    places = sequence.places(position, names)
    return "".join(sequence.text[sequence.token_start[i] : sequence.token_end[i]] for i in places)


def test_each_role_is_a_position(tokenizer, tmp_path):
    names = ("assistant", "system", "user")
    path = write(tmp_path / "d.jsonl", [CHAT])
    made, (found,) = sequences(tokenizer, path, positions=names)
    assert found.text.startswith("<s><|im_start|>system\nBe short.<|im_end|>\n<|im_start|>user\n")
    assert marked(found, "system", names) == "Be short."
    assert marked(found, "assistant", names) == "3 + 4 is 7."  # not the user's same words
    assert marked(found, "user", names) == "What is 3 + 4?3 + 4 is 7."
    assert made.counts.double_bos == 0 and (found.token_id == tokenizer.bos_token_id).sum() == 1


def test_the_templates_special_tokens_are_not_text(tokenizer, tmp_path):
    _, (found,) = sequences(tokenizer, write(tmp_path / "d.jsonl", [CHAT]), positions=("all",))
    special = {tokenizer.convert_tokens_to_ids(t) for t in ("<s>", "<|im_start|>", "<|im_end|>")}
    assert special.isdisjoint(found.token_id[found.places("all")].tolist())
    assert special <= set(found.token_id.tolist())


@pytest.mark.parametrize(
    "chat",
    [
        [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ho"}],
        [
            {"role": "user", "content": [{"type": "text", "text": "Hi"}]},
            {"role": "assistant", "content": "Ho"},
        ],
    ],
    ids=["ShareGPT", "parts"],
)  # fmt: skip
def test_other_forms_of_messages(tokenizer, tmp_path, chat):
    names = ("assistant", "user")
    _, (found,) = sequences(tokenizer, write(tmp_path / "d.jsonl", [chat]), positions=names)
    assert [marked(found, name, names) for name in names] == ["Ho", "Hi"]


@pytest.mark.parametrize(
    ("chat", "words"),
    [
        ("hello", "row 0 .* is str; expected a list of messages"),
        ([], "row 0 .* is an empty list"),
        (["hello"], "message 0 is str; expected an object with role and content"),
        ([{"content": "x"}], "message 0 has no role; it has 'content'"),
        ([{"role": "user", "content": {"a": 1}}], "message 0: its content is dict; expected text"),
        ([{"role": "user", "content": None}], "message 0: its content is NoneType"),
    ],
)
def test_what_is_no_chat_is_refused(tokenizer, tmp_path, chat, words):
    with pytest.raises(UserError, match=words):
        sequences(tokenizer, write(tmp_path / "d.jsonl", [chat]), positions=("all",))


def test_templates_that_are_missing_refuse_or_change_a_message(tokenizer, tmp_path, monkeypatch):
    path = write(tmp_path / "d.jsonl", [CHAT])
    for template, words in (
        (None, "the model's tokenizer has no chat template"),
        (
            "{{ raise_exception('roles must alternate') }}",
            "row 0: .* refuses it .*roles must alternate",
        ),
        (
            "{% for m in messages %}{{ m['content'] | upper }}{% endfor %}",
            r"changed message 0 \(system\)",
        ),
    ):
        monkeypatch.setattr(tokenizer, "chat_template", template)
        with pytest.raises(UserError, match=words):
            sequences(tokenizer, path, positions=("assistant",))


def test_roles_are_no_positions_without_a_chat():
    with pytest.raises(ValueError, match="'assistant', which is no pattern; known are all, answer"):
        SourceConfig(positions=["assistant"])


def test_all_turns_of_a_chat_stay_in_one_split(tokenizer, tmp_path):
    chats = [[{"role": "user", "content": f"Turn {i} of chat {i // 5}"}] for i in range(200)]
    path = tmp_path / "d.jsonl"
    rows = [{"messages": chat, "chat": i // 5} for i, chat in enumerate(chats)]
    path.write_text("\n".join(map(json.dumps, rows)))
    _, found = sequences(tokenizer, str(path), positions=("all",), split_by="chat", validation=0.3)
    home = {}
    for sequence in found:
        code = int(split_of(np.array([sequence.sequence]), 0.3, 0.1)[0])
        home.setdefault(sequence.documents[0] // 5, set()).add(code)
    assert len(home) == 40 and all(len(codes) == 1 for codes in home.values())
    assert set.union(*home.values()) == {0, 1, 2}
