"""Chats: messages of a data set's row, written out by the tokenizer's chat template."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from raysae.errors import UserError
from raysae.transformer.guarded import Guard, PastLimitError

Messages = tuple[dict[str, Any], ...]
"""The messages of a chat: dictionaries with ``role`` and ``content``."""
LONGEST_CHAT = 100_000_000
"""The most characters of a chat that is written out."""

ROLES = {"human": "user", "gpt": "assistant", "bot": "assistant", "chatgpt": "assistant"}
"""Names of the ShareGPT format, and the roles that they stand for."""


@dataclass(frozen=True)
class Span:
    """Where a message's content lies in a chat's text: characters ``start`` to ``end``."""

    role: str
    start: int
    end: int


def messages_of(value: Any, where: str) -> tuple[dict[str, Any], ...]:
    """The messages of a row: a list of ``{"role", "content"}``, or of ShareGPT's ``{"from", "value"}``.

    Raises UserError, naming ``where``, on anything else.
    """
    if not isinstance(value, list) or not value:
        raise UserError(
            f"{where} is {'an empty list' if value == [] else type(value).__name__}; expected a list "
            'of messages {"role": ..., "content": ...}'
        )
    return tuple(_message(message, f"{where}, message {i}") for i, message in enumerate(value))


class ChatWriter:
    """Writes chats out by a tokenizer's template, which may come from a stranger: with limits."""

    def __init__(self, tokenizer: Any):
        self.tokenizer = tokenizer
        self.guard = Guard(lambda item: rendered(tokenizer, *item))

    def texts(self, chats: Sequence[tuple[Messages, str]]) -> Iterator[str]:
        """Yield each chat's text; a chat is its messages and where they are.

        Raises UserError when there is no template, it fails, or it takes too long or too much memory.
        """
        if chats:
            _refuse_no_template(self.tokenizer, chats[0][1])
        items = [(chat, sum(len(message["content"]) for message in chat[0])) for chat in chats]
        results = self.guard.results(items)
        for _, where in chats:
            try:
                yield next(results)
            except PastLimitError as error:
                raise UserError(
                    f"{where}: the chat template of {self.tokenizer.name_or_path} {error}; use the "
                    "template that came with the model, or write the texts out yourself (source.text)"
                ) from None


def rendered(tokenizer: Any, messages: Messages, where: str) -> str:
    """The chat's text by the tokenizer's template. Raises UserError when the template fails, or writes
    more than ``LONGEST_CHAT`` characters."""
    try:
        text = tokenizer.apply_chat_template(list(messages), tokenize=False)
    except MemoryError:
        raise
    except Exception as error:  # a template raises what it likes
        raise UserError(
            f"{where}: the tokenizer's chat template refuses it ({' '.join(str(error).split())[:300]})"
        ) from None
    if len(text) > LONGEST_CHAT:
        raise UserError(
            f"{where}: the chat template of {tokenizer.name_or_path} writes {len(text):,} characters; "
            f"expected at most {LONGEST_CHAT:,}: use the template that came with the model"
        )
    return text


def _refuse_no_template(tokenizer: Any, where: str) -> None:
    if not getattr(tokenizer, "chat_template", None):
        raise UserError(
            f"{where}: the model's tokenizer has no chat template; name a chat model, or write the "
            "texts out yourself (source.text)"
        )


def spans_of(text: str, messages: tuple[dict[str, Any], ...], where: str) -> tuple[Span, ...]:
    """Where each message's content lies in the chat's text, in order.

    Raises UserError when the template changed a content, so that it cannot be found.
    """
    return tuple(_spans(text, messages, where))


def _spans(text: str, messages: tuple[dict[str, Any], ...], where: str) -> Iterator[Span]:
    reached = 0
    for number, message in enumerate(messages):
        content = message["content"].strip()  # most templates strip it
        if not content:
            continue
        start = text.find(content, reached)
        if start < 0:
            raise UserError(
                f"{where}: the chat template left out or changed message {number} "
                f"({message['role']}), so its tokens are not known; leave the roles out of "
                "source.positions"
            )
        reached = start + len(content)
        yield Span(message["role"], start, reached)


def _message(message: Any, where: str) -> dict[str, Any]:
    if not isinstance(message, dict):
        raise UserError(
            f"{where} is {type(message).__name__}; expected an object with role and content"
        )
    role = message.get("role", message.get("from"))
    content = message.get("content", message.get("value"))
    if not isinstance(role, str) or not role:
        raise UserError(f"{where} has no role; it has {', '.join(map(repr, message)) or 'nothing'}")
    others = {k: v for k, v in message.items() if k not in ("role", "from", "content", "value")}
    plain = ROLES.get(role.lower(), role)
    return {"role": plain, "content": _content(content, others, where), **_given(others)}


def _content(content: Any, others: dict[str, Any], where: str) -> str:
    """A message's content as text; parts of type text are joined."""
    if isinstance(content, list) and all(
        isinstance(part, dict) and isinstance(part.get("text"), str) for part in content
    ):
        return "".join(part["text"] for part in content)
    if content is None and _given(others):  # such as a message that only calls a tool
        return ""
    if not isinstance(content, str):
        raise UserError(f"{where}: its content is {type(content).__name__}; expected text")
    return content


def _given(values: dict[str, Any]) -> dict[str, Any]:
    """The values that are there: Parquet writes null where a message lacks a field."""
    return {key: value for key, value in values.items() if value is not None}
