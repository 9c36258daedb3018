"""How many workers fit, on Rays of known sizes."""

import pytest
import ray

from raysae.cluster.placement import place
from raysae.config import ResourcesConfig
from raysae.errors import UserError


@pytest.mark.parametrize(
    ("there", "asked", "expected"),
    [
        ({"CPU": 2}, {}, (1, 0, 2)),
        ({"CPU": 2}, {"cpus_per_trial": 2}, (2, 0, 1)),
        ({"CPU": 4}, {"cpus_per_trial": 0.5}, (0.5, 0, 8)),
        ({"CPU": 16}, {"max_concurrent": 3}, (1, 0, 3)),
        ({"CPU": 16, "GPU": 1}, {}, (1, 0.25, 4)),
        ({"CPU": 2, "GPU": 1}, {}, (1, 0.25, 2)),
        ({"CPU": 16, "GPU": 2}, {"gpus_per_trial": 0.4}, (1, 0.4, 4)),
        ({"CPU": 16, "GPU": 4}, {"gpus_per_trial": 2}, (1, 2, 2)),
        ({"CPU": 16, "GPU": 1}, {"gpus_per_trial": 0}, (1, 0, 16)),
    ],
)
def test_what_fits(monkeypatch, there, asked, expected):
    monkeypatch.setattr(ray, "cluster_resources", lambda: there)
    placement = place(ResourcesConfig(**asked))
    assert (placement.cpus, placement.gpus, placement.workers) == expected


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"gpus_per_trial": 1}, "gpus_per_trial is 1, but this Ray has 0 GPUs"),
        ({"cpus_per_trial": 3}, "cpus_per_trial is 3, but this Ray has 2 CPUs"),
    ],
)
def test_what_does_not(monkeypatch, asked, words):
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 2})
    with pytest.raises(UserError, match=words):
        place(ResourcesConfig(**asked))


def test_a_worker_takes_the_device_and_the_threads_it_was_given(connected_ray):
    @ray.remote(num_cpus=2)
    def look():
        import torch

        from raysae.cluster.worker import prepare_worker

        return prepare_worker(), torch.get_num_threads()

    assert ray.get(look.remote()) == ("cpu", 2)
