"""The environments obey Gymnasium's and Stable-Baselines3's checkers, and ``gym-pendulum`` is Pendulum-v1 bit for bit."""

from __future__ import annotations

import subprocess
import sys
import time
import warnings
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.envs.registration import EnvSpec
from gymnasium.utils.env_checker import check_env
from stable_baselines3.common.env_checker import check_env as check_env_sb3

from lipctrl.core.errors import InputError
from lipctrl.envs import PlantEnv, environment_id, make_plant, shipped_plants

#: What the checkers say about plants in physical units: boxes are not scaled to [-1, 1], observations may be unbounded.
EXPECTED = ("symmetric and normalized", "infinity")


@pytest.mark.parametrize("name", shipped_plants())
@pytest.mark.filterwarnings("default")
def test_environments_pass_both_checkers(name: str) -> None:
    env = gymnasium.make(environment_id(name), render_mode="rgb_array")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        check_env(env.unwrapped)
        check_env_sb3(env.unwrapped)
        check_env_sb3(env)
    surprises = [str(w.message) for w in caught if not any(text in str(w.message) for text in EXPECTED)]
    assert surprises == []
    assert env.unwrapped.plant is make_plant(name)


@pytest.mark.parametrize("name", shipped_plants())
def test_specs_rebuild_the_environment_from_json(name: str) -> None:
    spec = gymnasium.make(environment_id(name)).spec
    assert spec is not None
    again = gymnasium.make(EnvSpec.from_json(spec.to_json()))
    assert again.unwrapped.plant is make_plant(name)
    assert again.spec.max_episode_steps == make_plant(name).max_episode_steps


@pytest.mark.parametrize("scale", [0.3, 2.0, 5.0])
def test_gym_pendulum_is_pendulum_v1_bit_for_bit_under_float64_actions(scale: float) -> None:
    theirs, ours = gymnasium.make("Pendulum-v1"), gymnasium.make(environment_id("gym-pendulum"))
    generator = np.random.default_rng(int(10 * scale))
    for seed in range(12):
        expected, got = theirs.reset(seed=seed)[0], ours.reset(seed=seed)[0]
        np.testing.assert_array_equal(got, expected, strict=True)
        for step in range(200):
            action = generator.uniform(-scale, scale, 1)
            their_step, our_step = theirs.step(action), ours.step(action)
            np.testing.assert_array_equal(our_step[0], their_step[0], strict=True)
            assert our_step[1].hex() == float(their_step[1]).hex()
            assert our_step[2:4] == their_step[2:4] == (False, step == 199)
            np.testing.assert_array_equal(ours.unwrapped.get_state(), theirs.unwrapped.state, strict=True)


def test_gym_pendulum_follows_pendulum_v1_far_from_upright() -> None:
    theirs, ours = gymnasium.make("Pendulum-v1").unwrapped, PlantEnv("gym-pendulum")
    theirs.reset(seed=0)
    for state in np.random.default_rng(3).uniform([-50, -8], [50, 8], (300, 2)):
        theirs.state = state
        ours.set_state(state)
        expected, got = theirs.step(np.array([0.7])), ours.step(np.array([0.7]))
        assert got[1].hex() == float(expected[1]).hex()
        np.testing.assert_array_equal(ours.get_state(), theirs.state)


def test_float32_actions_of_pendulum_v1_differ_by_one_rounding_only() -> None:
    theirs, ours = gymnasium.make("Pendulum-v1"), gymnasium.make(environment_id("gym-pendulum"))
    theirs.reset(seed=1)
    ours.reset(seed=1)
    action = np.array([1.2345], np.float32)
    theirs.step(action)
    ours.step(action)
    np.testing.assert_allclose(ours.unwrapped.get_state(), theirs.unwrapped.state, atol=1e-7)


def test_state_can_be_kept_and_restored() -> None:
    env = PlantEnv("cartpole")
    env.reset(seed=4)
    kept = env.get_state()
    first = [env.step([u])[0] for u in (3.0, -1.0, 0.5)]
    env.set_state(kept)
    np.testing.assert_array_equal([env.step([u])[0] for u in (3.0, -1.0, 0.5)], first)
    copy = env.get_state()
    copy[0] = 99.0
    assert env.get_state()[0] != 99.0
    assert env.get_state().dtype == np.float64


