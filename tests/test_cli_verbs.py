"""The verbs do their work: forms, keys of --json, exit codes, files."""

import functools
import json
import os
import signal
import subprocess
import sys
import time
from typing import get_args

import imageio.v3 as imageio
import pytest
from runs import PLANT_FILE, linear_policy, lipctrl_json

from lipctrl.agents import training
from lipctrl.certificates.checker.command import main as checker
from lipctrl.cli import main, train
from lipctrl.core.policy import Policy
from lipctrl.envs import load_plant
from lipctrl.nn import ACTIVATIONS, LAYERS
from lipctrl.nn.policy import WITH_SKIPS

COMMON = {"verb", "status", "level", "claim", "certificates", "seconds"}


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    return linear_policy(tmp_path_factory.mktemp("policy") / "good")


@pytest.fixture(scope="module")
def demos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demos") / "pendulum-lqr-v0"
    assert main(["demos", "collect", "--env", "lipctrl/Pendulum-v0", "--expert", "lqr", "--episodes", "4", "--out", str(folder)]) == 0
    return folder


def test_demos_collect_and_show(demos, tmp_path, capsys):
    code, found = lipctrl_json(capsys, "demos", "show", demos, "--lipschitz", 1.0, "--out", tmp_path)
    assert code == 0
    assert set(found) >= COMMON
    assert (found["verb"], found["status"], found["episodes"], found["steps"]) == ("demos", "ok", 4, 800)
    assert 1.2 < found["interpolation_constant"] < 1.5
    assert found["error_floor"] > 0
    assert json.loads((tmp_path / "results.json").read_text())["digest"] == found["digest"]


def test_equal_seeds_record_equal_episodes(demos, tmp_path, capsys):
    common = ("demos", "collect", "--env", "pendulum", "--expert", "lqr", "--episodes", 4)
    first = lipctrl_json(capsys, *common, "--out", tmp_path / "a-v0")[1]
    other = lipctrl_json(capsys, *common, "--seed", 1, "--out", tmp_path / "b-v0")[1]
    shown = lipctrl_json(capsys, "demos", "show", demos)[1]
    assert first["digest"] == shown["digest"] != other["digest"]


def test_train_bc_writes_a_run_and_a_certificate(demos, tmp_path, capsys):
    run = tmp_path / "run"
    words = ("train", "bc", "--env", "pendulum", "--demos", demos, "--lipschitz", 1.5, "--steps", 60, "--hidden", 8, 8, "--out", run)
    code, found = lipctrl_json(capsys, *words)
    assert code == 0
    assert set(found) >= COMMON
    assert (found["verb"], found["level"], found["norm"]) == ("train", "proved", "l2")
    assert found["lower"] <= found["upper"] <= 1.5
    assert Policy.load(run / "policy").digest == found["results"][0]["subject"]["policy"]
    again = lipctrl_json(capsys, *words)[1]
    assert {key: value for key, value in again.items() if key != "seconds"} == {
        key: value for key, value in found.items() if key != "seconds"
    }


def test_an_l_below_the_stabilisation_floor_is_a_warning(demos, tmp_path, capsys):
    words = ["train", "bc", "--env", "pendulum", "--demos", str(demos), "--lipschitz", "0.5", "--steps", "20", "--hidden", "8"]
    assert main([*words, "--out", str(tmp_path / "run")]) == 0
    said = capsys.readouterr().err
    assert "warning: L = 0.5 is below 0.735749:" in said
    assert main(["stability", "--plant", "pendulum", "--policy", str(tmp_path / "run/policy"), "--out", str(tmp_path / "proof")]) == 1
    assert main(["check", str(tmp_path / "proof/certificates/instability")]) == 1


def test_train_dagger_on_a_foreign_environment(tmp_path, capsys):
    words = ("train", "dagger", "--env", "Pendulum-v1", "--lipschitz", 10, "--episodes", 2, "--rounds", 1, "--steps", 20, "--hidden", 8)
    code, found = lipctrl_json(capsys, *words, "--out", tmp_path / "run")
    assert (code, found["level"]) == (0, "proved")
    assert found["upper"] <= 10
    assert (tmp_path / "run" / "demonstrations").is_dir()
    code, found = lipctrl_json(capsys, "simulate", tmp_path / "run" / "policy", "--env", "Pendulum-v1", "--episodes", 2)
    assert code == 0
    assert -4000 < found["mean_return"] < 0


