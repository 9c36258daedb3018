"""Names and texts of others as they may be shown: nothing in them steers a terminal, a page or a log."""


def printable(text: str, lines: bool = False) -> str:
    """The text with control, invisible and direction-changing characters as escapes such as ``\\x1b``.

    Bytes of a file's name that are no UTF-8 become escapes, too. With ``lines``, ends of lines stay as
    they are; without, they are escaped.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or (lines and c == "\n") else _escaped(c) for c in text)


def shortened(text: str, longest: int) -> str:
    """The text with at most ``longest`` characters: of a longer one the start and the end."""
    if len(text) <= longest:
        return text
    end = (longest - 1) // 3
    return f"{text[: longest - 1 - end]}…{text[len(text) - end :]}"


def _escaped(character: str) -> str:
    return character.encode("unicode_escape", "surrogatepass").decode()
