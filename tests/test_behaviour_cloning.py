"""Behaviour cloning: the bound holds, the loss leaves saturated labels free, runs repeat and resume bit for bit."""

import dataclasses
import hashlib

import gymnasium
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lipctrl.agents import Demonstrations, Interface, TrainingOptions, collect, make_expert, train_behaviour_cloning
from lipctrl.agents.behaviour_cloning import split
from lipctrl.agents.fitting import ActionBox, Fit, Samples, one_sided_huber
from lipctrl.agents.training import build_policy, one_thread
from lipctrl.core.errors import InputError, LipctrlError
from lipctrl.core.policy import Policy
from lipctrl.nn import ACTIVATIONS, LAYERS
from lipctrl.nn.policy import WITH_SKIPS

RESTRICTED = [name for name, activation in ACTIVATIONS.items() if activation.slope_restricted]
NEEDY = {*WITH_SKIPS, *(layer for layer, stack in LAYERS.items() if stack.needs_slope_restriction)}
FITTING = [(layer, name) for layer in (*LAYERS, *WITH_SKIPS) for name in (RESTRICTED if layer in NEEDY else ACTIVATIONS)]
SMALL = TrainingOptions(hidden=(8, 8), steps=120, batch_size=32, evaluate_every=20)


@pytest.fixture(scope="module")
def env():
    return gymnasium.make("lipctrl/Pendulum-v0", max_episode_steps=40)


@pytest.fixture(scope="module")
def demos(env) -> Demonstrations:
    return collect(env, make_expert("lqr", env), 10, seed=0)


def files(folder):
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.rglob("*") if p.is_file()}


class Killed(Exception):
    """Stands for SIGKILL: nothing in the training catches it."""


def killed_at(step):
    def progress(fraction, message, best):
        if message.startswith(f"step {step}:"):
            raise Killed

    return progress


# --- the loss ---------------------------------------------------------------------------------------------------------


def test_huber_by_hand():
    box = ActionBox(torch.tensor([-2.0]), torch.tensor([2.0]), torch.tensor([2.0]))

    def loss(prediction, label):
        return float(one_sided_huber(torch.tensor([[prediction]]), torch.tensor([[label]]), box, 0.25))

    assert loss(1.2, 1.0) == pytest.approx(0.5 * 0.1**2)  # quadratic, in units of half the box
    assert loss(3.0, 1.0) == pytest.approx(0.25 * (1 - 0.125))  # linear
    assert loss(9.0, 2.0) == 0.0 == loss(-9.0, -2.0)  # beyond the end that the label sits on
    assert loss(1.0, 2.0) == pytest.approx(0.25 * (0.5 - 0.125))
    assert loss(3.0, -2.0) > 0


@settings(max_examples=50)
@given(st.integers(0, 2**32 - 1))
def test_the_loss_is_zero_exactly_where_the_clipped_action_is_right(seed):
    rng = np.random.default_rng(seed)
    box = ActionBox(torch.tensor([-1.0, 0.0]), torch.tensor([1.0, 3.0]), torch.tensor([1.0, 1.5]))
    label = torch.tensor(np.clip(rng.normal(size=(6, 2)) * 3, [-1, 0], [1, 3]), dtype=torch.float32)
    prediction = label + torch.tensor(rng.choice([0.0, 0.5, -0.5], (6, 2)), dtype=torch.float32)
    clipped = torch.minimum(torch.maximum(prediction, box.low), box.high)
    assert (float(one_sided_huber(prediction, label, box, 0.3)) == 0.0) == bool((clipped == label).all())


# --- the trained policy -----------------------------------------------------------------------------------------------


