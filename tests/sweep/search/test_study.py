"""The search as optuna-dashboard finds it: ``study.db`` in the run folder."""

import optuna
import pytest

from raysae.config import parse_recipe
from raysae.sweep.search.proposals import make_proposer
from raysae.sweep.search.study import StudyCopy, study_copied

OBJECTIVES = [
    {"metric": "explained_variance", "goal": "maximize"}, {"metric": "l0", "goal": "minimize"},
]  # fmt: skip


def stored(path, name):
    return optuna.load_study(study_name=name, storage=f"sqlite:///{path}")


@pytest.fixture
def proposer():
    recipe = {
        "source": None, "store": "store",
        "sweep": {
            "trials": 6, "sampler": "random", "objectives": OBJECTIVES,
            "constraints": [{"metric": "dead_fraction", "at_most": 0.1}],
            "space": {
                "sae.d_sae": {"choices": [16, 32, 64]}, "sae.k": {"low": 1, "high": 8},
                "training.lr": {"choices": [1, 2.5, 4]}, "sae.aux_coefficient": {"choices": [0.0, 0.5]},
            },
        },
    }  # fmt: skip
    proposer = make_proposer(parse_recipe(recipe))
    for number in range(5):
        proposer.propose(number, {})
    return proposer


def outcome(number, dead=0.0):
    return {"explained_variance": 0.5 + number / 10, "l0": float(number), "dead_fraction": dead}


def test_a_sweep_leaves_its_study(small_run):
    study = stored(small_run.folder / "study.db", "small")
    assert [trial.number for trial in study.trials] == [row["trial"] for row in small_run.trials]
    for trial, row in zip(study.trials, small_run.trials, strict=True):
        assert trial.params == {"sae.d_sae": row["sae.d_sae"], "sae.k": row["sae.k"]}
        assert trial.values == [row["explained_variance"], row["l0"]]
        assert trial.user_attrs["mse"] == row["mse"]
    best = max(small_run.trials, key=lambda row: row["explained_variance"])
    assert best["trial"] in [trial.number for trial in study.best_trials]


def test_it_grows_in_order_while_trials_end_in_any(proposer, tmp_path):
    path = tmp_path / "study.db"
    with study_copied(proposer, path, "search") as ended:
        for number in (2, 0, 1):
            ended(number, outcome(number, dead=0.3))
        ended(4, None)
    trials = stored(path, "search").trials
    states = optuna.trial.TrialState
    assert [trial.state for trial in trials] == [states.COMPLETE] * 3 + [states.FAIL]
    assert [trial.values for trial in trials[:3]] == [[0.5, 0.0], [0.6, 1.0], [0.7, 2.0]]
    proposed = [proposer._space.parameters(proposer._asked[n].params) for n in (0, 1, 2, 4)]
    assert [trial.params for trial in trials] == proposed
    assert {trial.params["sae.d_sae"] for trial in trials} <= {16, 32, 64}
    assert all(sum(trial.constraints.values()) == pytest.approx(0.2) for trial in trials[:3])


def test_another_go_writes_it_anew(proposer, tmp_path):
    for ended_before in (3, 2):
        with study_copied(proposer, tmp_path / "study.db", "search") as ended:
            for number in range(ended_before):
                ended(number, outcome(number))
        assert len(stored(tmp_path / "study.db", "search").trials) == ended_before


def test_where_it_cannot_be_written_that_is_said_once(proposer, tmp_path, capsys):
    copy = StudyCopy(proposer, tmp_path / "gone" / "study.db", "search")
    for number in range(3):
        copy.add(number, outcome(number))
    copy.close()
    assert "".join(capsys.readouterr().out.split()).count("study.db:notwritten") == 1


def test_a_list_has_no_study(tmp_path):
    recipe = {
        "source": None,
        "store": "store",
        "sweep": {"sampler": "list", "configs": [{"sae.k": 2}]},
    }
    with study_copied(make_proposer(parse_recipe(recipe)), tmp_path / "study.db", "one") as ended:
        ended(0, outcome(0))
    assert not (tmp_path / "study.db").exists()
