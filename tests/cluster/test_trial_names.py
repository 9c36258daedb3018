"""The tasks of trials have the trials' names, whatever Tune calls them."""

import ray
from ray import tune

from raysae.cluster import trial_names
from raysae.cluster.trial_names import named_tasks


class Named(tune.Trainable):
    """Reports the name of the task that it runs in."""

    def step(self):
        return {"task": ray.get_runtime_context().get_task_name(), "done": True}


def names(folder):
    """The names of the tasks of two trials."""
    results = tune.Tuner(
        tune.with_resources(Named, {"cpu": 1}),
        param_space={"number": tune.grid_search([3, 4])},
        run_config=tune.RunConfig(storage_path=str(folder), verbose=0, log_to_file=False),
    ).fit()
    return sorted(result.metrics["task"] for result in results)


def test_tasks_are_named_by_their_trials(connected_ray, tmp_path):
    with named_tasks(lambda config: f"trial {config['number']}"):
        assert names(tmp_path) == ["SAETrials.train trial 3", "SAETrials.train trial 4"]


def test_a_name_that_cannot_be_had_costs_no_trial(connected_ray, tmp_path, monkeypatch):
    with named_tasks(lambda config: config["missing"]):
        plain = names(tmp_path)
    assert len(plain) == 2 and not any("SAETrials" in name for name in plain)


def test_another_release_of_ray_keeps_its_names(monkeypatch):
    monkeypatch.setattr(trial_names, "signature", lambda function: (_ for _ in ()).throw(TypeError))
    from ray.tune.execution.tune_controller import TuneController

    before = TuneController._schedule_trial_task
    with named_tasks(str):
        assert TuneController._schedule_trial_task is before
