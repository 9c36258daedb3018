"""Figures do not depend on a constant that is added to the rows: every variant, every path."""

import pytest
import torch

import raysae
from raysae.activations.schema import torch_dtype
from raysae.sae.metrics import evaluate
from raysae.training import TrainingConfig
from raysae.training.ensemble import Member, train_members
from raysae.training.rows import Rows
from raysae.training.statistics import input_statistics

VARIANTS = {
    "topk": {"k": 4},
    "batch_topk": {"k": 4},
    "matryoshka": {"k": 4},
    "jumprelu": {"l0_coefficient": 0.5},
    "gated": {"l1_coefficient": 1.0},
    "relu_l1": {"l1_coefficient": 1.0},
}
TRAINING = {"epochs": 8, "batch_size": 128, "lr": 4e-3, "evaluations": 2}
D_IN = 16


def drawn(count, seed):
    generator = torch.Generator().manual_seed(seed)
    atoms = torch.randn(24, D_IN, generator=torch.Generator().manual_seed(99))
    active = torch.rand(count, 24, generator=generator) < 0.15
    return (active * torch.rand(count, 24, generator=generator)) @ (atoms / 4)


X, V = drawn(2000, 0), drawn(400, 1)
SPREAD = float((X - X.mean(dim=0)).square().sum(dim=1).mean().sqrt())


def added(size, direction="one"):
    """A constant of ``size`` times the spread, in one dimension or in all."""
    if direction == "one":
        row = torch.zeros(D_IN)
        row[3] = 1.0
    else:
        row = torch.nn.functional.normalize(
            torch.randn(D_IN, generator=torch.Generator().manual_seed(8)), dim=0
        )
    return size * SPREAD * row


def config(variant):
    return {"variant": variant, "d_sae": 32, **VARIANTS[variant]}


def fitted(variant, offset, train=None, validation=None, **training):
    rows = X + offset if train is None else train
    held_out = V + offset if validation is None else validation
    return raysae.fit(
        config(variant), rows, {**TRAINING, **training}, validation=held_out, progress=False
    )


def ev(fit):
    return fit.metrics["explained_variance"]


@pytest.fixture(scope="module")
def plain():
    """The explained variance of each variant without a constant, by variant."""
    found = {variant: ev(fitted(variant, torch.zeros(D_IN))) for variant in VARIANTS}
    assert min(found.values()) > 0.5
    return found


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("size", [3, 10, 30, 100])
def test_fit(plain, variant, size):
    one, other = (fitted(variant, added(size, kind)) for kind in ("one", "all"))
    assert ev(one) == pytest.approx(plain[variant], abs=0.01)
    assert ev(other) == pytest.approx(plain[variant], abs=0.01)
    assert one.metrics["l0"] == pytest.approx(other.metrics["l0"], abs=0.1)
    assert one.metrics["mean_ratio"] == pytest.approx(size, rel=0.2, abs=1)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_saved_sae_reads_rows_as_they_are(plain, variant, tmp_path):
    offset = added(100, "all")
    fit = fitted(variant, offset)
    fit.sae.save(tmp_path / "sae")
    loaded = raysae.load_sae(tmp_path / "sae")
    found = evaluate(lambda x: loaded(x)[:2], [V + offset]).metrics()
    assert found["explained_variance"] == pytest.approx(ev(fit), abs=1e-5)
    assert found["l0"] == pytest.approx(fit.metrics["l0"], abs=0.01)
    assert float(loaded.b_dec.norm()) == pytest.approx(100 * SPREAD, rel=0.05)
    assert loaded(V + offset).metrics["explained_variance"] == pytest.approx(ev(fit), abs=1e-5)


@pytest.mark.parametrize("variant", ["topk", "batch_topk", "gated"])
def test_bfloat16_products(variant):
    near, far = (fitted(variant, added(size), precision="bfloat16") for size in (0, 100))
    assert ev(far) == pytest.approx(ev(near), abs=0.01)


@pytest.mark.parametrize("variant", ["topk", "batch_topk"])
@pytest.mark.parametrize("k", [4, 16])
def test_compiled_and_reference_steps(variant, k):
    offset, settings = added(100), {"variant": variant, "d_sae": 32, "k": k}
    both = [
        raysae.fit(settings, X + offset, {**TRAINING, "compiled": compiled}, validation=V + offset,
                   progress=False)
        for compiled in (True, False)
    ]  # fmt: skip
    assert ev(both[0]) == pytest.approx(ev(both[1]), abs=0.003)


@pytest.mark.parametrize("pack", [True, False])
@pytest.mark.parametrize("variant", ["topk", "batch_topk"])
def test_sites_with_means_of_their_own_in_one_program(plain, variant, pack):
    offsets = [added(0), added(10, "all"), -added(100)]
    fits = raysae.fit_many(
        config(variant), [X + offset for offset in offsets], TRAINING,
        validation=[V + offset for offset in offsets], pack=pack, progress=False,
    )  # fmt: skip
    for fit, offset in zip(fits, offsets, strict=True):
        assert ev(fit) == pytest.approx(plain[variant], abs=0.01)
        found = evaluate(fit.sae.reconstruct, [V + offset]).metrics()
        assert found["explained_variance"] == pytest.approx(ev(fit), abs=1e-5)


