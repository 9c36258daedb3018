"""The packed step, on the CPU: what it does where no GPU is needed to show it."""

from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch

from raysae.sae import build_sae, sae_config
from raysae.training import gpu
from raysae.training import packed as packed_module
from raysae.training.config import TrainingConfig
from raysae.training.fused.late import LateNumber
from raysae.training.packed import PackedStep
from raysae.training.step import ReferenceStep
from tests.simulated_gpu import SimulatedGPU

D_IN, D_SAE, ROWS, STEPS = 12, 40, 16, 20


def packed(variant="topk", ks=(3, 5), windows=(3 * ROWS, 4 * ROWS), **training):
    """A packed step of two SAEs with k and AuxK windows of their own."""
    models = [
        build_sae(sae_config({"variant": variant, "d_sae": D_SAE, "k": k}), D_IN, seed)
        for seed, k in enumerate(ks)
    ]
    settings = TrainingConfig(**{"lr": 1e-2, "batch_size": ROWS, **training})
    since_fired = [torch.zeros(D_SAE, dtype=torch.int64) for _ in models]
    return PackedStep(models, [settings] * len(models), windows, since_fired, STEPS)


def batches(count=12, rows=ROWS):
    return torch.randn(count, 2, rows, D_IN, generator=torch.Generator().manual_seed(1))


def same(one, other):
    for name, expected in other.p.items():
        assert torch.equal(one.p[name], expected), name
    assert torch.equal(one.since_fired_NF, other.since_fired_NF)
    assert torch.equal(one.loss_N, other.loss_N)


@pytest.mark.parametrize("name", ["W_enc", "b_enc", "W_dec", "b_dec"])
@pytest.mark.parametrize("variant", ["topk", "batch_topk"])
def test_a_weight_that_is_nan_stops_its_sae_before_the_update(variant, name):
    step, whole = packed(variant), packed(variant)
    first, *others = batches(4)
    step.take(first)
    whole.take(first)
    step.p[name][1].view(-1)[3] = torch.nan
    before = {name: tensor[1].clone() for name, tensor in step.p.items()}
    for x_NBD in others:
        step.take(x_NBD)
        whole.take(x_NBD)
    assert step.failed_N.tolist() == [-1, 1]
    for name, tensor in step.p.items():
        assert torch.equal(tensor[1].isnan(), before[name].isnan()), name
        assert torch.equal(tensor[0], whole.p[name][0]), "the other SAE goes on to the same bits"


@pytest.fixture
def graphs(monkeypatch):
    """Captures on the CPU: a list of what was captured, as (pool, device). A replay runs it."""
    made = []

    def captured(work, pool, device):
        made.append((pool, device.type))
        return work

    monkeypatch.setattr(gpu, "captures", lambda tensor: True)
    monkeypatch.setattr(gpu, "new_pool", object)
    monkeypatch.setattr(gpu, "captured", captured)
    return made


def taken(step, every):
    for x_NBD in every:
        step.take(x_NBD)
    return step


def near(one, other):
    for name, expected in other.p.items():
        assert torch.allclose(one.p[name], expected, atol=2e-6), name
    assert torch.equal(one.since_fired_NF, other.since_fired_NF)
    assert torch.allclose(one.loss_N, other.loss_N, rtol=1e-5)


@pytest.mark.parametrize("variant", ["topk", "batch_topk"])
def test_a_padded_last_batch_counts_its_real_rows_alone(monkeypatch, graphs, variant):
    """With AuxK, and with as many columns for it as dead latents need."""
    monkeypatch.setattr(packed_module, "LEAST_COLUMNS", 4)
    every, sizes = [*batches(), batches(1, 5)[0], *batches(3), batches(1, 5)[0]], set()
    config = {"variant": variant, "ks": (2, 3), "windows": (2 * ROWS, 3 * ROWS)}
    capacity = PackedStep._capacity
    monkeypatch.setattr(
        PackedStep, "_capacity", lambda self, dead: (sizes.add(dead), capacity(self, dead))[1]
    )
    captured = taken(packed(**config), every)
    assert min(sizes) < D_SAE // 2, "AuxK had fewer columns than latents"
    monkeypatch.setattr(gpu, "captures", lambda tensor: False)
    near(captured, taken(packed(**config), every))


def test_graphs_share_one_pool_and_the_last_batch_needs_none_of_its_own(graphs):
    every = batches(4)
    taken(packed(windows=(10**6,) * 2), [*every, every[0][:, :5], *every])
    assert len(graphs) == 1
    graphs.clear()
    taken(packed(windows=(ROWS,) * 2, ks=(1, 1)), [*every, *every])
    assert len({pool for pool, _ in graphs}) == 1


