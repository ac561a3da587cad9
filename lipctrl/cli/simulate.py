"""``lipctrl simulate``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import tyro

from lipctrl.cli.console import Console
from lipctrl.cli.verb import EnvironmentId, OptionalFolder, Outcome, Verb
from lipctrl.core.errors import InputError

if TYPE_CHECKING:
    from lipctrl.core.progress import Progress


@dataclass(frozen=True, kw_only=True)
class Simulate(Verb):
    """Run a policy, or an expert, for whole episodes and say what return it gets; film the first one with --video.

    Episode i starts from reset(seed=SEED + i).
    """

    EXAMPLE: ClassVar[str] = "  lipctrl simulate runs/quickstart/policy --env pendulum --episodes 20 --video runs/pendulum.mp4"

    policy: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="POLICY")]
    """A policy folder, or an expert's name: lqr, energy, mpc."""
    env: EnvironmentId
    """Environment: a shipped plant (pendulum), any Gymnasium id (Pendulum-v1), or a Python file with plant() -> Plant (it is executed)."""
    episodes: int = 10
    """Episodes to run."""
    video: Annotated[str | None, tyro.conf.arg(metavar="FILE.mp4")] = None
    """Film the first episode into this file (.mp4 or .gif)."""
    out: OptionalFolder = None
    """Write the results there too, as results.json."""

    def run(self, console: Console) -> Outcome:
        """Roll out, film, and summarise."""
        from lipctrl.cli.writing import refuse_other_content, write_results

        if self.episodes < 1:
            raise InputError(f"the number of episodes is {self.episodes}, expected at least 1")
        if self.out is not None:
            refuse_other_content(self.out, "simulate")
        if self.video is not None:
            _check_video(Path(self.video))
        with console.task("simulating") as progress:
            from lipctrl.agents import EXPERTS, make_expert, rollout
            from lipctrl.agents.interface import Interface
            from lipctrl.cli.environments import make_environment

            if self.policy not in EXPERTS and not Path(self.policy).exists():
                raise InputError(f"there is no policy folder {self.policy}, expected one, or an expert: {', '.join(EXPERTS)}")
            env = make_environment(self.env)
            controller = make_expert(self.policy, env)
            if not _fits(controller, Interface.of(env)):
                console.warn(f"the policy in {self.policy} was made for other coordinates or another sampling time than {self.env}")
            episodes = rollout(env, controller, range(self.seed, self.seed + self.episodes), progress=progress)
            if self.video is not None:
                progress(1.0, "filming", None)
                _film(make_environment(self.env, render=True), controller, self.seed, Path(self.video), progress)
        returns = [float(episode.rewards.sum()) for episode in episodes]
        keys: dict[str, Any] = {
            "mean_return": sum(returns) / len(returns),
            "episodes": len(returns),
            "returns": returns,
            "steps": [len(episode.rewards) for episode in episodes],
            "terminated": sum(bool(episode.terminations[-1]) for episode in episodes),
            "video": self.video,
        }
        line = f"{len(returns)} episodes: mean return {keys['mean_return']:.6g}, from {min(returns):.6g} to {max(returns):.6g}"
        lines = [line, f"{keys['terminated']} of them ended before the time was up"]
        lines += [f"video: {self.video}"] if self.video is not None else []
        outcome = Outcome(lines=lines, keys=keys)
        if self.out is not None:
            write_results(self.out, "simulate", outcome)
        return outcome


def _fits(controller: Any, interface: Any) -> bool:
    """Whether names, units and sampling time of a policy are those of the environment, where both are stated."""
    from lipctrl.core.policy import Policy

    if not isinstance(controller, Policy):
        return True
    same_dt = controller.dt is None or interface.dt is None or controller.dt == interface.dt
    pairs = [(controller.observation, interface.observation), (controller.action, interface.action)]
    stated = [(tuple(mine), tuple(theirs)) for mine, theirs in pairs if not any(unit == "unstated" for _, unit in theirs)]
    return same_dt and all(tuple(map(tuple, mine)) == tuple(map(tuple, theirs)) for mine, theirs in stated)


def _check_video(path: Path) -> None:
    if path.suffix not in (".mp4", ".gif"):
        raise InputError(f"the video is {path}, expected a name that ends in .mp4 or .gif")
    if not path.parent.is_dir():
        raise InputError(f"the folder {path.parent} for the video does not exist, expected one that does")


def _film(env: Any, controller: Any, seed: int, path: Path, progress: Progress) -> None:
    """Film one episode; the file appears whole or not at all. Raises InputError where the environment gives no pictures."""
    import os

    import imageio.v3 as imageio
    import numpy as np

    observation, _ = env.reset(seed=seed)
    frames, memory, start, over = [env.render()], None, np.array([True]), False
    while not over:
        action, memory = controller.predict(observation, memory, start, True)
        observation, _, terminated, truncated, _ = env.step(np.asarray(action, env.action_space.dtype))
        frames.append(env.render())
        start, over = np.array([False]), terminated or truncated
        progress(1.0, f"frame {len(frames)}", None)
    if any(frame is None for frame in frames):
        raise InputError("this environment draws no pictures, so it cannot be filmed; leave --video out")
    rate = env.metadata.get("render_fps", 20)
    partial = path.with_name(f".partial-{path.name}")
    try:
        if path.suffix == ".gif":
            imageio.imwrite(partial, np.stack(frames), duration=1000 / rate, loop=0)
        else:
            imageio.imwrite(partial, np.stack(frames), fps=rate, codec="libx264", macro_block_size=2)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
