"""Closed-loop proofs: oracles with known regions of attraction, and loops, sets and files that must be refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from loops import gain, identity, linear_plant, saturated_scalar, subject

from lipctrl.certificates.checker.bundle import parse_plant, read_certificate
from lipctrl.certificates.checker.kinds import check
from lipctrl.certificates.stability import StabilityResult, certify_stability
from lipctrl.certificates.stability.simulation import step_function
from lipctrl.core.recording import record

ONE = np.array([[1.0]])


def rewrite(path: Path, out: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """A copy of a certificate with its JSON changed (its weights, and so their digests, stay)."""
    data = json.loads((path / "certificate.json").read_text())
    change(data)
    out.mkdir(parents=True)
    (out / "certificate.json").write_text(json.dumps(data))
    (out / "weights.safetensors").write_bytes((path / "weights.safetensors").read_bytes())
    return out


def scalar(function: Callable[..., Any], box: Any = 1) -> dict[str, Any]:
    """A scalar plant whose action is ignored."""
    return subject(record(lambda state, action: function(state), {"state": 1, "action": 1}, output="next_state"), 1, 1, box=box)


def still(n: int = 1) -> Any:
    """A policy that does nothing."""
    return gain([0.0] * n)


def prove(plant: dict[str, Any], policy: Any, out: Path, rho: float, P: np.ndarray = ONE, **options: Any) -> StabilityResult:
    """The one certificate of the real-valued loop for the given sublevel set."""
    (result,) = certify_stability(plant, policy, out, readings=options.pop("readings", ("real",)), candidate=(P, rho), **options)
    return result


# --- oracles ----------------------------------------------------------------------------------------------------------


def test_saturated_unstable_scalar_up_to_its_region_of_attraction(tmp_path: Path) -> None:
    """x+ = 1.2 x - sat(x/2): the region of attraction is (-5, 5)."""
    result = prove(**saturated_scalar(), out=tmp_path, rho=24.9, rate=Fraction(1, 10000))
    assert (result.status, result.level, result.verdict.property) == ("ok", "proved", "exponentially_stable")
    assert 2 * 24.9**0.5 - 1e-6 < result.verdict.numbers["volume"] <= 2 * 24.9**0.5
    assert prove(**saturated_scalar(), out=tmp_path / "more", rho=25.1, rate=Fraction(1, 10000)).status == "unknown"


def test_search_finds_nearly_the_whole_region_of_attraction(tmp_path: Path) -> None:
    (result,) = certify_stability(**saturated_scalar(), out=tmp_path, readings=("real",))
    assert result.level == "proved" and 9.0 < result.verdict.numbers["volume"] < 10


@pytest.mark.parametrize(("rho", "status"), [(0.49, "ok"), (0.51, "unknown")])
def test_cubic_map(tmp_path: Path, rho: float, status: str) -> None:
    """x+ = x/2 + x^3 converges for |x| < 1/sqrt(2) only."""
    cubic = scalar(lambda x: x * Fraction(1, 2) + x**3)
    assert prove(cubic, still(), tmp_path, rho).status == status


def van_der_pol(dt: Fraction) -> dict[str, Any]:
    def dynamics(x: Any, u: Any) -> Any:
        return [x[0] - dt * x[1], x[1] + dt * (x[0] + (x[0] ** 2 - 1) * x[1])]

    return subject(record(dynamics, {"state": 2, "action": 1}, output="next_state"), 2, 1, box=3)


@pytest.mark.parametrize(("dt", "level", "ceiling"), [("1/100", 2.283554, 13.56), ("1/20", 2.185441, 12.92), ("1/10", 1.984466, 12.10)])
def test_reversed_van_der_pol(tmp_path: Path, dt: str, level: float, ceiling: float) -> None:
    """Largest sublevel set of the Lyapunov equation's solution, for three Euler maps; areas stay below the true region."""
    plant, P, rate = van_der_pol(Fraction(dt)), np.array([[1.5, -0.5], [-0.5, 1.0]]), Fraction(1, 10**6)
    proved = prove(plant, still(2), tmp_path / "a", 0.995 * level, P, rate=rate)
    assert proved.level == "proved" and proved.verdict.numbers["volume"] < np.pi * level / np.sqrt(1.25)
    assert prove(plant, still(2), tmp_path / "b", 1.005 * level, P, rate=rate).status == "unknown"
    (found,) = certify_stability(plant, still(2), tmp_path / "c", readings=("real",))
    assert found.level == "proved" and 0.35 * ceiling < found.verdict.numbers["volume"] < ceiling + 0.05


