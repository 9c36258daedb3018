"""What the model loses with an SAE spliced in, on the texts of its own and of another store."""

from collections.abc import Callable
from typing import Any

from raysae.analysis.loss_sums import Places, Row, figures_of, rows_of_batch
from raysae.analysis.spliced_model import SplicedModel
from raysae.analysis.subject import Subject
from raysae.analysis.token_batches import texts_of
from raysae.sites import Site

SHOWN = ("ce_recovered", "ce_increase", "final_cosine_recovered")


def loss_on(
    subject: Subject, transformer: Any, site: Site, most: int, alive: Callable[[], None]
) -> dict[str, Any]:
    """``ce_recovered``, or of an encoder ``final_cosine_recovered``, of a site's SAE in the transformer
    over up to ``most`` validation texts of the subject's store, as the phase ``loss`` defines them; with
    95% intervals over texts. Empty where no text has a row at the site."""
    model = SplicedModel(transformer, subject.source.hookpoints, [site.layer])
    places = Places((site,))
    kept = model.block_before_all(places.sites)
    rows: list[Row] = []
    for batch in model.batches(texts_of(subject, "validation", most, None)):
        clean = model.clean(batch, [] if kept is None else [kept])
        rows += rows_of_batch(subject, model, clean, places, exact=False)
        alive()
    if not rows:
        return {}
    sums = [
        {
            name: value or 0.0
            for name, value in row.items()
            if not isinstance(value, str) and name not in ("layer", "sequence")
        }
        for row in rows
    ]
    found = figures_of(sums, model.model.has_head, subject.seed)
    return {"ce_texts": found["texts"], **{name: value for name, value in found.items()
            if name.startswith(SHOWN)}}  # fmt: skip