def test_clones_the_expert_and_keeps_its_bound(env, demos):
    options = TrainingOptions(hidden=(16, 16), steps=300, evaluate_every=10, patience=0)
    result = train_behaviour_cloning(demos, 1.5, options=options, seed=3)
    assert result.completed and 0 < result.policy.lipschitz() <= 1.5
    assert result.history[-1]["validation_loss"] < min(1e-5, 0.1 * result.history[0]["validation_loss"])
    expert, learner = (collect(env, c, 5, seed=100).returns.mean() for c in (make_expert("lqr", env), result.policy.export()))
    assert learner > expert - 0.05 * abs(expert)
    x, y = np.random.default_rng(0).uniform(-12, 12, (2, 5000, 2)).astype(np.float32)
    policy = result.policy.export()
    moved = np.abs(policy.predict(x)[0].astype(float) - policy.predict(y)[0])[:, 0]
    assert (moved <= 1.5 * np.linalg.norm(x.astype(float) - y, axis=1) + 1e-4).all()
    assert policy.predict(np.zeros(2, np.float32))[0] == 0.0
    assert result.limits.samples == demos.steps and result.limits.lipschitz == 1.5


@pytest.mark.parametrize(("layer", "activation"), FITTING)
def test_every_pair_that_fits_together_trains_and_proves_its_bound(demos, layer, activation):
    few = dataclasses.replace(demos, episodes=demos.episodes[:2])
    options = TrainingOptions(hidden=(6, 4), layer=layer, activation=activation, steps=4, batch_size=40, validation_fraction=0.0)
    result = train_behaviour_cloning(few, 1.5, options=options)
    untrained = build_policy(few.interface, 1.5, options, seed=0)
    before, after = (p.state_dict() for p in (untrained, result.policy))
    assert any(not torch.equal(before[name], after[name]) for name in before)
    assert 0 < result.policy.lipschitz() <= 1.5


@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")
def test_a_training_that_diverges_says_so(demos):
    with pytest.raises(LipctrlError, match="training has diverged: its loss at step 2 is not finite"):
        train_behaviour_cloning(demos, 1e308, options=dataclasses.replace(SMALL, steps=2))


def test_pairs_that_do_not_fit_are_refused_before_any_training():
    pairs = {(layer, activation) for layer in (*LAYERS, *WITH_SKIPS) for activation in ACTIVATIONS}
    for layer, activation in pairs - set(FITTING):
        with pytest.raises(InputError, match=rf"needs an activation .* slopes in \[0, 1\] .* got '{activation}'"):
            TrainingOptions(layer=layer, activation=activation)


def test_a_small_bound_is_kept_at_the_price_of_the_fit(demos):
    result = train_behaviour_cloning(demos, 0.2, options=SMALL)
    assert result.policy.lipschitz() <= 0.2
    observations, actions = demos.samples()
    with torch.no_grad():
        errors = result.policy.clipped(torch.tensor(observations)).numpy() - actions
    assert np.abs(errors).max() >= result.limits.error_floor > 0.1
    assert (errors**2).mean() >= result.limits.mean_squared_error_floor > 0


