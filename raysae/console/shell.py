"""Commands as they are printed: whatever is in a path, a shell takes them as they stand."""

import shlex
from pathlib import Path

from raysae.redaction import redacted

LOCAL = ("sqlite:", "file:")


def command_line(*words: str | Path) -> str:
    """The words as one line for a shell, each in quotes where it needs them."""
    return " ".join(_quoted(_word(word)) for word in words)


def raysae_command(verb: str, *words: str | Path) -> str:
    """The line that runs ``python -m raysae.VERB`` with these words."""
    return command_line("python", "-m", f"raysae.{verb}", *words)


def look_at_records(tracking_uri: str) -> str:
    """How to look at MLflow's records: a command for a local file or folder, else their address."""
    address = redacted(tracking_uri)
    if tracking_uri.startswith(LOCAL) or "://" not in tracking_uri:
        return command_line("mlflow", "ui", "--backend-store-uri", address)
    return address


def look_at_store(store: str | Path, live: bool = False) -> str:
    """The lines that say what may be done next with a store; a ``live`` one needs its source."""
    sweep = raysae_command("sweep", "source=null", f"store={store}", "name=NAME")
    if live:
        sweep = "the same recipe, with python -m raysae.sweep"
    return (
        f"  look:   {raysae_command('store', 'show', store)}\n"
        f"  check:  {raysae_command('store', 'verify', store)}\n"
        f"  sweep:  {sweep}"
    )


def _quoted(word: str) -> str:
    """The word in quotes where it needs them; with control characters, in the quotes ``$'...'``."""
    if word.isprintable():
        return shlex.quote(word)
    return "$'" + "".join(map(_byte_escapes, word)) + "'"


def _byte_escapes(character: str) -> str:
    if character.isprintable():
        return f"\\{character}" if character in "\\'" else character
    return "".join(f"\\x{byte:02x}" for byte in character.encode("utf-8", "surrogateescape"))


def _word(word: str | Path) -> str:
    """The word; a path that looks like an option is made to look like a path."""
    text = str(word)
    return f"./{text}" if isinstance(word, Path) and text.startswith("-") else text
