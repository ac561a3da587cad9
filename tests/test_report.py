"""Figures draw what they say on the Axes that they are given; the page is whole, self-contained and honest."""

import base64
import io
import json
import re
import shutil
from fractions import Fraction
from html.parser import HTMLParser

import matplotlib as mpl
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from runs import contents, linear_graph, linear_policy

from lipctrl.certificates.checker.bundle import numbers, parse_plant, read_certificate
from lipctrl.certificates.checker.kinds import check
from lipctrl.certificates.checker.verdict import LEVELS
from lipctrl.certificates.checker.verifiers.lipschitz_bound import rounded_down, rounded_up
from lipctrl.cli import main
from lipctrl.core.errors import InputError
from lipctrl.envs import make_plant
from lipctrl.report import (
    ClosedLoop,
    learning_curve,
    lipschitz_slopes,
    margin_map,
    phase_portrait,
    policy_surface,
    read_run,
    round_returns,
    sampled_slopes,
    time_series,
    write_report,
)
from lipctrl.report.html import MEANINGS, _flat, _table, badge
from lipctrl.report.loop import Region
from lipctrl.report.pictures import pictures
from lipctrl.report.style import LEVEL_FILLS, PROVED, REFUTED, UNKNOWN, figure, png, rounded

CERTIFICATE = "certificates/stability-real"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of ``lipctrl stability`` with a bound beside it."""
    folder = tmp_path_factory.mktemp("run")
    policy = linear_policy(tmp_path_factory.mktemp("policy") / "policy")
    assert main(["stability", "--plant", "pendulum", "--policy", str(policy), "--out", str(folder)]) == 0
    assert main(["lipschitz", str(policy), "--out", str(folder / "bound")]) == 0
    return folder


@pytest.fixture(scope="module")
def loop(run):
    return ClosedLoop.of(read_certificate(run / CERTIFICATE))


@pytest.fixture(scope="module")
def fates(loop):
    return loop.fates(cells=60)


# --- simulation -------------------------------------------------------------------------------------------------------


def test_fates_agree_with_long_simulations(run, loop, fates):
    assert fates.area >= fates.area_inside > 0.95 * float(numbers([read_certificate(run / CERTIFICATE).claim["volume"]], 1)[0])
    honest = loop.fates(cells=20, trust_region=False)
    hurried = loop.fates(cells=20)
    assert (honest.arrives == hurried.arrives).all()
    assert (honest.stays == hurried.stays).all()
    assert not (honest.arrives & honest.escapes).any()


def test_states_escape_where_the_loop_is_unstable():
    plant = make_plant("pendulum")
    wild = ClosedLoop(parse_plant(plant.subject()), linear_graph((3.0, 3.0)))
    fates = wild.fates(cells=20)
    assert not fates.arrives.any()
    assert fates.area == 0


def test_a_region_contains_what_its_formula_says():
    region = Region(np.diag([1.0, 4.0]), 4.0, np.array([-1.5, -9.0]), np.array([1.5, 9.0]), 0.01)
    points = np.array([[0.0, 0.0], [1.4, 0.0], [1.6, 0.0], [0.0, 0.99], [0.0, 1.01]])
    assert region.contains(points).tolist() == [True, True, False, True, False]


@given(st.lists(st.floats(-3, 3), min_size=2, max_size=4), st.integers(0, 100))
def test_sampled_slopes_never_exceed_the_constant(gain, seed):
    weights = np.array(gain, np.float32)
    constant = float(np.linalg.norm(weights.astype(np.float64)))
    slopes = sampled_slopes(linear_graph(gain, limit=5), [-4.0] * len(gain), [4.0] * len(gain), count=200, seed=seed)
    assert slopes.shape == (200,)
    assert slopes.max() <= constant * (1 + 1e-9) + 1e-9


# --- figures ----------------------------------------------------------------------------------------------------------


def axes():
    return figure()[1][0]


def legend_texts(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def test_figures_change_nothing_global(loop, fates):
    before = dict(mpl.rcParams)
    phase_portrait(axes(), loop, fates, level="proved")
    assert dict(mpl.rcParams) == before
    import sys

    assert "matplotlib.pyplot" not in sys.modules or not sys.modules["matplotlib.pyplot"].get_fignums()


def test_phase_portrait_fills_the_region_only_where_it_is_proved(loop, fates):
    ax = axes()
    drawn = phase_portrait(ax, loop, fates, level="proved")
    assert tuple(np.round(drawn["region"].get_facecolor()[0], 3)) == tuple(np.round(mpl.colors.to_rgba(PROVED.face), 3))
    assert any("region of attraction (proved)" in text for text in legend_texts(ax))
    assert ax.get_xlabel() == "angle [rad]"
    ax = axes()
    assert "region" not in phase_portrait(ax, loop, fates, level="unknown")
    assert not any("proved)" in text for text in legend_texts(ax))
    assert all("numerical" in text for text in legend_texts(ax) if "simulation" in text)


def test_margin_map_is_positive_inside_the_proved_region(loop):
    drawn = margin_map(axes(), loop)
    share = loop.decrease()[2]
    inside = loop.region.contains(loop.grid((0, 1), 200)[2] - loop.rest).reshape(share.shape)
    assert (share[inside] >= loop.region.rate).all()
    assert len(drawn["region"].get_paths()[0].vertices) > 10
    with pytest.raises(ValueError, match="region"):
        margin_map(axes(), ClosedLoop(loop.plant, loop.policy))


def test_learning_curve_puts_rounds_one_after_another():
    history = [{"round": r, "step": s, "training_loss": 1.0 / (s + 100 * r)} for r in (0, 1) for s in (10, 20)]
    drawn = learning_curve(axes(), [*history, {"round": 1, "mean_return": -3.0}])
    assert drawn["training"][0].get_xdata().tolist() == [10, 20, 30, 40]
    assert "validation" not in drawn
    drawn = learning_curve(axes(), [{"step": 1, "training_loss": 1.0, "validation_loss": 2.0}])
    assert drawn["validation"][0].get_ydata().tolist() == [2.0]
    with pytest.raises(ValueError, match="history"):
        learning_curve(axes(), [])


def test_round_returns_draws_the_expert_as_a_line():
    history = [{"round": 0, "mean_return": -1.0}, {"round": 1, "mean_return": -5.0}, {"round": 2, "mean_return": -2.0}]
    drawn = round_returns(axes(), history)
    assert drawn["policy"][0].get_ydata().tolist() == [-5.0, -2.0]
    assert drawn["expert"].get_ydata()[0] == -1.0
    with pytest.raises(ValueError, match="history"):
        round_returns(axes(), [{"step": 1}])


def test_policy_surface_shows_the_action(loop):
    low, high = np.array([-2.0, -1.0]), np.array([2.0, 1.0])
    names = (("a", "m"), ("b", "1"))
    ax = axes()
    drawn = policy_surface(ax, lambda x: x[:, :1] + 10 * x[:, 1:], names, ("force", "N"), low, high, samples=np.zeros((3, 2)))
    values = drawn["image"].get_array()
    assert (values.min(), values.max()) == (-12.0, 12.0)
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("a [m]", "b")
    policy_surface(axes(), lambda x: 0 * x[:, :1], names, ("force", "N"), low, high)  # a constant policy has no contours


def test_lipschitz_slopes_never_calls_a_sample_a_bound():
    ax = axes()
    drawn = lipschitz_slopes(ax, np.array([0.1, 0.9]), upper=1.00004, lower=0.99996, level="proved")
    assert drawn["upper"].get_xdata()[0] == 1.00004
    assert legend_texts(ax) == [
        "slopes of random pairs: lower estimates (numerical)",
        "steepest pair found: at least 0.9999",
        "upper bound: at most 1.001 (proved)",
    ]
    assert "upper" not in lipschitz_slopes(axes(), np.array([0.1]), upper=None, level="unknown")


def test_time_series_marks_the_ends_of_the_box():
    ax = axes()
    time_series(ax, np.arange(3.0), np.zeros((2, 3)), name=("torque", "N m"), bounds=(-1.0, 1.0))
    assert ax.get_ylabel() == "torque [N m]"
    assert len(ax.get_lines()) == 4


def test_fills_differ_in_grey():
    lightness = [float(np.dot(mpl.colors.to_rgb(fill.edge), (0.2126, 0.7152, 0.0722))) for fill in (PROVED, REFUTED, UNKNOWN)]
    faces = [float(np.dot(mpl.colors.to_rgb(fill.face), (0.2126, 0.7152, 0.0722))) for fill in (PROVED, REFUTED, UNKNOWN)]
    assert min(abs(a - b) for i, a in enumerate(faces) for b in faces[:i]) > 0.05 or len({f.hatch for f in (PROVED, REFUTED)}) == 2
    assert len(set(lightness)) == 3
    assert set(LEVEL_FILLS) == set(LEVELS) == set(MEANINGS)


@given(st.floats(1e-12, 1e12))
def test_rounding_keeps_bounds_true(value):
    assert float(rounded(value, "down")) <= value <= float(rounded(value, "up"))
    assert float(rounded(value, "up")) <= value * 1.0011


@given(st.floats(0, 1e12), st.integers(1, 8))
def test_printed_bounds_stay_bounds(value, digits):
    assert Fraction(rounded_down(value, digits)) <= Fraction(value) <= Fraction(rounded_up(value, digits))
    assert float(rounded_up(value, digits)) <= value * (1 + 10.0 ** (1 - digits)) * (1 + 1e-15)
    assert float(rounded_down(value, digits)) >= value * (1 - 10.0 ** (1 - digits)) * (1 - 1e-15)
    assert (rounded_down(float("inf")), rounded_up(float("inf"))) == ("inf", "inf")


def test_the_table_of_results_rounds_bounds_to_their_side():
    results = {"lipschitz": {"upper": 1.00000049, "lower": 0.99999951}, "region": {"real": 391.5277779, "simulated": 391.5277779}}
    rows = dict(re.findall(r"<td>([^<]*)</td><td>([^<]*)</td>", _table(_flat(results))))
    assert rows["Lipschitz constant at most"] == "1.00001"
    assert rows["Lipschitz constant at least"] == "0.999999"
    assert rows["volume of the region, real-valued network"] == "391.527"
    assert rows["volume that arrives in simulation (numerical)"] == "391.528"


def test_png_bytes_are_repeatable(loop):
    def drawn():
        made, (ax,) = figure()
        margin_map(ax, loop)
        return png(made)

    assert drawn() == drawn()


# --- pages ------------------------------------------------------------------------------------------------------------


class Page(HTMLParser):
    """What a page refers to, and its text."""

    def __init__(self, text):
        super().__init__()
        self.references, self.tags, self.words = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.references += [value for name, value in attrs if name in ("src", "href", "srcset", "action", "data")]

    def handle_data(self, data):
        self.words.append(data)


@pytest.fixture(scope="module")
def page(run):
    return Page(write_report(run).read_text())


def test_the_page_is_self_contained(page, run):
    assert page.references
    assert all(reference.startswith("data:image/png;base64,") for reference in page.references)
    assert not {"script", "iframe", "link", "object"} & set(page.tags)
    assert not re.search(r"url\(|@import", (run / "report.html").read_text())
    for reference in page.references:
        image = Image.open(io.BytesIO(base64.b64decode(reference.partition(",")[2])))
        assert image.size[0] > 400
    assert page.tags.count("img") == len(list((run / "figures").glob("*.png"))) >= 5


def test_the_page_states_what_the_checker_derived(page, run):
    words = " ".join(page.words)
    for name in ("bound/certificate", "certificates/stability-real", "certificates/stability-float32"):
        verdict = check(run / name)
        claim = verdict.claim[:1].upper() + verdict.claim[1:]
        assert claim in words
        assert all(digest in words for digest in verdict.subject.values())
    assert "lipctrl-check bound/certificate certificates/stability-real certificates/stability-float32 --about policy" in words
    assert "numerical" in words


def test_every_level_has_its_word_and_colour():
    for level in LEVELS:
        assert f">{level}</span>" in badge(level)
        assert LEVEL_FILLS[level].face in badge(level)
    assert LEVEL_FILLS["falsified"] is REFUTED


def test_a_tampered_certificate_is_shown_as_rejected_and_nothing_is_filled(run, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(run, copy, ignore=shutil.ignore_patterns("figures", "bound", "stability-float32"))
    path = copy / "certificates" / "stability-real" / "certificate.json"
    data = json.loads(path.read_text())
    data["claim"]["region"]["rho"] = (2 * float.fromhex(data["claim"]["region"]["rho"])).hex()
    path.write_text(json.dumps(data))
    words = " ".join(Page(write_report(copy).read_text()).words)
    assert "rejected: " in words
    assert "1 certificates: 1 unknown" in words
    assert "Nothing is proved here" in words


def test_text_from_files_cannot_become_markup(run, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(run, copy, ignore=shutil.ignore_patterns("figures", "bound", "certificates"))
    (copy / "results.json").write_text(json.dumps({"results": [{"name": "<script>x</script>", "reason": "<img src=http://x>"}]}))
    found = Page(write_report(copy).read_text())
    assert "script" not in found.tags
    assert all(reference.startswith("data:") for reference in found.references)
    assert "<script>x</script>" in " ".join(found.words)


def test_a_proof_that_was_not_found_is_in_the_report(tmp_path):
    policy = linear_policy(tmp_path / "p")
    out = tmp_path / "run"
    assert main(["stability", "--plant", "pendulum", "--policy", str(policy), "--budget-s", "1e-6", "--out", str(out)]) == 3
    words = " ".join(Page(write_report(out).read_text()).words)
    assert "stability-real" in words
    assert "budget" in words
    assert "Nothing is proved here" in words


def test_more_than_two_states_are_drawn_in_slices(tmp_path):
    plant = make_plant("cartpole")
    coordinates = tuple(map(tuple, plant.observation))
    policy = linear_policy(tmp_path / "p", (1.0, 40.0, 2.0, 10.0), coordinates)
    out = tmp_path / "run"
    main(["stability", "--plant", "cartpole", "--policy", str(policy), "--budget-s", "0.01", "--out", str(out)])
    names = {picture.name: picture for picture in pictures(read_run(out))}
    assert {"phase_portrait_0", "phase_portrait_1", "policy_surface"} <= set(names)
    assert "position and velocity" in names["phase_portrait_0"].alt
    assert "slice" in names["phase_portrait_0"].caption


def test_the_report_can_go_elsewhere(run, tmp_path, capsys):
    before = contents(run)
    assert main(["report", str(run), "--out", str(tmp_path / "there"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["report"] == str(tmp_path / "there" / "report.html")
    assert found["level"] == "proved"
    assert contents(run) == before


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(InputError, match="no certificate"):
        read_run(tmp_path)
