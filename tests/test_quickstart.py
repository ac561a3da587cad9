"""The whole chain, small: demonstrations, policy, proofs, report; repeatable, resumable, honest about failure."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
from runs import contents, lipctrl_json

from lipctrl import quickstart as module
from lipctrl.certificates.checker.kinds import check
from lipctrl.cli import main
from lipctrl.core.errors import InputError
from lipctrl.core.policy import Policy
from lipctrl.envs import make_plant, rollout
from lipctrl.quickstart import QuickstartOptions, choose_lipschitz, demonstrate, prove, quickstart

SMALL = QuickstartOptions(episodes=12, steps=250, hidden=(8, 8))


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    seen = []
    found = quickstart(tmp_path_factory.mktemp("run") / "run", SMALL, seed=1, progress=lambda fraction, *_: seen.append(fraction))
    assert seen == sorted(seen)
    assert seen[-1] == 1.0
    return found


def test_everything_is_proved_and_on_disk(result):
    assert result.status == "ok"
    assert [finding.level for finding in result.findings] == ["proved"] * 3
    files = ("config.toml", "results.json", "report.html", "provenance.json", "policy/policy.json", "demonstrations/data/metadata.json")
    assert all((result.folder / name).is_file() for name in files)
    assert {"phase_portrait", "learning_curve", "policy_surface", "lipschitz", "margin_map", "rollouts"} <= {
        path.stem for path in (result.folder / "figures").glob("*.png")
    }


def test_the_certificates_hold_and_are_about_the_policy_in_the_folder(result):
    digest = Policy.load(result.folder / "policy").digest
    for finding in result.findings:
        verdict = check(finding.path, about=result.folder / "policy")
        assert verdict.level == "proved"
        assert verdict.subject["policy"] == digest
    assert result.results["lipschitz"]["lower"] <= result.results["lipschitz"]["upper"] <= result.results["lipschitz"]["design"]
    assert 120 < result.results["region"]["real"] < result.results["region"]["simulated_in_box"] <= result.results["region"]["simulated"]


def test_states_of_the_proved_region_arrive(result):
    from lipctrl.certificates.checker.bundle import read_certificate
    from lipctrl.report import ClosedLoop

    plant, loop = make_plant("pendulum"), ClosedLoop.of(read_certificate(result.folder / "certificates/stability-float32"))
    states = np.random.default_rng(0).uniform(*loop.box, size=(400, 2))
    states = states[loop.region.contains(states)]
    ran = rollout(plant, Policy.load(result.folder / "policy"), states, 1500)
    ball = result.findings[2].numbers["ball"]
    assert (np.linalg.norm(ran.states[:, -1], axis=1) <= ball).all()
    assert (np.abs(ran.states) <= 12).all()


def test_a_bare_truth_value_is_refused(result):
    for thing in (result, result.findings[0]):
        with pytest.raises(TypeError, match="truth value"):
            bool(thing)


@pytest.fixture
def no_pictures(monkeypatch):
    """Leave the report out: it takes most of the time."""
    monkeypatch.setattr("lipctrl.report.writing.write_report", lambda *arguments, **options: None)


def test_equal_seeds_give_equal_bytes_and_a_killed_run_ends_with_the_same(result, tmp_path, monkeypatch, no_pictures):
    def killed(*arguments, **options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, "prove", killed)
        with pytest.raises(KeyboardInterrupt):
            quickstart(tmp_path / "run", SMALL, seed=1)
    again = quickstart(tmp_path / "run", SMALL, seed=1)
    first, second = contents(result.folder), contents(again.folder)
    names = [name for name in first if not name.startswith(("figures/", "demonstrations/", "report.html", "provenance.json"))]
    assert {f"certificates/{finding.name}/certificate.json" for finding in result.findings} <= set(names)
    assert {name: first[name] for name in names} == {name: second.get(name) for name in names}


def test_finished_parts_are_used_again(result, monkeypatch):
    def refused(*arguments, **options):
        raise AssertionError("searched again")

    monkeypatch.setattr(module, "certify_stability", refused)
    before = contents(result.folder)
    assert quickstart(result.folder, SMALL, seed=1).status == "ok"
    after = contents(result.folder)
    assert {name for name in before if before[name] != after[name]} <= {"provenance.json"}


def test_a_certificate_that_does_not_hold_is_searched_again(result, tmp_path, no_pictures):
    shutil.copytree(result.folder, tmp_path / "run")
    path = tmp_path / "run/certificates/stability-real/certificate.json"
    before = contents(path.parent)
    path.write_bytes(path.read_bytes().replace(b'"decrease_rate":"1/1000"', b'"decrease_rate":"1/3"'))
    assert contents(path.parent) != before
    assert quickstart(tmp_path / "run", SMALL, seed=1).status == "ok"
    assert contents(path.parent) == before


def test_another_run_in_the_folder_is_refused_and_left_alone(result):
    before = contents(result.folder)
    for options, seed in ((SMALL, 2), (dataclasses.replace(SMALL, steps=9), 1)):
        with pytest.raises(InputError, match="another run"):
            quickstart(result.folder, options, seed=seed)
    assert contents(result.folder) == before


def test_a_run_whose_proofs_fail_says_which_and_exits_with_3(tmp_path, capsys):
    words = ["quickstart", "--episodes", "12", "--steps", "250", "--budget-s", "1e-6", "--out", str(tmp_path / "run")]
    assert main([*words, "--json"]) == 3
    captured = capsys.readouterr()
    found = json.loads(captured.out)
    assert (found["status"], found["level"]) == ("unknown", "unknown")
    assert [entry["level"] for entry in found["results"]] == ["proved", "unknown", "unknown"]
    assert "not proved: stability-real" in captured.err
    assert "budget" in (tmp_path / "run" / "report.html").read_text()
    assert len(found["certificates"]) == 1
    code, shown = lipctrl_json(capsys, "report", tmp_path / "run")
    assert (code, shown["level"]) == (0, "proved")


def test_a_policy_that_does_not_stabilise_is_refuted_with_exit_code_1(tmp_path, capsys):
    code, found = lipctrl_json(capsys, "quickstart", "--episodes", 6, "--steps", 2, "--out", tmp_path / "run")
    assert (code, found["status"], found["level"]) == (1, "refuted", "falsified")
    assert [entry["level"] for entry in found["results"]] == ["proved", "falsified", "unknown"]
    assert main(["check", found["certificates"][1]]) == 1


def test_each_step_is_a_function_of_its_own(tmp_path):
    plant = make_plant("double-integrator")
    demonstrations = demonstrate(plant, episodes=3, seed=4)
    assert demonstrations.digest() == demonstrate(plant, episodes=3, seed=4).digest()
    lipschitz = choose_lipschitz(demonstrations, 0.05)
    steepest = lipschitz / 1.05
    assert 0.5 < steepest < 3
    trained = module.fit(demonstrations, lipschitz, module.TrainingOptions(hidden=(8,), steps=60, patience=0), seed=4)
    findings = prove(trained.policy.graph(), plant, tmp_path / "certificates", budget_s=20)
    assert [finding.name for finding in findings] == ["lipschitz", "stability-real", "stability-float32"]
    assert findings[0].level == "proved"
    assert findings[0].numbers["lipschitz"] <= lipschitz


def test_options_out_of_range_are_refused(tmp_path):
    for change in ({"episodes": 0}, {"steps": 0}, {"margin": 0.0}, {"plant": "nowhere"}):
        with pytest.raises(InputError):
            quickstart(tmp_path / "run", dataclasses.replace(SMALL, **change))
    assert not (tmp_path / "run").exists()
