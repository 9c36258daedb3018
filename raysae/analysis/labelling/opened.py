"""What labelling needs beside an atlas's SAEs, opened once in a process: texts, token names, the lens."""

from typing import TYPE_CHECKING

from raysae.analysis.labelling.lens import Lens
from raysae.analysis.labelling.texts import Texts, numbers_of
from raysae.analysis.labelling.token_names import TokenNames
from raysae.analysis.subject import Subject
from raysae.errors import UserError
from raysae.remembered import remembered

if TYPE_CHECKING:
    from raysae.analysis.phase import Alive

LENS_PARAMETERS = 500e6
"""Parameters of a model, at most, that is loaded for the lens unasked."""
RESIDUAL = ("resid_pre", "resid_post", "attn_out", "mlp_out")
"""Hookpoints whose values are in, or added to, the residual stream."""


_texts: dict[tuple[Subject, tuple[str, ...]], Texts] = {}
"""The texts that were opened last."""


def texts_of(subject: Subject, columns: tuple[str, ...], alive: "Alive") -> Texts:
    """The store's texts, with attributes of sequences. Raises UserError for an unknown attribute."""
    if (subject, columns) not in _texts:
        opened = _opened(subject, columns, alive)
        _texts.clear()
        _texts[subject, columns] = opened
    return _texts[subject, columns]


def _opened(subject: Subject, columns: tuple[str, ...], alive: "Alive") -> Texts:
    found: dict[str, dict[int, float]] = {}
    if columns:
        from raysae.analysis.attributes import read_attributes

        splits = ("train", "validation", "test")
        sequences = (one for split in splits for one in subject.sequences(split))
        for name, attribute in read_attributes(subject, columns, sequences, alive).items():
            numbers = numbers_of(attribute.values)
            found |= {f"{name}{value}": values for value, values in numbers.items()}
    return Texts(subject.store, found, alive)


@remembered(maxsize=1)
def names_of(subject: Subject) -> TokenNames:
    """The tokens' names by the store's own tokenizer, where it is at hand."""
    from raysae.extraction.plan import model_spec
    from raysae.transformer.loading import load_tokenizer
    from raysae.transformer.tokens import tokenizer_hash

    known = (subject.store.manifest.model or {}).get("tokenizer_sha256")
    try:
        tokenizer = load_tokenizer(model_spec(subject.source))
    except UserError:
        return TokenNames()
    return TokenNames(tokenizer if known in (None, tokenizer_hash(tokenizer)) else None)


@remembered(maxsize=1)
def lens_of(subject: Subject, wanted: str) -> Lens | str:
    """The end of the language model, or why there is none; ``wanted`` is the setting ``lens``."""
    if wanted == "never":
        return "labels.lens=never"
    try:
        if wanted == "auto":
            parameters = parameters_of(subject)
            if parameters > LENS_PARAMETERS:
                return (
                    f"the model has {parameters:,} parameters, more than {LENS_PARAMETERS:,.0f}, and is "
                    "loaded for it only with labels.lens=always"
                )
        return Lens(subject.transformer.model)
    except UserError as error:
        return str(error)


def parameters_of(subject: Subject) -> int:
    """The parameters of the subject's model, which is not loaded. Raises UserError without one."""
    from raysae.extraction.plan import model_spec
    from raysae.transformer.loading import empty_model, load_model_config

    spec = model_spec(subject.source)
    return sum(p.numel() for p in empty_model(load_model_config(spec), spec).parameters())


def why_no_residual(subject: Subject, hookpoint: str | None) -> str | None:
    """Why the values of a hookpoint are none of the residual stream; None when they are."""
    name = hookpoint or subject.store.manifest.hookpoint
    return None if name in RESIDUAL else f"the hookpoint {name} is not in the residual stream"
