"""Counterexamples: true ones are replayed and give level ``falsified``, witnesses that miss by a hair are rejected."""

from __future__ import annotations

import json
from fractions import Fraction

import numpy as np
import pytest
from flint import arb, ctx
from hypothesis import given, settings
from loops import Sketch, counterexample, gain, identity, interval, linear_plant, saturated_scalar, subject
from mutations import accepted, mutants
from strategies import graphs_with_inputs

from lipctrl.certificates.checker.balls import ball, evaluate_balls
from lipctrl.certificates.checker.bundle import CERTIFICATE, WEIGHTS, read_certificate
from lipctrl.certificates.checker.exact import evaluate_exact
from lipctrl.certificates.checker.graph import evaluate
from lipctrl.certificates.checker.kinds import check
from lipctrl.certificates.checker.verdict import Rejected
from lipctrl.certificates.checker.verifiers.counterexample import Jet, _Derivatives


def leaves(tmp_path, rho, state, low=-6, high=6, **loop):
    region = interval(rho, low, high)
    return check(counterexample(tmp_path / "c", "forward_invariant", region, evidence={"state": [state]}, **(loop or saturated_scalar())))


def unstable(tmp_path, plant, policy, region=None, evidence=None):
    return check(counterexample(tmp_path / "c", "asymptotically_stable", region or {}, policy, plant=plant, evidence=evidence or {}))


def stretched(tmp_path, policy, bound, first, second, norm="l2", scales=(None, None)):
    region = {"norm": norm, "bound": bound, "input_scale": scales[0], "output_scale": scales[1]}
    return check(counterexample(tmp_path / "c", "lipschitz", region, policy, evidence={"first": first, "second": second}))


# --- forward_invariant --------------------------------------------------------------------------------------------------


def test_the_saturated_scalar_leaves_a_set_beyond_its_region_of_attraction(tmp_path):
    verdict = leaves(tmp_path, "251/10", "500999/100000")
    assert (verdict.status, verdict.level, verdict.property) == ("verified", "falsified", "forward_invariant")
    assert "(5.00999)" in verdict.claim


@pytest.mark.parametrize(
    ("rho", "state", "reason"),
    [
        ("249/10", "4989987/1000000", "not shown"),  # |x| < 5 moves inwards
        ("25", "5", "not shown"),  # a fixed point
        ("251/10", "501/100", "not in the set"),
        ("36", "600001/100000", "not in the set"),
        ("251/10", "0", "not shown"),
    ],
)
def test_states_that_refute_nothing(tmp_path, rho, state, reason):
    verdict = leaves(tmp_path, rho, state)
    assert (verdict.status, verdict.level) == ("rejected", "unknown")
    assert reason in verdict.reason


def test_leaving_the_box_refutes_even_where_the_level_does_not(tmp_path):
    """F(x) = 1.0001 x with V = x^2 / 1000 on [-1, 1]: V grows by less than 1e-6, yet x = 1 leaves the box."""
    loop = {"plant": linear_plant([["10001/10000"]], [[1]]), "policy": gain([0.0])}
    region = {"low": ["-1"], "high": ["1"], "P": [["1/1000"]], "rho": "1"}
    verdict = check(counterexample(tmp_path / "c", "forward_invariant", region, evidence={"state": ["1"]}, **loop))
    assert verdict.level == "falsified"
    region["high"] = ["2"]
    assert check(counterexample(tmp_path / "c", "forward_invariant", region, evidence={"state": ["1"]}, **loop)).level == "unknown"
    assert unstable(tmp_path, **loop).level == "falsified"


@pytest.mark.parametrize(("state", "low", "high", "is_left"), [(1, -1, 2, 0), (1, -1, "63/32", 1), (-1, -2, 1, 0), (-1, "-63/32", 1, 1)])
def test_landing_on_the_edge_of_the_box_is_not_leaving_it(tmp_path, state, low, high, is_left):
    doubling = {"plant": linear_plant([[2]], [[1]]), "policy": gain([0.0])}
    assert leaves(tmp_path, 100, str(state), low, high, **doubling).level == ("falsified" if is_left else "unknown")


