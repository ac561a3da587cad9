"""DAgger: rounds aggregate, the bound holds, runs resume bit for bit, and on the swing-up it beats cloning."""

import dataclasses
import hashlib

import gymnasium
import numpy as np
import pytest

from lipctrl.agents import DaggerOptions, TrainingOptions, collect, make_expert, rollout, train_dagger
from lipctrl.core.errors import InputError
from lipctrl.core.policy import Policy

TRAINING = TrainingOptions(hidden=(8, 8), steps=60, batch_size=32, evaluate_every=20, validation_fraction=0.0, patience=0)
SMALL = DaggerOptions(rounds=2, episodes=3, training=TRAINING)


@pytest.fixture(scope="module")
def env():
    return gymnasium.make("lipctrl/Pendulum-v0", max_episode_steps=30)


@pytest.fixture(scope="module")
def expert(env):
    return make_expert("lqr", env)


def files(folder):
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.rglob("*") if p.is_file()}


class Killed(Exception):
    """Stands for SIGKILL."""


def killed_at(count):
    calls = []

    def progress(fraction, message, best):
        calls.append(message)
        if len(calls) == count:
            raise Killed

    return progress


def test_rounds_aggregate_and_label_the_learners_states(tmp_path, env, expert):
    result = train_dagger(env, expert, 1.5, options=SMALL, seed=4, folder=tmp_path / "run")
    begun = [record for record in result.history if "step" not in record]
    assert [record["samples"] for record in begun] == [90, 180, 270]
    assert [record["round"] for record in begun] == [0, 1, 2]
    floors = [record["error_floor"] for record in begun]
    assert floors == sorted(floors)  # new data can only raise it
    assert result.policy.lipschitz() <= 1.5 and result.completed
    assert result.limits.of == 270
    from safetensors.numpy import load_file

    first = load_file(tmp_path / "run/round-0.safetensors")
    np.testing.assert_array_equal(first["observations"][:30], collect(env, expert, 1, seed=41000).episodes[0].observations[:-1])
    later = load_file(tmp_path / "run/round-2.safetensors")
    np.testing.assert_allclose(later["actions"], expert.predict(later["observations"])[0], rtol=1e-12)
    assert Policy.load(tmp_path / "run/policy").digest == result.policy.export().digest
    assert Policy.load(tmp_path / "run/policy").observation[0].unit == "rad"


def test_round_zero_may_be_given_demonstrations(env, expert):
    demos = collect(env, expert, 2, seed=5)
    result = train_dagger(env, expert, 1.5, options=dataclasses.replace(SMALL, rounds=0), demonstrations=demos)
    assert result.history[0]["samples"] == 60 and result.history[0]["mean_return"] == pytest.approx(demos.returns.mean())


def test_environment_seeds_stay_away_from_the_evaluation(env, expert):
    seeds = []

    class Watched(gymnasium.Wrapper):
        def reset(self, *, seed=None, options=None):
            seeds.append(seed)
            return super().reset(seed=seed, options=options)

    short = dataclasses.replace(SMALL, rounds=1, training=dataclasses.replace(TRAINING, steps=1))
    train_dagger(Watched(gymnasium.make("Pendulum-v1", max_episode_steps=3)), make_constant(), 1.0, options=short)
    assert seeds == [1000, 1001, 1002, 1003, 1004, 1005]
    seeds.clear()
    options = dataclasses.replace(short, environment_seed=70)
    train_dagger(Watched(gymnasium.make("Pendulum-v1", max_episode_steps=3)), make_constant(), 1.0, options=options, seed=9)
    assert seeds == [70, 71, 72, 73, 74, 75]


def make_constant():
    class Constant:
        def predict(self, observation, state=None, episode_start=None, deterministic=True):
            return np.full((*np.shape(observation)[:-1], 1), 0.5), state

    return Constant()


