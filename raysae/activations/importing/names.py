"""Finding the role of a tensor or column in a foreign file from its name."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from raysae.errors import UserError

ROLES = ("activation", "sequence", "layer", "position", "token_index", "token_id")
NONE = "none"
"""``--key ROLE=none`` ignores the role's column."""

_NUMBER = r"_?(?:id|idx|index|num|number)"
_WORDS = {
    "activation": "activation|act|hidden_state",
    "sequence": rf"(?:sequence|seq|problem|example|sample)(?:{_NUMBER})?"
    rf"|(?:prompt|document|doc|text|context|question){_NUMBER}",
    "layer": rf"layer(?:{_NUMBER})?",
    "position": rf"(?:token_?)?(?:position|pos)(?:{_NUMBER})?",
    "token_index": "token_?(?:index|idx)",
    "token_id": "(?:token|input)_?id|token",
}
_MAY_BE_TEXT = {"sequence", "seq", "problem", "example", "sample", "token"}


def last_part(name: str) -> str:
    """The last part of a dotted name in the singular: ``problem_id`` for ``metadata.problem_ids``."""
    word = name.rsplit(".", 1)[-1].lower().replace("-", "_")
    word = re.sub("(?:indices|indexes)$", "index", word)
    return word if word.endswith("pos") else word.removesuffix("s")


def plays(role: str, name: str) -> bool:
    """Whether a column of this name plays the role (one of ``ROLES``)."""
    return bool(re.fullmatch(_WORDS[role], last_part(name)))


def may_be_text(name: str) -> bool:
    """Whether a column of this name may hold text instead of ids."""
    return last_part(name) in _MAY_BE_TEXT


def find_role(role: str, names: Iterable[str], keys: Mapping[str, str], where: Path) -> str | None:
    """The name that plays the role: the one in ``keys``, or else the one that matches; None for none.

    Raises UserError when the name in ``keys`` does not exist, or when several names match.
    """
    names = list(names)
    if role in keys:
        return None if keys[role] == NONE else _asked(role, names, keys[role], where)
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
    lines = "\n".join(f"  {name}: {kind}" for name, kind in contents.items())
    raise UserError(f"{where}: {what}; it has\n{lines or '  nothing'}")


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
