"""What a Lipschitz bound makes impossible on given data, the envelope that attains it, and the floor for stabilisation."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from lipctrl.agents.energy import EnergyExpert
from lipctrl.agents.envelope import MidpointEnvelope
from lipctrl.agents.limits import data_limits, error_floor, interpolation_constant, smallest_lipschitz, squared_error_floor
from lipctrl.agents.lqr import LQRExpert
from lipctrl.agents.stabilisation import plant_stabilisation_floor, stabilisation_floor
from lipctrl.core.controller import Controller
from lipctrl.core.errors import InputError
from lipctrl.envs import make_plant, rollout, shipped_plants

X, U = np.array([[0.0], [1.0]]), np.array([[0.0], [10.0]])


def test_two_samples_by_hand():
    assert error_floor(X, U, 4.0) == 3.0
    assert smallest_lipschitz(X, U, 3.0) == 4.0
    assert interpolation_constant(X, U) == 10.0
    assert squared_error_floor(X, U, 4.0) * 2 == pytest.approx(18.0, abs=1e-5)
    assert squared_error_floor(X, U, 4.0) * 2 <= 18.0
    np.testing.assert_allclose(MidpointEnvelope(X, U, 4.0).predict(X)[0], [[3.0], [7.0]])


def test_duplicates_and_single_samples():
    twice = np.zeros((2, 1))
    assert interpolation_constant(twice, np.zeros((2, 1))) == 0.0
    assert interpolation_constant(twice, np.array([[0.0], [1.0]])) == math.inf
    assert smallest_lipschitz(twice, np.array([[0.0], [1.0]]), 0.5) == 0.0
    assert smallest_lipschitz(twice, np.array([[0.0], [1.0]]), 0.4) == math.inf
    assert interpolation_constant([[1.0, 2.0]], [[3.0]]) == 0.0
    assert error_floor([[1.0, 2.0]], [[3.0]], 1.0) == 0.0


@settings(max_examples=40)
@given(
    arrays(np.float64, (7, 2), elements=st.integers(-4, 4).map(float)),
    arrays(np.float64, (7, 1), elements=st.integers(-8, 8).map(float)),
    st.sampled_from([0.5, 1.0, 3.0]),
)
def test_floors_hold_for_the_envelope_and_the_envelope_attains_the_largest_error(x, u, lipschitz):
    envelope = MidpointEnvelope(x, u, lipschitz)
    errors = np.abs(envelope.predict(x)[0] - u)
    floor = error_floor(x, u, lipschitz)
    assert errors.max() == pytest.approx(floor, abs=1e-9)
    assert (errors**2).mean() >= squared_error_floor(x, u, lipschitz) - 1e-9
    assert squared_error_floor(x, u, lipschitz) >= floor**2 / len(x) - 1e-6  # one sample errs by the floor at least


@settings(max_examples=40)
@given(st.integers(1, 3), st.integers(0, 2**32 - 1))
def test_the_envelope_is_lipschitz_for_scalar_and_vector_actions(actions, seed):
    rng = np.random.default_rng(seed)
    envelope = MidpointEnvelope(rng.normal(size=(20, 2)), rng.normal(size=(20, actions)), 1.0)
    x = rng.normal(size=(300, 2))
    y = x + rng.normal(size=x.shape) * 10.0 ** rng.uniform(-6, 1, (300, 1))
    moved = np.linalg.norm(envelope.predict(x)[0] - envelope.predict(y)[0], axis=1)
    assert (moved <= np.linalg.norm(x - y, axis=1) * (1 + 1e-12) + 1e-12).all()


def test_vector_actions_with_the_full_constant_per_component_would_be_too_steep():
    rng = np.random.default_rng(3)
    x, u = rng.normal(size=(30, 2)), rng.normal(size=(30, 2))
    columns = [MidpointEnvelope(x, u[:, [i]], 1.0) for i in range(2)]
    a, b = rng.normal(size=(2, 3000, 2)) * 0.5
    b = a + (b - a) * 0.05
    gap = np.hypot(*(c.predict(a)[0] - c.predict(b)[0] for c in columns))[:, 0]
    assert (gap / np.linalg.norm(a - b, axis=1)).max() > 1.3
    whole = MidpointEnvelope(x, u, 1.0)
    gap = np.linalg.norm(whole.predict(a)[0] - whole.predict(b)[0], axis=1)
    assert (gap / np.linalg.norm(a - b, axis=1)).max() <= 1 + 1e-9


def test_blocks_give_the_same_as_one_matrix(monkeypatch):
    rng = np.random.default_rng(0)
    x, u = rng.normal(size=(500, 3)), rng.normal(size=(500, 2))
    whole = data_limits(x, u, 1.5)
    monkeypatch.setattr("lipctrl.agents.limits._PAIRS_AT_ONCE", 700)
    assert data_limits(x, u, 1.5) == whole
    distance = np.linalg.norm(x[:, None] - x[None], axis=-1) + np.eye(500)
    gap = np.linalg.norm(u[:, None] - u[None], axis=-1)
    assert whole.interpolation_constant == pytest.approx((gap / distance).max(), rel=1e-12)
    assert whole.error_floor == pytest.approx(((gap - 1.5 * distance) * (1 - np.eye(500))).max() / 2, rel=1e-12)


def test_a_subsample_gives_floors_for_all_samples():
    rng = np.random.default_rng(1)
    x, u = rng.normal(size=(60, 2)), rng.normal(size=(60, 1))
    parts = [squared_error_floor(x, u, 0.5, subsample=count) for count in (5, 20, 60)]
    assert parts[0] <= parts[1] + 1e-9 and parts[1] <= parts[2] + 1e-9 and parts[2] > 0
    limits = data_limits(x, u, 0.5, max_samples=30)
    assert (limits.samples, limits.of) == (30, 60)
    assert limits.error_floor <= error_floor(x, u, 0.5)
    assert limits.mean_squared_error_floor <= parts[2] + 1e-9
    assert limits.level == "numerical" and "numerical" in str(limits)


@pytest.mark.parametrize(
    ("x", "u", "message"),
    [
        (np.zeros((3, 2)), np.zeros((2, 1)), "same N"),
        (np.zeros((0, 2)), np.zeros((0, 1)), "N >= 1"),
        (np.array([[0.0], [np.nan]]), np.zeros((2, 1)), "row 1, column 0"),
        (np.zeros((2, 1)), np.array([[np.inf], [0.0]]), "actions hold inf"),
    ],
)
def test_bad_samples_are_a_users_error(x, u, message):
    with pytest.raises(InputError, match=message):
        error_floor(x, u, 1.0)
    with pytest.raises(InputError, match=message):
        MidpointEnvelope(x, u, 1.0)


def test_the_envelope_needs_a_positive_constant():
    for lipschitz in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(InputError, match="positive"):
            MidpointEnvelope(X, U, lipschitz)


# --- the floor for stabilisation --------------------------------------------------------------------------------------

A, B = [[1.0375, 0.05], [0.75, 1.0]], [[0.0075], [0.15]]


def test_pendulum_upright_needs_five_newton_metres_per_unit():
    floor = stabilisation_floor(A, B)
    assert floor.lipschitz == pytest.approx(5.0, rel=1e-6) and floor.lipschitz <= 5.0
    plant = plant_stabilisation_floor(make_plant("gym-pendulum"))
    assert plant.lipschitz == pytest.approx(5.0, rel=1e-12) and plant.lipschitz <= 5.0
    exact = [[[Fraction(str(v)) for v in row] for row in matrix] for matrix in (A, B)]
    assert stabilisation_floor(*exact).lipschitz == pytest.approx(5.0, rel=1e-14)


def test_offset_equilibrium_needs_less():
    angle = 0.4115
    a = [[1 + 0.0375 * math.cos(angle), 0.05], [0.75 * math.cos(angle), 1.0]]
    assert stabilisation_floor(a, B).lipschitz == pytest.approx(5 * math.cos(angle), rel=1e-6)
    assert stabilisation_floor(a, B).lipschitz == pytest.approx(4.583, abs=1e-3)


def test_an_integrator_is_not_applicable_never_a_number():
    for a in (
        [[1.0, 0.05], [0.0, 1.2]],
        [[1.0 + 4e-16, 0.05], [0.0, 1.2]],
        [[Fraction(1), Fraction(1, 20)], [Fraction(0), Fraction(6, 5)]],
    ):
        floor = stabilisation_floor(a, B)
        assert floor.lipschitz is None and "not applicable" in floor.reason


def test_an_even_number_of_unstable_eigenvalues_is_not_applicable():
    assert stabilisation_floor([[1.1, 0.0], [0.0, 1.2]], [[1.0], [1.0]]).lipschitz is None
    assert stabilisation_floor([[0.5]], [[1.0]]).lipschitz is None


@settings(max_examples=60)
@given(st.integers(0, 2**32 - 1))
def test_no_smaller_gain_stabilises(seed):
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=(2, 2)) * 1.2, rng.normal(size=(2, 1))
    floor = stabilisation_floor(a, b)
    if floor.lipschitz is None:
        return
    gains = rng.normal(size=(400, 1, 2))
    gains *= floor.lipschitz * rng.uniform(0, 1, (400, 1, 1)) / np.linalg.norm(gains, axis=(1, 2), keepdims=True)
    spectral_radius = np.abs(np.linalg.eigvals(a - b @ gains)).max(-1)
    assert (spectral_radius >= 1 - 1e-9).all()


@pytest.mark.parametrize("name", shipped_plants())
def test_every_plant_gets_an_answer_that_its_lqr_respects(name):
    plant = make_plant(name)
    floor = plant_stabilisation_floor(plant)
    if floor.lipschitz is not None:
        assert np.linalg.norm(LQRExpert.of_plant(plant).gain, 2) >= floor.lipschitz


# --- the envelope as a policy -----------------------------------------------------------------------------------------


def test_the_envelope_of_the_energy_expert_swings_up_at_ten_and_not_at_six():
    plant = make_plant("gym-pendulum")
    expert = EnergyExpert(plant)
    angle, speed = np.meshgrid(-np.pi + 2 * np.pi * np.arange(120) / 120, np.linspace(-8, 8, 81), indexing="ij")
    observations = plant.observation_of(np.stack([angle.ravel(), speed.ravel()], -1))
    labels = expert.predict(observations)[0]
    starts = np.random.default_rng(0).uniform([-np.pi, -1], [np.pi, 1], (40, 2))
    six, ten = (rollout(plant, MidpointEnvelope(observations, labels, slope), starts).returns.mean() for slope in (6.0, 10.0))
    assert six < -600 and ten > -190


def test_the_envelope_is_a_controller():
    envelope = MidpointEnvelope(np.zeros((1, 3)), np.array([[1.0, -1.0]]), 2.0)
    assert isinstance(envelope, Controller)
    memory = (np.ones(2),)
    action, same = envelope.predict(np.zeros((4, 5, 3)), state=memory)
    assert action.shape == (4, 5, 2) and same is memory
    assert envelope.predict(np.ones(3))[0].tolist() == [1.0, -1.0]
