"""Help: quick, complete, and with an example for every verb."""

import json
import subprocess
import sys

import pytest

from lipctrl.cli import doctor, main
from lipctrl.cli.command import VERBS

HEAVY = {"torch", "mujoco", "cvxpy", "casadi", "matplotlib", "scipy", "gymnasium", "minari", "h5py", "stable_baselines3"}


@pytest.mark.parametrize("words", [["--help"], ["demos", "--help"], ["--version"], *([*name.split(), "--help"] for name in VERBS)])
def test_help_imports_nothing_heavy(words):
    script = f"import json, sys\nfrom lipctrl.cli import main\nassert main({words!r}) == 0\nprint(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    loaded = {name.split(".")[0] for name in json.loads(done.stdout.splitlines()[-1])}
    assert not loaded & HEAVY
    assert done.stderr == ""


def test_the_doctor_starts_torch_in_a_process_of_its_own():
    script = "import sys\nfrom lipctrl.cli import doctor\nprint(doctor._packages(), doctor._arithmetic(), doctor._threads())"
    script += "\nassert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "torch uses" in done.stdout


def test_the_doctor_survives_a_broken_torch(monkeypatch):
    monkeypatch.setattr(doctor, "TORCH", "import os; os.abort()")
    (finding,) = doctor._threads()
    assert (finding.name, finding.works, finding.found) == ("torch runs", False, "exit code -6")
    monkeypatch.setattr(doctor, "TORCH", "raise ImportError('libgomp.so.1 is missing')")
    assert doctor._threads()[0].found == "ImportError: libgomp.so.1 is missing"


def test_the_overview_lists_every_verb_and_the_exit_codes(capsys):
    assert main(["--help"]) == 0
    said = capsys.readouterr().out
    assert all(f"  {name} " in said for name in VERBS)
    assert "3 unknown" in said


@pytest.mark.parametrize("name", VERBS)
def test_every_verb_shows_an_example_and_the_common_options(name, capsys):
    assert main([*name.split(), "--help"]) == 0
    said = capsys.readouterr().out
    assert f"example:\n  lipctrl {name}" in said
    for option in ("--json", "--seed", "--out"):
        assert option in said


@pytest.mark.parametrize("module", ["lipctrl", "lipctrl.cli"])
def test_it_runs_as_a_module(module):
    done = subprocess.run([sys.executable, "-m", module, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("lipctrl ")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "a verb is missing"),
        (["demos"], "a verb is missing: see lipctrl demos --help"),
        (["chek"], "perhaps you meant check"),
        (["train", "ppo"], "expected one of bc, dagger"),
        (["check", "x", "--abuot", "y"], "perhaps you meant --about"),
        (["check", "x", "--seed", "many"], "--seed"),
        (["simulate", "x"], "--env"),
        (["lipschitz", "x", "--norm", "l7"], "--norm"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_2(words, said, capsys):
    assert main(words) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert said in captured.err
    assert captured.err.count("\n") == 1


def test_wrong_usage_gives_a_json_object_too(capsys):
    assert main(["simulate", "x", "--json"]) == 2
    found = json.loads(capsys.readouterr().out)
    assert (found["verb"], found["status"], found["certificates"]) == ("simulate", "error", [])
    assert "--env" in found["message"]


def test_a_reader_that_goes_away_ends_it_quietly():
    command = f"{sys.executable} -m lipctrl check --help | head -n 1"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=True)
    assert done.stderr == ""
