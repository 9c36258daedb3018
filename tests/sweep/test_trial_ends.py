"""How a trial without a commit is said to have ended: by what it raised, and as lost only when it was."""

from ray import cloudpickle
from ray.exceptions import ActorDiedError, RayTaskError

from raysae.errors import UserError
from raysae.sweep.trials.tuning import _end


def raised(error):
    """As Tune hands on what a trial's actor raised: wrapped, and through a file."""
    wrapped = RayTaskError("train", "Traceback ...\n", error).as_instanceof_cause()
    return cloudpickle.loads(cloudpickle.dumps(wrapped))


def test_what_a_trial_raised_is_its_reason():
    assert _end({}, raised(ValueError("bad shape"))) == {
        "state": "failed",
        "reason": "ValueError: bad shape",
    }
    assert (
        _end({}, raised(UserError("no such file; name one")))["reason"] == "no such file; name one"
    )


def test_only_a_trial_whose_process_ended_is_lost():
    assert _end({}, ActorDiedError())["reason"].startswith("worker lost: ")
