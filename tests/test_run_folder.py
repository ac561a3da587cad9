"""Run folders: atomic files, a journal that survives a kill, state that comes back bit for bit."""

import json
import math
import tomllib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lipctrl.core.errors import InputError
from lipctrl.core.run_folder import CONFIG, JOURNAL, STATE, RunFolder, to_toml, write_atomically

CONFIG_A = {"seed": 3, "rate": 1e-5, "name": "pendulum", "hidden": [32, 32], "fast": True, "plant": {"dt": "1/20"}}


def test_state_comes_back_bit_for_bit(tmp_path):
    run = RunFolder(tmp_path / "run", CONFIG_A)
    assert run.load_state() is None
    tensors = {"weight": np.array([[0.1, -0.0], [5e-324, 1e300]]), "step": np.array([7], dtype=np.uint8)}
    generator = np.random.default_rng(5)
    run.save_state(tensors, {"generator": generator.bit_generator.state, "step": 12})
    again = RunFolder(tmp_path / "run", CONFIG_A)
    loaded, values = again.load_state()
    assert {k: v.tobytes() for k, v in loaded.items()} == {k: v.tobytes() for k, v in tensors.items()}
    restored = np.random.default_rng(0)
    restored.bit_generator.state = values["generator"]
    assert restored.integers(1 << 60) == generator.integers(1 << 60)


def test_equal_states_are_equal_bytes(tmp_path):
    for name in ("a", "b"):
        run = RunFolder(tmp_path / name, CONFIG_A)
        run.save_state({"y": np.arange(3.0), "x": np.ones(2, dtype=np.float32)}, {"b": 1, "a": 2})
    assert (tmp_path / "a" / STATE).read_bytes() == (tmp_path / "b" / STATE).read_bytes()


def test_journal_drops_a_torn_line_and_rewinds(tmp_path):
    run = RunFolder(tmp_path, CONFIG_A)
    for step in range(4):
        run.append({"step": step, "loss": 1 / (step + 1)})
    with open(tmp_path / JOURNAL, "a") as file:
        file.write('{"step": 4, "lo')
    assert [record["step"] for record in run.records()] == [0, 1, 2, 3]
    run.keep_records(2)
    run.append({"step": 9})
    assert [record["step"] for record in run.records()] == [0, 1, 9]


def test_journal_refuses_nan(tmp_path):
    run = RunFolder(tmp_path, CONFIG_A)
    with pytest.raises(ValueError, match="JSON"):
        run.append({"loss": math.nan})
    assert run.records() == []


def test_another_configuration_is_refused(tmp_path):
    RunFolder(tmp_path, CONFIG_A)
    with pytest.raises(InputError, match="seed is 3 there and 4 here"):
        RunFolder(tmp_path, CONFIG_A | {"seed": 4})
    assert tomllib.loads((tmp_path / CONFIG).read_text())["seed"] == 3


def test_damaged_files_are_a_users_error(tmp_path):
    run = RunFolder(tmp_path, CONFIG_A)
    run.save_state({"x": np.ones(100)}, {})
    state = (tmp_path / STATE).read_bytes()
    for damaged in (b"", state[:40], state[:-8], b"\xff" * 64):
        (tmp_path / STATE).write_bytes(damaged)
        with pytest.raises(InputError, match="damaged"):
            run.load_state()
    (tmp_path / JOURNAL).write_text("not json\n")
    with pytest.raises(InputError, match="damaged"):
        run.records()
    (tmp_path / CONFIG).write_text("seed = = 3")
    with pytest.raises(InputError, match="cannot be read"):
        RunFolder(tmp_path, CONFIG_A)


def test_state_without_configuration_is_refused(tmp_path):
    (tmp_path / STATE).write_bytes(b"")
    with pytest.raises(InputError, match="without config.toml"):
        RunFolder(tmp_path, CONFIG_A)


def test_failed_write_leaves_the_old_file(tmp_path):
    write_atomically(tmp_path / "result.json", "old")
    with pytest.raises(TypeError):
        write_atomically(tmp_path / "result.json", 3.0)
    with pytest.raises(InputError, match="cannot write"):
        write_atomically(tmp_path / "missing" / "result.json", "new")
    assert (tmp_path / "result.json").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]


def test_leftovers_of_a_killed_write_are_cleared(tmp_path):
    run = RunFolder(tmp_path, CONFIG_A)
    run.save_state({"x": np.ones(2)}, {})
    (tmp_path / f".{STATE}.0123456789ab.partial").write_bytes(b"half")
    (tmp_path / "notes.txt").write_text("mine")
    assert RunFolder(tmp_path, CONFIG_A).load_state() is not None
    assert {path.name for path in tmp_path.iterdir()} == {CONFIG, STATE, "notes.txt"}


scalars = st.one_of(
    st.booleans(), st.integers(-(2**63), 2**63 - 1), st.floats(allow_nan=False), st.text(st.characters(exclude_categories=["Cs"]))
)
tables = st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), st.one_of(scalars, st.lists(scalars, max_size=3)), max_size=4)


@settings(deadline=None, max_examples=100)
@given(tables, tables)
def test_toml_round_trip(table, inner):
    config = {**table, "inner": inner}
    assert json.dumps(tomllib.loads(to_toml(config)), sort_keys=True) == json.dumps(config, sort_keys=True)
