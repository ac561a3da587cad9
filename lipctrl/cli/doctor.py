"""``lipctrl doctor``."""

from __future__ import annotations

import importlib
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any, ClassVar

from lipctrl.cli.console import Console
from lipctrl.cli.verb import OptionalFolder, Outcome, Verb

REQUIRED = (
    *("numpy", "python-flint", "safetensors", "torch", "gymnasium", "mujoco", "casadi", "cvxpy", "clarabel", "scipy", "minari"),
    *("h5py", "stable-baselines3", "onnx", "matplotlib", "imageio", "Pillow", "tyro", "rich"),
)
EXTRAS = {"pettingzoo": "games", "highspy": "mip", "tensorboard": "log", "dask": "dask"}
BACK_ENDS = {"egl": "libegl1", "osmesa": "libosmesa6"}  #: MuJoCo's, with the system package on Debian and Ubuntu
TORCH = "import torch; print(torch.get_num_threads(), torch.cuda.is_available())"
DRAW = "import mujoco as m; r = m.Renderer(m.MjModel.from_xml_string('<mujoco/>'), 8, 8); r.render()"


@dataclass(frozen=True)
class Finding:
    """One thing that was tested: whether it works (None: optional and absent), what was found, and what to do."""

    name: str
    works: bool | None
    found: str
    remedy: str = ""


@dataclass(frozen=True, kw_only=True)
class Doctor(Verb):
    """Test this installation: versions, arithmetic, threads, solvers, rendering; missing parts come with what to type.

    Exit code 0: all that lipctrl needs works; 3: something does not. Nothing is drawn at random: --seed is there because
    every verb has it.
    """

    EXAMPLE: ClassVar[str] = "  lipctrl doctor"

    out: OptionalFolder = None
    """Write the results there too, as results.json."""

    def run(self, console: Console) -> Outcome:
        """Run all tests."""
        from lipctrl.cli.writing import refuse_other_content, write_results

        if self.out is not None:
            refuse_other_content(self.out, "doctor")
        probes: list[tuple[str, Callable[[], list[Finding]]]] = [
            ("packages", _packages),
            ("arithmetic", _arithmetic),
            ("threads", _threads),
            ("solvers", _solvers),
            ("rendering", _rendering),
            ("video", _video),
        ]
        findings: list[Finding] = []
        with console.task("testing") as progress:
            for index, (name, probe) in enumerate(probes):
                progress(index / len(probes), name, None)
                try:
                    findings += probe()
                except Exception as error:  # a broken library must not hide the other findings
                    findings.append(Finding(name, False, f"{type(error).__name__}: {error}"))
        broken = [finding for finding in findings if finding.works is False]
        outcome = Outcome(
            lines=[_line(finding) for finding in findings] + [f"{len(broken)} problems" if broken else "all that lipctrl needs works"],
            status="unknown" if broken else "ok",
            keys={"findings": [vars(finding) for finding in findings]},
        )
        if self.out is not None:
            write_results(self.out, "doctor", outcome)
        return outcome


def _line(finding: Finding) -> str:
    mark = {True: "ok", False: "BROKEN", None: "absent"}[finding.works]
    return f"{mark:7}{finding.name}: {finding.found}" + (f"; {finding.remedy}" if finding.remedy else "")


def _packages() -> list[Finding]:
    found = [Finding("Python", True, platform.python_version()), Finding("lipctrl", True, version("lipctrl"))]
    for name in REQUIRED:
        try:
            found.append(Finding(name, True, version(name)))
        except PackageNotFoundError:
            found.append(Finding(name, False, "not installed", f"pip install {name}"))
    for name, extra in EXTRAS.items():
        try:
            found.append(Finding(name, True, version(name)))
        except PackageNotFoundError:
            found.append(Finding(name, None, "optional", f'pip install "lipctrl[{extra}]"'))
    return found


def _arithmetic() -> list[Finding]:
    from lipctrl.certificates.checker.intervals import UnsafeArithmetic, require_ieee

    try:
        require_ieee()
    except UnsafeArithmetic as error:
        return [Finding("IEEE 754 arithmetic", False, str(error), "look for libraries built with -ffast-math, imported before")]
    return [Finding("IEEE 754 arithmetic", True, "round to nearest, gradual underflow")]


def _threads() -> list[Finding]:
    """What torch says, in a process of its own: a build that does not fit this machine may crash on import."""
    done = subprocess.run([sys.executable, "-c", TORCH], capture_output=True, text=True, timeout=120, check=False)
    if done.returncode != 0:
        said = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        return [Finding("torch runs", False, said, "pip install --force-reinstall torch")]
    threads, cuda = done.stdout.split()
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    limits = ", ".join(f"{name}={os.environ[name]}" for name in names if name in os.environ)
    return [
        Finding("threads", True, f"{os.cpu_count()} cores, torch uses {threads}" + (f", {limits}" if limits else "")),
        Finding("accelerator", True, "CUDA" if cuda == "True" else "none, and none is needed"),
    ]


def _solvers() -> list[Finding]:
    import cvxpy

    x: Any = cvxpy.Variable()
    problem: Any = cvxpy.Problem(cvxpy.Minimize((x - 1) ** 2), [x >= 2])
    value = problem.solve(solver=cvxpy.CLARABEL)
    found = [Finding("Clarabel", bool(abs(value - 1) < 1e-4), f"a quadratic program gives {value:.6f}, expected 1")]
    casadi: Any = importlib.import_module("casadi")
    y = casadi.SX.sym("y")
    options = {"print_time": False, "ipopt": {"print_level": 0, "sb": "yes"}}
    solution = casadi.nlpsol("s", "ipopt", {"x": y, "f": (y - 1) ** 2}, options)(lbx=2)
    found.append(Finding("IPOPT", bool(abs(float(solution["f"]) - 1) < 1e-4), f"the same gives {float(solution['f']):.6f}"))
    return found


def _rendering() -> list[Finding]:
    """One frame per back end, each in a process of its own because MuJoCo chooses once; one that works is enough."""
    found = []
    for name, package in BACK_ENDS.items():
        done = subprocess.run(
            [sys.executable, "-c", DRAW], env={**os.environ, "MUJOCO_GL": name}, capture_output=True, timeout=60, check=False
        )
        works = True if done.returncode == 0 else None
        found.append(
            Finding(f"MuJoCo rendering, {name}", works, "draws" if works else "does not draw", "" if works else f"apt install {package}")
        )
    from lipctrl.envs import PlantEnv

    env = PlantEnv("pendulum", render_mode="rgb_array")
    env.reset(seed=0)
    frame = env.render()
    drawn = frame is not None and frame.ndim == 3
    found.append(Finding("rendering of plants", drawn, f"a picture of {frame.shape}" if frame is not None else "no picture"))
    return found


def _video() -> list[Finding]:
    ffmpeg: Any = importlib.import_module("imageio_ffmpeg")
    try:
        return [Finding("ffmpeg", True, ffmpeg.get_ffmpeg_version())]
    except (OSError, RuntimeError) as error:
        return [Finding("ffmpeg", None, str(error).split("\n")[0], 'pip install "imageio[ffmpeg]"')]