def test_sampled_data_loop_is_judged_by_its_own_equations(tmp_path: Path) -> None:
    """u = -2.5 x stabilises the Euler map of dx/dt = x + u at dt = 1 and destabilises the exact one."""
    euler = linear_plant([["2"]], [[1]], limit=10**3)
    assert prove(euler, gain([-2.5]), tmp_path / "euler", 100.0).level == "proved"
    e = Fraction(2718281828459045, 10**15)
    exact = linear_plant([[e]], [[e - 1]], limit=10**3)
    (result,) = certify_stability(exact, gain([-2.5]), tmp_path / "exact")
    assert (result.status, result.level) == ("refuted", "falsified")


def test_every_start_of_a_proved_set_behaves(tmp_path: Path) -> None:
    """Simulate what was proved: no start leaves the set or fails to decrease."""
    plant = van_der_pol(Fraction(1, 20))
    (result,) = certify_stability(plant, still(2), tmp_path, readings=("real",))
    claim, step = result.claim, step_function(parse_plant(plant), still(2))
    y = np.random.default_rng(0).uniform(claim.low, claim.high, (200_000, 2))
    y = y[np.einsum("bi,ij,bj->b", y, claim.P, y) <= claim.rho]
    before, after = (np.einsum("bi,ij,bj->b", v, claim.P, v) for v in (y, step(y)))
    assert len(y) > 20_000 and (after <= (1 - float(claim.kappa)) * before + 1e-12).all()


def test_equilibrium_off_the_origin(tmp_path: Path) -> None:
    """x+ = 1 + (x - 1)/2 + u around x* = 1, with a policy recorded around it."""
    plant = subject(
        record(lambda x, u: 1 + (x - 1) * Fraction(1, 2) + u, {"state": 1, "action": 1}, output="next_state"), 1, 1, box=5, rest=[1]
    )
    assert prove(plant, gain([0.125], bias=[-0.125]), tmp_path, 9.0).level == "proved"
    assert prove(plant, gain([0.125], bias=[-0.12500001]), tmp_path / "off", 9.0).verdict.property == "practically_stable"


# --- traps ------------------------------------------------------------------------------------------------------------


def test_unstable_loop_is_refuted_with_a_counterexample(tmp_path: Path) -> None:
    (result,) = certify_stability(linear_plant([["11/10"]], [[1]]), still(), tmp_path)
    assert (result.status, result.level) == ("refuted", "falsified")
    with pytest.raises(TypeError, match="no truth value"):
        bool(result)


def hole_trap() -> dict[str, Any]:
    """x+ = x/2 + 0.0002 sat(x / 0.0001): contracts outside a tiny hole, unstable inside, attractor at 0.0004."""
    return scalar(lambda x: x * Fraction(1, 2) + Fraction(2, 10**4) * np.clip(x * 10**4, -1, 1))


def test_hole_trap_is_practically_stable_at_most(tmp_path: Path) -> None:
    result = prove(hole_trap(), still(), tmp_path, 1.0 - 1e-9)
    assert result.verdict.level == "proved" and result.verdict.property == "practically_stable"
    assert result.verdict.numbers["ball"] >= 0.0004
    (searched,) = certify_stability(hole_trap(), still(), tmp_path / "search", readings=("real",))
    assert searched.verdict is None or searched.verdict.property != "exponentially_stable"


def test_tolerance_trap(tmp_path: Path) -> None:
    """x+ = 1.0001 x with V = x^2/1000: the increase is below any usual tolerance."""
    assert prove(linear_plant([["10001/10000"]], [[1]], box=1), still(), tmp_path, 1e-3, ONE * 1e-3).status == "unknown"
    (result,) = certify_stability(linear_plant([["10001/10000"]], [[1]], box=1), still(), tmp_path / "search")
    assert result.level == "falsified"


