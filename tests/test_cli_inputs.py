"""Wrong input: exit code 2, one clear sentence that names the thing, a JSON object with status error, and nothing destroyed."""

import json
import shutil
import subprocess
import sys

import h5py
import numpy as np
import pytest
from runs import PLANT_FILE, contents, linear_policy, lipctrl_json

from lipctrl.cli import main
from lipctrl.core.run_folder import RunFolder


@pytest.fixture(scope="module")
def stage(tmp_path_factory):
    """A folder with a policy, demonstrations, a certificate, and broken copies of them."""
    root = tmp_path_factory.mktemp("stage")
    linear_policy(root / "policy")
    assert main(["demos", "collect", "--env", "pendulum", "--expert", "lqr", "--episodes", "2", "--out", str(root / "demos-v0")]) == 0
    assert main(["lipschitz", str(root / "policy"), "--out", str(root / "bound")]) == 0
    (root / "garbage.json").write_text("not json at all")
    (root / "broken.onnx").write_bytes(b"no protobuf")
    (root / "broken.zip").write_bytes(b"no zip")
    (root / "broken").mkdir()
    (root / "broken" / "policy.json").write_text('{"format": "lipctrl-policy"')
    (root / "file").write_text("")
    shutil.copytree(root / "demos-v0", root / "nan-v0")
    with h5py.File(root / "nan-v0" / "data" / "main_data.hdf5", "a") as file:
        file["episode_1"]["actions"][3] = np.nan
    shutil.copytree(root / "demos-v0", root / "cut-v0")
    data = root / "cut-v0" / "data" / "main_data.hdf5"
    data.write_bytes(data.read_bytes()[:1000])
    (root / "wrong.py").write_text(PLANT_FILE.replace("return Plant", "return 7 or Plant"))
    (root / "raises.py").write_text("1 / 0")
    (root / "exits.py").write_text("raise SystemExit(0)")
    (root / "cart.py").write_text(PLANT_FILE)
    known = {"algorithm": "dagger", "seed": 0, "environment": "lipctrl/Pendulum-v0", "rounds": 3, "episodes": 50}
    options = {"hidden": (32, 32), "layer": "sandwich", "activation": "relu", "steps": 3000}
    RunFolder(root / "run", {**known, "options": options})
    shutil.copytree(root / "demos-v0", root / "mine" / "demonstrations")
    (root / "damaged").mkdir()
    (root / "damaged" / "config.toml").write_text("algorithm = ")
    return root


