"""Experts behind one signature: LQR, energy pumping, policies, Stable-Baselines3 models."""

import dataclasses
from fractions import Fraction

import gymnasium
import numpy as np
import pytest

from lipctrl.agents import EXPERTS, EnergyExpert, LQRExpert, collect, make_expert
from lipctrl.core.controller import Controller
from lipctrl.core.errors import InputError
from lipctrl.core.policy import Policy
from lipctrl.envs import environment_id, make_plant, rollout, shipped_plants
from lipctrl.mpc import quadratic_cost, riccati
from lipctrl.nn import lipschitz_policy


def test_riccati_scalars_by_hand():
    gain, cost = riccati(1.0, 1.0, 1.0, 1.0)
    assert (cost[0, 0], gain[0, 0]) == pytest.approx((1.6180339887, 0.6180339887), abs=1e-9)
    gain, cost = riccati(1.2, 1.0, 1.0, 1.0)
    assert (cost[0, 0], gain[0, 0]) == pytest.approx((1.95223374, 0.79352812), abs=1e-8)


def test_double_integrator_gain_and_cost_to_go():
    plant = make_plant("double-integrator")
    gain, cost = riccati(*plant.linearise(), np.eye(2), np.eye(1))
    np.testing.assert_allclose(gain, [[0.91707456, 1.63559619]], atol=1e-8)
    assert cost[0, 0] == pytest.approx(17.83493132, abs=1e-7)
    a, b = plant.linearise()
    x, total = np.array([1.0, 0.0]), 0.0
    for _ in range(2000):
        u = -gain @ x
        total += x @ x + u @ u
        x = a @ x + b @ u
    assert total == pytest.approx(17.83493132, abs=1e-7)


def test_an_unreachable_unstable_mode_is_a_users_error():
    with pytest.raises(InputError, match="no stabilising LQR gain"):
        riccati([[1.2, 0.0], [0.0, 0.5]], [[0.0], [1.0]], np.eye(2), np.eye(1))


def test_pendulum_v1_gain_through_its_observation():
    plant = make_plant("gym-pendulum")
    np.testing.assert_allclose(LQRExpert.of_plant(plant).gain, [[0.0, 19.69321655, 5.26250008]], atol=1e-7)
    q, r = quadratic_cost(plant)
    np.testing.assert_allclose(q, np.diag([1.0, 0.1]), atol=1e-12)
    np.testing.assert_allclose(r, [[0.001]], atol=1e-12)


@pytest.mark.parametrize("name", [name for name in shipped_plants() if "lqr" in make_plant(name).experts])
def test_lqr_brings_each_plant_home(name):
    plant = make_plant(name)
    expert = LQRExpert.of_plant(plant)
    rest = np.array([float(v) for v in plant.equilibrium_state])
    starts = rest + 0.05 * np.random.default_rng(0).uniform(-1, 1, (20, len(rest)))
    final = rollout(plant, expert, starts, 1200).states[:, -1]
    np.testing.assert_allclose(final, np.broadcast_to(rest, final.shape), atol=1e-4)
    observation = plant.observation_of(rest)
    np.testing.assert_array_equal(expert.predict(observation)[0], [float(v) for v in plant.equilibrium_action])


def test_energy_expert_on_pendulum_v1_itself():
    env = gymnasium.make("Pendulum-v1")
    expert = make_expert("energy", env)
    returns = []
    for seed in range(5):
        observation, _ = env.reset(seed=seed)
        total, done = 0.0, False
        while not done:
            action, _ = expert.predict(observation)
            observation, reward, terminated, truncated, _ = env.step(action.astype(np.float32))
            total, done = total + float(reward), terminated or truncated
        returns.append(total)
    np.testing.assert_allclose(returns, [-123.10, -0.37, -115.98, -233.35, -240.02], atol=0.05)


def test_energy_expert_equals_the_published_rule():
    theta, w = np.random.default_rng(1).uniform([[-np.pi], [-8]], [[np.pi], [8]], (2, 2000))
    w[:200] *= 1e-5
    energy = w**2 / 6 + 5 * (np.cos(theta) - 1)
    near = (np.abs(theta) < 0.35) & (np.abs(w) < 3)
    start = 2 * np.sign(-np.sin(theta) + 1e-9)
    expected = np.where(near, -(19.69321655 * theta + 5.26250008 * w), np.where(np.abs(w) < 1e-3, start, -20 * energy * np.sign(w)))
    observations = np.stack([np.cos(theta), np.sin(theta), w], -1)
    got = EnergyExpert(make_plant("gym-pendulum")).predict(observations)[0]
    np.testing.assert_allclose(got[:, 0], np.clip(expected, -2, 2), atol=1e-6)