@pytest.mark.parametrize("offset", [Fraction(1, 10**9), Fraction(1, 10**40)])
def test_equilibrium_missed_by_a_hair_is_not_exponentially_stable(tmp_path: Path, offset: Fraction) -> None:
    shifted = scalar(lambda x: x * Fraction(1, 2) + offset)
    result = prove(shifted, still(), tmp_path, 0.9)
    assert result.verdict.property == "practically_stable" and result.verdict.level == "proved"


def test_box_that_the_state_leaves_is_not_invariant(tmp_path: Path) -> None:
    """V decreases but the next state leaves the box: 2-D rotation and contraction in a thin box."""
    plant = linear_plant([["0", "9/10"], ["-9/10", "0"]], [[0], [0]], box=1)
    plant["state_box"] = [["-1", "-1/10"], ["1", "1/10"]]
    assert prove(plant, still(2), tmp_path, 0.9, np.eye(2)).status == "unknown"
    assert prove(plant, still(2), tmp_path / "small", 0.0099, np.eye(2)).level == "proved"


@pytest.mark.parametrize("scale", [1e-20, 1e-3, 1e15])
def test_units_do_not_matter(tmp_path: Path, scale: float) -> None:
    """The saturated loop in other units of the state."""
    s = Fraction(scale)
    policy = record(lambda o: np.clip(o * (Fraction(-1, 2) / s), -1, 1), {"observation": 1}, output="action")
    plant = subject(record(lambda x, u: x * Fraction(6, 5) + u * s, {"state": 1, "action": 1}, output="next_state"), 1, 1, box=100 * s)
    assert prove(plant, policy, tmp_path / "a", 24.5 * scale**2).level == "proved"
    assert prove(plant, policy, tmp_path / "b", 25.5 * scale**2).status == "unknown"


# --- float32 ----------------------------------------------------------------------------------------------------------


def test_float32_loop_gets_a_small_ball_and_no_more(tmp_path: Path) -> None:
    result = prove(**saturated_scalar(), out=tmp_path, rho=24.9, readings=("float32",), rate=Fraction(1, 10000))
    assert (result.level, result.verdict.property) == ("proved", "practically_stable")
    assert 0 < result.verdict.numbers["ball"] < 1e-5


def test_second_reading_starts_from_the_level_that_the_first_one_reached(tmp_path: Path) -> None:
    """Blocking cells may lower the level below every planned one: the float32 reading must go on from there."""
    cubic = scalar(lambda x: x * Fraction(1, 2) + x**3)
    real, deployed = certify_stability(cubic, still(), tmp_path)
    assert (real.level, deployed.level) == ("proved", "proved")
    assert 0.4 * real.claim.rho < deployed.claim.rho <= real.claim.rho


def test_float32_file_that_claims_more_is_refused(tmp_path: Path) -> None:
    path = prove(**saturated_scalar(), out=tmp_path, rho=24.0).path
    for word in ("exponentially_stable", "asymptotically_stable"):
        verdict = check(
            rewrite(path, tmp_path / word, lambda data, w=word: data.update(arithmetic="float32", claim={**data["claim"], "property": w}))
        )
        assert verdict.status == "rejected"


def test_tanh_in_float32_needs_an_assumption_that_lowers_the_level(tmp_path: Path) -> None:
    policy = record(lambda o: np.tanh(o * np.float32(-0.5).item()), {"observation": 1}, output="action")
    plant = linear_plant([["6/5"]], [[1]])
    assert prove(plant, policy, tmp_path / "a", 4.0, readings=("float32",)).level == "unknown"
    result = prove(plant, policy, tmp_path / "b", 4.0, readings=("float32",), activation_ulp=4)
    assert result.level == "proved-for-model" and result.verdict.assumptions


