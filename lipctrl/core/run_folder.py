"""Run folders: `config.toml`, `journal.jsonl`, `state.safetensors` and results, so that the same command resumes a killed run.

Files are replaced atomically (temporary name, then rename), and hold no clock times: runs that complete give equal bytes for
equal seeds, however often they were killed on the way.
"""

from __future__ import annotations

import json
import os
import secrets
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from lipctrl.core.errors import InputError

_PARTIAL = ".partial"  #: end of the temporary names of files that are being written
CONFIG, JOURNAL, STATE = "config.toml", "journal.jsonl", "state.safetensors"


def write_atomically(path: Path | str, data: bytes | str) -> None:
    """Write a file so that a reader sees the old content or the new one, never a part.

    Raises InputError where the folder does not exist or cannot be written to.
    """
    path = Path(path)
    content = data.encode() if isinstance(data, str) else data
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}{_PARTIAL}")
    try:
        with open(temporary, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise InputError(f"cannot write {path}: {error.strerror}; expected a folder that exists and may be written to") from error
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


class RunFolder:
    """One run on disk.

    ``RunFolder(path, config)`` starts the run, or resumes it where the folder holds the same configuration.
    ``config`` holds strings, booleans, numbers, lists of these, and tables (one level).

    Raises InputError where the folder holds a run with another configuration, or files that cannot be read.
    """

    def __init__(self, path: Path | str, config: Mapping[str, Any]) -> None:
        self.path = Path(path)
        self.config = dict(config)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"cannot make the run folder {self.path}: {error.strerror}") from error
        for leftover in self.path.glob(f".*{_PARTIAL}"):  # of a run that was killed while it wrote
            leftover.unlink(missing_ok=True)
        stored = self._stored_config()
        if stored is None:
            if (self.path / STATE).exists() or (self.path / JOURNAL).exists():
                raise InputError(f"{self.path} holds a run without {CONFIG}; expected an empty folder or a whole run folder")
            write_atomically(self.path / CONFIG, to_toml(self.config))
        elif stored != tomllib.loads(to_toml(self.config)):
            raise InputError(f"{self.path} holds another run: {_first_difference(stored, self.config)}; choose another folder")

    def _stored_config(self) -> dict[str, Any] | None:
        path = self.path / CONFIG
        if not path.exists():
            return None
        try:
            return tomllib.loads(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise InputError(f"{path} cannot be read ({error}); expected the configuration of a run") from error

    # --- journal ------------------------------------------------------------------------------------------------------

    def append(self, record: Mapping[str, Any]) -> None:
        """Add one line to the journal; it is on disk when this returns. NaN and infinities are refused (ValueError)."""
        line = json.dumps(record, sort_keys=True, allow_nan=False) + "\n"
        with open(self.path / JOURNAL, "a", encoding="utf-8") as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())

    def records(self) -> list[dict[str, Any]]:
        """The journal's records in order; a last line that a kill cut short is left out."""
        path = self.path / JOURNAL
        if not path.exists():
            return []
        lines = path.read_text(encoding="utf-8").split("\n")
        try:
            return [json.loads(line) for line in lines[:-1]]
        except json.JSONDecodeError as error:
            raise InputError(f"{path} is damaged ({error}); delete the run folder to start again") from error

    def keep_records(self, count: int) -> None:
        """Forget the records after the first ``count``: what a killed run wrote after its last saved state."""
        lines = [json.dumps(record, sort_keys=True) + "\n" for record in self.records()[:count]]
        write_atomically(self.path / JOURNAL, "".join(lines))

    # --- state --------------------------------------------------------------------------------------------------------

    def save_state(self, tensors: Mapping[str, np.ndarray], values: Mapping[str, Any]) -> None:
        """Replace the saved state: arrays, and anything that JSON can hold, in one file and one step."""
        self.save_tensors(STATE, tensors, values)

    def load_state(self) -> tuple[dict[str, np.ndarray], dict[str, Any]] | None:
        """The arrays and values saved last, or None in a run that has not saved any."""
        return self.load_tensors(STATE)

    def save_tensors(self, name: str, tensors: Mapping[str, np.ndarray], values: Mapping[str, Any]) -> None:
        """Write one more safetensors file into the folder, arrays and JSON values together."""
        arrays = {key: np.asarray(value, order="C") for key, value in tensors.items()}
        write_atomically(self.path / name, save_tensors(arrays, {"values": json.dumps(values, sort_keys=True)}))

    def load_tensors(self, name: str) -> tuple[dict[str, np.ndarray], dict[str, Any]] | None:
        """Read a file written by :meth:`save_tensors`, or None where there is none. Raises InputError if it is damaged."""
        path = self.path / name
        if not path.exists():
            return None
        try:
            data = path.read_bytes()
            length = int.from_bytes(data[:8], "little")
            header = json.loads(data[8 : 8 + length])
            return load_tensors(data), json.loads(header["__metadata__"]["values"])
        except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path} is damaged ({error}); delete the run folder to start again") from error


def _first_difference(stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    fresh = tomllib.loads(to_toml(wanted))
    for key in [*fresh, *stored]:
        if stored.get(key) != fresh.get(key):
            return f"{key} is {stored.get(key)!r} there and {fresh.get(key)!r} here"
    return "the same values"


# --- TOML -------------------------------------------------------------------------------------------------------------


def to_toml(config: Mapping[str, Any]) -> str:
    """The TOML text of a flat table with one level of sub-tables; entries that are None are left out."""
    plain = {key: value for key, value in config.items() if value is not None and not isinstance(value, Mapping)}
    lines = [f"{_key(key)} = {_value(value)}" for key, value in plain.items()]
    for key, table in config.items():
        if isinstance(table, Mapping):
            lines += ["", f"[{_key(key)}]", *(f"{_key(k)} = {_value(v)}" for k, v in table.items() if v is not None)]
    return "\n".join(lines) + "\n"


def _key(key: str) -> str:
    bare = key.isascii() and key.replace("_", "").replace("-", "").isalnum()
    return key if bare else _value(key)


def _value(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        return repr(float(value))
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, Sequence):
        return "[" + ", ".join(_value(item) for item in value) + "]"
    raise InputError(f"a run's configuration holds text, numbers, booleans and lists, got {value!r}")
