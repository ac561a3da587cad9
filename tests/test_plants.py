"""The shipped plants are those of the table, exactly; users' plants are one short file."""

from __future__ import annotations

import copy
import inspect
import json
import math
import warnings
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from scipy.linalg import expm

from lipctrl.certificates.checker.bundle import parse_plant
from lipctrl.certificates.checker.exact import evaluate_exact
from lipctrl.core.errors import InputError
from lipctrl.core.recording import RecordingError, RecordingWarning
from lipctrl.envs import Plant, environment_id, load_plant, make_plant, rollout, shipped_plants
from lipctrl.envs.digest_table import TABLE, digest_table, write_digest_table
from lipctrl.envs.discretisation import zero_order_hold
from lipctrl.envs.shipped import double_integrator, van_der_pol_reversed

F = Fraction
sin, cos = np.sin, np.cos


def _euler(rates: Callable[..., list[float]], dt: float) -> Callable[..., np.ndarray]:
    return lambda x, u: x + dt * np.array(rates(x, u))


def _pendulum(x: np.ndarray, u: np.ndarray) -> list[float]:
    return [x[1], 9.81 / 0.5 * sin(x[0]) - 0.1 / (0.15 * 0.25) * x[1] + u[0] / (0.15 * 0.25)]


def _cartpole(x: np.ndarray, u: np.ndarray) -> list[float]:
    _, theta, v, w = x
    denominator = 1 + 0.1 * sin(theta) ** 2
    a = (u[0] + 0.1 * sin(theta) * (w**2 - 9.8 * cos(theta))) / denominator
    r = (-u[0] * cos(theta) - 0.1 * w**2 * cos(theta) * sin(theta) + 1.1 * 9.8 * sin(theta)) / denominator
    return [v, w, a, r]


def _quadrotor(x: np.ndarray, u: np.ndarray) -> np.ndarray:
    total = u[0] + u[1]
    a = np.array([-sin(x[2]) * total / 0.486, cos(x[2]) * total / 0.486 - 9.81, 0.25 * (u[0] - u[1]) / 0.00383])
    v = x[3:] + 0.01 * a
    return np.concatenate([x[:3] + (x[3:] + v) * 0.01 / 2, v])


def _gym_pendulum(x: np.ndarray, u: np.ndarray) -> list[float]:
    w = np.clip(x[1] + (15 * sin(x[0]) + 3 * u[0]) * 0.05, -8, 8)
    return [x[0] + w * 0.05, w]


def _van_der_pol(x: np.ndarray, u: np.ndarray) -> np.ndarray:
    def rate(y: np.ndarray) -> np.ndarray:
        return np.array([y[1], (1 - y[0] ** 2) * y[1] - y[0] + u[0]])

    h = 0.05
    a = rate(x)
    b = rate(x + h / 2 * a)
    c = rate(x + h / 2 * b)
    d = rate(x + h * c)
    return x + h / 6 * (a + 2 * b + 2 * c + d)


#: name: (next state in plain floats, action bounds, equilibrium action, half-widths of the box, dt), typed from the table
TABLE_OF_PLANTS: dict[str, tuple[Callable[..., object], tuple[float, float], float, list[float], Fraction]] = {
    "double-integrator": (lambda x, u: [x[0] + 0.1 * x[1] + 0.005 * u[0], x[1] + 0.1 * u[0]], (-1, 1), 0, [5, 5], F(1, 10)),
    "pendulum": (_euler(_pendulum, 0.05), (-6, 6), 0, [12, 12], F(1, 20)),
    "pendulum-small": (_euler(_pendulum, 0.05), (-0.75, 0.75), 0, [12, 12], F(1, 20)),
    "gym-pendulum": (_gym_pendulum, (-2, 2), 0, [3.2, 8], F(1, 20)),
    "cartpole": (_euler(_cartpole, 0.05), (-30, 30), 0, [1] * 4, F(1, 20)),
    "quadrotor2d": (_quadrotor, (0, 1.25 * 0.486 * 9.81), 0.486 * 9.81 / 2, [0.75, 0.75, 1.57, 4, 4, 3], F(1, 100)),
    "path-tracking": (
        _euler(lambda x, u: [2 * sin(x[1]), 2 * u[0] - cos(x[1]) / (5 - sin(x[1]))], 0.05), (-0.84, 0.84), 0.1, [3, 3], F(1, 20),
    ),
    "path-tracking-small": (
        _euler(lambda x, u: [2 * sin(x[1]), 2 * u[0] - cos(x[1]) / (5 - sin(x[1]))], 0.05), (-0.5, 0.5), 0.1, [3, 3], F(1, 20),
    ),
    "path-tracking-physical": (
        _euler(lambda x, u: [2 * sin(x[1]), 2 * u[0] - 2 * 0.1 * cos(x[1]) / (1 - 0.1 * x[0])], 0.05),
        (-0.84, 0.84), 0.1, [3, 3], F(1, 20),
    ),
    "van-der-pol": (_van_der_pol, (-1, 1), 0, [2.5, 3.5], F(1, 20)),
    "van-der-pol-reversed": (
        _euler(lambda x, u: [-x[1], x[0] + (x[0] ** 2 - 1) * x[1] + u[0]], 0.05), (-1, 1), 0, [3, 3], F(1, 20),
    ),
}  # fmt: skip


