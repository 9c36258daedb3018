"""What is worth knowing of an extraction's texts: cut, repeated, much alike, left out."""

from collections.abc import Iterator, Mapping

from raysae.config.source import SourceConfig
from raysae.transformer.repeats import NEARLY

MANY = 0.05
"""Share of a position's held-out rows from which it is said that they repeat training rows."""


def text_notes(
    source: SourceConfig, counts: Mapping[str, int], repeated_rows: Mapping[str, float]
) -> Iterator[str]:
    """Yield a sentence for each thing that was found, in the order of the work.

    ``counts`` and ``repeated_rows`` are those of a ``TokenPlan``.
    """
    texts = counts["documents"]
    if counts["cut"]:
        done = "were cut there" if source.cut == "end" else "lost their beginning"
        yield (
            f"{counts['cut']:,} of {texts:,} texts are longer than {source.context_length} tokens and "
            f"{done}"
        )
    if counts.get("double_bos"):
        yield (
            f"{_number(counts['double_bos'], 'sequence')} with two BOS tokens at the start: the text "
            "has one already, and the tokenizer adds one; take it out of the texts"
        )
    yield from _repeats(source, counts)
    yield from _near_duplicates(counts)
    many = [f"{p} ({share:.0%})" for p, share in repeated_rows.items() if share >= MANY]
    if many:
        yield (
            f"held-out rows that come after the same tokens as a training row: at {', '.join(many)}; to "
            "a model that reads from left to right they are the same rows, and held-out figures there "
            "look better than on new texts"
        )
    if counts["too_short"]:
        yield (
            f"{_number(counts['too_short'], 'sequence')} left out: too short for the positions, "
            "or no pattern matches"
        )


def _repeats(source: SourceConfig, counts: Mapping[str, int]) -> Iterator[str]:
    repeated, texts = counts.get("repeated", 0), counts["documents"]
    if not repeated:
        return
    done = "they were left out (source.repeats=drop)"
    if source.repeats == "keep":
        apart = counts.get("repeated_apart", 0)
        done = "they are in its split"
        if apart:
            done = f"{apart:,} of them are in another split, as {source.split_by} decides it"
        done += "; source.repeats=drop leaves them out"
    yield f"{repeated:,} of {texts:,} texts repeat an earlier one; {done}"


def _near_duplicates(counts: Mapping[str, int]) -> Iterator[str]:
    near, leaked = counts.get("near_duplicates", 0), counts.get("near_training", 0)
    if not near:
        return
    held_out = ""
    if leaked:
        held_out = (
            f"; {leaked:,} of the held-out ones nearly repeat a training text: held-out figures look "
            "better than on new texts, unless a column of groups decides the split (source.split_by)"
        )
    yield (
        f"{near:,} of {counts['documents']:,} texts nearly repeat an earlier one (about {NEARLY:.0%} of "
        f"the word pairs are the same, all numbers taken as one){held_out}"
    )


def _number(count: int, what: str) -> str:
    return f"{count:,} {what}{'s' * (count != 1)}"