@pytest.mark.parametrize("name", ["gym-pendulum", "pendulum-small", "pendulum"])
def test_energy_expert_swings_every_pendulum_up(name):
    plant = make_plant(name)
    starts = np.random.default_rng(0).uniform([-np.pi, -1], [np.pi, 1], (200, 2))
    starts[0] = np.pi, 0.0  # hanging at rest
    final = rollout(plant, EnergyExpert(plant), starts, 300).states[:, -1]
    assert np.abs(np.cos(final[:, 0]) - 1).max() < 1e-3 and np.abs(final[:, 1]).max() < 0.05


def test_energy_expert_needs_a_pendulum():
    for name in ("double-integrator", "cartpole", "path-tracking", "van-der-pol"):
        with pytest.raises(InputError, match="pendulum"):
            EnergyExpert(make_plant(name))


@pytest.mark.parametrize(("name", "expert"), [(name, expert) for name in shipped_plants() for expert in make_plant(name).experts])
def test_one_signature_for_single_observations_and_batches(name, expert):
    env = gymnasium.make(environment_id(name))
    controller = make_expert(expert, env)
    assert isinstance(controller, Controller)
    plant = make_plant(name)
    states = plant.initial_states(np.random.default_rng(2), 3) / 4
    observations = plant.observation_of(states)
    batch, memory = controller.predict(observations, state=None, episode_start=np.ones(3, bool), deterministic=True)
    assert batch.shape == (3, len(plant.action)) and batch.dtype == np.float64
    single, _ = controller.predict(observations[1])
    assert single.shape == (len(plant.action),)
    np.testing.assert_allclose(single, batch[1], rtol=1e-9, atol=1e-9)
    low, high = ([float(v) for v in end] for end in (plant.action_low, plant.action_high))
    assert (batch >= low).all() and (batch <= high).all()
    again, _ = controller.predict(observations, state=memory, episode_start=np.ones(3, bool))
    np.testing.assert_array_equal(again, batch)  # an episode that starts knows nothing of the one before


def test_lqr_on_mujoco_balances_the_inverted_pendulum():
    env = gymnasium.make("InvertedPendulum-v5")
    expert = make_expert("lqr", env)
    demos = collect(env, expert, 2, seed=0)
    assert demos.returns.tolist() == [1000.0, 1000.0]
    assert demos.interface.dt == Fraction(1, 25)


def test_lqr_sizes_must_fit():
    with pytest.raises(InputError, match=r"shape \(1, 3\), expected \(1, 2\)"):
        LQRExpert([[1.0, 2.0, 3.0]], [0.0, 0.0], [0.0], [-1.0], [1.0])


def test_lqr_needs_the_state_in_the_observation():
    plant = make_plant("double-integrator")
    from lipctrl.core.recording import record

    blind = dataclasses.replace(plant, observe=record(lambda x: x[:1], {"state": 2}, "observation"), observation=plant.observation[:1])
    with pytest.raises(InputError, match="cannot be recovered"):
        LQRExpert.of_plant(blind)


def test_a_policy_folder_is_an_expert(tmp_path):
    env = gymnasium.make("Pendulum-v1")
    policy = lipschitz_policy(3, [-2], [2], 5.0, hidden=(8,)).export()
    policy.save(tmp_path / "policy")
    expert = make_expert(tmp_path / "policy", env)
    assert isinstance(expert, Policy) and expert.digest == policy.digest
    assert collect(env, expert, 1).episodes[0].actions.shape == (200, 1)
    with pytest.raises(InputError, match="maps 3 observations to 1 actions, expected 2 to 1"):
        make_expert(tmp_path / "policy", gymnasium.make("lipctrl/Pendulum-v0"))


def test_a_stable_baselines_model_is_an_expert_once_loaded(tmp_path):
    from stable_baselines3 import PPO

    env = gymnasium.make("Pendulum-v1")
    model = PPO("MlpPolicy", env, n_steps=8, batch_size=8, seed=0, device="cpu")
    demos = collect(env, model, 2, seed=0)
    assert demos.expert == "PPO" and demos.episodes[1].actions.shape == (200, 1)
    model.save(tmp_path / "model.zip")
    with pytest.raises(InputError, match="runs code"):
        make_expert(tmp_path / "model.zip", env)


def test_unknown_experts_list_those_there_are():
    env = gymnasium.make("Pendulum-v1")
    with pytest.raises(InputError, match=f"'lqrr' is unknown, expected one of {', '.join(EXPERTS)}"):
        make_expert("lqrr", env)
    mountain = gymnasium.make("MountainCarContinuous-v0")
    for name, message in (("mpc", "needs a plant"), ("energy", "needs a plant"), ("lqr", "neither")):
        with pytest.raises(InputError, match=message):
            make_expert(name, mountain)