def test_the_shipped_plants_are_those_of_the_table() -> None:
    assert sorted(shipped_plants()) == sorted(TABLE_OF_PLANTS)


@pytest.mark.parametrize("name", sorted(TABLE_OF_PLANTS))
def test_shipped_plants_follow_their_equations(name: str) -> None:
    plant = make_plant(name)
    step, (low, high), rest, box, dt = TABLE_OF_PLANTS[name]
    generator = np.random.default_rng(1)
    states = generator.uniform(-1, 1, (200, len(box))) * box
    actions = generator.uniform(low - 1, high + 1, (200, len(plant.action)))  # partly outside: the actuator clips
    expected = np.array([step(x, np.clip(u, low, high)) for x, u in zip(states, actions, strict=True)])
    np.testing.assert_allclose(plant.step(states, actions), expected, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose([plant.step(x, u) for x, u in zip(states, actions, strict=True)], expected, rtol=1e-12, atol=1e-12)
    assert plant.dt == dt
    assert [float(v) for v in plant.state_high] == box
    assert [-v for v in plant.state_low] == list(plant.state_high)
    assert [float(v) for v in plant.action_low] == [low] * len(plant.action)
    assert [float(v) for v in plant.action_high] == pytest.approx([high] * len(plant.action), rel=1e-15)
    assert [float(v) for v in plant.equilibrium_action] == pytest.approx([rest] * len(plant.action), rel=1e-15)


@pytest.mark.parametrize("name", sorted(TABLE_OF_PLANTS))
def test_equilibria_are_exact_and_subjects_well_formed(name: str) -> None:
    plant = make_plant(name)
    after = evaluate_exact(plant.dynamics, {"state": plant.equilibrium_state, "action": plant.equilibrium_action})
    assert after["next_state"] == plant.equilibrium_state == (0,) * len(plant.state)
    assert parse_plant(plant.subject()).digest == plant.digest
    assert plant.dynamics.tensors == plant.observe.tensors == {}
    largest = max(abs(v).denominator for node in plant.dynamics.nodes for v in node.attributes.get("values", ()))
    assert largest < 10**6  # 3/20, not the double 0.15
    assert plant.max_episode_steps == 10 / plant.dt
    assert all(coordinate.unit for group in (plant.state, plant.action, plant.observation) for coordinate in group)
    assert (plant.stage_cost(np.zeros(len(plant.state)), [float(v) for v in plant.equilibrium_action])) == 0


def test_exact_constants_of_the_table() -> None:
    quadrotor = make_plant("quadrotor2d")
    assert quadrotor.equilibrium_action == (F(486, 1000) * F(981, 100) / 2,) * 2
    assert quadrotor.action_high == (F(5, 4) * F(486, 1000) * F(981, 100),) * 2
    assert make_plant("gym-pendulum").state_high == (F(16, 5), 8)
    assert make_plant("path-tracking").action_high == (F(21, 25),)
    constants = {v for node in make_plant("pendulum").dynamics.nodes for v in node.attributes.get("values", ())}
    assert {F(981, 50), F(8, 3), F(3, 80), F(1, 20)} <= constants


def test_resets_and_terminations_of_the_table() -> None:
    widths = {name: [float(v) for v in make_plant(name).reset_high] for name in shipped_plants()}
    pi = math.pi
    assert widths == {
        "double-integrator": [1, 1], "pendulum": [pi, 4], "pendulum-small": [pi, 1], "gym-pendulum": [pi, 1], "cartpole": [0.25] * 4,
        "quadrotor2d": [0.1875, 0.1875, 0.3925, 1, 1, 0.75], "path-tracking": [1.5, 1.5], "path-tracking-small": [1.5, 1.5],
        "path-tracking-physical": [1.5, 1.5], "van-der-pol": [1, 1], "van-der-pol-reversed": [1, 1],
    }  # fmt: skip
    ending = {name: make_plant(name).termination_high for name in shipped_plants() if make_plant(name).termination_high}
    boxes = {name: make_plant(name).state_high for name in ("double-integrator", "quadrotor2d")}
    assert ending == {**boxes, "cartpole": (2, 2, 2, 2)}
    plant = make_plant("cartpole")
    assert plant.terminated(np.array([[0, 0, 0, 2.01], [2, -2, 0, 0], [0, np.nan, 0, 0]])).tolist() == [True, False, True]
    states = make_plant("pendulum").initial_states(np.random.default_rng(0), 500)
    assert states.shape == (500, 2)
    assert 3 < states[:, 0].max() < pi
    assert 3.8 < states[:, 1].max() < 4


def test_the_cost_sees_the_wrapped_angle_where_the_table_says_so() -> None:
    for name, wraps in (("pendulum", False), ("pendulum-small", True), ("gym-pendulum", True)):
        plant = make_plant(name)
        turned = plant.stage_cost([[0.5 + 2 * math.pi, 0.3]], [[0.1]])
        assert (turned == pytest.approx(plant.stage_cost([[0.5, 0.3]], [[0.1]]))) == wraps


def test_linearisations_are_the_known_ones() -> None:
    a, b = make_plant("gym-pendulum").linearise()
    np.testing.assert_allclose(a, [[1.0375, 0.05], [0.75, 1]], rtol=1e-12)
    np.testing.assert_allclose(b, [[0.0075], [0.15]], rtol=1e-12)
    for name in shipped_plants():
        plant, h = make_plant(name), 1e-6
        a, b = plant.linearise()
        x, u = np.zeros(len(plant.state)), np.array([float(v) for v in plant.equilibrium_action])
        columns = [(plant.step(x + h * e, u) - plant.step(x - h * e, u)) / (2 * h) for e in np.eye(len(x))]
        np.testing.assert_allclose(a, np.array(columns).T, atol=1e-7)
        columns = [(plant.step(x, u + h * e) - plant.step(x, u - h * e)) / (2 * h) for e in np.eye(len(u))]
        np.testing.assert_allclose(b, np.array(columns).T, atol=1e-7)


def test_variants_with_another_sampling_time() -> None:
    a, b = double_integrator(1).linearise()
    np.testing.assert_array_equal(np.hstack([a, b]), [[1, 1, 0.5], [0, 1, 1]])
    assert van_der_pol_reversed("0.01").dt == F(1, 100)
    assert van_der_pol_reversed().digest == make_plant("van-der-pol-reversed").digest


def test_names_and_ids() -> None:
    assert environment_id("double-integrator") == "lipctrl/DoubleIntegrator-v0"
    for name in shipped_plants():
        assert make_plant(environment_id(name)) is make_plant(name) is load_plant(name)
    with pytest.raises(InputError, match="no plant 'pendulums', expected one of double-integrator, pendulum"):
        make_plant("pendulums")


def test_the_checkers_table_of_digests_is_up_to_date(tmp_path: Path) -> None:
    assert json.loads(TABLE.read_text()) == digest_table()
    write_digest_table(tmp_path / "table.json")
    assert (tmp_path / "table.json").read_bytes() == TABLE.read_bytes()
    assert len(set(digest_table().values())) == len(shipped_plants())


# --- users' plants ----------------------------------------------------------------------------------------------------

SHORT = """
import numpy as np
from lipctrl.envs import Plant

def derivative(state, action):
    angle, velocity = state
    return np.stack([velocity, 10 * np.sin(angle) - velocity + action[0]])

def plant() -> Plant:
    return Plant.from_equations("mine", derivative, dt="0.05", action={"torque": ("N m", 20)},
                                state={"angle": ("rad", 3), "velocity": ("rad/s", 8)})
"""


def test_a_users_plant_is_ten_lines(tmp_path: Path) -> None:
    assert len([line for line in SHORT.splitlines() if line]) <= 10
    (tmp_path / "mine.py").write_text(SHORT)
    plant = load_plant(tmp_path / "mine.py")
    assert (plant.name, plant.dt, plant.max_episode_steps) == ("mine", F(1, 20), 200)
    np.testing.assert_allclose(plant.step([0.1, 0.2], [30.0]), [0.1 + 0.05 * 0.2, 0.2 + 0.05 * (10 * np.sin(0.1) - 0.2 + 20)])
    assert plant.stage_cost([3.0, 0.0], [0.0]) == 1.0
    assert plant.reset_high == (F(3, 2), 4)
    assert plant.observation == plant.state


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1", r"defines no function plant\(\)"),
        ("def plant(): return 3", "returned int, expected a Plant"),
        ("def plant(): return 1 / 0", "ZeroDivisionError"),
        ("def plant(:", "SyntaxError"),
        (SHORT.replace("np.sin(angle)", "np.arctan(angle)"), "np.arctan"),
        (SHORT.replace('"0.05"', '"0"'), "dt is 0, expected a positive"),
        (SHORT.replace('("rad", 3)', '("rad",)'), "expected .unit, bound."),
        (SHORT.replace('("rad", 3)', '("rad", (-3, 3))'), "expected .unit, bound. or .unit, low, high."),
        (SHORT.replace('("rad", 3)', '("rad", -3)'), "expected its lower end below"),
        (SHORT.replace('dt="0.05"', 'dt="0.05", scheme="magic"'), "expected one of euler"),
        (SHORT.replace("[velocity, ", "["), "return 1 components, expected 2"),
        (SHORT.replace('dt="0.05"', 'dt="0.05", equilibrium=([0], [0])'), "has 1 numbers, expected 2"),
        (SHORT.replace('dt="0.05"', 'dt="0.05", reset=[1]'), "reset has 1 entries"),
        (SHORT.replace('dt="0.05"', 'dt="0.05", cost=([1, 1], [1, 1])'), "R has 2 numbers, expected 1"),
    ],
)
def test_mistakes_in_a_users_plant_get_one_sentence(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "mine.py").write_text(text)
    with pytest.raises(InputError, match=message) as caught:
        load_plant(str(tmp_path / "mine.py"))
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no file .*nothing\.py"):
        load_plant(tmp_path / "nothing.py")