@pytest.mark.parametrize("suffix", [".mp4", ".gif"])
def test_simulate_films(policy, suffix, tmp_path, capsys):
    film = tmp_path / f"film{suffix}"
    code, found = lipctrl_json(capsys, "simulate", policy, "--env", "double-integrator", "--episodes", 2, "--video", film)
    assert code == 0
    assert found["episodes"] == len(found["returns"]) == 2
    assert found["mean_return"] == pytest.approx(sum(found["returns"]) / 2)
    frames = imageio.imread(film)
    assert 20 < frames.shape[0] <= found["steps"][0] + 1  # a GIF holds equal frames once
    assert sorted(path.name for path in tmp_path.iterdir()) == [film.name]


def test_simulate_takes_experts_and_is_repeatable(capsys):
    first = lipctrl_json(capsys, "simulate", "lqr", "--env", "pendulum", "--episodes", 3, "--seed", 5)[1]
    again = lipctrl_json(capsys, "simulate", "lqr", "--env", "pendulum", "--episodes", 3, "--seed", 5)[1]
    assert first["returns"] == again["returns"]


def test_simulate_warns_of_a_policy_for_something_else(policy, capsys):
    assert main(["simulate", str(policy), "--env", "van-der-pol", "--episodes", "1"]) == 0
    assert "was made for other coordinates" in capsys.readouterr().err


def test_lipschitz_keys(policy, tmp_path, capsys):
    code, found = lipctrl_json(capsys, "lipschitz", policy, "--norm", "l2", "--out", tmp_path)
    assert code == 0
    assert COMMON | {"upper", "lower", "norm"} <= set(found)
    assert found["lower"] <= (1.2**2 + 0.6**2) ** 0.5 + 1e-6 <= found["upper"] + 2e-6
    assert found["certificates"] == [str(tmp_path / "certificate")]
    assert main(["check", *found["certificates"], "--about", str(policy)]) == 0


def test_lipschitz_on_a_box_says_how_far_float32_is_off(policy, tmp_path, capsys):
    code, found = lipctrl_json(capsys, "lipschitz", policy, "--low", -1, -1, "--high", 1, 1, "--out", tmp_path)
    assert (code, found["level"]) == (0, "proved")
    assert [entry["property"] for entry in found["results"]] == ["local_lipschitz", "float32_evaluation"]
    assert found["certificates"] == [str(tmp_path / "certificate"), str(tmp_path / "evaluation")]
    assert main(["check", *found["certificates"], "--about", str(policy)]) == 0


def test_lipschitz_reads_onnx(tmp_path, capsys):
    onnx, onnx_helper = pytest.importorskip("onnx"), pytest.importorskip("onnx.helper")
    inputs = [onnx_helper.make_tensor_value_info("x", 1, ["batch", 2])]
    outputs = [onnx_helper.make_tensor_value_info("y", 1, ["batch", 1])]
    weight = onnx_helper.make_tensor("w", 1, [2, 1], [3.0, 4.0])
    graph = onnx_helper.make_graph([onnx_helper.make_node("MatMul", ["x", "w"], ["y"])], "net", inputs, outputs, [weight])
    onnx.save(onnx_helper.make_model(graph, opset_imports=[onnx_helper.make_opsetid("", 17)], ir_version=8), tmp_path / "net.onnx")
    code, found = lipctrl_json(capsys, "lipschitz", tmp_path / "net.onnx", "--out", tmp_path / "out")
    assert (code, found["level"], found["units"]) == (0, "proved", "unstated")
    assert 5 <= found["upper"] <= 5.00001


