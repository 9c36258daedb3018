"""Secrets in texts: found, hidden, refused. Whatever raysae prints or records goes through ``redacted``.

A secret is the user part of a URI (``http://user:password@host``, ``s3://KEY:SECRET@bucket``,
``https://TOKEN@host``), a URI's option such as ``?secret_key=...``, the value of a name such as
``password=...`` or ``--token ...``, and what this process has in variables such as HF_TOKEN. The user's
name alone is shown where it cannot be a secret: beside a password, or in an address such as
``postgresql://user@host`` or ``abfss://container@account``, whose user part is never a token.
"""

import base64
import binascii
import os
import re
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any
from urllib.parse import quote, quote_plus, unquote

HIDDEN = "***"
SHORTEST, LONGEST_WORD = 8, 11
"""Characters of a secret of the environment, at least, where it stands alone in a text: a shorter one, or
small letters alone up to the second number, may be a word (``password``, ``minioadmin``)."""
LOCAL = ("file", "sqlite", "sqlite+pysqlite")
"""Schemes whose addresses have no host: what follows three slashes is a path."""
NAMED = (
    "abfs", "abfss", "wasb", "wasbs", "ssh", "sftp", "hdfs", "postgres", "postgresql", "mysql", "mariadb",
    "mssql", "oracle",
)  # fmt: skip
"""Schemes in which a user without a password is a name (of a user, or of Azure's container)."""
SERVERS = ("http", "https", "ftp", *NAMED)
"""Schemes in which the user beside a password is a name; beside S3's secret it is a key."""
WHERE_SECRETS_BELONG = (
    "leave it out there and give it in the environment: for MLflow MLFLOW_TRACKING_USERNAME and "
    "MLFLOW_TRACKING_PASSWORD, or the whole address in MLFLOW_TRACKING_URI; for S3 an AWS profile, or "
    "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY; for Hugging Face HF_TOKEN, or the token file that "
    "'hf auth login' writes"
)
"""What a refusal says about secrets."""
FREE_TEXT = ("text", "patterns")
"""The keys of a recipe's source whose values are texts of the user's own and regular expressions."""
LONGEST_SCHEME, LONGEST_ADDRESS = 64, 65_536
"""Characters that are looked at, at most, before and after the slashes of a URI."""
SCHEME = re.compile(r"(?:[A-Za-z][A-Za-z0-9+.-]*)?\Z")
NAME = re.compile(r"(?!hf_|gh[a-z]_|glpat)[a-z]+(?:[._-][a-z]+)*\d{0,3}")
LONGEST_NAME = 20
TOKEN_SHAPES = re.compile(
    r"\b(?:hf_[A-Za-z0-9]{30,}|gh[pousr]_[A-Za-z0-9]{30,}|github_pat_\w{30,}|glpat-[\w-]{20,}"
    r"|A[KS]IA[A-Z0-9]{16})\b"
)
SECRET_NAME = re.compile(
    r"(?:password|passwd|passphrase|pwd|secret|(?:secret|access|api|private|account|storage)key"
    r"|accesskeyid|token|signature|credentials?|authorization|cookie|sharedkey)$"
)
SHORT_NAMES = ("sig", "sas", "auth", "pass", "pw")
"""Words that make a name secret where they stand alone, or last, as in ``db_pw``."""
HARMLESS_NAME = re.compile(
    r"(?:^|[^a-z])(?:pad|bos|eos|unk|mask|sep|cls|special|per|a)[-_ ]?token$"
)
URI = re.compile(
    r"(?P<scheme>(?<![A-Za-z0-9+.-])[A-Za-z][A-Za-z0-9+.-]*:|(?<![:/\\\w]))(?P<slashes>(?:\\?/)+)"
    # a password that itself has a slash: what follows the colon is no port
    r"(?P<user>[^/?#\s:]*:(?!\d{1,5}(?:[/?#\s'\"),;\]}<>\\]|$))\S*|[^/?#\s]*)@"
)
ENCODED = re.compile(
    r"(%(?:25)*3A(?:%(?:25)*2F){2})(?:(?!%(?:25)*2F|[&\s]).)*%(?:25)*40", re.IGNORECASE
)
"""A URI inside an option of another, percent-encoded once or more."""
BARE = re.compile(r"(?<![\w@./:%+~-])[\w.%+~-]+:[^\s:@/'\"]+@(?=[\w\[])")
"""``user:password@host`` without a scheme."""
GIVEN = re.compile(r"(?<![A-Za-z0-9_.-])(?P<name>[A-Za-z0-9_.-]+)(?:=|%(?:25)*3D)", re.IGNORECASE)
"""``name=value``, plain or percent-encoded."""
QUOTED = re.compile(r"(?<!\\)(?P<quote>\\*['\"])(?P<name>[\w.-]+)(?P=quote)\s*:\s*(?=b?\\*['\"])")
"""``"name": "value"`` of JSON, and of a dict that Python printed."""
OPTION = re.compile(r"(?<![\w-])--?(?P<name>[A-Za-z][\w.-]*)\s+(?!-)")
"""``--name value``."""
VALUE = re.compile(r"b?\\*\"[^\"]*\"|b?\\*'[^']*'|(?:(?!%(?:25)*26)[^\s&;'\"<>])+", re.IGNORECASE)
HEADER = re.compile(
    r"((?:authorization:\s*(?:(?:basic|bearer|token)\s+)?+)|\bbearer\s+(?=\S{16})"
    r"|\bbasic\s+(?=[A-Za-z0-9+/]*[0-9=])(?=\S{12}))(?!\*\*\*)[^\s'\",]+",
    re.IGNORECASE,
)


