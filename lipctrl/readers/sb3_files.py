"""The zips of Stable-Baselines3 as data: the tensors of ``policy.pth`` and the plain text of the JSON ``data``.

The pickles in a zip (``:serialized:`` in the JSON, optimisers, variables) are never opened.
"""

from __future__ import annotations

import io
import json
import re
import zipfile
import zlib
from pathlib import Path
from typing import IO, Any

import numpy as np

from lipctrl.core.errors import InputError
from lipctrl.readers.building import DTYPES, MAX_WEIGHT_BYTES, exact
from lipctrl.readers.network import file_bytes

MAX_ZIP_BYTES = 1 << 30
MAX_JSON_BYTES = 64 << 20
MAX_DIRECTORY_BYTES = 1 << 20  #: of a zip's table of contents
MAX_STATISTICS_BYTES = 1 << 20
PRINTED_DIGITS = 8  #: digits after the point that NumPy prints at most; a number with that many may be rounded

_NOT_A_ZIP = (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError, ValueError, NotImplementedError, OverflowError)


class _Bounded(io.BytesIO):
    """Bytes of which one call hands out ``limit`` at most, so that a huge table of contents is refused, not indexed."""

    limit = MAX_DIRECTORY_BYTES

    def read(self, size: int | None = -1) -> bytes:
        left = len(self.getbuffer()) - self.tell()
        if left > self.limit and (size is None or not 0 <= size <= self.limit):
            raise InputError("its table of contents is too large")
        return super().read(size)


def _capped(file: IO[bytes], name: str, limit: int) -> bytes:
    """A member, piece by piece."""
    data = bytearray()
    while piece := file.read(_Bounded.limit):
        data += piece
        if len(data) > limit:
            raise InputError(f"its member {name!r} holds more than {limit} bytes")
    return bytes(data)


def zip_members(data: bytes, limits: dict[str, int]) -> dict[str, bytes]:
    """Those members of a zip that ``limits`` names, each up to so many bytes. Raises InputError where one is not there."""
    try:
        with zipfile.ZipFile(_Bounded(data)) as archive:
            names = archive.namelist()
            members = {}
            for name, limit in limits.items():
                if names.count(name) != 1:
                    raise InputError(f"it holds {names.count(name)} members named {name!r}, expected one")
                with archive.open(name) as file:
                    members[name] = _capped(file, name, limit)
            return members
    except InputError:
        raise
    except _NOT_A_ZIP as error:
        raise InputError(f"it is no readable zip: {error}") from error


def read_zip(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The plain text of a saved algorithm and the tensors of its policy. Raises InputError for anything else."""
    members = zip_members(file_bytes(path, MAX_ZIP_BYTES), {"data": MAX_JSON_BYTES, "policy.pth": MAX_WEIGHT_BYTES})
    try:
        data = json.loads(members["data"])
    except (ValueError, RecursionError) as error:
        raise InputError(f"its member 'data' is not JSON: {str(error)[:100]}") from error
    if not isinstance(data, dict):
        raise InputError("its member 'data' is not a JSON table")
    return data, _tensors(members["policy.pth"])


def _tensors(data: bytes) -> dict[str, np.ndarray]:
    """The tensors of a state dictionary. torch reads it with its restricted unpickler, which builds tensors and nothing else."""
    import torch

    try:
        with zipfile.ZipFile(_Bounded(data)) as archive:
            entries = archive.infolist()
        if sum(entry.file_size for entry in entries) > MAX_WEIGHT_BYTES or any(entry.compress_type for entry in entries):
            raise InputError(f"its policy.pth is compressed, or larger than {MAX_WEIGHT_BYTES} bytes")
        # the one place where torch.load is allowed: from bytes, to the CPU, weights only
        state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)  # noqa: TID251
    except InputError:
        raise
    except Exception as error:  # on damaged bytes torch raises errors of many types
        raise InputError(f"its policy.pth does not hold plain tensors: {' '.join(str(error).split())[:150]}") from error
    tensors: dict[str, np.ndarray] = {}
    if not isinstance(state, dict):
        raise InputError(f"its policy.pth holds a {type(state).__name__}, expected a table of tensors")
    for name, tensor in state.items():
        plain = isinstance(name, str) and isinstance(tensor, torch.Tensor) and tensor.layout == torch.strided and tensor.is_cpu
        if not plain or tensor.dtype not in (torch.float32, torch.float64) or tensor.numel() * 8 > MAX_WEIGHT_BYTES:
            raise InputError(f"its policy.pth holds {str(name)[:60]!r}, which is no dense {' or '.join(DTYPES)} tensor of bearable size")
        tensors[name] = tensor.detach().numpy()
    return tensors


def printed_numbers(text: object, length: int) -> tuple[np.ndarray, np.ndarray] | None:
    """Numbers that NumPy printed, such as ``'[-1.  0.5]'``: float64 values, and how many digits after the point each has.

    ``None`` where the text is elided, or holds another number of numbers.
    """
    words = text.strip().removeprefix("[").removesuffix("]").split() if isinstance(text, str) else []
    if len(words) != length or not all(re.fullmatch(r"[+-]?(\d+\.?\d*(e[+-]?\d+)?|inf)", word) for word in words):
        return None
    digits = [len(word.partition("e")[0].partition(".")[2]) for word in words]
    return np.array([float(word) for word in words]), np.array(digits)


def class_name(text: object) -> str | None:
    """``torch.nn.modules.activation.ReLU`` from ``"<class 'torch.nn.modules.activation.ReLU'>"``; ``None`` for other texts."""
    match = re.fullmatch(r"<class '([\w.]+)'>", text) if isinstance(text, str) else None
    return match[1] if match else None


def read_statistics(path: Path, size: int) -> tuple[np.ndarray, np.ndarray, float]:
    """Mean, scale (each (size,), float64) and clip of a VecNormalize, from an npz with mean, var, epsilon and clip_obs.

    The scale is sqrt(var + epsilon) as VecNormalize computes it: both operations round as IEEE says, so it is that very float.
    """
    names = ("mean", "var", "epsilon", "clip_obs")
    members = zip_members(file_bytes(path, MAX_STATISTICS_BYTES), {f"{name}.npy": MAX_STATISTICS_BYTES for name in names})
    arrays = {}
    for name in names:
        try:
            array = np.lib.format.read_array(io.BytesIO(members[f"{name}.npy"]), allow_pickle=False)
        except (ValueError, EOFError, OSError, MemoryError, TypeError) as error:
            raise InputError(f"its array {name!r} cannot be read: {error}") from error
        shape = (size,) if name in ("mean", "var") else ()
        if array.shape != shape or array.dtype.kind not in "fiu" or array.dtype.itemsize > 8:
            raise InputError(f"its array {name!r} has shape {array.shape} and type {array.dtype}, expected floats of shape {shape}")
        exact(array, f"its array {name!r}")
        arrays[name] = array.astype(np.float64)
    positive = arrays["var"] + arrays["epsilon"]
    if not (arrays["var"] >= 0).all() or not (positive > 0).all() or not arrays["clip_obs"] > 0:
        raise InputError("its variances, epsilon or clip_obs are not positive")
    return arrays["mean"], np.sqrt(positive), float(arrays["clip_obs"])