def test_stability_keys(policy, tmp_path, capsys):
    code, found = lipctrl_json(
        capsys, "stability", "--plant", "lipctrl/Pendulum-v0", "--policy", policy, "--budget-s", 60, "--out", tmp_path
    )
    assert code == 0
    assert COMMON | {"property", "volume", "rho", "method", "results"} <= set(found)
    assert (found["level"], found["property"]) == ("proved", "exponentially_stable")
    assert found["volume"] > 120
    assert [result["property"] for result in found["results"]] == ["exponentially_stable", "practically_stable"]
    code, checked = lipctrl_json(capsys, "check", *found["certificates"], "--about", "pendulum")
    assert (code, checked["status"], checked["level"]) == (0, "ok", "proved")
    keys = {"certificate", "status", "level", "kind", "property", "claim", "reason", "subject"}
    assert all(keys <= set(result) for result in checked["results"])
    assert checked["results"][0]["claim"] == found["claim"]
    assert main(["check", *found["certificates"], "--about", "cartpole"]) == 1


def test_stability_of_a_plant_in_a_file(tmp_path, capsys):
    (tmp_path / "cart.py").write_text(PLANT_FILE)
    coordinates = (("position", "m"), ("velocity", "m/s"))
    policy = linear_policy(tmp_path / "policy", (-0.5, -1.0), coordinates)
    code, found = lipctrl_json(capsys, "stability", "--plant", tmp_path / "cart.py", "--policy", policy, "--out", tmp_path / "proof")
    assert (code, found["level"]) == (0, "proved")


def test_a_plant_in_a_file_goes_wherever_an_environment_goes(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cart.py").write_text(PLANT_FILE)
    code, found = lipctrl_json(capsys, "demos", "collect", "--env", "cart.py", "--expert", "lqr", "--episodes", 3, "--out", "demos")
    assert (code, found["environment"], found["steps"]) == (0, "cart", 300)
    cloning = ("train", "bc", "--env", "cart.py", "--demos", "demos", "--hidden", 4, "--steps", 40, "--out", "run")
    assert lipctrl_json(capsys, *cloning)[1]["level"] == "proved"
    digest = load_plant("cart.py").digest
    assert Policy.load("run/policy").provenance | {"environment": "cart", "plant_digest": digest} == Policy.load("run/policy").provenance
    assert f'plant_digest = "{digest}"' in (tmp_path / "run" / "config.toml").read_text()
    dagger = ("train", "dagger", "--env", "cart.py", "--episodes", 2, "--rounds", 1, "--hidden", 4, "--steps", 10, "--out", "dagger")
    assert lipctrl_json(capsys, *dagger)[0] == 0
    assert lipctrl_json(capsys, "simulate", "dagger/policy", "--env", "cart.py", "--episodes", 1, "--video", "film.gif")[0] == 0
    code, found = lipctrl_json(capsys, "simulate", "run/policy", "--env", "cart.py", "--episodes", 2)
    assert (code, found["steps"]) == (0, [100, 100])

    (tmp_path / "cart.py").write_text(PLANT_FILE.replace("Fraction(1, 10)", "Fraction(1, 5)"))  # another plant of the same name
    assert "have dt 1/10, expected 1/5 as in cart" in lipctrl_json(capsys, *cloning)[1]["message"]
    assert f"plant_digest is '{digest}' there" in lipctrl_json(capsys, *dagger)[1]["message"]


def test_check_about_a_plant_in_a_file(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cart.py").write_text(PLANT_FILE)
    policy = linear_policy(tmp_path / "policy", (-0.5, -1.0), (("position", "m"), ("velocity", "m/s")))
    words = ("stability", "--plant", "cart.py", "--policy", policy, "--out", "proof")
    certificate = lipctrl_json(capsys, *words)[1]["certificates"][0]
    assert main(["check", certificate, "--about", "cart.py"]) == 0
    assert checker(["cart.py", "--about", "cart.py"]) == 2
    assert "cart.py is code, which this command never executes; use lipctrl check --about cart.py" in capsys.readouterr().err
    (tmp_path / "cart.py").write_text(PLANT_FILE.replace('("N", 1)', '("N", 2)'))
    code, found = lipctrl_json(capsys, "check", certificate, "--about", "cart.py")
    assert (code, found["status"], found["level"]) == (1, "unknown", "unknown")
    assert "about another plant" in found["results"][0]["reason"]


def test_check_about_a_foreign_file(tmp_path, capsys):
    onnx, helper = pytest.importorskip("onnx"), pytest.importorskip("onnx.helper")
    for name, weights in (("net", [3.0, 4.0]), ("other", [3.0, 5.0])):
        ends = [helper.make_tensor_value_info(tensor, 1, ["batch", size]) for tensor, size in (("x", 2), ("y", 1))]
        weight = helper.make_tensor("w", 1, [2, 1], weights)
        graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "net", ends[:1], ends[1:], [weight])
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / f"{name}.onnx")
    found = lipctrl_json(capsys, "lipschitz", tmp_path / "net.onnx", "--out", tmp_path / "out")[1]
    assert main(["check", *found["certificates"], "--about", str(tmp_path / "net.onnx")]) == 0
    assert main(["check", *found["certificates"], "--about", str(tmp_path / "other.onnx")]) == 1