def redacted(text: str) -> str:
    """The text, with every secret in it as ``***``."""
    for secret in _secrets_of_environment():
        text = text.replace(secret, HIDDEN)
    if "@" in text:
        text = BARE.sub(_hidden_bare, URI.sub(_hidden_user, text))
    if "%" in text:
        text = ENCODED.sub(rf"\1{HIDDEN}%40", text)
    for pattern in (GIVEN, QUOTED, OPTION):
        text = _hidden_values(pattern, text)
    return TOKEN_SHAPES.sub(HIDDEN, HEADER.sub(rf"\1{HIDDEN}", text))


def redacted_values(value: Any) -> Any:
    """Nested lists and mappings, with the secrets in their texts hidden; keys stay."""
    if isinstance(value, str):
        return redacted(value)
    if isinstance(value, Mapping):
        return {
            key: HIDDEN
            if isinstance(item, str) and is_secret_name(str(key))
            else redacted_values(item)
            for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [redacted_values(item) for item in value]
    return value


def redacted_command(words: Sequence[str]) -> list[str]:
    """The words of a command line, with the secrets hidden; ``--token X`` hides X."""
    shown, hide = [], False
    for word in words:
        shown.append(HIDDEN if hide and not word.startswith("-") else _whole(word))
        hide = word.startswith("-") and "=" not in word and is_secret_name(word.lstrip("-"))
    return shown


def first_line(error: BaseException) -> str:
    """The first line of the error's text (its kind, if it has none), with secrets hidden."""
    text = str(error).strip()
    return redacted(text.splitlines()[0] if text else type(error).__name__)


def traceback_of(error: BaseException) -> str:
    """The error's traceback, with secrets hidden."""
    return redacted("".join(traceback.format_exception(error)))


@contextmanager
def redacted_errors() -> Iterator[None]:
    """Replace an exception of the block that has a secret in its text: Ray writes it to its logs.

    Raises RuntimeError with the same text, its secrets hidden.
    """
    try:
        yield
    except Exception as error:
        said = "".join(traceback.format_exception(error))
        if redacted(said) == said:
            raise
        raise RuntimeError(redacted(f"{type(error).__name__}: {error}")) from None


def secret_in(value: str, is_text: bool = False) -> str | None:
    """What secret the value of a setting or of an argument holds, in words; None for none.

    ``is_text``: the value is free text or a pattern; only what is clearly a URI with a secret counts.
    """
    for form in dict.fromkeys((value, unquote(value), unquote(unquote(value)))):
        if _has_user(form, is_text):
            return "a user name, password or token"
        option = _secret_option(form, is_text)
        if option is not None:
            return f"the secret option {option}"
    return None


def is_free_text(key: str) -> bool:
    """Whether the values of a recipe's dotted key are texts or regular expressions."""
    return any(part in FREE_TEXT for part in key.split("."))


def secrets_in(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """The dotted keys of a recipe's nested values that hold secrets, each with what it holds in words.

    ``key`` is the key of the whole ``value``.
    """
    if isinstance(value, str | os.PathLike):
        found = secret_in(str(value), is_free_text(key))
        if found is not None:
            yield key, found
    elif isinstance(value, Mapping):
        for name, item in value.items():
            yield from secrets_in(item, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list | tuple | set):
        for item in value:
            yield from secrets_in(item, key)


def without_secrets(value: Any, key: str = "") -> Any:
    """A recipe's nested values without their secrets: URIs without user part and secret options."""
    if isinstance(value, str):
        return without_secret(value) if secret_in(value, is_free_text(key)) else value
    if isinstance(value, Mapping):
        return {
            name: without_secrets(item, f"{key}.{name}" if key else str(name))
            for name, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [without_secrets(item, key) for item in value]
    return value


def without_secret(uri: str) -> str | None:
    """The URI without its user part and secret options; None when a secret is still in it."""
    kept = re.sub(r"(:/{1,2})[^/?#]*@", r"\1", uri, count=1)
    base, mark, options = kept.partition("?")
    pairs = [
        pair for pair in re.split("[&;]", options) if not _secret_option(f"x://?{pair}", False)
    ]
    kept = f"{base}{mark if pairs != [''] and pairs else ''}{'&'.join(pairs)}"
    return None if secret_in(kept) else kept


def is_secret_name(name: str) -> bool:
    """Whether a value of this name (of an option, a key, a variable) is a secret."""
    lower = name.lower()
    if HARMLESS_NAME.search(lower):
        return False
    last = re.split(r"[^a-z]+", lower)[-1]
    return SECRET_NAME.search(re.sub(r"[^a-z]", "", lower)) is not None or last in SHORT_NAMES


def _is_secret(name: str, value: str) -> bool:
    """Whether ``name=value`` is a secret: PWD may be a password, or the folder of a shell."""
    folder = name.upper() in ("PWD", "OLDPWD") and value.startswith("/")
    return is_secret_name(name) and not folder


def _whole(word: str) -> str:
    """A word of a command line: its URI may hold spaces, which ends a URI in other texts."""
    found = re.search(r":/{1,2}(?=\S)", word)
    rest = word[found.end() :] if found else ""
    if found and re.search(r"\s", rest.partition("@")[0]) and "@" in rest:
        return redacted(f"{word[: found.end()]}{HIDDEN}@{rest.rpartition('@')[2]}")
    return redacted(word)


def _hidden_user(found: re.Match[str]) -> str:
    scheme, slashes, user = found["scheme"].rstrip(":").lower(), found["slashes"], found["user"]
    if _is_harmless(scheme, slashes, user):
        return found[0]
    name = f"{user.partition(':')[0]}:" if _is_name(scheme, user) else ""
    return f"{found['scheme']}{slashes}{name}{HIDDEN}@"


def _is_name(scheme: str, user: str) -> bool:
    """Whether what stands before a password is a name and surely no token."""
    name, _, password = user.partition(":")
    served = scheme.partition("+")[0] in SERVERS and password not in ("", "x-oauth-basic")
    return served and len(name) <= LONGEST_NAME and NAME.fullmatch(name) is not None


def _is_harmless(scheme: str, slashes: str, user: str) -> bool:
    """Whether what stands before ``@`` in a URI is no secret."""
    if scheme in LOCAL and slashes.count("/") > 2:
        return True
    if not scheme and (":" not in user or slashes.count("/") != 2):
        return True
    return not user or (":" not in user and scheme.partition("+")[0] in NAMED)


def _hidden_bare(found: re.Match[str]) -> str:
    return found[0] if HIDDEN in found[0] else f"{HIDDEN}@"


def _hidden_values(pattern: re.Pattern[str], text: str) -> str:
    """The text with values hidden whose names, as ``pattern`` finds them, say that they are secret."""
    parts, end = [], 0
    for found in pattern.finditer(text):
        if found.start() < end or not is_secret_name(found["name"]):
            continue
        value = VALUE.match(text, found.end())
        if value is not None and _is_secret(found["name"], value[0]):
            quote = value[0][-1] if value[0][-1] in "'\"" else ""
            parts += [text[end : found.end()], f"{quote}{HIDDEN}{quote}"]
            end = value.end()
    return "".join([*parts, text[end:]])


def _has_user(value: str, is_text: bool) -> bool:
    """Whether a URI in ``value`` has a user part that may be a secret."""
    for found in re.finditer(r":?/{1,3}(?=[^/])", value):
        before = value[max(found.start() - LONGEST_SCHEME, 0) : found.start()]
        named, slashes = SCHEME.search(before), found[0].replace(":", "")
        scheme = named[0].lower() if named else ""
        if not found[0].startswith(":") and (len(slashes) != 2 or scheme):
            continue
        rest = value[found.end() : found.end() + LONGEST_ADDRESS]
        user = _user_of(rest, is_text)
        if user is not None and not _is_harmless(scheme, slashes, user):
            return True
    bare = r"[^\s/:@]+:[^\s@/]+@[\w.-]+(?::\d+)?(?:/.*)?"
    return not is_text and re.fullmatch(bare, value) is not None


def _user_of(rest: str, is_text: bool) -> str | None:
    """What stands before ``@`` in a URI whose part after the slashes is ``rest``; None for nothing."""
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
    if "@" in authority:
        user = authority.rpartition("@")[0]
        return user if not is_text or re.fullmatch(r"[\w.~%!$:+-]+", user) else None
    colon = ":" in authority and not re.search(r":\d{1,5}$", authority)
    if colon and "@" in rest and not is_text and not re.search(r"\s", rest):
        return rest.rpartition("@")[0]
    return None


def _secret_option(value: str, is_text: bool) -> str | None:
    """The name of the first option of a URI in ``value`` whose value is a secret."""
    _, _, options = value.partition("?")
    if "://" not in value.partition("?")[0]:
        return None
    for found in GIVEN.finditer(options):
        name, given = found["name"], VALUE.match(options, found.end())
        filled_in = is_text and given is not None and given[0].startswith("{")
        if given and not filled_in and (is_secret_name(name) or (name == "key" and not is_text)):
            return name
    return None


def _secrets_of_environment() -> tuple[str, ...]:
    """The secrets in this process's environment, in the forms that texts have them; longest first."""
    return _secrets_of(tuple(os.environ.items()))


@lru_cache(maxsize=4)
def _secrets_of(environment: tuple[tuple[str, str], ...]) -> tuple[str, ...]:
    found: set[str] = set()
    for name, value in environment:
        if "@" in value or "://" in value:
            found |= _of_uri(value)
        if is_secret_name(name) and _is_secret(name, value) and not _is_file(value):
            found.add(value)
            user = dict(environment).get(re.sub("PASSWORD$", "USERNAME", name))
            found |= {f"{user}:{value}"} if user and user != value else set()
    forms = {form for secret in found for form in _forms(secret)}
    forms -= {form for form in forms if ":" in form and form.partition(":")[2] in forms}
    return tuple(sorted(filter(_is_unlike_a_word, forms), key=lambda form: (-len(form), form)))


def _is_unlike_a_word(form: str) -> bool:
    small = form.isalpha() and form.islower()
    return len(form) > LONGEST_WORD if small else len(form) >= SHORTEST


def _is_file(value: str) -> bool:
    """Whether the value of a variable such as GOOGLE_APPLICATION_CREDENTIALS names a file."""
    return value.startswith(("~/", "/", "./")) and value.count("/") > 1 and "." in value


def _of_uri(value: str) -> set[str]:
    """The secrets in the user parts and options of the URIs in ``value``."""
    found = set()
    for one in URI.finditer(value):
        scheme, user = one["scheme"].rstrip(":").lower(), one["user"]
        if not _is_harmless(scheme, one["slashes"], user):
            name, _, password = user.partition(":")
            found |= {user, password} | (set() if _is_name(scheme, user) else {name})
    for bare in BARE.finditer(value):
        found |= {bare[0][:-1], bare[0][:-1].partition(":")[2]}
    for given in GIVEN.finditer(value):
        option = VALUE.match(value, given.end())
        if option is not None and is_secret_name(given["name"]):
            found.add(option[0].strip("'\""))
    return found


def _forms(secret: str) -> Iterator[str]:
    """A secret as it is, decoded, percent-encoded, and in base64."""
    for plain in dict.fromkeys((secret, unquote(secret))):
        yield plain
        yield quote(plain, safe="")
        yield quote_plus(plain)
        try:
            yield base64.b64encode(plain.encode()).decode().rstrip("=")
        except (UnicodeEncodeError, binascii.Error):
            continue
