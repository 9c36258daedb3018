"""What people give to ``fit``: taken as it is meant, or refused by the argument's name."""

import re

import numpy as np
import pandas
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import raysae
from raysae.training import NonFiniteLossError
from raysae.training.finite import NonFiniteRowsError

X = torch.randn(1000, 16, generator=torch.Generator().manual_seed(0))
V = torch.randn(100, 16, generator=torch.Generator().manual_seed(1))
SMALL = {"variant": "topk", "d_sae": 32, "k": 4}
TRAINING = {"batch_size": 100, "evaluations": 1}


def fit(train=X, validation=V, config=SMALL, training=None, **options):
    settings = {**TRAINING, **(training or {})}
    return raysae.fit(config, train, settings, validation=validation, progress=False, **options)


def refused(words, error=ValueError, **arguments):
    with pytest.raises(error, match=words) as caught:
        fit(**arguments)
    return str(caught.value)


def poisoned(rows, row, value=float("nan")):
    rows = rows.clone()
    rows[row, 2] = value
    return rows


def read_only(array):
    array.flags.writeable = False
    return array


TAKEN = {
    "numpy": lambda x: x.numpy(),
    "numpy, float64": lambda x: x.numpy().astype(np.float64),
    "numpy, read-only": lambda x: read_only(x.numpy().copy()),
    "numpy, columns first": lambda x: np.asfortranarray(x.numpy()),
    "numpy, reversed": lambda x: x.numpy()[::-1][::-1],
    "numpy, big-endian": lambda x: x.numpy().astype(">f4"),
    "list of numpy": lambda x: [x.numpy()[:30], x.numpy()[30:]],
    "list with an empty block": lambda x: [x[:30], x[:0], x[30:]],
    "tuple of tensors": lambda x: (x[:30], x[30:]),
    "float64": lambda x: x.double(),
    "not contiguous": lambda x: x.T.contiguous().T,
    "part of a wider one": lambda x: torch.cat([x, x], dim=1)[:, :16],
    "with a gradient": lambda x: x.clone().requires_grad_(),
    "expanded": lambda x: x.clone().expand(len(x), 16),
}


@pytest.mark.parametrize("way", TAKEN)
def test_rows_of_every_kind_train_to_the_same(way):
    given = fit(TAKEN[way](X), TAKEN[way](V))
    assert given.metrics == fit().metrics


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_rows_train(dtype):
    near = pytest.approx(fit().metrics["explained_variance"], abs=0.01)
    assert fit(X.to(dtype), V.to(dtype)).metrics["explained_variance"] == near


def test_a_batch_may_be_larger_than_the_rows():
    assert fit(X[:50], training={"batch_size": 4096}).history[-1]["tokens"] == 50
    assert fit(X[:1]).history[-1]["tokens"] == 1


UNUSABLE = {
    "1-D": (lambda x: x[0], r"is \[16\]; it must be \[rows, d_in\]; .*\[None\]"),
    "3-D": (lambda x: x.view(-1, 4, 16), r"is \[\d+, 4, 16\]; .*flatten"),
    "no rows": (lambda x: x[:0], "has no rows"),
    "no columns": (lambda x: x[:, :0], r"is \[\d+, 0\]"),
    "integers": (lambda x: x.long(), r"holds int64; .*\.float\(\)"),
    "booleans": (lambda x: x > 0, "holds bool"),
    "complex": (lambda x: x.to(torch.complex64), "holds complex64"),
    "integers of numpy": (lambda x: x.long().numpy(), "is an array of int64; .*astype"),
    "objects of numpy": (lambda x: x.numpy().astype(object), "is an array of object"),
    "long double": (lambda x: x.numpy().astype(np.longdouble), "is an array of "),
    "sparse": (lambda x: x.to_sparse(), "is a sparse tensor; give .*to_dense"),
    "list of numbers": (lambda x: x.tolist(), r"\[0\] is a list; .*torch.tensor"),
    "list of rows": (list, r"\[0\] is \[16\]"),
    "empty list": (lambda x: [], "is an empty list"),
    "blocks of two widths": (lambda x: [x, x[:, :9]], r"\[1\] has d_in 9, .*\[0\] 16"),
    "blocks of two dtypes": (lambda x: [x, x.half()], r"\[1\] has dtype torch.float16"),
    "data frame": (lambda x: pandas.DataFrame(x.numpy()), r"is a DataFrame; .*to_numpy\(\)"),
    "a folder": (lambda x: "stores/gpt2", "is 'stores/gpt2'; .*open_store"),
    "a dict": (lambda x: {"x": x}, "is a dict"),
    "a number": (lambda x: 3, "is an int"),
    "NaN": (lambda x: poisoned(x, 7), "row 7 holds nan, and 1 of these"),
    "infinite": (lambda x: poisoned(x, 8, float("inf")), "row 8 holds inf"),
    "NaN in the second block": (lambda x: [x[:50], poisoned(x[50:], 9)], "row 59 holds nan"),
    "too large for float32": (lambda x: poisoned(x.double(), 3, 1e300), "row 3 holds 1e.300"),
    "NaN of numpy": (lambda x: poisoned(x, 5).numpy(), "row 5 holds nan"),
    "infinite half": (lambda x: poisoned(x, 6, 1e6).half(), "row 6 holds inf"),
}