def test_the_command_line_offers_what_the_library_trains():
    assert get_args(train.Layer) == get_args(training.Layer) == (*LAYERS, *WITH_SKIPS)
    assert get_args(train.ActivationName) == get_args(training.ActivationName) == tuple(ACTIVATIONS)


def test_no_property_without_a_proof(policy, tmp_path, capsys):
    code, found = lipctrl_json(capsys, "stability", "--plant", "pendulum", "--policy", policy, "--budget-s", 1e-6, "--out", tmp_path)
    assert (code, found["status"], found["level"]) == (3, "unknown", "unknown")
    assert (found["property"], found["volume"], found["rho"], found["claim"], found["certificates"]) == (None, None, None, "", [])
    assert "budget" in found["reason"]


def test_check_takes_many_and_the_weakest_decides(policy, tmp_path, capsys):
    assert main(["lipschitz", str(policy), "--out", str(tmp_path)]) == 0
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "certificate.json").write_text("{}")
    capsys.readouterr()
    code, found = lipctrl_json(capsys, "check", tmp_path / "certificate", tmp_path / "broken", "--out", tmp_path / "results")
    assert (code, found["status"], found["level"]) == (1, "unknown", "unknown")
    assert [result["level"] for result in found["results"]] == ["proved", "unknown"]
    assert json.loads((tmp_path / "results" / "results.json").read_text())["results"] == found["results"]


def test_doctor_finds_this_installation_in_order(tmp_path, capsys):
    code, found = lipctrl_json(capsys, "doctor", "--out", tmp_path)
    assert code == 0, [finding for finding in found["findings"] if finding["works"] is False]
    named = {finding["name"]: finding for finding in found["findings"]}
    assert named["IEEE 754 arithmetic"]["works"] is True
    assert named["Clarabel"]["works"] and named["IPOPT"]["works"]
    assert "lipctrl[games]" in named["pettingzoo"]["remedy"] or named["pettingzoo"]["works"]


def test_doctor_reports_what_is_broken_with_exit_code_3(monkeypatch, capsys):
    from lipctrl.cli import doctor

    def missing(name):
        raise doctor.PackageNotFoundError(name)

    def failing():
        raise OSError("no display")

    real = doctor.version
    monkeypatch.setattr(doctor, "version", lambda name: missing(name) if name == "casadi" else real(name))
    monkeypatch.setattr(doctor, "_rendering", failing)
    code, found = lipctrl_json(capsys, "doctor")
    assert (code, found["status"]) == (3, "unknown")
    broken = {finding["name"]: finding for finding in found["findings"] if finding["works"] is False}
    assert set(broken) == {"casadi", "rendering"}
    assert broken["casadi"]["remedy"] == "pip install casadi"


def test_an_interrupted_training_keeps_the_best_policy(demos, tmp_path):
    words = ["train", "bc", "--env", "pendulum", "--demos", str(demos), "--lipschitz", "1.5", "--steps", "100000", "--hidden", "8"]
    command = [sys.executable, "-m", "lipctrl", *words, "--out", str(tmp_path / "run"), "--json"]
    # A shell starts its background jobs deaf to Ctrl-C, and their children inherit that: the test must not.
    hearing = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command, **pipes, preexec_fn=hearing)  # noqa: PLW1509
    journal, deadline = tmp_path / "run" / "journal.jsonl", time.monotonic() + 240
    while not (journal.exists() and journal.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.1)
    os.kill(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=240)
    assert process.returncode == 130, err
    found = json.loads(out)
    assert found["status"] == "unknown"
    assert Policy.load(found["policy"]).graph.output_sizes == {"action": 1}
