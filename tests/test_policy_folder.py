"""Policies predict in float32 and travel as folders that are read strictly and replaced as a whole."""

from __future__ import annotations

import json
import os
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from strategies import graphs

from lipctrl.certificates.checker.graph import Graph
from lipctrl.core.controller import Controller
from lipctrl.core.errors import InputError
from lipctrl.core.policy import Policy
from lipctrl.core.recording import recentre, record

WEIGHT = np.array([[1.0, -2.0], [0.5, 3.0]], dtype=np.float32)


def _policy(scale: Fraction = Fraction(3, 10), **changes: object) -> Policy:
    inner = record(lambda z: np.tanh(WEIGHT @ z), {"z": 2})
    graph = record(lambda y: recentre(inner, y, [0, 0], np.zeros(2, np.float32)) * scale, {"observation": 2}, output="action")
    return Policy(graph, {"angle": "rad", "velocity": "rad/s"}, {"torque": "N m", "force": "N"}, Fraction(1, 20), {"seed": 3})


def test_predict_is_float32_single_and_batched() -> None:
    policy = _policy()
    batch = np.random.default_rng(0).normal(size=(5, 2))
    actions, memory = policy.predict(batch)
    assert memory is None
    assert actions.dtype == np.float32
    assert actions.shape == (5, 2)
    single = policy.predict(batch[0])[0]
    assert single.shape == (2,)
    np.testing.assert_allclose(single, 0.3 * np.tanh(WEIGHT @ batch[0]), rtol=1e-5)
    np.testing.assert_array_equal(policy.predict(batch.astype(np.float32))[0], actions)  # rounded before anything else
    assert isinstance(policy, Controller)


def test_a_folder_holds_everything(tmp_path: Path) -> None:
    policy = _policy()
    loaded = Policy.load(policy.save(tmp_path / "policy"))
    assert loaded.digest == policy.digest
    assert (loaded.observation, loaded.action, loaded.dt, loaded.provenance) == (
        policy.observation, policy.action, policy.dt, policy.provenance,
    )  # fmt: skip
    assert sorted(os.listdir(tmp_path)) == ["policy"]
    assert sorted(os.listdir(tmp_path / "policy")) == ["policy.json", "weights.safetensors"]
    y = np.array([0.1, 0.2])
    np.testing.assert_array_equal(loaded.predict(y)[0], policy.predict(y)[0])


@settings(max_examples=30)
@given(graph=graphs(inputs={"observation": 3}))
def test_any_graph_survives_its_folder(tmp_path_factory: pytest.TempPathFactory, graph: Graph) -> None:
    graph = Graph(graph.nodes, {"action": graph.outputs["output"]}, graph.tensors)
    names = [[(f"{kind} {i}", "1") for i in range(size)] for kind, size in (("y", 3), ("u", graph.output_sizes["action"]))]
    policy = Policy(graph, *names)
    assert Policy.load(policy.save(tmp_path_factory.mktemp("any") / "p")).digest == policy.digest


def test_saving_replaces_a_policy_but_nothing_else(tmp_path: Path) -> None:
    folder = _policy().save(tmp_path / "policy")
    other = _policy(Fraction(1, 7))
    other.save(folder)
    assert Policy.load(folder).digest == other.digest
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="no policy folder"):
        _policy().save(folder)
    with pytest.raises(InputError, match="no policy folder"):
        _policy().save(folder / "notes.txt")
    assert Policy.load(folder).digest == other.digest


def test_a_save_that_fails_leaves_the_earlier_policy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = _policy().save(tmp_path / "policy")
    replace = os.replace

    def fail(source: str | Path, target: str | Path) -> None:
        if Path(source).name == "new":
            raise OSError("disk full")
        replace(source, target)

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        _policy(Fraction(1, 7)).save(folder)
    monkeypatch.undo()
    bad = _policy()
    bad.provenance["time"] = float("nan")
    with pytest.raises(InputError, match="cannot be saved"):
        bad.save(folder)
    assert Policy.load(folder).digest == _policy().digest
    assert os.listdir(tmp_path) == ["policy"]


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("policy.json", lambda data: data[:-40]),
        ("policy.json", lambda data: data.replace(b"lipctrl-policy", b"other-policy")),
        ("policy.json", lambda data: data.replace(b'"version": 1', b'"version": 2')),
        ("policy.json", lambda data: data.replace(b"3/10", b"6/20")),
        ("policy.json", lambda data: data.replace(b'"tanh"', b'"eval"')),
        ("policy.json", lambda data: data.replace(b'"seed": 3', b'"seed": NaN')),
        ("policy.json", lambda data: data.replace(b'"dt": "1/20"', b'"dt": "1/20", "dt": "1/20"')),
        ("weights.safetensors", lambda data: data[:-1] + bytes([data[-1] ^ 1])),
        ("weights.safetensors", lambda data: data[:20]),
        ("weights.safetensors", lambda data: b""),
    ],
)
def test_damaged_folders_are_refused_in_one_sentence(tmp_path: Path, name: str, change: object) -> None:
    folder = _policy().save(tmp_path / "policy")
    before = (folder / name).read_bytes()
    after = change(before)  # type: ignore[operator]
    assert after != before
    (folder / name).write_bytes(after)
    with pytest.raises(InputError, match="is not a policy folder"):
        Policy.load(folder)


def test_missing_folders_and_wrong_provenance_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not a folder"):
        Policy.load(tmp_path / "nothing")
    with pytest.raises(InputError, match=r"policy\.json"):
        Policy.load(tmp_path)
    folder = _policy().save(tmp_path / "policy")
    data = json.loads((folder / "policy.json").read_text())
    (folder / "policy.json").write_text(json.dumps({**data, "provenance": [1]}))
    with pytest.raises(InputError, match="provenance"):
        Policy.load(folder)


def test_graph_and_coordinates_must_fit(tmp_path: Path) -> None:
    graph = _policy().graph
    with pytest.raises(InputError, match="expected"):
        Policy(graph, {"angle": "rad"}, {"torque": "N m", "force": "N"})
    with pytest.raises(InputError, match="all different"):
        Policy(graph, [("a", "1"), ("a", "1")], [("b", "1"), ("c", "1")])
    with pytest.raises(InputError, match="pair"):
        Policy(graph, ["a", "b"], [("b", "1"), ("c", "1")])  # type: ignore[list-item]
    with pytest.raises(InputError, match="cannot be saved"):
        Policy(graph, [("a\n", "1"), ("b", "1")], [("b", "1"), ("c", "1")]).save(tmp_path / "p")
