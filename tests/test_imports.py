"""What an import costs, and what it must not bring along."""

import json
import subprocess
import sys

import pytest

HEAVY = {
    *("casadi", "clarabel", "cvxpy", "gymnasium", "h5py", "imageio", "matplotlib", "minari", "mujoco", "onnx", "PIL"),
    *("pygame", "rich", "scipy", "stable_baselines3", "torch", "tyro"),
}


def modules_after(code: str) -> set[str]:
    """The names in ``sys.modules`` after a fresh interpreter has run ``code``."""
    script = f"{code}\nimport json, sys\nprint(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize(
    "statement",
    [
        "import lipctrl",
        "import lipctrl.certificates",
        "import lipctrl.certificates.checker",
        "import lipctrl.certificates.checker.verifiers",
        "import lipctrl; lipctrl.certificates.checker",
    ],
)
def test_the_checker_brings_nothing_of_the_search_side(statement):
    loaded = modules_after(statement)
    assert not loaded & HEAVY
    ours = {name for name in loaded if name.startswith("lipctrl.")}
    assert all(name.startswith("lipctrl.certificates") for name in ours), ours
    assert not any(name.startswith(("lipctrl.certificates.lipschitz", "lipctrl.certificates.stability")) for name in ours)


def test_lazy_roots_load_on_first_use_and_name_what_they_have():
    import lipctrl

    assert lipctrl.core is sys.modules["lipctrl.core"]
    assert "certificates" in dir(lipctrl)
    with pytest.raises(AttributeError, match="certificates"):
        lipctrl.no_such_part  # noqa: B018
    with pytest.raises(AttributeError, match="checker"):
        lipctrl.certificates.no_such_part  # noqa: B018


def test_top_level_folders_are_never_imported_under_their_bare_names():
    loaded = modules_after("import lipctrl.envs, lipctrl.agents, lipctrl.certificates.checker")
    assert not loaded & {"envs", "agents", "certificates"}


@pytest.mark.parametrize("words", [["--help"], ["check", "--help"], ["no-such-verb"]])
def test_the_command_line_answers_without_torch_and_solvers(words):
    loaded = modules_after(f"from lipctrl.cli import main; main({words!r})")
    assert "lipctrl.cli.command" in loaded
    assert not loaded & (HEAVY - {"rich", "tyro"})