@pytest.mark.parametrize("argument", ["train", "validation"])
@pytest.mark.parametrize("way", UNUSABLE)
def test_unusable_rows_are_refused_by_the_arguments_name(way, argument):
    change, words = UNUSABLE[way]
    given = change(X if argument == "train" else V)
    message = refused(words, **{argument: given})
    assert message.startswith(argument)
    with pytest.raises(ValueError, match=f"(?s)SAE 0: {argument}.*{words}"):
        many = {"train": [X], "validation": [V], argument: [given]}
        raysae.fit_many(SMALL, many["train"], TRAINING, validation=many["validation"])


def test_missing_rows_are_named():
    refused("train is None", train=None)
    refused("validation is missing", validation=None)
    refused("validation is a generator; .*read more than once", validation=(v for v in [V]))
    refused("training rows have d_in 16, validation rows 15", validation=V[:, :15])


def test_a_row_that_is_not_finite_far_behind_is_found_before_training():
    late = poisoned(X.repeat(300, 1), 299_123)
    message = refused("row 299123 holds nan", NonFiniteRowsError, train=late)
    assert message.startswith("train") and issubclass(NonFiniteRowsError, NonFiniteLossError)


def from_batches(*batches, **training):
    settings = {"tokens": 1000, "shuffle_rows": 100, **training}
    return fit(iter(batches), training=settings)


def test_batches_of_numpy_and_empty_ones_are_rows_too():
    halves = X.split(500)
    plain = from_batches(*halves)
    assert from_batches(*(half.numpy() for half in halves)).metrics == plain.metrics
    assert from_batches(halves[0], X[:0], halves[1]).metrics == plain.metrics
    loader = DataLoader(X, batch_size=500)
    assert fit(loader, training={"tokens": 1000, "shuffle_rows": 100}).metrics == plain.metrics


@pytest.mark.parametrize(
    ("batches", "words"),
    [
        ([X[:500], None], "batch 1 of train: the iterator gave NoneType"),
        ([X[:500], X[:, :9]], r"batch 1 of train: the iterator gave \[1000, 9\].*\[rows, 16\]"),
        ([X[0]], r"batch 0 of train: the iterator gave \[16\]"),
        ([X[:500], X.half()], "batch 1 of train is torch.float16, those before it torch.float32"),
        ([X[:500], X.long()], "batch 1 of train holds int64"),
        ([X[:500], pandas.DataFrame(X.numpy())], "batch 1 of train: the iterator gave DataFrame"),
        ([X[:500], poisoned(X, 30)], "train: row 530 holds nan"),
        ([X[:0]], "train has no rows"),
        ([], "train has no rows"),
        (DataLoader(TensorDataset(X), batch_size=10), r"gave a list of 1; .*\(batch\[0\] for"),
    ],
)
def test_batches_of_something_else_are_refused_with_their_number(monkeypatch, batches, words):
    monkeypatch.setattr("raysae.training.iterator_rows.HEAD_ROWS", 100)
    with pytest.raises(ValueError, match=words):
        from_batches(*batches)


