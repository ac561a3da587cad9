"""ONNX files: parsed as data, read node by node.

The network is read as it acts on one observation: a first dimension that is free counts as 1.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from lipctrl.core.errors import InputError
from lipctrl.readers.building import DTYPES, MAX_WEIGHT_BYTES, Builder
from lipctrl.readers.network import Network, file_bytes
from lipctrl.readers.onnx_operations import OPERATIONS, Call, Context, Signal, Value

MIN_OPSET = 7  #: what broadcasts in older ones is written differently
MAX_NODES = 20_000
_CONSTANTS = ("bool", "float32", "float64", "int32", "int64")  #: data types of constants that are read


def read_onnx(path: str | os.PathLike[str]) -> Network:
    """The network in an ONNX file with one float32 or float64 input and one output.

    Constants must be inside the file (no external data). Raises InputError, in one sentence, naming the operation where one
    cannot be expressed exactly, and for files that are damaged or too large.
    """
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    data = file_bytes(path, MAX_WEIGHT_BYTES)
    try:
        model = onnx.load_model_from_string(data)
    except DecodeError as error:
        raise InputError(f"{path} is not an ONNX file: {error}") from error
    try:
        opset = _opset(model)
        _refuse_foreign(model.graph)
        onnx.checker.check_model(model)
        return _read(model.graph, opset)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    except (onnx.checker.ValidationError, ValueError, RuntimeError) as error:
        raise InputError(f"{path} is not a valid ONNX model: {_line(error)}") from error


def _line(error: object) -> str:
    return " ".join(str(error).split())[:300]


def _opset(model: Any) -> int:
    from onnx.defs import onnx_opset_version

    versions = [entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")]
    latest = onnx_opset_version()
    if len(versions) != 1 or not MIN_OPSET <= versions[0] <= latest:
        raise InputError(f"the model imports the operator sets {versions[:3]}, expected one of version {MIN_OPSET}..{latest}")
    return int(versions[0])


def _refuse_foreign(graph: Any) -> None:
    """Raise InputError for operations that are not read and for data outside the file, before anything looks at them."""
    if len(graph.node) > MAX_NODES:
        raise InputError(f"the model has {len(graph.node)} nodes, at most {MAX_NODES} are read")
    for node in graph.node:
        if node.domain not in ("", "ai.onnx") or node.op_type not in OPERATIONS:
            name = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
            raise InputError(f"operation {name[:80]!r} is not read; read are {', '.join(sorted(OPERATIONS))}")
    if graph.sparse_initializer:
        raise InputError("the model holds sparse weights, expected dense ones")
    tensors = [*graph.initializer, *(a.t for node in graph.node for a in node.attribute if a.HasField("t"))]
    for tensor in tensors:
        if tensor.data_location or tensor.external_data:
            raise InputError(f"tensor {tensor.name[:60]!r} lies outside the file (external data); save the model in one file")


def _read(graph: Any, opset: int) -> Network:
    import onnx

    constants = {tensor.name: _array(tensor) for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in constants]
    if len(inputs) != 1 or len(graph.output) != 1:
        raise InputError(f"the model has {len(inputs)} inputs and {len(graph.output)} outputs, expected one of each")
    shape, dtype = _shape(inputs[0])
    context = Context(Builder(int(np.prod(shape))), opset)
    values: dict[str, Value] = {**constants, inputs[0].name: Signal(context.builder.observation, shape, dtype)}
    for node in graph.node:
        attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        attributes = {name: _array(value) if hasattr(value, "data_type") else value for name, value in attributes.items()}
        operands = tuple(values[name] if name else None for name in node.input)
        call = Call(attributes, operands, sum(map(bool, node.output)))
        label = f"{node.op_type} {node.name[:60]!r}" if node.name else node.op_type
        try:
            results = OPERATIONS[node.op_type](context, call)
        except InputError as error:
            raise InputError(f"{label}: {error}") from error
        except (ValueError, IndexError, TypeError, KeyError, AttributeError, OverflowError, MemoryError) as error:
            raise InputError(f"{label} is malformed: {_line(error)}") from error
        values.update(zip([name for name in node.output if name], results, strict=True))
    output = values.get(graph.output[0].name)
    if not isinstance(output, Signal):
        raise InputError("the model's output does not depend on its input")
    notes = ("numbers are in the units of the file's input and output", *context.notes)
    return Network(context.builder.finish(output.node), f"ONNX model, operator set {opset}", "unstated", notes)


def _array(tensor: Any) -> np.ndarray:
    import onnx

    try:
        array: np.ndarray = onnx.numpy_helper.to_array(tensor)
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(f"tensor {tensor.name[:60]!r} is damaged: {_line(error)}") from error
    if array.dtype.name not in _CONSTANTS:
        raise InputError(f"tensor {tensor.name[:60]!r} holds {array.dtype.name}, expected one of {', '.join(_CONSTANTS)}")
    return array


def _shape(value: Any) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape, with 1 for a free first dimension, and type of the model's input."""
    import onnx

    tensor, name = value.type.tensor_type, value.name[:60]
    types = {onnx.TensorProto.FLOAT: "float32", onnx.TensorProto.DOUBLE: "float64"}
    if tensor.elem_type not in types:
        raise InputError(f"input {name!r} has element type {tensor.elem_type}, expected one of {', '.join(DTYPES)}")
    dimensions = [d.dim_value if d.HasField("dim_value") else None for d in tensor.shape.dim]
    if len(dimensions) > 1 and dimensions[0] is None:
        dimensions[0] = 1
    text = [str(d or "?") for d in dimensions]
    known = tuple(d for d in dimensions if d is not None and d > 0)
    if not dimensions or len(known) < len(dimensions) or len(known) > 8 or (len(known) > 1 and known[0] != 1):
        raise InputError(f"input {name!r} has shape ({', '.join(text)}), expected (n) or (batch, n, ...) with a free or single batch")
    return known, np.dtype(types[tensor.elem_type])
