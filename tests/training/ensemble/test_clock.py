"""The time of packed programs: by a device that is far slower than the host that launches its steps."""

import pytest
import torch

from raysae.sae import sae_config
from raysae.training import TrainingConfig
from raysae.training.ensemble import Budget, Ensemble, Member, program
from raysae.training.ensemble.clock import LIMITED_AHEAD, MOST_AHEAD, DeviceClock
from raysae.training.rows import Rows

ROWS = Rows(torch.randn(400, 8, generator=torch.Generator().manual_seed(0)))
TRAINING = TrainingConfig(epochs=10, batch_size=20, evaluations=2, compiled=False)
STEP = 0.5
"""Seconds that the device takes for each step."""


class Device:
    """A device that does half a second of work between any two events, once somebody waits for it."""

    def __init__(self):
        self.recorded = self.done = 0
        self.ahead = 0
        """The most events that were not done yet."""

    def event(self):
        self.recorded += 1
        self.ahead = max(self.ahead, self.recorded - self.done)
        return Event(self, self.recorded)


class Event:
    def __init__(self, device, number):
        self.device, self.number = device, number

    def query(self):
        return self.device.done >= self.number

    def synchronize(self):
        self.device.done = max(self.device.done, self.number)

    def elapsed_time(self, later):
        assert self.query() and later.query(), "as torch demands"
        return 1000 * STEP * (later.number - self.number)


@pytest.fixture
def device(monkeypatch):
    device = Device()
    monkeypatch.setattr(program, "step_clock", lambda name: DeviceClock(device.event))
    return device


def members(count=2):
    config = sae_config({"variant": "topk", "d_sae": 16, "k": 2})
    return [Member(config, TRAINING, ROWS, ROWS, seed) for seed in range(count)]


def trained(members):
    for _ in Ensemble(members, pack=True).rounds():
        pass
    return members


def test_tokens_a_second_are_those_of_the_device(device):
    for one in trained(members()):
        assert one.trainer.seconds == pytest.approx(200 * STEP / 2), "two share each step"
        assert one.trainer.tokens_per_second == pytest.approx(4000 / (200 * STEP / 2))
    assert device.ahead <= 2 * MOST_AHEAD + 3


def test_a_member_that_left_has_no_part_in_later_steps(device):
    first, second = members()
    first.budget = Budget(5.0, [first])
    trained([first, second])
    steps = first.trainer.step
    assert 20 < steps <= 20 + LIMITED_AHEAD + 2 and first.stopped.endswith("of 5 s")
    assert first.trainer.seconds == pytest.approx(steps * STEP / 2)
    assert second.trainer.seconds == pytest.approx(steps * STEP / 2 + (200 - steps) * STEP)


def test_a_limit_of_seconds_for_all_ends_all(device):
    several = members(3)
    budget = Budget(10.0, several)
    for one in several:
        one.budget = budget
    trained(several)
    assert {one.trainer.step for one in several} <= set(range(20, 20 + LIMITED_AHEAD + 3))
