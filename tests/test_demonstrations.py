"""Demonstrations on disk: Minari's format both ways, checks on load, and files that try to do more than hold data."""

import contextlib
import dataclasses
import json
import shutil
import subprocess
import sys
from fractions import Fraction

import gymnasium
import h5py
import minari
import numpy as np
import pytest
from gymnasium.envs.registration import EnvSpec
from minari.data_collector import EpisodeBuffer
from minari.dataset.minari_storage import MinariStorage

from lipctrl.agents import Demonstrations, Episode, Interface, collect, label, make_expert, rollout
from lipctrl.agents.minari_format import DATA, METADATA, dataset_id
from lipctrl.core.errors import InputError
from lipctrl.envs import PlantEnv, make_plant


@pytest.fixture(scope="module")
def env():
    return gymnasium.make("lipctrl/DoubleIntegrator-v0")


@pytest.fixture(scope="module")
def demos(env):
    return collect(env, make_expert("lqr", env), 3, seed=7, expert="lqr")


def same_episodes(first, second):
    for one, another in zip(first, second, strict=True):
        for field in dataclasses.fields(Episode):
            a, b = getattr(one, field.name), getattr(another, field.name)
            assert np.asarray(a).dtype == np.asarray(b).dtype
            assert np.array_equal(a, b)


# --- collecting -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["lipctrl/Pendulum-v0", "Pendulum-v1", "lipctrl/Cartpole-v0"])
def test_batched_episodes_equal_the_environments_own(name):
    env = gymnasium.make(name)
    expert = make_expert("energy" if name == "Pendulum-v1" else "lqr", env)
    collected = collect(env, expert, 2, seed=3)
    for index, episode in enumerate(collected.episodes):
        observation, _ = env.reset(seed=3 + index)
        assert episode.seed == 3 + index
        for step, action in enumerate(episode.actions):
            assert np.array_equal(observation, episode.observations[step])
            np.testing.assert_allclose(expert.predict(observation)[0], action, rtol=1e-12, atol=1e-12)
            observation, reward, terminated, truncated, _ = env.step(action)
            assert reward == pytest.approx(episode.rewards[step], rel=1e-12, abs=1e-12)
            assert (terminated, truncated) == (episode.terminations[step], episode.truncations[step])
        assert terminated or truncated
    assert collected.steps == sum(len(e.rewards) for e in collected.episodes)
    np.testing.assert_allclose(collected.returns, [e.rewards.sum() for e in collected.episodes])


def test_environments_without_equations_run_one_after_another():
    env = gymnasium.make("MountainCarContinuous-v0", max_episode_steps=30)

    class Push:
        def predict(self, observation, state=None, episode_start=None, deterministic=True):
            count = 0 if episode_start is not None and episode_start.all() else state[0] + 1
            return np.array([1.0 if count % 2 else -1.0]), (count,)

    collected = collect(env, Push(), 2, seed=1)
    assert [len(e.rewards) for e in collected.episodes] == [30, 30]
    assert collected.episodes[1].actions[:4, 0].tolist() == [-1, 1, -1, 1]  # memory starts afresh with each episode
    assert collected.episodes[0].truncations.tolist() == [False] * 29 + [True]
    assert collected.interface.plant_digest is None and collected.interface.observation[0].unit == "unstated"


def test_a_wrapper_that_changes_observations_is_not_bypassed():
    env = gymnasium.wrappers.TransformObservation(gymnasium.make("Pendulum-v1"), lambda o: o * 2, None)
    assert Interface.of(env).plant_digest is None
    plain = collect(gymnasium.make("Pendulum-v1"), make_expert("energy", gymnasium.make("Pendulum-v1")), 1)

    class Zero:
        def predict(self, observation, state=None, episode_start=None, deterministic=True):
            return np.zeros(1), None

    doubled = collect(env, Zero(), 1)
    np.testing.assert_allclose(doubled.episodes[0].observations[0], 2 * plain.episodes[0].observations[0])