WRONG = [
    ("demos collect --env nowhere --expert lqr --out x-v0", "'nowhere' is not known"),
    ("demos collect --env pendulum --expert nobody --out x-v0", "'nobody' is unknown, expected one of lqr, energy, mpc"),
    ("demos collect --env pendulum --expert lqr --episodes 0 --out x-v0", "0, expected at least 1"),
    ("demos collect --env pendulum --expert lqr --out demos-v0", "demos-v0 exists already"),
    ("demos collect --env pendulum --expert lqr --out file/x-v0", "cannot write to"),
    ("demos collect --env Acrobot-v1 --expert lqr --out x-v0", "Acrobot-v1"),
    ("demos show nowhere", "nowhere holds no data set"),
    ("demos show nan-v0", "nan at step 3, expected finite numbers"),
    ("demos show cut-v0", "damaged"),
    ("demos show demos-v0 --lipschitz 0", "0.0, expected a positive number"),
    ("train bc --env pendulum --demos nowhere --out y", "nowhere holds no data set"),
    ("train bc --env pendulum --demos nan-v0 --out y", "nan at step 3"),
    ("train bc --env cartpole --demos demos-v0 --out y", "have 2 observation coordinates, expected 4"),
    ("train bc --env pendulum --demos demos-v0 --lipschitz -1 --out y", "-1.0, expected a positive number"),
    ("train bc --env pendulum --demos demos-v0 --lipschitz nan --out y", "nan, expected a positive number"),
    ("train bc --env pendulum --demos demos-v0 --steps 0 --out y", "--steps is 0"),
    ("train bc --env pendulum --demos demos-v0 --hidden 8 -3 --out y", "--hidden is 8 -3"),
    ("train bc --env pendulum --demos demos-v0 --steps 1 --out file", "cannot write to file"),
    ("train bc --env pendulum --demos nan-v0 --lipschitz inf --out y", "inf, expected a positive number"),
    ("train bc --env Pendulum-v1 --demos demos-v0 --out y", "demos-v0"),
    ("train dagger --env Pendulum-v1 --expert nobody --out y", "'nobody' is unknown"),
    ("simulate nowhere --env pendulum", "there is no policy folder nowhere"),
    ("simulate broken --env pendulum", "not a policy folder"),
    ("simulate policy --env cartpole", "maps 2 observations to 1 actions, expected 4 to 1"),
    ("simulate policy --env pendulum --episodes 0", "0, expected at least 1"),
    ("simulate policy --env pendulum --video film.avi", "ends in .mp4 or .gif"),
    ("simulate policy --env pendulum --video nowhere/film.mp4", "does not exist"),
    ("lipschitz nowhere", "no such file or folder: nowhere"),
    ("lipschitz garbage.json", "neither a policy folder nor an .onnx file"),
    ("lipschitz broken", "not a policy folder"),
    ("lipschitz broken.onnx", "broken.onnx"),
    ("lipschitz broken.zip", "broken.zip"),
    ("lipschitz policy --low -1 -1 --out y", "--low and --high"),
    ("lipschitz policy --low -1 -1 --high 1 1 --centre 0 0 --out y", "one pair or none"),
    ("lipschitz policy --low -1 --high 1 --out y", "--low has 1 numbers, expected 2"),
    ("lipschitz policy --low -1 1 --high 1 0.5 --out y", "low[1] is 1 and high[1] is 1/2"),
    ("lipschitz policy --centre 0 0 --radius -1 --out y", "expected a number that is not negative"),
    ("lipschitz policy --low -1 -1 --high 1 1 --budget-s 0 --out y", "positive number of seconds"),
    ("lipschitz policy --out file", "cannot write to file"),
    ("stability --plant nowhere --policy policy", "there is no plant 'nowhere'"),
    ("stability --plant nowhere.py --policy policy", "there is no file nowhere.py"),
    ("stability --plant wrong.py --policy policy", "returned int, expected a Plant"),
    ("stability --plant raises.py --policy policy", "ZeroDivisionError"),
    ("stability --plant cartpole --policy policy", "2 observation coordinates, the plant cartpole has 4"),
    ("stability --plant pendulum --policy broken", "not a policy folder"),
    ("stability --plant pendulum --policy nowhere", "nowhere is not a folder"),
    ("stability --plant pendulum --policy policy --budget-s 0", "0.0 s, expected a positive number"),
    ("stability --plant pendulum --policy policy --activation-ulp 0", "--activation-ulp is 0, expected a whole number from 1 to 1024"),
    ("check nowhere", "no such file or folder: nowhere"),
    ("check bound/certificate --about nobody", "neither a policy folder nor a shipped plant"),
    ("check bound/certificate --about broken", "not a readable policy folder"),
    ("report nowhere", "nowhere is not a folder"),
    ("report demos-v0", "expected a folder that quickstart, train or stability wrote"),
    ("quickstart --out y --steps 0", "steps is 0, expected a positive number"),
    ("quickstart --out y --budget-s 0", "budget_s is 0.0, expected a positive number"),
    ("quickstart --out bound", "bound holds the results of lipctrl lipschitz"),
    ("train bc --env pendulum --demos demos-v0 --out demos-v0", "demos-v0 holds a data set"),
    ("train bc --env pendulum --demos demos-v0 --out policy", "policy holds a policy"),
    ("train bc --env pendulum --demos demos-v0 --out run", "holds another run: algorithm is 'dagger' there and 'behaviour-cloning' here"),
    ("train dagger --env pendulum --out run --seed 1", "holds another run: seed is 0 there and 1 here"),
    ("train dagger --env pendulum --out run --steps 7", "holds another run: steps is 3000 there and 7 here"),
    ("train dagger --env cartpole --out run", "holds another run: environment is 'lipctrl/Pendulum-v0' there"),
    ("train bc --env pendulum --out mine --episodes 3 --steps 1", "2 episodes of lqr there and 3 of lqr here"),
    ("train bc --env pendulum --demos demos-v0 --layer sandwich --activation maxmin --out y", "slopes in [0, 1]"),
    ("train bc --env cart.py --demos demos-v0 --out y", "have observation 'angle' in rad, expected 'position' in m"),
    ("train bc --env wrong.py --out y", "returned int, expected a Plant"),
    ("demos collect --env raises.py --expert lqr --out x-v0", "ZeroDivisionError"),
    ("demos collect --env exits.py --expert lqr --out x-v0", "SystemExit"),
    ("demos collect --env nowhere.py --expert lqr --out x-v0", "there is no file nowhere.py"),
    ("simulate lqr --env wrong.py", "returned int, expected a Plant"),
    ("simulate policy --env pendulum --out run", "run holds a run of dagger"),
    ("demos show demos-v0 --out bound", "bound holds the results of lipctrl lipschitz"),
    ("lipschitz policy --out run", "run holds a run of dagger"),
    ("stability --plant pendulum --policy policy --out run", "algorithm is 'dagger' there and 'stability' here"),
    ("check bound/certificate --out run", "run holds a run of dagger"),
    ("check bound/certificate --out policy", "policy holds a policy"),
    ("check bound/certificate --about nowhere.py", "there is no file nowhere.py"),
    ("check bound/certificate --about nowhere.onnx", "nowhere.onnx"),
    ("report bound --out run", "run holds a run of dagger"),
    ("doctor --out run", "run holds a run of dagger"),
    ("lipschitz policy --out damaged", "damaged/config.toml cannot be read"),
    ("quickstart --out file", "cannot write to file"),
    ("doctor --seed -1", "the seed is -1"),
]