def test_a_late_batch_that_is_not_finite_changes_no_weight(monkeypatch, tmp_path):
    monkeypatch.setattr("raysae.training.iterator_rows.HEAD_ROWS", 100)
    batches = [*X[:500].split(100), poisoned(X[:100], 3)]
    settings = {**TRAINING, "tokens": 1000, "shuffle_rows": 100, "evaluations": 10}
    words = "row 503 holds nan.* holds the last good state, of step 5"
    with pytest.raises(NonFiniteRowsError, match=words):
        raysae.fit(SMALL, iter(batches), settings, validation=V, progress=False,
                   checkpoint=tmp_path / "saved")  # fmt: skip


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"lr": "fast"}, "lr is 'fast'; it must be a number, or null"),
        ({"lr": float("nan")}, "lr is nan"),
        ({"epochs": "3"}, "epochs is '3'; it must be a whole number"),
        ({"epochs": 1.5}, "epochs is 1.5; it must be a whole number"),
        ({"epochs": None}, "epochs is None"),
        ({"epochs": True}, "epochs is True"),
        ({"batch_size": [64]}, r"batch_size is \[64\]"),
        ({"warm_up": float("nan")}, "warm_up is nan"),
        ({"tokens": float("inf")}, "tokens is inf"),
        ({"compiled": "yes"}, "compiled is 'yes'; it must be true or false"),
        ({"precision": "fp16"}, "precision is 'fp16'; it is float32 or tf32 or bfloat16"),
        ({"sink_rows": "drop"}, "sink_rows is 'drop'; it is keep or leave_out"),
        ({"learning_rate": 1e-3}, "training has no setting 'learning_rate'"),
        ({"epoch": 3}, "training has no setting 'epoch'; did you mean 'epochs'"),
    ],
)
def test_settings_of_a_training_are_refused_by_name(settings, words):
    refused(re.escape(words) if "[" not in words else words, training=settings)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"d_sae": "many"}, "d_sae is 'many'; it must be a whole number"),
        ({"k": 2.5}, "k is 2.5; it must be a whole number"),
        ({"k": 99}, "k is 99, above d_sae 32"),
        ({"k": None}, "k is None"),
        ({"variant": "top-k"}, "variant is 'top-k'; known are topk"),
        ({"variant": ["topk"]}, "variant is"),
        ({"dsae": 3}, "topk has no setting 'dsae'; did you mean 'd_sae'"),
        ({"aux_coefficient": "little"}, "aux_coefficient is 'little'; it must be a number"),
    ],
)
def test_settings_of_an_sae_are_refused_by_name(config, words):
    refused(words, config={**SMALL, **config})


def test_the_other_arguments_are_refused_by_name():
    refused("sae_config is 'topk'", config="topk")
    refused("sae_config is None", config=None)
    with pytest.raises(ValueError, match="training_config is 3"):
        raysae.fit(SMALL, X, 3, validation=V)
    refused("seed is 'x'; it must be a whole number", seed="x")
    refused("device is 'gpu'", device="gpu")
    refused("device is 'mps'; raysae trains on cpu or cuda", device="mps")
    if not torch.cuda.is_available():
        refused("device is 'cuda'; torch finds 0 GPUs", device="cuda")
    with pytest.raises(ValueError, match="max_seconds is 'long'"):
        raysae.fit_many(SMALL, X, TRAINING, validation=V, max_seconds="long")
    with pytest.raises(ValueError, match="SAE 0: seed is 'x'"):
        raysae.fit_many(SMALL, X, TRAINING, validation=V, seeds=["x"])


def test_numbers_of_numpy_and_whole_floats_are_numbers():
    training = {"epochs": np.int64(2), "batch_size": 100.0, "lr": np.float32(1e-3)}
    given = fit(config={**SMALL, "k": np.int32(4)}, training=training, seed=np.int64(3))
    plain = fit(training={"epochs": 2, "lr": float(np.float32(1e-3))}, seed=3)
    assert given.metrics == plain.metrics
    assert type(given.sae.config.k) is int and type(given.sae.metadata["training"]["epochs"]) is int


@pytest.mark.parametrize(
    ("x", "words"),
    [
        (V.numpy(), r"x is ndarray; .*from_numpy"),
        (V.tolist(), "x is list"),
        (None, "x is NoneType"),
        (V.long(), "x holds int64"),
        (V[:, :9], r"x is \[100, 9\]; this SAE reads rows of d_in 16"),
        (torch.tensor(1.0), r"x is \[\]"),
        (V[:0], "it has no rows"),
    ],
)
def test_an_sae_says_what_it_reads(x, words):
    sae = fit().sae
    with pytest.raises(ValueError, match=words):
        sae(x)
    assert (
        sae(V.half()).reconstruction.shape == sae(V[0]).reconstruction[None].expand(100, -1).shape
    )