def test_terminated_episodes_stop(env):
    class Away:
        def predict(self, observation, state=None, episode_start=None, deterministic=True):
            return np.ones((*np.shape(observation)[:-1], 1)), state

    episodes = rollout(env, Away(), range(3))
    for episode in episodes:
        assert episode.terminations[-1] and not episode.truncations.any() and not episode.terminations[:-1].any()
        assert len(episode.rewards) < 100
        assert np.abs(episode.observations[-1]).max() > 5 >= np.abs(episode.observations[:-1]).max()


def test_initial_states_and_time_limit_of_the_environment():
    env = gymnasium.make("lipctrl/Pendulum-v0", max_episode_steps=5)
    starts = np.array([[1.0, 0.0], [0.0, -2.0]])
    episodes = rollout(env, make_expert("lqr", env), range(2), initial_states=starts)
    assert np.array_equal([e.observations[0] for e in episodes], starts.astype(np.float32))
    assert [len(e.rewards) for e in episodes] == [5, 5] and episodes[0].seed is None
    with pytest.raises(InputError, match="shape"):
        rollout(env, make_expert("lqr", env), range(3), initial_states=starts)


def test_labels_follow_time_order_and_lengths():
    class Counter:
        """Answers how many steps of the episode it has seen."""

        def predict(self, observation, state=None, episode_start=None, deterministic=True):
            count = np.zeros(len(observation)) if state is None else state[0]
            count = np.where(episode_start, 1, count + 1)
            return count[:, None], (count,)

    flat = np.zeros(4), np.zeros(4, bool), np.zeros(4, bool)
    long = Episode(np.zeros((5, 2)), np.zeros((4, 1)), *flat)
    short = Episode(np.zeros((3, 2)), np.zeros((2, 1)), *(values[:2] for values in flat))
    assert [labels[:, 0].tolist() for labels in label(Counter(), [long, short])] == [[1, 2, 3, 4], [1, 2]]


def test_bad_requests_name_the_value(env):
    with pytest.raises(InputError, match="episodes is 0"):
        collect(env, make_expert("lqr", env), 0)

    class Broken:
        def predict(self, observation, state=None, episode_start=None, deterministic=True):
            return np.full((*np.shape(observation)[:-1], 1), np.nan), state

    with pytest.raises(InputError, match="action at step 0 is nan"):
        collect(env, Broken(), 1)
    with pytest.raises(InputError, match="expected a box of floating-point vectors"):
        Interface.of(gymnasium.make("CartPole-v1"))