# --- files ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def valid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("valid")
    result = prove(van_der_pol(Fraction(1, 20)), still(2), folder, 2.0, np.array([[1.5, -0.5], [-0.5, 1.0]]))
    assert result.level == "proved"
    return result.path


def _set(*keys: Any, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(data: dict[str, Any]) -> None:
        target: Any = data
        for key in keys[:-1]:
            target = target[key]
        target[keys[-1]] = value

    return change


@pytest.mark.parametrize(
    "change",
    [
        _set("claim", "property", value="asymptotically_stable"),
        _set("claim", "region", "rho", value=(2.6).hex()),
        _set("claim", "region", "rho", value=(-2.0).hex()),
        _set("claim", "region", "rho", value="nan"),
        _set("claim", "region", "P", 0, 1, value=(0.5).hex()),
        _set("claim", "region", "P", value=[[(1.5).hex(), (-2.0).hex()], [(-2.0).hex(), (1.0).hex()]]),
        _set("claim", "region", "low", value=[(0.0).hex(), (-3.0).hex()]),
        _set("claim", "region", "high", value=[(3.0).hex()]),
        _set("claim", "decrease_rate", value="0"),
        _set("claim", "decrease_rate", value="-1/1000"),
        _set("claim", "decrease_rate", value="1/2"),
        _set("claim", "volume", value="14"),
        _set("claim", "local_rate", value="0"),
        _set("claim", "local_rate", value="9/10"),
        _set("evidence", "origin", "c0", value="0"),
        _set("evidence", "origin", "c0", value="100"),
        _set("evidence", "origin", "hole", value=[(1.0).hex(), (1.0).hex()]),
        _set("evidence", "origin", "hole", value=[(1e-30).hex(), (1e-30).hex()]),
        _set("evidence", "origin", "domain", value=[(5.0).hex(), (5.0).hex()]),
        _set("evidence", "origin", "L", value=[["0", "0"], ["0", "0"]]),
        _set("evidence", "tree", value=""),
        _set("evidence", "tree", value="eJwDAAAAAAE="),
        _set("evidence", "extra", value=1),
        _set("subject", "plant", "equilibrium", "state", value=["1/1000", "0"]),
    ],
)  # fmt: skip
def test_changed_fields_are_rejected(valid: Path, tmp_path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    verdict = check(rewrite(valid, tmp_path / "changed", change))
    assert verdict.status == "rejected" and verdict.reason


def test_trees_that_are_cut_longer_or_relabelled_are_rejected(valid: Path, tmp_path: Path) -> None:
    import base64
    import zlib

    symbols = zlib.decompress(base64.b64decode(json.loads((valid / "certificate.json").read_text())["evidence"]["tree"]))
    hole, ok, out = 4, 3, 2
    variants = [
        symbols[:-1],
        symbols + bytes([ok]),
        symbols.replace(bytes([hole]), bytes([ok])),
        symbols.replace(bytes([ok]), bytes([out]), 1),
    ]
    variants += [symbols.replace(bytes([ok]), bytes([hole]), 1), bytes([ok]), bytes([hole]), bytes([9]), b"", bytes([0, ok])]
    for number, variant in enumerate(variants):
        text = base64.b64encode(zlib.compress(variant)).decode()
        verdict = check(rewrite(valid, tmp_path / str(number), _set("evidence", "tree", value=text)))
        assert verdict.status == "rejected", number


def test_certificate_is_bound_to_its_plant(valid: Path) -> None:
    subject_read = read_certificate(valid).plant
    assert subject_read.dt == Fraction(1, 20) and check(valid).subject["plant"] == subject_read.digest


def test_equal_seeds_give_equal_bytes(tmp_path: Path) -> None:
    paths = [
        certify_stability(van_der_pol(Fraction(1, 20)), still(2), tmp_path / name, readings=("real",), seed=3)[0].path for name in "ab"
    ]
    first, second = ((path / "certificate.json").read_bytes() for path in paths)
    assert first == second


def test_policy_that_does_not_fit_is_a_users_mistake(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the plant needs"):
        certify_stability(van_der_pol(Fraction(1, 20)), still(3), tmp_path)
    assert identity(2).input_sizes == {"state": 2}