def test_landing_on_the_level_is_not_leaving_it(tmp_path):
    doubling = {"plant": linear_plant([[2]], [[1]]), "policy": gain([0.0])}
    assert leaves(tmp_path, "4", "1", -10, 10, **doubling).level == "unknown"
    assert leaves(tmp_path, "4", "-1", -1, 10, **doubling).level == "falsified"  # from an edge of the box, which belongs to it


def test_every_coordinate_must_start_inside_and_one_must_leave(tmp_path):
    loop = {"plant": linear_plant([[2, 0], [0, "1/2"]], [[0], [0]]), "policy": gain([0.0, 0.0])}
    region = {"low": ["-1", "-1"], "high": ["1", "1"], "P": [["1", "0"], ["0", "1"]], "rho": "100"}

    def verdict(*state):
        return check(counterexample(tmp_path / "c", "forward_invariant", region, evidence={"state": list(state)}, **loop))

    assert verdict("3/4", "1/2").level == "falsified"
    assert "not shown" in verdict("1/4", "1/2").reason
    for outside in (("3/4", "2"), ("2", "1/2"), ("3/4", "-2")):
        assert "not in the set" in verdict(*outside).reason
    region |= {"P": [["1", "1"], ["0", "1"]], "rho": "3/4"}  # P need not be symmetric: V = x^2 + x y + y^2
    assert verdict("1/2", "1/2").level == "falsified"
    assert "not in the set" in verdict("1/2", "9/16").reason


def test_deviations_are_from_the_equilibrium(tmp_path):
    """x+ = x^2 around its fixed point 1: y = x - 1 = 1/2 moves to 5/4, y = -1/2 to -3/4."""
    plant = _scalar_plant(lambda s, x, u: s("power", x, exponent=2), rest=(1,))
    loop = {"plant": plant, "policy": gain([0.0])}
    assert leaves(tmp_path, "25/16", "3/2", -2, 2, **loop).level == "unknown"
    assert leaves(tmp_path, "99/64", "3/2", -2, 2, **loop).level == "falsified"
    assert leaves(tmp_path, "9/16", "1/2", -2, 2, **loop).level == "unknown"
    assert leaves(tmp_path, "35/64", "1/2", -2, 2, **loop).level == "falsified"
    assert "not in the set" in leaves(tmp_path, "15/64", "1/2", -2, 2, **loop).reason


def test_a_hair_beyond_the_fixed_point_is_seen(tmp_path):
    hair = Fraction(1, 10**40)
    rho = str((5 + hair) ** 2)
    assert leaves(tmp_path, rho, str(5 + hair)).level == "falsified"
    assert leaves(tmp_path, rho, str(5 - hair)).level == "unknown"


@pytest.mark.parametrize(
    "region",
    [
        {},
        {"low": ["-1"], "high": ["1"], "P": [["1"]]},
        {"low": ["-1"], "high": ["1"], "P": [], "rho": "1"},
        {"low": ["-1"], "high": ["1"], "P": [["1"], ["1"]], "rho": "1"},
        {"low": ["-1"], "high": ["1"], "P": ["1"], "rho": "1"},
        {"low": ["-1"], "high": ["1"], "P": [["nan"]], "rho": "1"},
        {"low": ["-1", "-1"], "high": ["1"], "P": [["1"]], "rho": "1"},
        {"low": ["-1"], "high": ["1"], "P": [["1"]], "rho": "1", "volume": "1"},
        {"low": ["-1"], "high": ["1"], "P": {"0": ["1"]}, "rho": "1"},
        [],
    ],
)
def test_regions_of_another_form_are_rejected(tmp_path, region):
    path = counterexample(tmp_path / "c", "forward_invariant", region, evidence={"state": ["1"]}, **saturated_scalar())
    assert check(path).status == "rejected"