def test_collecting_and_saving_import_neither_torch_nor_solvers(tmp_path):
    script = f"""
import gymnasium, sys
import lipctrl.envs
from lipctrl.agents import Demonstrations, collect, make_expert
env = gymnasium.make("lipctrl/Pendulum-v0", max_episode_steps=3)
collect(env, make_expert("lqr", env), 2).save({str(tmp_path / "demos-v0")!r})
Demonstrations.load({str(tmp_path / "demos-v0")!r}, env)
print(sorted({{"torch", "cvxpy", "mujoco", "minari", "matplotlib", "stable_baselines3"}} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# --- on disk ----------------------------------------------------------------------------------------------------------


def test_round_trip_is_bit_for_bit(tmp_path, env, demos):
    demos.save(tmp_path / "double-integrator-lqr-v0")
    again = Demonstrations.load(tmp_path / "double-integrator-lqr-v0", env)
    same_episodes(demos.episodes, again.episodes)
    assert (again.interface, again.expert, again.fallbacks) == (demos.interface, "lqr", 0)
    assert again.digest() == demos.digest()
    assert again.interface.dt == Fraction(1, 10) and again.interface.observation[0] == ("position", "m")
    assert Demonstrations.load(tmp_path / "double-integrator-lqr-v0" / "data").digest() == demos.digest()


def test_equal_demonstrations_are_equal_bytes(tmp_path, demos):
    for name in ("a", "b"):
        demos.save(tmp_path / name / "demos-v0")
    assert (tmp_path / "a/demos-v0/data" / METADATA).read_bytes() == (tmp_path / "b/demos-v0/data" / METADATA).read_bytes()
    assert (tmp_path / "a/demos-v0/data" / DATA).read_bytes() == (tmp_path / "b/demos-v0/data" / DATA).read_bytes()


def test_minari_loads_what_we_wrote(tmp_path, demos, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    demos.save(tmp_path / "lqr-v0")
    dataset = minari.load_dataset("lqr-v0")
    assert (dataset.total_episodes, dataset.total_steps) == (3, demos.steps)
    assert list(minari.list_local_datasets()) == ["lqr-v0"]
    for ours, theirs in zip(demos.episodes, dataset.iterate_episodes(), strict=True):
        for name in ("observations", "actions", "rewards", "terminations", "truncations"):
            assert np.array_equal(getattr(ours, name), getattr(theirs, name))
    assert [m["seed"] for m in dataset.storage.get_episode_metadata(range(3))] == [7, 8, 9]
    assert dataset.observation_space.shape == (2,)


def test_we_load_what_minari_wrote(tmp_path, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    env = gymnasium.make("Pendulum-v1")
    source = collect(env, make_expert("energy", env), 2, seed=5)
    buffers = [
        EpisodeBuffer(None, e.seed, None, e.observations, e.actions.astype(np.float32), e.rewards, e.terminations, e.truncations, {})
        for e in source.episodes
    ]
    with contextlib.suppress(AttributeError), pytest.warns(UserWarning):
        minari.create_dataset_from_buffers("pendulum/energy-v3", buffers, env=env)
    loaded = Demonstrations.load(tmp_path / "pendulum/energy-v3", env)
    assert loaded.interface.environment == "Pendulum-v1" and [e.seed for e in loaded.episodes] == [5, 6]
    for ours, theirs in zip(source.episodes, loaded.episodes, strict=True):
        assert np.array_equal(ours.observations, theirs.observations)
        np.testing.assert_allclose(ours.actions, theirs.actions, rtol=1e-6)


def test_folder_names_become_ids(tmp_path):
    assert dataset_id(tmp_path / "pendulum-lqr-v12") == "pendulum-lqr-v12"
    assert dataset_id(tmp_path / "my demos") == "my-demos-v0"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dt": Fraction(1, 20)}, "dt 1/10, expected 1/20"),
        ({"plant_digest": "0" * 64}, "plant digest [0-9a-f]{64}, expected 0{64}"),
        ({"action_high": (Fraction(2),)}, r"action high \(1\), expected \(2\)"),
        ({"observation": (("position", "mm"), ("velocity", "m/s"))}, "'position' in m, expected 'position' in mm"),
        ({"observation": (("velocity", "m/s"), ("position", "m"))}, "expected 'velocity' in m/s"),
        ({"action": (("acceleration", "m/s^2"),) * 2}, "1 action coordinates, expected 2"),
    ],
)
def test_another_environment_is_refused_with_both_values(tmp_path, demos, env, change, message, monkeypatch):
    demos.save(tmp_path / "demos-v0")
    from lipctrl.core.coordinates import Coordinate

    change = {k: tuple(Coordinate(*c) for c in v) if k in ("observation", "action") else v for k, v in change.items()}
    other = dataclasses.replace(Interface.of(env), **change)
    monkeypatch.setattr(Interface, "of", classmethod(lambda cls, env: other))
    with pytest.raises(InputError, match=message):
        Demonstrations.load(tmp_path / "demos-v0", env)


def test_the_plant_is_compared_through_its_digest(tmp_path, demos):
    demos.save(tmp_path / "demos-v0")
    changed = dataclasses.replace(make_plant("double-integrator"), dt=Fraction(1, 10), scheme="another")
    with pytest.raises(InputError, match="plant digest"):
        Demonstrations.load(tmp_path / "demos-v0", PlantEnv(changed))


def test_an_existing_folder_is_left_alone(tmp_path, demos):
    folder = tmp_path / "demos-v0"
    demos.save(folder)
    before = (folder / "data" / DATA).read_bytes()
    fewer = dataclasses.replace(demos, episodes=demos.episodes[:1])
    with pytest.raises(InputError, match="exists already"):
        fewer.save(folder)
    assert (folder / "data" / DATA).read_bytes() == before
    fewer.save(folder, overwrite=True)
    assert len(Demonstrations.load(folder).episodes) == 1
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError, match="exists already"):
        demos.save(tmp_path / "file")
    assert {path.name for path in tmp_path.iterdir()} == {"demos-v0", "file"}


def test_a_write_that_fails_leaves_nothing_behind(tmp_path, demos, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("lipctrl.agents.minari_format._write_episodes", full)
    with pytest.raises(InputError, match="No space left"):
        demos.save(tmp_path / "demos-v0")
    assert list(tmp_path.iterdir()) == []


# --- hostile and damaged files ----------------------------------------------------------------------------------------


@pytest.fixture
def stored(tmp_path, demos):
    return demos.save(tmp_path / "stored-v0")


def edit(folder, **changes):
    path = folder / "data" / METADATA
    metadata = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in metadata.items() if v is not None}))


def hostile_spec(marker):
    return EnvSpec(id="Evil-v0", entry_point="os:mkdir", kwargs={"path": str(marker)}).to_json()


def test_an_environment_specification_is_never_executed(tmp_path, stored):
    marker = tmp_path / "executed"
    edit(stored, env_spec=hostile_spec(marker), eval_env_spec=hostile_spec(marker))
    loaded = Demonstrations.load(stored)
    assert loaded.interface.environment == "lipctrl/DoubleIntegrator-v0" and not marker.exists()
    edit(stored, observation_space=None)
    with pytest.raises(InputError, match="no observation_space"):
        Demonstrations.load(stored)
    assert not marker.exists()
    with contextlib.suppress(Exception):
        MinariStorage.read(stored / "data")
    if not marker.exists():
        pytest.skip("this Minari no longer executes the specification, so the file above proves less than it could")


def test_the_stored_specification_is_only_quoted(stored):
    edit(stored, lipctrl=None, env_spec=json.dumps({"id": "Somewhere-v9", "entry_point": "os:mkdir"}))
    assert Demonstrations.load(stored).interface.environment == "Somewhere-v9"
    edit(stored, env_spec='{"id": 3}')
    assert Demonstrations.load(stored).interface.environment == "unknown"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"surprise": 1}, "entry 'surprise'"),
        ({"data_format": "arrow"}, "data_format 'arrow', expected 'hdf5'"),
        ({"total_episodes": 4}, "holds 3 episodes, its metadata say 4"),
        ({"total_episodes": -1}, "total_episodes -1"),
        ({"total_episodes": True}, "total_episodes True"),
        ({"total_steps": 7}, "its metadata say 7"),
        ({"observation_space": '{"type": "Discrete", "n": 3}'}, "expected a Box"),
        ({"observation_space": "[" * 100_000}, "expected a Box of vectors in JSON"),
        ({"action_space": '{"type": "Box", "dtype": "float32", "shape": [1], "low": [1], "high": [0]}'}, "low <= high"),
        ({"action_space": '{"type": "Box", "dtype": "object", "shape": [1], "low": [0], "high": [1]}'}, "expected a Box"),
        ({"lipctrl": {"format": 2, "interface": {}, "fallbacks": 0, "digest": ""}}, "not of format 1"),
        ({"lipctrl": {"format": 1, "interface": {"dt": 0}, "fallbacks": 0, "digest": ""}}, "exactly the entries"),
        ({"lipctrl": {"format": 1, "interface": {}, "fallbacks": -1, "digest": ""}}, "-1 fallbacks"),
    ],
)
def test_metadata_that_are_not_ours_to_trust(stored, changes, message):
    edit(stored, **changes)
    with pytest.raises(InputError, match=message):
        Demonstrations.load(stored)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("dt", 0.1, "expected a rational"),
        ("dt", "2/20", "lowest terms"),
        ("observation", [["position", "m"]], "1 observation coordinates, their space has 2"),
        ("observation", [["position"]], "name, unit"),
        ("action_low", "-1", "expected a list of rationals"),
        ("environment", "x" * 2000, "short text"),
    ],
)
def test_an_interface_that_is_damaged(stored, key, value, message):
    entry = json.loads((stored / "data" / METADATA).read_text())["lipctrl"]
    entry["interface"][key] = value
    edit(stored, lipctrl=entry)
    with pytest.raises(InputError, match=message):
        Demonstrations.load(stored)


def rewrite(folder, name, values=None, **creation):
    with h5py.File(folder / "data" / DATA, "a") as file:
        del file[f"episode_1/{name}"]
        if values is not None or creation:
            file["episode_1"].create_dataset(name, data=values, **creation)


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("observations", lambda v: np.where(np.arange(len(v))[:, None] == 4, np.nan, v), "observations nan at step 4"),
        ("actions", lambda v: np.full_like(v, np.inf), "actions inf at step 0"),
        ("rewards", lambda v: v[:-3], "observations of shape .*, expected"),
        ("observations", lambda v: v[:-1], r"observations of shape \(100, 2\), expected 101 x 2"),
        ("actions", lambda v: np.hstack([v, v]), r"actions of shape \(100, 2\), expected 100 x 1"),
        ("actions", lambda v: v[:, 0], "actions of shape"),
        ("terminations", lambda v: np.array([b"x"] * len(v)), "of type"),
        ("rewards", lambda v: v[:0], "no steps"),
        ("truncations", lambda v: None, "no truncations of its own"),
    ],
)
def test_data_that_do_not_fit(stored, name, damage, message):
    with h5py.File(stored / "data" / DATA) as file:
        values = file[f"episode_1/{name}"][()]
    rewrite(stored, name, damage(values))
    with pytest.raises(InputError, match=message):
        Demonstrations.load(stored)


def test_links_out_of_the_file_are_refused(tmp_path, stored):
    secret = tmp_path / "secret.h5"
    shutil.copy(stored / "data" / DATA, secret)
    with h5py.File(stored / "data" / DATA, "a") as file:
        del file["episode_1/actions"]
        file["episode_1/actions"] = h5py.ExternalLink(str(secret), "/episode_1/actions")
    with pytest.raises(InputError, match="no actions of its own"):
        Demonstrations.load(stored)
    (tmp_path / "raw").write_bytes(bytes(800))
    rewrite(stored, "actions", shape=(100, 1), dtype="f8", external=[(str(tmp_path / "raw"), 0, 800)])
    with pytest.raises(InputError, match="in another file"):
        Demonstrations.load(stored)
    layout = h5py.VirtualLayout((100, 1), "f8")
    layout[:] = h5py.VirtualSource(str(secret), "episode_1/actions", (100, 1))
    with h5py.File(stored / "data" / DATA, "a") as file:
        del file["episode_1/actions"]
        file["episode_1"].create_virtual_dataset("actions", layout)
    with pytest.raises(InputError, match="in another file"):
        Demonstrations.load(stored)


def test_a_claim_of_endless_data_costs_no_memory(stored):
    rewrite(stored, "rewards", shape=(10**12,), dtype="f8", chunks=(1000,))
    with pytest.raises(InputError, match="at most"):
        Demonstrations.load(stored)


def test_missing_and_corrupt_files(tmp_path, stored):
    with pytest.raises(InputError, match="holds no data set"):
        Demonstrations.load(tmp_path / "nowhere")
    whole = (stored / "data" / DATA).read_bytes()
    for damaged in (b"", b"not HDF5", whole[: len(whole) // 2], whole[:2000] + bytes(3000) + whole[5000:]):
        (stored / "data" / DATA).write_bytes(damaged)
        with pytest.raises(InputError):
            Demonstrations.load(stored)
    (stored / "data" / DATA).write_bytes(whole)
    with h5py.File(stored / "data" / DATA, "a") as file:
        file["episode_2/actions"][3] += 1e-9
    with pytest.raises(InputError, match="digest"):
        Demonstrations.load(stored)
    (stored / "data" / DATA).unlink()
    with pytest.raises(InputError, match="missing"):
        Demonstrations.load(stored)
    (stored / "data" / METADATA).write_text("{" * 100_000)
    with pytest.raises(InputError, match="cannot be read"):
        Demonstrations.load(stored)


def test_demonstrations_in_memory_are_checked_too(demos):
    broken = dataclasses.replace(demos.episodes[0], actions=demos.episodes[0].actions * np.nan)
    with pytest.raises(InputError, match="episode 1 has actions that are not finite"):
        dataclasses.replace(demos, episodes=(demos.episodes[1], broken))
    short = dataclasses.replace(demos.episodes[0], rewards=demos.episodes[0].rewards[:-1])
    with pytest.raises(InputError, match="episode 0 has observations of shape"):
        dataclasses.replace(demos, episodes=(short,))
    with pytest.raises(InputError, match="at least one"):
        dataclasses.replace(demos, episodes=())