def test_observation_weights_scale_the_network_not_the_bound(demos):
    options = dataclasses.replace(SMALL, observation_weights=("1", "1/4"))
    policy = train_behaviour_cloning(demos, 2.0, options=options).policy
    assert policy.lipschitz() <= 2.0
    x = torch.randn(2000, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    step = torch.tensor([[0.0, 1e-3]], dtype=torch.float64)
    with torch.no_grad():
        slope = ((policy(x + step) - policy(x)).abs() / 1e-3).max()
    assert slope <= 0.5 + 1e-6  # a quarter of the bound in that coordinate


def test_the_equilibrium_is_exact_unless_asked_otherwise():
    env = gymnasium.make("lipctrl/Quadrotor2d-v0", max_episode_steps=10)
    demos = collect(env, make_expert("lqr", env), 2, seed=0)
    rest = [float(v) for v in demos.interface.equilibrium_action]
    policy = train_behaviour_cloning(demos, 5.0, options=SMALL).policy
    np.testing.assert_array_equal(policy.export().predict(np.zeros(6, np.float32))[0], np.array(rest, np.float32))
    free = build_policy(demos.interface, 5.0, dataclasses.replace(SMALL, recentre=False), 0)
    assert free.equilibrium_observation is None


def test_whole_episodes_are_held_out(demos):
    policy = build_policy(demos.interface, 1.0, SMALL, 0)
    training, validation = split(demos, 0.3, 5, policy)
    assert (len(training), len(validation)) == (7 * 40, 3 * 40)
    starts = {tuple(e.observations[0]) for e in demos.episodes}
    held = {tuple(row) for row in validation.observations.numpy()} & starts
    kept = {tuple(row) for row in training.observations.numpy()} & starts
    assert len(held) == 3 and held.isdisjoint(kept) and held | kept == starts
    assert split(demos, 0.0, 5, policy)[1] is None
    one = dataclasses.replace(demos, episodes=demos.episodes[:1])
    assert split(one, 0.9, 5, policy)[1] is None


def test_early_stopping_keeps_the_best(demos):
    options = dataclasses.replace(SMALL, steps=4000, patience=2, learning_rate=0.05, evaluate_every=5)
    result = train_behaviour_cloning(demos, 1.5, options=options)
    losses = [record["validation_loss"] for record in result.history]
    assert result.history[-1]["step"] < 4000
    assert min(losses) == losses[-3] < min(losses[-2:])
    _, validation = split(demos, options.validation_fraction, 0, result.policy)
    with torch.no_grad():
        box = ActionBox.of(result.policy, torch.float32)
        loss = one_sided_huber(result.policy(validation.observations), validation.actions, box, options.huber)
    assert float(loss) == pytest.approx(losses[-3], rel=1e-6)


# --- repeating and resuming -------------------------------------------------------------------------------------------


def test_equal_seeds_give_equal_bytes_and_others_do_not(tmp_path, demos):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        train_behaviour_cloning(demos, 1.5, options=SMALL, seed=seed, folder=tmp_path / name)
    assert files(tmp_path / "a") == files(tmp_path / "b")
    assert files(tmp_path / "a")["policy/weights.safetensors"] != files(tmp_path / "c")["policy/weights.safetensors"]
    assert set(files(tmp_path / "a")) == {
        *("config.toml", "journal.jsonl", "state.safetensors", "policy/policy.json", "policy/weights.safetensors")
    }


def test_a_killed_run_resumes_to_the_same_bytes(tmp_path, demos):
    whole = train_behaviour_cloning(demos, 1.5, options=SMALL, folder=tmp_path / "whole")
    for step in (20, 80):
        with pytest.raises(Killed):
            train_behaviour_cloning(demos, 1.5, options=SMALL, folder=tmp_path / "killed", progress=killed_at(step))
        assert not (tmp_path / "killed/policy").exists()
    seen = []
    resumed = train_behaviour_cloning(
        demos, 1.5, options=SMALL, folder=tmp_path / "killed", progress=lambda f, message, best: seen.append(message)
    )
    assert files(tmp_path / "killed") == files(tmp_path / "whole")
    assert seen[0].startswith("step 100:")  # it did not start again
    assert resumed.history == whole.history and resumed.policy.export().digest == whole.policy.export().digest


def test_a_journal_ahead_of_the_state_is_rewound(tmp_path, demos):
    train_behaviour_cloning(demos, 1.5, options=SMALL, folder=tmp_path / "whole")
    with pytest.raises(Killed):
        train_behaviour_cloning(demos, 1.5, options=SMALL, folder=tmp_path / "killed", progress=killed_at(40))
    with open(tmp_path / "killed/journal.jsonl", "a") as file:
        file.write('{"step": 60, "training_loss": 0.5}\n{"step": 8')
    train_behaviour_cloning(demos, 1.5, options=SMALL, folder=tmp_path / "killed")
    assert files(tmp_path / "killed") == files(tmp_path / "whole")


def test_a_finished_run_is_not_trained_again(tmp_path, demos):
    train_behaviour_cloning(demos, 1.5, options=SMALL, folder=tmp_path / "run")
    before, seen = files(tmp_path / "run"), []
    again = train_behaviour_cloning(demos, 1.5, options=SMALL, folder=tmp_path / "run", progress=lambda f, m, b: seen.append(m))
    assert files(tmp_path / "run") == before and len(seen) == 1
    assert again.policy.export().digest == Policy.load(tmp_path / "run/policy").digest


def test_other_settings_need_another_folder(tmp_path, demos):
    train_behaviour_cloning(demos, 1.5, options=SMALL, folder=tmp_path / "run")
    with pytest.raises(InputError, match=r"lipschitz is 1.5 there and 2.0 here"):
        train_behaviour_cloning(demos, 2.0, options=SMALL, folder=tmp_path / "run")
    fewer = dataclasses.replace(demos, episodes=demos.episodes[:-1])
    with pytest.raises(InputError, match="demonstrations is"):
        train_behaviour_cloning(fewer, 1.5, options=SMALL, folder=tmp_path / "run")


def test_control_c_returns_the_best_so_far_and_resumes(tmp_path, demos):
    def interrupt(fraction, message, best):
        if message.startswith("step 60:"):
            raise KeyboardInterrupt

    result = train_behaviour_cloning(demos, 1.5, options=SMALL, folder=tmp_path / "run", progress=interrupt)
    assert not result.completed and [r["step"] for r in result.history] == [20, 40, 60]
    assert not (tmp_path / "run/policy").exists() and result.policy.lipschitz() <= 1.5
    assert train_behaviour_cloning(demos, 1.5, options=SMALL, folder=tmp_path / "run").completed
    train_behaviour_cloning(demos, 1.5, options=SMALL, folder=tmp_path / "whole")
    assert files(tmp_path / "run") == files(tmp_path / "whole")


def test_progress_rises_and_carries_the_policy(demos):
    calls = []
    result = train_behaviour_cloning(demos, 1.5, options=SMALL, progress=lambda *call: calls.append(call))
    fractions = [fraction for fraction, _, _ in calls]
    assert fractions == sorted(fractions) and fractions[-1] == 1.0
    assert all(best is result.policy for _, _, best in calls)


def test_threads_are_put_back():
    before = torch.get_num_threads()
    with pytest.raises(ZeroDivisionError), one_thread():
        assert torch.get_num_threads() == 1
        1 / 0  # noqa: B018
    assert torch.get_num_threads() == before


def test_the_saved_state_holds_optimiser_and_generator(demos):
    policy = build_policy(demos.interface, 1.0, SMALL, 0)
    fit = Fit(policy, SMALL, 0)
    fit.run(Samples.of(*demos.samples(), torch.float32), None, lambda record: None)
    kinds = {key.split("/")[0] + "/" + key.split("/")[1] for key in fit.tensors() if key.startswith("adam")}
    assert kinds == {"adam/step", "adam/exp_avg", "adam/exp_avg_sq"}
    assert fit.values()["generator"]["bit_generator"] == "PCG64" and fit.values()["step"] == 120


# --- mistakes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value"),
    [("steps", 0), ("batch_size", 0), ("huber", 0.0), ("validation_fraction", 1.0), ("final_learning_rate", 1.0), ("hidden", (0,))],
)
def test_options_out_of_range(name, value):
    with pytest.raises(InputError, match=f"option {name} is"):
        TrainingOptions(**{name: value})


def test_constants_weights_and_boxes_that_do_not_fit(demos):
    for lipschitz in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(InputError, match="ipschitz"):
            train_behaviour_cloning(demos, lipschitz, options=SMALL)
    with pytest.raises(InputError, match="observation_weights has 3 numbers, expected 2"):
        train_behaviour_cloning(demos, 1.0, options=dataclasses.replace(SMALL, observation_weights=("1", "1", "1")))
    with pytest.raises(InputError, match="expected positive"):
        train_behaviour_cloning(demos, 1.0, options=dataclasses.replace(SMALL, observation_weights=("1", "0")))
    unbounded = Interface.unnamed("somewhere", 2, np.array([-np.inf]), np.array([np.inf]))
    with pytest.raises(InputError, match="unbounded"):
        build_policy(unbounded, 1.0, SMALL, 0)