# --- asymptotically_stable ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("A", "is_unstable"),
    [
        ([["11/10"]], True),
        ([["-11/10"]], True),
        ([["1"]], False),
        ([["1000000001/1000000000"]], True),
        ([["999999999/1000000000"]], False),
        ([["1/2", "0"], ["0", "1001/1000"]], True),
        ([["0", "-101/100"], ["101/100", "0"]], True),
        ([["0", "-99/100"], ["99/100", "0"]], False),
        ([["0", "101/100", "0"], ["0", "0", "101/100"], ["101/100", "0", "0"]], True),
        ([["0", "1", "0"], ["0", "0", "1"], ["1", "0", "0"]], False),
        ([["9/10", "1000"], ["0", "9/10"]], False),
    ],
)
def test_linear_loops_by_their_spectral_radius(tmp_path, A, is_unstable):
    n = len(A)
    verdict = unstable(tmp_path, linear_plant(A, [[1]] * n), gain([0.0] * n))
    assert verdict.status == ("verified" if is_unstable else "rejected")
    assert verdict.level == ("falsified" if is_unstable else "unknown")


def test_a_feedback_of_spectral_radius_above_one(tmp_path):
    plant = linear_plant([["1", "1/20"], ["1/2", "1"]], [[0], ["1/20"]])
    assert unstable(tmp_path, plant, gain([-1.0, -1.0])).level == "falsified"  # too weak
    assert unstable(tmp_path, plant, gain([-15.0, -8.0])).level == "unknown"


def _scalar_plant(make, rest=(0,)):
    s = Sketch()
    x, u = s.input("state", 1), s.input("action", 1)
    return subject(s.graph(next_state=make(s, x, u)), 1, 1, rest=rest)


def test_kinks_at_the_equilibrium_are_not_differentiated(tmp_path):
    """F(x) = 2 relu(x) is unstable, F(x) = min(2 x, 0) + x / 2 is unstable too, but neither is differentiable at 0."""

    def twice_relu(s, x, u):
        return s("mul", s("relu", x), s.constant(2))

    verdict = unstable(tmp_path, _scalar_plant(twice_relu), gain([0.0]))
    assert "kink" in verdict.reason
    for op in ("abs", "leaky_relu", "clip", "max", "group_sort"):

        def kinked(s, x, u, op=op):
            if op == "group_sort":
                pair = s("group_sort", s("concatenate", x, s("neg", x)), group_size=2)
                return s("mul", s("select", pair, indices=(1,)), s.constant(2))
            attributes = {"leaky_relu": {"slope": Fraction(1, 2)}, "clip": {"low": (Fraction(0),), "high": (Fraction(1),)}}.get(op, {})
            operands = (x, s.constant(0)) if op == "max" else (x,)
            return s("mul", s(op, *operands, **attributes), s.constant(2))

        assert "kink" in unstable(tmp_path, _scalar_plant(kinked), gain([0.0])).reason


def test_kinks_away_from_the_equilibrium_do_not_matter(tmp_path):
    s = Sketch()
    z = s.affine(s.input("observation", 1), [[1.0], [-1.0]], [0.5, 0.25])
    policy = s.graph(action=s.affine(s("group_sort", s("relu", z), group_size=2), [[1.0, 1.0]], [-0.75]))
    plant = linear_plant([["11/10"]], [[1]])
    assert unstable(tmp_path, plant, policy).level == "falsified"


def test_the_equilibrium_must_be_exact(tmp_path):
    for bias in (1e-9, 1e-40):
        policy = gain([0.0], bias=[bias])
        assert "differs from x*" in unstable(tmp_path, linear_plant([["11/10"]], [[1]]), policy).reason

    def shifted_cosine(s, x, u):
        return s("add", s("mul", x, s.constant(2)), s("sub", s("cos", x), s("cos", s.constant("1/3"))))

    assert "not shown exactly" in unstable(tmp_path, _scalar_plant(shifted_cosine), gain([0.0])).reason


def test_slopes_that_are_not_finite_are_rejected(tmp_path):
    def root(s, x, u):
        return s("mul", s("sqrt", x), s.constant(2))

    assert "not finite" in unstable(tmp_path, _scalar_plant(root), gain([0.0])).reason