def test_reset_options_and_seeds() -> None:
    env = PlantEnv("pendulum")
    env.reset(options={"state": [0.5, -0.25]})
    assert env.get_state().tolist() == [0.5, -0.25]
    env.reset(seed=0, options={"low": [1, 2], "high": [1.5, 2]})
    assert 1 <= env.get_state()[0] <= 1.5
    assert env.get_state()[1] == 2
    env.reset(seed=7)
    first = env.get_state()
    env.reset(seed=7)
    np.testing.assert_array_equal(env.get_state(), first)
    env.reset()
    assert (env.get_state() != first).all()


def test_reward_is_minus_the_cost_of_the_old_state_and_the_clipped_action() -> None:
    env = PlantEnv("pendulum")
    env.reset(options={"state": [0.5, 1.0]})
    assert env.step([100.0])[1] == -float(make_plant("pendulum").stage_cost([0.5, 1.0], [6.0]))


def test_episodes_terminate_outside_the_box_and_are_cut_in_time() -> None:
    env = gymnasium.make(environment_id("double-integrator"))
    env.reset(options={"state": [4.9, 3.0]})
    assert env.step(np.array([0.0], np.float32))[2:4] == (True, False)
    env.reset(options={"state": [0.0, 0.0]})
    flags = [env.step(np.array([0.0], np.float32))[2:4] for _ in range(100)]
    assert flags == [(False, False)] * 99 + [(False, True)]


def test_a_state_that_blows_up_terminates() -> None:
    env = PlantEnv("van-der-pol")
    env.reset(options={"state": [1e30, 1e30]})
    with np.errstate(all="ignore"):
        assert env.step([0.0])[2]


def test_wrong_use_gets_one_sentence() -> None:
    env = PlantEnv("pendulum")
    with pytest.raises(InputError, match=r"expected reset\(\) or set_state"):
        env.step([0.0])
    env.reset(seed=0)
    wrong: list[tuple[Any, str]] = [
        (lambda: env.step([0.0, 1.0]), "expected 1 finite numbers"),
        (lambda: env.step([np.nan]), "expected 1 finite numbers"),
        (lambda: env.set_state([1.0]), r"expected 2 finite numbers: angle \[rad\]"),
        (lambda: env.set_state("up"), "expected 2 finite numbers"),
        (lambda: env.reset(options={"speed": 3}), "'speed'"),
        (lambda: env.reset(options={"low": [1, 1], "high": [0, 1]}), "low <= high"),
        (lambda: PlantEnv("pendulums"), "no plant 'pendulums'"),
        (lambda: PlantEnv("pendulum", render_mode="human"), "rgb_array"),
    ]
    before = env.get_state()
    for call, message in wrong:
        with pytest.raises(InputError, match=message):
            call()
    np.testing.assert_array_equal(env.get_state(), before)


@pytest.mark.parametrize("name", shipped_plants())
def test_pictures_show_the_state(name: str) -> None:
    env = PlantEnv(name, render_mode="rgb_array")
    env.reset(seed=0)
    first = env.render()
    assert first is not None
    assert first.shape == (400, 400, 3)
    assert first.dtype == np.uint8
    assert 0 < (first < 250).mean() < 0.5  # something is drawn, on paper
    for _ in range(5):
        env.step(env.action_space.high)
    second = env.render()
    assert (second != first).any()
    env.set_state(np.full(len(env.plant.state), 0.1))
    assert (env.render() != second).any()
    assert PlantEnv(name).render() is None


def test_pictures_of_a_one_dimensional_plant_and_a_lost_state() -> None:
    from lipctrl.envs import Plant
    from lipctrl.envs.rendering import draw

    plant = Plant.from_equations("one", lambda x, u: u - x, state={"x": ("m", 2)}, action={"u": ("1", 1)}, dt="1/10")
    env = PlantEnv(plant, render_mode="rgb_array")
    env.reset(seed=0)
    env.step([1.0])
    assert (env.render() < 250).any()
    assert (draw(plant, np.array([[np.inf]]), np.zeros(1)) == 255).all()


def test_a_step_is_fast() -> None:
    env = PlantEnv("pendulum")
    best = np.inf
    for _ in range(5):
        env.reset(seed=0)
        begin = time.perf_counter()
        for _ in range(500):
            env.step([0.1])
        best = min(best, (time.perf_counter() - begin) / 500)
    assert best < 1 / 5000  # a quarter of the speed on an idle machine


def test_importing_the_environments_is_light() -> None:
    code = "import sys, lipctrl.envs; print([m for m in ('torch', 'casadi', 'mujoco', 'matplotlib', 'PIL', 'pygame') if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