def test_aux_k_computes_few_columns_where_few_latents_are_dead(graphs, monkeypatch):
    monkeypatch.setattr(packed_module, "LEAST_COLUMNS", 4)
    step, seen, of = packed(), [], packed_module.Dead.of
    monkeypatch.setattr(
        packed_module.Dead, "of", lambda dead, columns: (seen.append(columns), of(dead, columns))[1]
    )
    step.since_fired_NF[0, 7] = 10**6
    step.since_fired_NF[1, 4:9] = 10**6
    step.take(batches(1)[0])
    assert seen == [8], "five are dead in one SAE"
    step.since_fired_NF.fill_(10**6)
    step.take(batches(1)[0])
    assert seen == [8, D_SAE]


def test_columns_follow_from_a_number_that_is_two_steps_old(graphs, monkeypatch):
    """It counts what can be dead by then, so that no dead latent is without a column."""
    monkeypatch.setattr(packed_module, "LEAST_COLUMNS", 1)
    step, told = packed(windows=(4 * ROWS, 6 * ROWS)), []
    capacity, of = step._capacity, packed_module.Dead.of
    monkeypatch.setattr(step, "_capacity", lambda dead: (told.append(dead), capacity(dead))[1])

    def checked(dead_NF, columns):
        most = int(dead_NF.sum(dim=1).amax())
        assert most <= told[-1] <= columns
        return of(dead_NF, columns)

    monkeypatch.setattr(packed_module.Dead, "of", checked)
    taken(step, batches(16))
    assert len(told) > 4


def host_reads(patch):
    """A list of the times that the host waits for a number of the device, from now on."""
    reads = []
    for name in ("tolist", "item", "__bool__", "__int__", "__float__", "nonzero"):
        read = getattr(torch.Tensor, name)
        patch.setattr(
            torch.Tensor, name,
            lambda *args, name=name, read=read: (reads.append(name), read(*args))[1],
        )  # fmt: skip
    return reads


class Noted(LateNumber):
    """Keeps numbers as the host knows them when a copy of them has arrived."""

    read_at_once = torch.Tensor.tolist

    def note(self, number):
        self._noted.append((Noted.read_at_once(number), None))


def test_the_host_waits_for_the_last_step_before_the_first_ones_only(graphs, monkeypatch):
    monkeypatch.setattr(packed_module, "LateNumber", Noted)
    for windows in ((3 * ROWS, 10**6), (10**6,) * 2):
        step, every = packed(windows=windows), batches()
        with monkeypatch.context() as patch:
            reads = host_reads(patch)
            taken(step, every)
        assert reads == ["__int__"] * 2


def test_plain_torch_is_what_compiled_false_asks_for(graphs, monkeypatch):
    monkeypatch.setattr(gpu, "launches", lambda device: 1 / 0)
    taken(packed(compiled=False), batches(5))
    assert not graphs
    with pytest.raises(ZeroDivisionError):
        taken(packed(), batches(1))


def test_all_is_launched_and_captured_on_the_device_of_the_tensors(monkeypatch):
    device = SimulatedGPU(2**34).install(monkeypatch)
    with gpu.current(torch.device("cuda:1")), gpu.current(torch.device("cpu")):
        assert device.entered == ["cuda:1"]
    made = []
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: SimpleNamespace(replay=lambda: None))
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: f"a stream of {device}")

    @contextmanager
    def graph(graph, pool, stream):
        made.append((pool, stream))
        yield

    monkeypatch.setattr(torch.cuda, "graph", graph)
    gpu.captured(lambda: made.append("work"), "pool", torch.device("cuda:1"))
    assert made == [("pool", "a stream of cuda:1"), "work"]
    monkeypatch.setattr(gpu, "current", lambda device: device_of_launch(made, device))
    taken(packed(), batches(1))
    assert made[2:] == ["cpu"]


@contextmanager
def device_of_launch(made, device):
    made.append(str(device))
    yield


@pytest.mark.parametrize("precision", ["float32", "tf32"])
def test_products_are_in_tf32_where_that_is_asked_for_and_nowhere_else(monkeypatch, precision):
    """On a CPU it is float32, to the bit."""
    seen, matmul = [], torch.backends.cuda.matmul
    look = lambda: seen.append(matmul.fp32_precision)  # noqa: E731
    made = packed_module.gradients
    monkeypatch.setattr(packed_module, "gradients", lambda *args: (look(), made(*args))[1])
    before = matmul.fp32_precision
    format = "tf32" if precision == "tf32" else before
    assert before != "tf32"
    step = taken(packed(precision=precision), batches(2))
    same(step, taken(packed(), batches(2)))
    assert seen[0] == format and matmul.fp32_precision == before
    reference = ReferenceStep(
        build_sae(step_config(), D_IN, 0), TrainingConfig(precision=precision)
    )
    loss = reference.model.loss
    reference.model.loss = lambda *args: (look(), loss(*args))[1]
    reference.gradients(batches(1)[0, 0], None, 1.0)
    assert seen[-1] == format and matmul.fp32_precision == before


def step_config():
    return sae_config({"variant": "topk", "d_sae": D_SAE, "k": 3})
