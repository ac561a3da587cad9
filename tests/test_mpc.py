"""MPC: equal to the LQR where no bound is active, inside the box where one is, never silent about a failure."""

import dataclasses
import logging

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lipctrl.core.errors import InputError, LipctrlError
from lipctrl.core.recording import record
from lipctrl.envs import make_plant, rollout
from lipctrl.mpc import MPC, MPCError, StateRecovery, quadratic_cost, riccati


@pytest.fixture(scope="module")
def integrator():
    return MPC(make_plant("double-integrator"), horizon=12)


@settings(max_examples=15)
@given(st.floats(-0.2, 0.2), st.floats(-0.2, 0.2))
def test_inside_the_box_it_is_the_lqr(integrator, position, velocity):
    plant = integrator.plant
    gain, cost_to_go = riccati(*plant.linearise(), *quadratic_cost(plant))
    x = np.array([position, velocity])
    np.testing.assert_allclose(integrator.predict(x)[0], -gain @ x, atol=1e-6)
    assert integrator.solve(x).cost == pytest.approx(x @ cost_to_go @ x, abs=1e-6)


@pytest.mark.parametrize("name", ["double-integrator", "pendulum", "cartpole", "path-tracking"])
def test_plans_obey_the_plant_and_the_box(name):
    plant = make_plant(name)
    mpc = MPC(plant, horizon=15)
    low, high = (np.array([float(v) for v in end]) for end in (plant.action_low, plant.action_high))
    for x in plant.initial_states(np.random.default_rng(0), 4):
        plan = mpc.solve(x)
        assert plan.usable and plan.seconds > 0
        np.testing.assert_array_equal(plan.states[0], x)
        np.testing.assert_allclose(plant.step(plan.states[:-1], plan.actions), plan.states[1:], atol=1e-6)
        assert (plan.actions >= low - 1e-9).all() and (plan.actions <= high + 1e-9).all()


def test_the_box_is_used():
    plan = MPC(make_plant("double-integrator"), horizon=15).solve([3.0, 0.0])
    assert plan.actions[0, 0] == pytest.approx(-1.0, abs=1e-6)


def test_stage_costs_add_up():
    plant = make_plant("pendulum")
    plan = MPC(plant, horizon=10).solve([1.0, -1.0])
    _, cost_to_go = riccati(*plant.linearise(), *quadratic_cost(plant))
    last = plan.states[-1]
    assert plan.cost == pytest.approx(plant.stage_cost(plan.states[:-1], plan.actions).sum() + last @ cost_to_go @ last, rel=1e-9)


def test_a_longer_horizon_beats_the_clipped_lqr_in_closed_loop():
    from lipctrl.agents import LQRExpert

    plant = make_plant("pendulum")
    starts = plant.initial_states(np.random.default_rng(3), 6)
    mpc = rollout(plant, MPC(plant), starts, 80).returns
    lqr = rollout(plant, LQRExpert.of_plant(plant), starts, 80).returns
    assert (mpc >= lqr - 1e-6).all() and mpc.mean() > lqr.mean() + 1


def test_warm_starts_do_not_change_the_answer():
    plant = make_plant("cartpole")
    mpc = MPC(plant, horizon=15)
    x = np.array([0.2, -0.2, 0.1, 0.1])
    memory = None
    for _ in range(5):
        action, memory = mpc.predict(x, memory)
        np.testing.assert_allclose(action, mpc.predict(x)[0], atol=1e-4)
        x = plant.step(x, action)
    assert memory[0].shape == (1, 15 * 5)


def test_a_swing_up_sees_angles_up_to_full_turns():
    plant = make_plant("gym-pendulum")
    mpc = MPC(plant, on_failure="fallback")
    starts = np.array([[np.pi, 0.0], [-2.5, 0.5], [1.0, 1.0]])
    final = rollout(plant, mpc, starts, 120).states[:, -1]
    assert np.abs(np.cos(final[:, 0]) - 1).max() < 0.01
    assert mpc.fallbacks <= 5


def test_turns_along_a_plan_follow_the_recovered_angle():
    mpc = MPC(make_plant("gym-pendulum"), horizon=3)
    guess = np.array([0.5, 3.2, 1.0, 0.5, 3.3, 1.0, 0.5, 3.4, 1.0])
    moved = mpc._unwrapped(guess, np.array([-3.1, 1.0])).reshape(3, 3)
    np.testing.assert_allclose(moved[:, 1], np.array([3.2, 3.3, 3.4]) - 2 * np.pi)
    np.testing.assert_array_equal(moved[:, [0, 2]], guess.reshape(3, 3)[:, [0, 2]])


def test_failures_raise_or_are_counted_and_logged(caplog):
    plant = make_plant("pendulum")
    with pytest.raises(MPCError, match=r"pendulum found no plan from the state \[3.0, 0.0\] \(Maximum_Iterations_Exceeded\)"):
        MPC(plant, max_iterations=1).predict(np.array([3.0, 0.0]))
    assert issubclass(MPCError, LipctrlError)
    mpc = MPC(plant, max_iterations=1, on_failure="fallback")
    with caplog.at_level(logging.WARNING, logger="lipctrl"):
        action, memory = mpc.predict(np.array([[3.0, 0.0], [2.0, 0.0]]))
    assert mpc.fallbacks == 2 and len(caplog.records) == 2
    np.testing.assert_array_equal(action, np.zeros((2, 1)))  # no plan yet: the equilibrium action
    plan = MPC(plant).predict(np.array([3.0, 0.0]))[1]
    action, memory = mpc.predict(np.array([[3.0, 0.0]]), plan)
    np.testing.assert_array_equal(action[0], plan[0][0].reshape(30, 3)[1, :1])  # the plan before, one step on
    np.testing.assert_array_equal(memory[0][0].reshape(30, 3)[0], plan[0][0].reshape(30, 3)[1])


def test_what_cannot_be_controlled_is_refused():
    plant = make_plant("pendulum")
    with pytest.raises(InputError, match="horizon is 0"):
        MPC(plant, horizon=0)
    with pytest.raises(InputError, match="no equations"):
        MPC(dataclasses.replace(plant, dynamics=None))
    blind = dataclasses.replace(plant, observe=record(lambda x: np.stack([x[0], x[0] * x[1]]), {"state": 2}, "observation"))
    with pytest.raises(InputError, match="'angular velocity' of the plant pendulum cannot be recovered"):
        MPC(blind)


def test_states_are_recovered_from_observations():
    plant = make_plant("gym-pendulum")
    recovery = StateRecovery.of_plant(plant)
    states = np.random.default_rng(0).uniform(-3, 3, (50, 2))
    np.testing.assert_allclose(recovery(plant.observation_of(states)), states, atol=1e-12)
    assert recovery.wrapped.tolist() == [True, False]
    quadrotor = StateRecovery.of_plant(make_plant("quadrotor2d"))
    assert quadrotor.sources == (0, 1, 2, 3, 4, 5) and not quadrotor.wrapped.any()