def _one(function: Callable[..., object], **details: object) -> Plant:
    return Plant.from_equations("one", function, **{"state": {"x": ("m", 2)}, "action": {"u": ("1", 1)}, "dt": "1/10", **details})


def test_an_inexact_equilibrium_warns_and_names_the_residual() -> None:
    with pytest.warns(RecordingWarning, match=r"plant 'one': one step from the equilibrium moves by .*Fraction\(3, 20\)"):
        _one(lambda x, u: 0.1 * x - "0.03" + u, equilibrium=([0.3], [0]))
    with pytest.warns(RecordingWarning, match=r"moves by 0\.1"):
        _one(lambda x, u: x + u + 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _one(lambda x, u: 0.1 * x + u)  # a float is a constant as any other: the equilibrium 0 stays exact
        _one(lambda x, u: F(1, 10) * x - "0.03" + u, equilibrium=(["0.3"], [0]))


def test_schemes() -> None:
    dt = 0.1
    exact = np.exp(-0.1)
    errors = {s: abs(_one(lambda x, u: -x + u, scheme=s).step([1.0], [0.0])[0] - exact) for s in ("euler", "rk4")}
    assert 1e-3 < errors["euler"] < 1e-2
    assert errors["rk4"] < 1e-7
    two = {"state": {"q": ("m", 2), "v": ("m/s", 2)}}
    q, v, a = 0.3, 0.4, np.sin(0.3) + 0.5
    for scheme, position in (("trapezoid", q + dt * (2 * v + dt * a) / 2), ("semi-implicit euler", q + dt * (v + dt * a))):
        plant = _one(lambda x, u: [x[1], np.sin(x[0]) + u[0]], scheme=scheme, **two)
        np.testing.assert_allclose(plant.step([q, v], [0.5]), [position, v + dt * a], rtol=1e-14)
        with pytest.raises(InputError, match="positions followed by their velocities"):
            _one(lambda x, u: [x[0], np.sin(x[0]) + u[0]], scheme=scheme, **two)
    assert _one(lambda x, u: x / 2 + u, scheme="discrete").step([1.0], [0.25]) == 0.75


def test_exact_zero_order_hold() -> None:
    a, b = [[0, 1, 0], [0, 0, 2], [0, 0, 0]], [[0], [1], [3]]
    discrete = zero_order_hold(a, b, "0.3")
    block = np.zeros((4, 4))
    block[:3, :3], block[:3, 3:] = a, b
    np.testing.assert_allclose(np.hstack(discrete).astype(float), expm(block * 0.3)[:3], rtol=1e-12)
    assert discrete[0][0, 1] == F(3, 10)
    with pytest.raises(InputError, match="not nilpotent"):
        zero_order_hold([[1]], [[1]], 1)
    with pytest.raises(InputError, match="shapes"):
        zero_order_hold([[0, 1]], [[1]], 1)


def test_equations_are_run_once_for_every_scheme() -> None:
    calls = []
    _one(lambda x, u: calls.append(1) or u - x, scheme="rk4")
    assert calls == [1]


def test_observation_cost_and_float_matrices_of_a_user() -> None:
    matrix = np.array([[1.0, 0.1], [0.0, 1.0]])
    with pytest.warns(RecordingWarning):  # B u* is not 0: no equilibrium
        plant = Plant.from_equations(
            "linear",
            lambda x, u: matrix @ x + np.array([[0.0], [0.1]]) @ u,
            state={"q": ("m", -1, 2), "v": ("m/s", 1)},
            action={"u": ("N", 0, 2)},
            dt=F(1, 10),
            scheme="discrete",
            equilibrium=([1, 0], [0.5]),
            observe=(lambda x: [x[0] ** 2], {"square": "m^2"}),
            cost=lambda x, u: abs(x[0]) + u[0],
        )
    assert plant.dynamics is not None
    assert not plant.dynamics.tensors  # float matrices become exact constants: plants travel as JSON alone
    np.testing.assert_allclose(plant.step([1.0, 0.5], [1.0]), [1.05, 0.6])
    assert plant.observation_of([3.0, 0.0]).tolist() == [9.0]
    assert plant.stage_cost([-0.5, 0.0], [5.0]) == 2.5
    assert (plant.reset_low, plant.reset_high) == ((F(1, 4), F(-1, 2)), (F(7, 4), F(1, 2)))


def test_parts_must_fit() -> None:
    plant = make_plant("pendulum")
    with pytest.raises(InputError, match="reset range"):
        replace(plant, reset_low=(F(1),))
    with pytest.raises(InputError, match="termination range"):
        replace(plant, termination_low=plant.state_high, termination_high=plant.state_low)
    with pytest.raises(InputError, match="wrapped_angles"):
        replace(plant, wrapped_angles=(2,))
    with pytest.raises(InputError, match="the cost maps"):
        replace(plant, cost=plant.observe)
    with pytest.raises(InputError, match="strictly inside action_box"):
        replace(plant, equilibrium_action=(F(6),))
    with pytest.raises(InputError, match="no equations"):
        replace(plant, dynamics=None).subject()
    with pytest.raises(RecordingError, match="no value to compare"):
        _one(lambda x, u: x if x[0] > 0 else u)


def test_plants_travel_between_processes() -> None:
    plant = make_plant("gym-pendulum")
    plant.step([0.1, 0.2], [0.3])
    again = copy.deepcopy(plant)  # goes the way of pickling: without the compiled closures
    assert "compiled" not in vars(again)
    assert again.digest == plant.digest
    np.testing.assert_array_equal(again.step([0.1, 0.2], [0.3]), plant.step([0.1, 0.2], [0.3]))


class _Linear:
    def predict(self, observation, state=None, episode_start=None, deterministic=True):
        self.starts = episode_start
        return -(observation @ np.array([[1.0], [1.5]])), state


def test_rollouts_are_batched_episodes() -> None:
    plant = make_plant("double-integrator")
    starts = np.array([[1.0, 0.0], [0.5, -0.5], [4.9, 4.0]])
    result = rollout(plant, _Linear(), starts, 60)
    assert result.states.shape == (3, 61, 2)
    assert result.actions.shape == (3, 60, 1)
    assert result.observations.dtype == np.float32
    assert result.terminated.tolist() == [False, False, True]
    assert result.lengths.tolist()[:2] == [60, 60]
    assert result.lengths[2] == 1
    assert np.all(result.costs[2, 1:] == 0)
    assert np.all(result.states[2, 1:] == result.states[2, 1])
    assert np.abs(result.states[:2, -1]).max() < 0.1
    x, total = starts[0], 0.0
    for _ in range(60):
        u, _ = _Linear().predict(x.astype(np.float32))
        total -= plant.stage_cost(x, u)
        x = plant.step(x, u)
    np.testing.assert_allclose(result.states[0, -1], x, atol=1e-6)
    assert result.returns[0] == pytest.approx(total, rel=1e-6)
    with pytest.raises(InputError, match="initial states have shape"):
        rollout(plant, _Linear(), np.zeros(2))


def test_everything_public_says_what_it_is() -> None:
    for name, member in inspect.getmembers(Plant):
        if not name.startswith("_") and callable(member):
            assert member.__doc__, name
