"""The settings of the phase ``labels``."""

from typing import Annotated, Literal

from pydantic import Field

from raysae.config.section import Positive, Section, Size

Count = Annotated[int, Field(ge=0, le=1000)]


class LabelsSettings(Section):
    """How features are labelled."""

    splits: Annotated[tuple[Literal["train", "validation", "test"], ...], Field(min_length=1)] = (
        "train", "validation",
    )  # fmt: skip
    """The splits of the store whose rows are read."""
    rows: Size = 1_000_000
    """Rows of a site that are read, about: whole shards, from the first on, of each split its share."""
    features: Positive = 512
    """Live features of a site that get contexts, at most: those of the largest density times maximum
    activation. Figures are made of all."""
    top: Annotated[int, Field(ge=2, le=1000)] = 12
    """Contexts of the largest activations of each feature, each of another sequence."""
    bands: Annotated[int, Field(ge=1, le=100)] = 4
    """Bands of equally many activations of a feature, from which contexts are drawn, too."""
    per_band: Count = 3
    """Contexts that are drawn from each band."""
    window: Count = 12
    """Tokens shown before and after a context's token."""
    tokens: Positive = 10
    """Tokens listed of each feature: the most frequent, the promoted and the suppressed ones."""
    alike: Count = 5
    """Features of the same SAE listed with each, by the cosine of their decoder directions."""
    lens: Literal["auto", "always", "never"] = "auto"
    """Whether to load the model for the tokens that a feature promotes; auto does where it has at most
    500 million parameters."""
    attributes: tuple[str, ...] = ()
    """Columns of the data set, and attributes of its texts, whose correlation with features is told,
    beside those of single tokens."""
    describer_url: str | None = None
    """An OpenAI-compatible endpoint that describes features, such as ``http://HOST:8000/v1``; null for no
    descriptions. A key is read from the environment variable RAYSAE_DESCRIBER_KEY."""
    describer_model: str | None = None
    """The name of the endpoint's model."""
    describer_features: Positive = 16
    """Features of a site that are described, at most, from the first of those with contexts."""
    describer_examples: Annotated[int, Field(ge=4, le=100)] = 10
    """Contexts with the feature, and as many without it, among which the endpoint must tell it."""
    describer_timeout: Annotated[float, Field(gt=0, le=3600)] = 60.0
    """Seconds that one request may take."""
    describer_retries: Count = 2
    """How often a request that failed is sent again."""
