"""Finding the role of a tensor or column in a foreign file from its name."""

import re
from collections.abc import Container, Iterable, Mapping
from pathlib import Path

from raysae.errors import UserError

ROLES = (
    *("activation", "sequence", "group", "mask", "padding"),
    *("layer", "position", "token_index", "token_id"),
)
NONE = "none"
"""``--key ROLE=none`` ignores the role's column."""
SHOWN = 40
"""Names listed in a message."""
ITEM = "item"
"""``--key sequence=item``: each item of a list, or each file of a folder, is a sequence."""

_NUMBER = r"_?(?:id|idx|index|num|number)"
_WORDS = {
    "activation": "activation|act|hidden_state",
    "sequence": rf"(?:sequence|seq|problem|example|sample)(?:{_NUMBER})?"
    rf"|(?:prompt|text|context|question){_NUMBER}",
    "group": rf"(?:source_?)?(?:document|doc|article|book|page|file)(?:{_NUMBER})?"
    rf"|(?:chat|conversation|conv|dialogue?|thread)(?:{_NUMBER})?|group(?:{_NUMBER})?",
    "mask": "(?:attention_?|attn_?|input_?|token_?|valid_?|src_?)?mask",
    "padding": "(?:src_|tgt_)?(?:key_)?pad(?:ding)?_?mask|is_pad(?:ding)?",
    "layer": rf"layer(?:{_NUMBER})?",
    "position": rf"(?:token_?)?(?:position|pos)(?:{_NUMBER})?",
    "token_index": "token_?(?:index|idx)",
    "token_id": "(?:token|input)_?id|token",
}
_MAY_BE_OTHER = {"sequence", "seq", "problem", "example", "sample", "token"}
_LENGTH = r"(?:length|(?:seq|sequence|prompt|token)_?(?:len|length)|(?:n|num)_?token)"
TEXT = ("document", "context", "passage", "text", "prompt", "question", "sentence", "content")
"""Names of columns of texts, from which the split can follow; the first in this order is taken."""


def last_part(name: str) -> str:
    """The last part of a dotted name in the singular: ``problem_id`` for ``metadata.problem_ids``."""
    word = name.rsplit(".", 1)[-1].lower().replace("-", "_")
    word = re.sub("(?:indices|indexes)$", "index", word)
    return word if word.endswith("pos") else word.removesuffix("s")


def plays(role: str, name: str) -> bool:
    """Whether a column of this name plays the role (one of ``ROLES``)."""
    return bool(re.fullmatch(_WORDS[role], last_part(name)))


def may_be_other(name: str) -> bool:
    """Whether a column of this name may hold something else than ids: a common word, without ``_id``."""
    word = last_part(name)
    numbered = re.search(rf"{_NUMBER}$", word) is not None
    return word in _MAY_BE_OTHER or (plays("group", name) and not numbered)


def is_length(name: str) -> bool:
    """Whether a column of this name holds the number of tokens of each sequence."""
    return bool(re.fullmatch(_LENGTH, last_part(name)))


def find_text(names: Iterable[str]) -> str | None:
    """The name of a column of texts, by ``TEXT``; None for none."""
    by_word = {last_part(name): name for name in names}
    return next((by_word[word] for word in TEXT if word in by_word), None)


def find_mask(names: Iterable[str], keys: Mapping[str, str], where: Path) -> tuple[str, str] | None:
    """The role (``mask`` or ``padding``) and the name of the column that says which rows are padding;
    None for none.

    Raises UserError when several could be it.
    """
    names, asked = list(names), [role for role in ("mask", "padding") if role in keys]
    if asked:
        found = [(role, find_role(role, names, keys, where)) for role in asked]
        named = [(role, name) for role, name in found if name is not None]
    else:
        named = [
            (role, name) for name in names for role in ("mask", "padding") if plays(role, name)
        ]
    if len(named) > 1:
        raise UserError(
            f"{where}: several could be the mask: {', '.join(name for _, name in named)}; name one "
            "with --key mask=NAME (1 is a token) or --key padding=NAME (1 is padding)"
        )
    return named[0] if named else None


def find_role(role: str, names: Iterable[str], keys: Mapping[str, str], where: Path) -> str | None:
    """The name that plays the role: the one in ``keys``, or else the one that matches; None for none.

    Raises UserError when the name in ``keys`` does not exist, or when several names match.
    """
    names = list(names)
    if role in keys:
        return None if keys[role] in (NONE, ITEM) else _asked(role, names, keys[role], where)
    found = [name for name in names if plays(role, name)]
    own = [name for name in found if last_part(name) == role]
    if len(found) > 1 and len(own) != 1:
        raise UserError(
            f"{where}: several could be the {role}: {', '.join(found)}; name one with "
            f"--key {role}=NAME"
        )
    return (own if len(own) == 1 else [*found, None])[0]


def find_activation(
    where: Path, possible: list[str], contents: Mapping[str, str], keys: Mapping[str, str]
) -> str:
    """The name of the activations: the one in ``keys``, else the one that matches, else the only
    possible one.

    ``contents`` describes everything in the file by name. Raises UserError with that list when no name,
    or more than one, is found.
    """
    if "activation" in keys:
        return _asked("activation", list(contents), keys["activation"], where)
    called = [name for name in possible if plays("activation", name)]
    for names in (called, possible):
        if len(names) == 1:
            return names[0]
    what = (
        "several could be the activations; name one with --key activation=NAME"
        if possible
        else "nothing in it could be activations, which are rows of d_in floating point numbers"
    )
    shown = [f"  {name}: {kind}" for name, kind in list(contents.items())[:SHOWN]]
    more = len(contents) - len(shown)
    lines = "\n".join([*shown, *([f"  and {more:,} more"] if more else [])])
    raise UserError(f"{where}: {what}; it has\n{lines or '  nothing'}")


def find_columns(
    names: list[str], texts: Container[str], keys: Mapping[str, str], where: Path
) -> dict[str, str]:
    """The columns that an import needs, by role; of masks, ``mask``, ``padding`` or ``length``; and
    ``text`` where there are no ids. ``texts`` are the columns that hold text.

    Raises UserError when several could play a role, or a name in ``keys`` does not exist.
    """
    alone = ("activation", "mask", "padding")
    found = {
        role: find_role(
            role, names if role in keys else without_texts(role, names, texts), keys, where
        )
        for role in ROLES
        if role not in alone
    }
    mask = find_mask(names, keys, where)
    if mask is not None:
        found[mask[0]] = mask[1]
    elif "mask" not in keys and "padding" not in keys:
        found["length"] = next((name for name in names if is_length(name)), None)
    if not found["sequence"] and not found["group"]:
        found["text"] = find_text(names)
    return {role: name for role, name in found.items() if name is not None}


def without_texts(role: str, names: list[str], texts: Container[str]) -> list[str]:
    """The names without columns of text under a common word (``problem``), if another plays the role
    (``problem_id``)."""
    others = [name for name in names if not (may_be_other(name) and name in texts)]
    return others if any(plays(role, name) for name in others) else names


def other_way(role: str) -> str:
    """What to do about a column that cannot play its role."""
    return f"name another with --key {role}=NAME, or leave it out with --key {role}=none"


def _asked(role: str, names: list[str], wanted: str, where: Path) -> str:
    found = [n for n in names if n == wanted] or [n for n in names if n.split(".")[-1] == wanted]
    if len(found) != 1:
        what = "is not in it" if not found else f"could be {' or '.join(found)}"
        raise UserError(
            f"{where}: --key {role}={wanted}: {wanted!r} {what}; it has {', '.join(names) or 'nothing'}"
        )
    return found[0]