def test_equal_seeds_give_equal_bytes(tmp_path, env, expert):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        train_dagger(env, expert, 1.5, options=SMALL, seed=seed, folder=tmp_path / name)
    assert files(tmp_path / "a") == files(tmp_path / "b")
    assert files(tmp_path / "a")["policy/weights.safetensors"] != files(tmp_path / "c")["policy/weights.safetensors"]


def test_a_run_killed_anywhere_resumes_to_the_same_bytes(tmp_path, env, expert):
    train_dagger(env, expert, 1.5, options=SMALL, folder=tmp_path / "whole")
    whole = files(tmp_path / "whole")
    for count in (1, 3, 5, 8, 12):  # checkpoints at the start, inside and at the end of rounds
        folder = tmp_path / f"killed-{count}"
        with pytest.raises(Killed):
            train_dagger(env, expert, 1.5, options=SMALL, folder=folder, progress=killed_at(count))
        train_dagger(env, expert, 1.5, options=SMALL, folder=folder)
        assert files(folder) == whole, count


def test_killed_between_the_data_and_the_state_of_a_round(tmp_path, env, expert, monkeypatch):
    train_dagger(env, expert, 1.5, options=SMALL, folder=tmp_path / "whole")
    from lipctrl.core.run_folder import RunFolder

    save = RunFolder.save_tensors

    def dies(self, name, tensors, values):
        save(self, name, tensors, values)
        if name == "round-1.safetensors":
            raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(RunFolder, "save_tensors", dies)
        train_dagger(env, expert, 1.5, options=SMALL, folder=tmp_path / "killed")
    train_dagger(env, expert, 1.5, options=SMALL, folder=tmp_path / "killed")
    assert files(tmp_path / "killed") == files(tmp_path / "whole")


def test_control_c_returns_the_policy_as_it_is(tmp_path, env, expert):
    def interrupt(fraction, message, best):
        if message.startswith("round 1, step 20"):
            raise KeyboardInterrupt

    result = train_dagger(env, expert, 1.5, options=SMALL, folder=tmp_path / "run", progress=interrupt)
    assert not result.completed and result.policy.lipschitz() <= 1.5 and result.limits.of == 180
    assert not (tmp_path / "run/policy").exists()
    assert train_dagger(env, expert, 1.5, options=SMALL, folder=tmp_path / "run").completed


def test_mistakes_are_named(tmp_path, env, expert):
    with pytest.raises(InputError, match="0 episodes"):
        DaggerOptions(episodes=0)
    with pytest.raises(InputError, match="validation_fraction 0"):
        DaggerOptions(training=TrainingOptions())
    other = collect(gymnasium.make("Pendulum-v1"), make_expert("energy", gymnasium.make("Pendulum-v1")), 1)
    with pytest.raises(InputError, match="3 observation coordinates, expected 2"):
        train_dagger(env, expert, 1.5, options=SMALL, demonstrations=other)
    train_dagger(env, expert, 1.5, options=SMALL, folder=tmp_path / "run")
    with pytest.raises(InputError, match="rounds is 2 there and 3 here"):
        train_dagger(env, expert, 1.5, options=dataclasses.replace(SMALL, rounds=3), folder=tmp_path / "run")
    (tmp_path / "run/round-1.safetensors").unlink()
    with pytest.raises(InputError, match="round-1.safetensors is missing"):
        train_dagger(env, expert, 1.5, options=SMALL, folder=tmp_path / "run")


def test_a_small_swing_up_learns_from_its_own_mistakes():
    env = gymnasium.make("Pendulum-v1")
    expert = make_expert("energy", env)
    training = TrainingOptions(hidden=(32, 32), steps=500, validation_fraction=0.0, patience=0, evaluate_every=250)
    result = train_dagger(env, expert, 10.0, options=DaggerOptions(rounds=1, episodes=20, training=training), seed=0)
    learner = np.mean([e.rewards.sum() for e in rollout(env, result.policy.export(), range(40))])
    cloned = next(record["mean_return"] for record in result.history if record["round"] == 1)
    assert result.policy.lipschitz() <= 10.0
    assert learner > cloned + 100 and learner > -500
