"""Stable-Baselines3 zips: what is read acts as the model does; what the zip leaves open is refused; nothing in it is executed."""

import base64
import contextlib
import io
import json
import zipfile

import gymnasium
import numpy as np
import pytest
import torch
from stable_baselines3 import A2C, PPO, SAC, TD3

from lipctrl.certificates.lipschitz import certify_lipschitz
from lipctrl.cli import main
from lipctrl.core.errors import InputError
from lipctrl.core.numpy_evaluation import compile_numpy
from lipctrl.readers import read_network, read_sb3

ON_POLICY = {"n_steps": 8, "device": "cpu", "seed": 0}
OFF_POLICY = {"learning_starts": 2, "batch_size": 4, "buffer_size": 64, "device": "cpu", "seed": 0}
SMALL = {"net_arch": [8, 8]}


class Slanted(gymnasium.Env):
    """Two actions whose box is neither symmetric nor short to print."""

    observation_space = gymnasium.spaces.Box(-1, 1, (3,), np.float32)
    action_space = gymnasium.spaces.Box(np.array([-1.5, -2.1234567], np.float32), np.array([1.25, 0.0123456789], np.float32))

    def reset(self, *, seed=None, options=None):
        return np.zeros(3, np.float32), {}

    def step(self, action):
        return np.zeros(3, np.float32), 0.0, False, False, {}