def test_an_equilibrium_away_from_zero(tmp_path):
    def square(s, x, u):  # fixed points 0 (stable) and 1 (slope 2)
        return s("power", x, exponent=2)

    assert unstable(tmp_path, _scalar_plant(square, rest=(1,)), gain([0.0])).level == "falsified"
    assert unstable(tmp_path, _scalar_plant(square), gain([0.0])).level == "unknown"


def test_claims_of_another_form_are_rejected(tmp_path):
    plant, policy = linear_plant([["11/10"]], [[1]]), gain([0.0])
    assert unstable(tmp_path, plant, policy, region={"rho": "1"}).status == "rejected"
    assert unstable(tmp_path, plant, policy, evidence={"eigenvalue": "2"}).status == "rejected"
    assert "plant" in unstable(tmp_path, None, policy).reason
    assert "does not fit" in unstable(tmp_path, plant, gain([0.0, 0.0])).reason
    path = counterexample(tmp_path / "c", "asymptotically_stable", {}, policy, plant=plant, arithmetic="float32")
    assert "must be 'real'" in check(path).reason
    for name in ("exponentially_stable", "", ["lipschitz"], None):
        assert "no counterexample is known" in check(counterexample(tmp_path / "c", name, {}, policy, plant=plant)).reason


def test_large_loops_are_not_differentiated(tmp_path):
    def doubling(n):
        return linear_plant([[2 * (i == j) for j in range(n)] for i in range(n)], [[0]] * n)

    assert "too large" in unstable(tmp_path, doubling(33), gain([0.0] * 33)).reason
    s = Sketch()
    wide = s("select", s.input("observation", 4), indices=(0, 1, 2, 3) * 2_500)
    for _ in range(80):
        wide = s("sin", wide)
    assert "too large" in unstable(tmp_path, doubling(4), s.graph(action=s("select", wide, indices=(0,)))).reason
    s = Sketch()
    wide = s.affine(s.affine(s.input("observation", 4), np.zeros((1000, 4))), np.zeros((1000, 1000)))
    for _ in range(25):
        wide = s("affine", wide, weight="t1", bias=None)
    assert "too large" in unstable(tmp_path, doubling(4), s.graph(action=s("select", wide, indices=(0,)))).reason


def test_slopes_of_smooth_operations_agree_with_difference_quotients():
    s = Sketch()
    x = s.input("x", 1)
    parts = [s(op, x) for op in "neg abs sin cos tan exp log sqrt erf tanh sigmoid softplus relu gelu silu".split()]
    parts += [s("neg", s(op, s("neg", x))) for op in "abs sin tan exp erf tanh sigmoid softplus relu gelu silu".split()]
    parts += [s("power", x, exponent=k) for k in range(4)] + [s("leaky_relu", s("neg", x), slope=Fraction(1, 5))]
    parts += [s(op, x, s("cos", x)) for op in ("add", "sub", "mul", "div", "min", "max")]
    parts += [s(op, s("cos", x), x) for op in ("sub", "div", "min", "max")]
    _check_slopes(s.graph(output=s("concatenate", *parts)), {"x": (Fraction(2, 3),)})


@settings(max_examples=200)
@given(graphs_with_inputs())
def test_slopes_of_random_graphs_agree_with_difference_quotients(case):
    _check_slopes(*case)


def _check_slopes(graph, inputs):
    total = sum(len(v) for v in inputs.values())
    step = Fraction(1, 2**200)
    with ctx.workprec(800):
        jets, column = {}, 0
        for name, value in inputs.items():
            rows = [[arb(int(j == column + i)) for j in range(total)] for i in range(len(value))]
            jets[name], column = Jet([ball(v) for v in value], rows), column + len(value)
        try:
            slopes = evaluate(graph, jets, _Derivatives(total))["output"].slopes
        except Rejected as error:
            assert "kink" in str(error)  # the squashing of random graphs may put an operand on a kink
            return
        column = 0
        for name, value in inputs.items():
            for i in range(len(value)):
                ends = []
                for sign in (1, -1):
                    moved = {**inputs, name: tuple(v + sign * step * (i == j) for j, v in enumerate(value))}
                    balls = {key: [ball(v) for v in values] for key, values in moved.items()}
                    ends.append(evaluate_balls(graph, balls, 800)["output"])
                for plus, minus, row in zip(*ends, slopes, strict=True):
                    assert abs((plus - minus) / ball(2 * step) - row[column]) < 1e-40
                column += 1