@pytest.mark.parametrize(("command", "said"), WRONG, ids=[command for command, _ in WRONG])
def test_wrong_input_is_refused_in_one_sentence(command, said, stage, monkeypatch, capsys):
    monkeypatch.chdir(stage)
    before = contents(stage)
    assert main([*command.split(), "--json"]) == 2
    captured = capsys.readouterr()
    found = json.loads(captured.out)
    assert found["status"] == "error"
    assert said in found["message"], found["message"]
    assert "Traceback" not in captured.err
    assert f"lipctrl: {found['message']}" in captured.err.splitlines()
    assert contents(stage) == before


def test_a_corrupt_certificate_is_rejected_with_exit_code_1(stage, capsys):
    code, found = lipctrl_json(capsys, "check", stage / "garbage.json")
    assert (code, found["status"], found["level"]) == (1, "unknown", "unknown")
    assert found["results"][0]["status"] == "rejected"
    assert "zip" in found["results"][0]["reason"]


def test_another_run_is_refused_before_anything_slow_is_loaded(stage):
    words = ["train", "bc", "--env", "pendulum", "--demos", "demos-v0", "--out", "run"]
    script = (
        f"import sys\nfrom lipctrl.cli import main\nassert main({words!r}) == 2\nassert not {{'torch', 'gymnasium'}} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=stage, capture_output=True, text=True, check=True)
    assert "lipctrl: run holds another run" in done.stderr


def test_an_unexpected_error_is_one_line_and_says_how_to_see_more(monkeypatch, capsys):
    from lipctrl.cli.doctor import Doctor

    def broken(self, console):
        raise KeyError("surprise")

    monkeypatch.setattr(Doctor, "run", broken)
    assert main(["doctor"]) == 2
    said = capsys.readouterr().err
    assert said == "lipctrl: unexpected KeyError: 'surprise'; run it again with --traceback to see where\n"
    assert main(["doctor", "--traceback"]) == 2
    assert "test_cli_inputs.py" in capsys.readouterr().err


def test_an_interrupt_has_its_own_exit_code(monkeypatch, capsys):
    from lipctrl.cli.doctor import Doctor

    def interrupted(self, console):
        raise KeyboardInterrupt

    monkeypatch.setattr(Doctor, "run", interrupted)
    code, found = lipctrl_json(capsys, "doctor")
    assert (code, found["status"]) == (130, "unknown")