@pytest.mark.parametrize("variant", ["topk", "jumprelu"])
def test_an_iterator(variant):
    def batches(offset):
        return iter((X + offset).repeat(8, 1).split(100))

    settings = {"tokens": 16_000, "shuffle_rows": 2000}
    near, far = (
        raysae.fit(config(variant), batches(offset), {**TRAINING, "epochs": 1, **settings},
                   validation=V + offset, progress=False)
        for offset in (added(0), added(100))
    )  # fmt: skip
    assert ev(far) == pytest.approx(ev(near), abs=0.01) and ev(near) > 0.5


@pytest.mark.parametrize(("dtype", "size"), [("float16", 10), ("bfloat16", 3)])
def test_half_precision_rows_lose_no_more_than_their_rounding(dtype, size):
    """What the number format destroys is data: noise of known size, which no SAE explains."""
    offset, kept = added(size), torch_dtype(dtype)
    train, held_out = (X + offset).to(kept), (V + offset).to(kept)
    noise = float((held_out.float() - (V + offset)).square().sum() / (V - V.mean(0)).square().sum())
    near, far = fitted("gated", added(0)), fitted("gated", offset, train, held_out)
    assert ev(far) == pytest.approx(ev(near), abs=0.01 + 2 * noise)


@pytest.mark.parametrize("compiled", [True, False])
def test_resumed_to_the_bit(tmp_path, compiled):
    offset = added(100)
    training = TrainingConfig(**TRAINING, compiled=compiled)

    def member(folder=None):
        rows = Rows(X + offset), Rows(V + offset)
        return Member(raysae.sae.sae_config(config("topk")), training, *rows, checkpoint=folder)

    (whole,) = train_members([member()])

    class CutOffError(Exception):
        pass

    taken = []

    def cut(tokens):
        taken.append(tokens)
        if len(taken) == 60:
            raise CutOffError

    with pytest.raises(CutOffError):
        list(train_members([member(tmp_path / "saved")], checkpoint_seconds=0, after_batch=cut))
    (resumed,) = train_members([member(tmp_path / "saved")])
    assert resumed.history == whole.history
    for name, tensor in whole.trainer.sae().state_dict().items():
        assert torch.equal(tensor, resumed.trainer.sae().state_dict()[name]), name


def test_the_same_coefficient_means_the_same_in_other_units_and_places():
    l0 = [
        fitted("relu_l1", 0.0, (X + added(30)) * unit, (V + added(30)) * unit).metrics["l0"]
        for unit in (1.0, 1000.0, 0.001)
    ]
    assert l0 == pytest.approx([l0[0]] * 3, abs=0.05)


def test_sorted_rows_are_surveyed_all_over(monkeypatch):
    monkeypatch.setattr("raysae.training.statistics.SURVEY_ROWS", 8192)
    rows = torch.cat([torch.randn(20_000, 4), torch.randn(20_000, 4) + 10])
    found = input_statistics(Rows(rows), Rows(rows[:10]), 0, TrainingConfig())
    assert found.mean_D.tolist() == pytest.approx([5.0] * 4, abs=0.2)


@pytest.mark.parametrize(
    ("variant", "to"),
    [
        ("topk", "saelens"), ("batch_topk", "saelens"), ("jumprelu", "saelens"),
        ("gated", "saelens"), ("relu_l1", "saelens"), ("topk", "sparsify"),
        ("topk", "dictionary_learning"), ("jumprelu", "dictionary_learning"),
        ("gated", "dictionary_learning"), ("relu_l1", "dictionary_learning"),
    ],
)  # fmt: skip
def test_an_exported_sae_has_the_mean_in_its_weights(variant, to, tmp_path):
    offset = added(100, "all")
    fit = fitted(variant, offset, epochs=2)
    raysae.sae.export_sae(fit.sae, tmp_path / "out", to)
    loaded = raysae.load_sae(tmp_path / "out", format=to)
    x = V + offset
    found, own = (evaluate(sae.reconstruct, [x]).metrics() for sae in (loaded, fit.sae))
    assert found["explained_variance"] == pytest.approx(own["explained_variance"], abs=2e-3)


def test_rows_without_spread_say_so():
    rows = torch.full((300, D_IN), 7.3)
    fit = fitted("topk", 0.0, rows, rows[:20])
    training = fit.sae.metadata["training"]
    assert training["input_scale"] == 1.0 and torch.isnan(torch.tensor(fit.metrics["mean_ratio"]))
    assert torch.allclose(fit.sae(rows[:1]).reconstruction, rows[:1], atol=1e-4)