# --- lipschitz ----------------------------------------------------------------------------------------------------------


def test_pairs_that_are_stretched_too_far(tmp_path):
    policy = gain([3.0, 4.0])
    assert stretched(tmp_path, policy, "49/10", ["0", "0"], ["3", "4"]).level == "falsified"
    assert stretched(tmp_path, policy, "5", ["0", "0"], ["3", "4"]).level == "unknown"  # equality refutes nothing
    assert stretched(tmp_path, policy, "49/10", ["0", "0"], ["4", "3"]).level == "unknown"
    assert stretched(tmp_path, policy, "49/10", ["1", "1"], ["1", "1"]).level == "unknown"
    assert stretched(tmp_path, policy, "69/10", ["0", "0"], ["1", "1"], norm="linf").level == "falsified"
    assert stretched(tmp_path, policy, "7", ["0", "0"], ["1", "1"], norm="linf").level == "unknown"
    below, above = (str(5 + Fraction(k, 10**45)) for k in (-1, 1))
    assert stretched(tmp_path, policy, below, ["0", "0"], ["3", "4"]).level == "falsified"
    assert stretched(tmp_path, policy, above, ["0", "0"], ["3", "4"]).level == "unknown"


def test_weighted_norms(tmp_path):
    policy = gain([3.0, 4.0])
    scales = (["1", "1/10"], ["2"])  # |2 f| against |(x, y / 10)|: the direction of y is stretched by 80
    assert stretched(tmp_path, policy, "79", ["0", "0"], ["0", "1"], scales=scales).level == "falsified"
    assert stretched(tmp_path, policy, "80", ["0", "0"], ["0", "1"], scales=scales).level == "unknown"
    for bad in ((["1", "0"], None), (["1", "-1"], None), (["1"], None), (None, ["1", "1"]), ("1", None)):
        assert stretched(tmp_path, policy, "1", ["0", "0"], ["0", "1"], scales=bad).status == "rejected"


def test_other_lipschitz_claims_are_rejected(tmp_path):
    assert stretched(tmp_path, gain([3.0]), "1", ["0"], ["1"], norm="l1").status == "rejected"
    assert stretched(tmp_path, gain([3.0]), "nan", ["0"], ["1"]).status == "rejected"
    assert stretched(tmp_path, gain([3.0]), "1", ["0", "1"], ["1"]).status == "rejected"
    s = Sketch()
    two = s.graph(y=s("add", s.input("a", 1), s.input("b", 1)))
    assert "one input" in stretched(tmp_path, two, "1", ["0"], ["1"]).reason
    assert "one input" in stretched(tmp_path, identity(1).__class__(identity(1).nodes, {"a": 0, "b": 1}), "1", ["0"], ["1"]).reason


# --- mutants ------------------------------------------------------------------------------------------------------------


def _is_true(certificate):
    """Prove the claim again, without the verifier's code: exact rationals for piecewise linear loops, powers of J in floats."""
    if certificate.claim["property"] == "asymptotically_stable":
        return _is_unstable_in_floats(certificate)
    if certificate.claim["property"] == "lipschitz":
        return _is_stretched(certificate)
    plant, region = certificate.plant, certificate.claim["region"]
    (x,), (low,), (high,) = (list(map(_exact, v)) for v in (certificate.evidence["state"], region["low"], region["high"]))
    ((P,),) = [list(map(_exact, row)) for row in region["P"]]
    (rest,), rho = plant.equilibrium_state, _exact(region["rho"])
    observation = evaluate_exact(plant.observe, {"state": (x,)})["observation"]
    action = evaluate_exact(certificate.policy, {"observation": observation})["action"]
    (after,) = evaluate_exact(plant.dynamics, {"state": (x,), "action": action})["next_state"]

    def inside(y):
        return low <= y <= high and P * y * y <= rho

    return inside(x - rest) and not inside(after - rest)