MODELS = {
    "ppo": lambda: PPO("MlpPolicy", "Pendulum-v1", batch_size=8, n_epochs=1, policy_kwargs={**SMALL}, **ON_POLICY),
    "a2c": lambda: A2C(
        "MlpPolicy", "Pendulum-v1", policy_kwargs={"net_arch": {"pi": [4], "vf": [8]}, "activation_fn": torch.nn.SiLU}, **ON_POLICY
    ),
    "sac": lambda: SAC("MlpPolicy", "Pendulum-v1", policy_kwargs={**SMALL}, **OFF_POLICY),
    "td3": lambda: TD3("MlpPolicy", "Pendulum-v1", policy_kwargs={**SMALL, "activation_fn": torch.nn.LeakyReLU}, **OFF_POLICY),
    "ppo squashed": lambda: PPO(
        "MlpPolicy", "Pendulum-v1", batch_size=8, use_sde=True, policy_kwargs={**SMALL, "squash_output": True}, **ON_POLICY
    ),
    "sac gsde": lambda: SAC("MlpPolicy", "Pendulum-v1", use_sde=True, policy_kwargs={**SMALL, "clip_mean": 0.5}, **OFF_POLICY),
    "td3 slanted": lambda: TD3("MlpPolicy", Slanted(), policy_kwargs={**SMALL}, **OFF_POLICY),
    "ppo slanted": lambda: PPO("MlpPolicy", Slanted(), batch_size=8, **ON_POLICY),
}
BOX = {"action_low": [-1.5, -2.1234567], "action_high": [1.25, 0.0123456789]}
FLAGS = {"td3 slanted": BOX, "ppo slanted": BOX}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Path and model by name, made on first use; the first four were trained for a few steps."""
    folder, made = tmp_path_factory.mktemp("models"), {}

    def get(name):
        if name not in made:
            model = MODELS[name]()
            if name in ("ppo", "a2c", "sac", "td3"):
                model.learn(16)
            with torch.no_grad():
                for parameter in model.policy.parameters():
                    parameter.add_(0.5 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
            path = folder / f"{name.replace(' ', '_')}.zip"
            model.save(path)
            made[name] = (path, model)
        return made[name]

    return get


def rewritten(path, target, change_data=None, change_policy=None, **members):
    """A copy of a zip with its JSON table, the bytes of its policy or other members changed."""
    with zipfile.ZipFile(path) as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    if change_data is not None:
        table = json.loads(contents["data"])
        change_data(table)
        contents["data"] = json.dumps(table).encode()
    if change_policy is not None:
        contents["policy.pth"] = change_policy(contents["policy.pth"])
    with zipfile.ZipFile(target, "w") as archive:
        for name, content in {**contents, **members}.items():
            archive.writestr(name, content)
    return target


@pytest.mark.parametrize("name", MODELS)
def test_policies_act_as_the_model_does(saved, name):
    path, model = saved(name)
    network = read_network(path, observation_normaliser="none", **FLAGS.get(name, {}))
    observations = 4 * np.random.default_rng(0).normal(size=(300, 3)).astype(np.float32)
    expected, _ = model.predict(observations, deterministic=True)
    for dtype in (np.float32, np.float64):
        action = compile_numpy(network.graph, dtype)(observation=observations)["action"]
        np.testing.assert_allclose(action, expected, atol=1e-5)
    assert np.ptp(expected) > 0.1
    assert network.units == "physical"


@pytest.mark.parametrize("name", ["ppo", "sac", "td3", "sac gsde"])
def test_a_bound_is_proved_and_no_pair_of_points_breaks_it(saved, name):
    path, model = saved(name)
    found = certify_lipschitz(read_sb3(path, observation_normaliser="none").graph)
    assert found.lower.value <= found.upper.value
    first = np.random.default_rng(1).normal(size=(200, 3)).astype(np.float32)
    second = first + 0.3 * np.random.default_rng(2).normal(size=(200, 3)).astype(np.float32)
    actions = [model.predict(points, deterministic=True)[0] for points in (first, second)]
    slopes = np.linalg.norm(actions[1] - actions[0], axis=1) / np.linalg.norm(second - first, axis=1)
    assert 0 < slopes.max() <= found.upper.value * (1 + 1e-4)  # the model rounds


def test_activations_and_boxes_are_nodes_of_their_own(saved):
    assert "tanh affine tanh affine clip" in operations(read_sb3(saved("ppo")[0]))
    assert operations(read_sb3(saved("sac")[0])) == "input affine relu affine relu affine tanh mul"
    assert operations(read_sb3(saved("a2c")[0])) == "input affine silu affine clip"
    assert operations(read_sb3(saved("td3")[0])) == "input affine leaky_relu affine leaky_relu affine tanh mul"
    assert operations(read_sb3(saved("sac gsde")[0])).endswith("affine clip tanh mul")


def operations(network):
    return " ".join(node.op for node in network.graph.nodes if node.op != "constant")


def test_a_long_print_needs_flags_and_flags_must_agree(saved):
    path, _ = saved("td3 slanted")
    with pytest.raises(InputError, match="elided or rounded; give action_high"):
        read_sb3(path)
    with pytest.raises(InputError, match="action_low is .* but the zip prints"):
        read_sb3(path, **{**BOX, "action_low": [-1.5, -2.0]})
    with pytest.raises(InputError, match="action_high has 3 numbers"):
        read_sb3(path, action_low=BOX["action_low"], action_high=[1, 2, 3])
    with pytest.raises(InputError, match="action_high is"):
        read_sb3(path, **{**BOX, "action_high": [1.25, 0.0124]})
    clipped = read_sb3(path, **BOX).graph.nodes
    assert any(node.op == "mul" for node in clipped)


def test_flags_that_contradict_the_zip_are_refused(saved):
    path, _ = saved("ppo")
    assert read_sb3(path, squash=False, activation="tanh", action_low=-2, action_high=[2]).graph.digest() == read_sb3(path).graph.digest()
    with pytest.raises(InputError, match="squash is True"):
        read_sb3(path, squash=True)
    with pytest.raises(InputError, match="activation is 'relu', but the zip says 'tanh'"):
        read_sb3(path, activation="relu")
    with pytest.raises(InputError, match="expected one of"):
        read_sb3(path, activation="swish")
    with pytest.raises(InputError, match="action_low is"):
        read_sb3(path, action_low=-1.5)


STATISTICS = {"mean": np.array([0.1, -0.2, 3.0]), "var": np.array([0.5, 1e-3, 9.0]), "epsilon": 1e-8, "clip_obs": 2.5}


class TestNormaliser:
    def test_statistics_make_physical_units(self, saved, tmp_path):
        path, model = saved("ppo")
        np.savez(tmp_path / "normaliser.npz", **STATISTICS)
        network = read_sb3(path, observation_normaliser=tmp_path / "normaliser.npz")
        observations = 4 * np.random.default_rng(0).normal(size=(300, 3))
        s = STATISTICS
        seen = np.clip((observations - s["mean"]) / np.sqrt(s["var"] + s["epsilon"]), -s["clip_obs"], s["clip_obs"])
        expected, _ = model.predict(seen.astype(np.float32), deterministic=True)
        np.testing.assert_allclose(compile_numpy(network.graph)(observation=observations)["action"], expected, atol=1e-5)
        assert network.units == "physical"
        assert operations(network).startswith("input sub div clip affine")
        raw = certify_lipschitz(read_sb3(path).graph, witness=False).upper.value
        assert certify_lipschitz(network.graph, witness=False).upper.value > 2 * raw  # 1 / 0.03 along one coordinate

    def test_without_statistics_units_are_normalized(self, saved):
        network = read_sb3(saved("sac")[0])
        assert network.units == "normalized"
        assert any("VecNormalize" in note for note in network.notes)
        assert network.graph.digest() == read_sb3(saved("sac")[0], observation_normaliser="none").graph.digest()

    def test_a_normaliser_that_the_zip_shows_is_asked_for(self, saved, tmp_path):
        def show(table):
            table["_last_original_obs"] = {":type:": "<class 'numpy.ndarray'>"}

        path = rewritten(saved("ppo")[0], tmp_path / "p.zip", show)
        with pytest.raises(InputError, match="give observation_normaliser"):
            read_sb3(path)
        assert read_sb3(path, observation_normaliser="unknown").units == "normalized"

    @pytest.mark.parametrize(
        "change",
        [
            {"mean": np.zeros(2)},
            {"var": np.array([1.0, -1.0, 1.0])},
            {"epsilon": np.nan},
            {"clip_obs": 0.0},
            {"mean": np.array([{}, 1, 2], dtype=object)},
            {"var": np.zeros(3), "epsilon": 0.0},
        ],
        ids=str,
    )
    def test_statistics_that_do_not_fit_are_refused(self, saved, tmp_path, change):
        np.savez(tmp_path / "normaliser.npz", **{**STATISTICS, **change})
        with pytest.raises(InputError, match="observation_normaliser"):
            read_sb3(saved("ppo")[0], observation_normaliser=str(tmp_path / "normaliser.npz"))

    def test_files_that_are_no_statistics_are_refused(self, saved, tmp_path):
        with pytest.raises(InputError, match="observation_normaliser"):
            read_sb3(saved("ppo")[0], observation_normaliser="nowhere.npz")
        with pytest.raises(InputError, match=r"mean\.npy"):
            read_sb3(saved("ppo")[0], observation_normaliser=saved("ppo")[0])


CHANGES = {
    "may compute anything": lambda t: t["policy_class"].update(__module__="my_policies"),
    "policy class lies in the module 'None'": lambda t: t.pop("policy_class"),
    "no continuous function": lambda t: t["policy_class"].update(__module__="stable_baselines3.dqn.policies"),
    "which may change what it computes": lambda t: t["policy_kwargs"].update(frobnicate=1),
    "feature extractor": lambda t: t["policy_kwargs"].update(
        features_extractor_class="<class 'stable_baselines3.common.torch_layers.NatureCNN'>"
    ),
    "net_arch says": lambda t: t["policy_kwargs"].update(net_arch=[8, 9]),
    "expected a list of widths": lambda t: t["policy_kwargs"].update(net_arch="[8, 8]"),
    "net_arch says .64, 64.": lambda t: t["policy_kwargs"].pop("net_arch"),
    "which is not read": lambda t: t["policy_kwargs"].update(activation_fn="<class 'torch.nn.modules.activation.Mish'>"),
    "says not what it computes": lambda t: t["policy_kwargs"].update(activation_fn="functools.partial(<class 'torch.nn.ELU'>, 2)"),
    "policy_kwargs are": lambda t: t.update(policy_kwargs=None),
    "squash": lambda t: t["policy_kwargs"].update(squash_output="yes"),
    "Discrete, expected a Box": lambda t: t["action_space"].update({":type:": "<class 'gymnasium.spaces.discrete.Discrete'>"}),
    "the weights need a float Box of shape .3.": lambda t: t["observation_space"].update(_shape=[4]),
    "type uint8": lambda t: t["observation_space"].update(dtype="uint8"),
    "action_low as '.-2. ... -2..', elided": lambda t: t["action_space"].update(low="[-2. ... -2.]"),
    "elided or rounded; give action_high": lambda t: t["action_space"].update(high="[2.12345678]"),
    "not finite": lambda t: t["action_space"].update(high="[inf]"),
    "action box is empty": lambda t: t["action_space"].update(high="[-3.]"),
    "unknown type": lambda t: t.pop("observation_space"),
}


@pytest.mark.parametrize("message", CHANGES)
def test_what_the_zip_does_not_say_plainly_is_refused(saved, tmp_path, message):
    with pytest.raises(InputError, match=message):
        read_sb3(rewritten(saved("ppo")[0], tmp_path / "p.zip", CHANGES[message]))


def test_an_activation_of_unknown_name_is_taken_from_the_flag(saved, tmp_path):
    path = rewritten(saved("ppo")[0], tmp_path / "p.zip", lambda t: t["policy_kwargs"].update(activation_fn="<class 'mine.Tanh'>"))
    with pytest.raises(InputError, match="give activation"):
        read_sb3(path)
    assert read_sb3(path, activation="tanh").graph.digest() == read_sb3(saved("ppo")[0]).graph.digest()


def restated(change):
    """A function on the bytes of policy.pth that changes its table of tensors."""

    def rewrite(data):
        state = torch.load(io.BytesIO(data), weights_only=True)  # noqa: TID251 - a file that this test made
        change(state)
        buffer = io.BytesIO()
        torch.save(state, buffer)  # noqa: TID251
        return buffer.getvalue()

    return rewrite


def renamed(old, new):
    def change(state):
        for name in [name for name in state if name.startswith(old)]:
            state[name.replace(old, new)] = state.pop(name)

    return change


STATES = {
    ("ppo", "raw_weight"): renamed("action_net.weight", "action_net.raw_weight"),
    ("ppo", "features_extractor"): lambda state: state.update({"features_extractor.cnn.0.weight": torch.zeros(2, 2)}),
    ("ppo", "numbered"): renamed("mlp_extractor.policy_net.2", "mlp_extractor.policy_net.3"),
    ("ppo", "lack"): lambda state: state.pop("action_net.bias"),
    ("ppo", "different types"): lambda state: state.update({"action_net.bias": torch.zeros(1, dtype=torch.float64)}),
    ("ppo", "no dense float32"): lambda state: state.update({"log_std": torch.zeros(1, dtype=torch.int64)}),
    ("ppo", "not finite"): lambda state: state["action_net.bias"].fill_(torch.inf),
    ("ppo", "no matrix"): lambda state: state.update({"action_net.weight": torch.zeros(8)}),
    ("ppo", "bearable"): lambda state: state.update({"action_net.weight": torch.zeros(1).expand(1 << 20, 1 << 20)}),
    ("td3", "lack"): renamed("actor.", "actor_target."),
    ("sac", "no stock SAC"): lambda state: state.update({"actor.latent_pi.1.running_mean": torch.zeros(8)}),
    ("sac gsde", "clip_mean is 0.5"): renamed("actor.mu.0", "actor.mu"),
}


@pytest.mark.parametrize(("name", "message"), STATES)
def test_weights_of_other_networks_are_refused(saved, tmp_path, name, message):
    path = rewritten(saved(name)[0], tmp_path / "p.zip", change_policy=restated(STATES[name, message]))
    with pytest.raises(InputError, match=message):
        read_sb3(path)


class TestHostileFiles:
    def payload(self, marker):
        return f"cos\nsystem\n(S'touch {marker}'\ntR.".encode()  # a pickle that runs a command

    def test_pickles_in_the_json_are_not_opened(self, saved, tmp_path):
        marker = tmp_path / "executed"
        text = base64.b64encode(self.payload(marker)).decode()

        def poison(table):
            for entry in ("policy_class", "action_space", "observation_space", "clip_range"):
                table[entry][":serialized:"] = text
            table["policy_kwargs"][":serialized:"] = text

        path = rewritten(saved("ppo")[0], tmp_path / "p.zip", poison)
        with contextlib.suppress(Exception):
            PPO.load(path, device="cpu")
        assert marker.exists()  # the file is dangerous indeed
        marker.unlink()
        assert read_sb3(path).graph.digest() == read_sb3(saved("ppo")[0]).graph.digest()
        assert not marker.exists()

    def test_pickles_in_the_weights_are_refused(self, saved, tmp_path):
        marker = tmp_path / "executed"

        def poison(data):
            with zipfile.ZipFile(io.BytesIO(data)) as archive:
                contents = {name: archive.read(name) for name in archive.namelist()}
            buffer = io.BytesIO()
            with zipfile.ZipFile(buffer, "w") as archive:
                for name, content in contents.items():
                    archive.writestr(name, self.payload(marker) if name.endswith("data.pkl") else content)
            return buffer.getvalue()

        for change in (poison, lambda data: self.payload(marker)):
            path = rewritten(saved("ppo")[0], tmp_path / "p.zip", change_policy=change)
            with pytest.raises(InputError, match=r"policy\.pth does not hold plain tensors"):
                read_sb3(path)
        assert not marker.exists()

    @pytest.mark.parametrize("part", [0, 0.1, 0.5, 0.99])
    def test_truncated_files_are_refused(self, saved, tmp_path, part):
        data = saved("ppo")[0].read_bytes()
        (tmp_path / "p.zip").write_bytes(data[: int(part * len(data))])
        with pytest.raises(InputError, match=r"p\.zip"):
            read_sb3(tmp_path / "p.zip")

    def test_flipped_bytes_end_in_a_network_or_in_one_sentence(self, saved, tmp_path):
        data, generator = bytearray(saved("ppo")[0].read_bytes()), np.random.default_rng(3)
        for position in generator.integers(0, len(data), 150):
            broken = bytearray(data)
            broken[position] ^= int(generator.integers(1, 256))
            (tmp_path / "p.zip").write_bytes(broken)
            with contextlib.suppress(InputError):
                assert read_sb3(tmp_path / "p.zip").graph.output_sizes == {"action": 1}

    def test_bombs_are_refused(self, saved, tmp_path):
        bomb = tmp_path / "bomb.zip"
        with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("data", b" " * (65 << 20))
            archive.writestr("policy.pth", b"")
        with pytest.raises(InputError, match="more than"):
            read_sb3(bomb)
        with zipfile.ZipFile(bomb, "w") as archive:
            for number in range(20_000):
                archive.writestr(f"{number:050}", b"")
        with pytest.raises(InputError, match="table of contents"):
            read_sb3(bomb)
        rewritten(saved("ppo")[0], bomb, data=b"[" * 200_000)
        with pytest.raises(InputError, match="not JSON"):
            read_sb3(bomb)

        def deflated(data):
            buffer = io.BytesIO()
            with zipfile.ZipFile(io.BytesIO(data)) as source, zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as target:
                for name in source.namelist():
                    target.writestr(name, source.read(name))
            return buffer.getvalue()

        with pytest.raises(InputError, match="compressed"):
            read_sb3(rewritten(saved("ppo")[0], bomb, change_policy=deflated))

    def test_other_zips_are_refused(self, tmp_path):
        with zipfile.ZipFile(tmp_path / "p.zip", "w") as archive:
            archive.writestr("certificate.json", "{}")
        with pytest.raises(InputError, match="'data'"):
            read_network(tmp_path / "p.zip")


def test_the_command_line_takes_the_flags(saved, tmp_path, capsys):
    words = "--squash yes --activation relu --observation-normaliser none --action-low -1.5 -2.1234567 --action-high 1.25 0.0123456789"
    path = saved("td3 slanted")[0]
    assert main(["lipschitz", str(path), *words.split(), "--json", "--out", str(tmp_path / "bound")]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["level"] == "proved" and found["units"] == "physical"
    assert main(["lipschitz", str(path), *words.replace("yes", "no").split(), "--out", str(tmp_path / "other")]) == 2
    assert "squash is False" in capsys.readouterr().err