def _is_stretched(certificate):
    region = certificate.claim["region"]
    pair = [tuple(map(_exact, certificate.evidence[key])) for key in ("first", "second")]
    (name,) = certificate.policy.input_sizes
    images = [next(iter(evaluate_exact(certificate.policy, {name: x}).values())) for x in pair]
    sizes = []
    for ends, scale in ((pair, region["input_scale"]), (images, region["output_scale"])):
        weights = [1] * len(ends[0]) if scale is None else list(map(_exact, scale))
        sizes.append([w * abs(a - b) for w, a, b in zip(weights, *ends, strict=True)])
    before, after = (max(v) ** 2 if region["norm"] == "linf" else sum(x * x for x in v) for v in sizes)
    bound = _exact(region["bound"])
    return after > bound**2 * before if bound >= 0 else before + after > 0


def _exact(text):
    return Fraction(float.fromhex(text)) if "x" in text else Fraction(text)


def _is_unstable_in_floats(certificate):
    plant = certificate.plant

    def successor(state):
        observation = evaluate_exact(plant.observe, {"state": state})["observation"]
        action = evaluate_exact(certificate.policy, {"observation": observation})["action"]
        return evaluate_exact(plant.dynamics, {"state": state, "action": action})["next_state"]

    rest, h = plant.equilibrium_state, Fraction(1, 10**6)
    columns = []
    for j in range(len(rest)):
        ends = [successor(tuple(v + sign * h * (i == j) for i, v in enumerate(rest))) for sign in (1, -1)]
        columns.append([float((a - b) / (2 * h)) for a, b in zip(*ends, strict=True)])
    return successor(rest) == rest and np.abs(np.linalg.eigvals(np.array(columns).T)).max() > 1


@pytest.fixture(scope="module")
def valid(tmp_path_factory):
    root = tmp_path_factory.mktemp("valid")
    evidence = {"state": ["500999/100000"]}
    plant = linear_plant([["1", "1/20"], ["1/2", "1"]], [[0], ["1/20"]])
    yield {
        "forward_invariant": counterexample(
            root / "a", "forward_invariant", interval("251/10", -6, 6), evidence=evidence, **saturated_scalar()
        ),
        "lipschitz": counterexample(
            root / "l",
            "lipschitz",
            {"norm": "l2", "bound": "0x1.b000000000000p+1", "input_scale": ["1", "2"], "output_scale": None},
            gain([3.0, 4.0], [0.0, -1.0], low=-30, high=30),
            evidence={"first": ["0", "1"], "second": ["3", "3"]},
        ),
        "asymptotically_stable": counterexample(root / "b", "asymptotically_stable", {}, gain([-1.0, -1.0]), plant=plant),
    }


@pytest.mark.parametrize("name", ["forward_invariant", "asymptotically_stable", "lipschitz"])
def test_every_accepted_mutant_is_true(valid, name):
    assert check(valid[name]).level == "falsified"
    judged = list(accepted(valid[name], 400, seed=1))
    for change, certificate in judged:
        assert _is_true(certificate), change
    assert 10 < len(judged) < 300
    assert sum(mutant.section in ("claim", "evidence", "subject") for mutant in mutants(valid[name], 400, seed=1)) >= 200


def test_mutants_are_what_they_say(valid, tmp_path):
    made = list(mutants(valid["forward_invariant"], 40, seed=2))
    assert [m.change for m in made] == [m.change for m in mutants(valid["forward_invariant"], 40, seed=2)]
    assert len({(m.certificate, m.weights) for m in made}) == 40
    original = json.loads((valid["forward_invariant"] / CERTIFICATE).read_bytes())
    assert all(json.loads(m.certificate) != original or m.weights != (valid["forward_invariant"] / WEIGHTS).read_bytes() for m in made)
    assert read_certificate(valid["forward_invariant"]).kind == "counterexample"
    assert (made[0].write(tmp_path / "m") / CERTIFICATE).read_bytes() == made[0].certificate
