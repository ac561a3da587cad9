"""ONNX files: what is read computes what the reference evaluator computes; what cannot be read is refused by its name."""

import os
import subprocess
import sys

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from lipctrl import readers
from lipctrl.certificates.checker.chain import read_chain
from lipctrl.certificates.lipschitz import certify_lipschitz
from lipctrl.core.errors import InputError
from lipctrl.core.numpy_evaluation import compile_numpy
from lipctrl.core.policy import Policy
from lipctrl.readers import read_network, read_onnx

GENERATOR = np.random.default_rng(5)
SIZE = 4


def array(*shape, dtype=np.float32):
    return GENERATOR.normal(size=shape).astype(dtype)


def node(op, inputs, outputs, **attributes):
    return helper.make_node(op, inputs.split(), outputs.split(), **attributes)


def model(nodes, constants=None, shape=("N", SIZE), opset=17, dtype=np.float32, inputs=None):
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    weights = [numpy_helper.from_array(np.asarray(value), name) for name, value in (constants or {}).items()]
    ends = [helper.make_tensor_value_info(name, kind, size) for name, size in (("x", shape), ("y", ("any",)))]
    graph = helper.make_graph(nodes, "net", inputs or ends[:1], ends[1:], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


@pytest.fixture
def save(tmp_path):
    def write(proto):
        path = tmp_path / "net.onnx"
        path.write_bytes(proto if isinstance(proto, bytes) else proto.SerializeToString())
        return path

    return write


def compare(path, proto, shape=(SIZE,), tolerance=1e-5):
    """The graph of the file, which computes what the reference evaluator does, one observation at a time."""
    network = read_onnx(path)
    function, reference = compile_numpy(network.graph, np.float64), ReferenceEvaluator(proto)
    kind = np.float64 if proto.graph.input[0].type.tensor_type.elem_type == TensorProto.DOUBLE else np.float32
    for x in (3 * array(8, *shape)).astype(kind):
        batch = x if len(proto.graph.input[0].type.tensor_type.shape.dim) == len(shape) else x[None]
        (expected,) = reference.run(None, {"x": batch})
        np.testing.assert_allclose(function(observation=x.ravel())["action"], np.ravel(expected), rtol=tolerance, atol=tolerance)
    return network


def mlp(dtype=np.float32):
    nodes = [
        node("Sub", "x mean", "centred"),
        node("Div", "centred scale", "scaled"),
        node("Gemm", "scaled w1 b1", "h1", transB=1),
        node("Relu", "h1", "a1"),
        node("MatMul", "a1 w2", "p2"),
        node("Add", "b2 p2", "h2"),
        node("Tanh", "h2", "a2"),
        node("Gemm", "a2 w3 b3", "out", transB=1, alpha=0.5, beta=2.0),
        node("Clip", "out low high", "y"),
    ]
    shapes = {"mean": (SIZE,), "w1": (8, SIZE), "b1": (8,), "w2": (8, 6), "b2": (1, 6), "w3": (2, 6), "b3": (2,)}
    constants = {name: array(*shape, dtype=dtype) for name, shape in shapes.items()}
    constants |= {"scale": np.array([1, 2, 0.3, 4], dtype), "low": np.array(-1, dtype), "high": np.array(1, dtype)}
    return model(nodes, constants, dtype=dtype)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_network_is_read_as_it_is_and_bounded(save, dtype):
    proto = mlp(dtype)
    network = compare(save(proto), proto)
    assert {tensor.dtype for tensor in network.graph.tensors.values()} == {np.dtype(dtype)}
    assert [n.op for n in network.graph.nodes if n.op != "constant"] == "input sub div affine relu affine tanh affine mul add clip".split()
    assert network.graph.input_sizes == {"observation": SIZE} and network.graph.output_sizes == {"action": 2}
    found = certify_lipschitz(network.graph)
    assert found.lower.value <= found.upper.value < 100
    assert read_network(save(proto)).graph.digest() == network.graph.digest()


OPERATIONS = {
    **{op: [node(op, "x", "y")] for op in "Relu Tanh Sigmoid Softplus Erf Abs Neg Sin Cos Identity LeakyRelu Exp".split()},
    "slope": [node("LeakyRelu", "x", "y", alpha=0.3)],
    "prelu": [node("PRelu", "x slope", "y")],
    "prelu one": [node("PRelu", "x one", "y")],
    "clip": [node("Clip", "x low one", "y")],
    "clip below": [node("Clip", "x low", "y")],
    "clip above": [helper.make_node("Clip", ["x", "", "one"], ["y"])],
    "clip crossed": [node("Clip", "x one low", "y")],
    "silu": [node("Sigmoid", "x", "s"), node("Mul", "s x", "y")],
    "add": [node("Add", "x vector", "y")],
    "sub from": [node("Sub", "vector x", "y")],
    "mul": [node("Mul", "one x", "y")],
    "div": [node("Div", "x vector", "y")],
    "max": [node("Max", "x vector one", "y")],
    "min": [node("Min", "x vector", "y")],
    "sum": [node("Tanh", "x", "t"), node("Sum", "x t vector", "y")],
    "residual": [node("Tanh", "x", "t"), node("MatMul", "t square", "m"), node("Add", "m x", "y")],
    "shared sum": [node("MatMul", "x square", "m"), node("Add", "m vector", "a"), node("Add", "a m", "y")],
    "flatten": [node("Flatten", "x", "y")],
    "reshape": [node("Reshape", "x shape", "r"), node("Transpose", "r", "t", perm=[0, 2, 1]), node("Flatten", "t", "y")],
    "reshape by shape": [
        node("Shape", "x", "s"),
        node("Gather", "s zero", "first", axis=0),
        node("Unsqueeze", "first axis0", "head"),
        node("Concat", "head rest", "target", axis=0),
        node("Reshape", "x target", "y"),
    ],
    "slice": [node("Slice", "x starts ends axes steps", "y")],
    "gather": [node("Gather", "x picks", "y", axis=1)],
    "split": [node("Split", "x parts", "a b", axis=1), node("Concat", "b a x", "y", axis=-1)],
    "split even": [node("Split", "x", "a b", axis=1, num_outputs=2), node("Sub", "a b", "y")],
    "broadcast": [node("Gather", "x picks1", "g", axis=1), node("Mul", "g x", "y")],
    "constant": [helper.make_node("Constant", [], ["c"], value_floats=[1.0, 2.0, -1.0, 0.5]), node("Add", "x c", "y")],
    "squeeze": [node("Squeeze", "x axis0", "s"), node("MatMul", "square s", "m"), node("Unsqueeze", "m axis0", "y")],
    "cast": [node("Cast", "x", "d", to=TensorProto.DOUBLE), node("MatMul", "d wide", "m"), node("Add", "m double", "y")],
    "dropout": [node("Dropout", "x", "y")],
    "batch norm": [node("BatchNormalization", "x gamma vector mean variance", "n"), node("Tanh", "n", "y")],
}
CONSTANTS = {
    "one": np.float32(1.5),
    "low": np.float32(-0.5),
    "slope": np.array([0.1, 0.2, -0.3, 1.5], np.float32),
    "vector": np.array([1, -2, 0.5, 3], np.float32),
    "gamma": np.array([1, -0.7, 0.2, 3], np.float32),
    "mean": np.array([0.1, 0.2, 0.3, -5], np.float32),
    "variance": np.array([1, 2, 0.01, 7], np.float32),
    "double": np.array([0.1, 0.2, 0.3, 0.4]),
    "square": array(SIZE, SIZE),
    "wide": array(SIZE, SIZE, dtype=np.float64),
    "shape": np.array([0, 2, -1]),
    "zero": np.array(0),
    "axis0": np.array([0]),
    "rest": np.array([-1]),
    "starts": np.array([-1]),
    "ends": np.array([-100]),
    "axes": np.array([1]),
    "steps": np.array([-2]),
    "picks": np.array([3, 0, -2]),
    "picks1": np.array([2]),
    "parts": np.array([1, 3]),
}


def with_constants(nodes, **options):
    used = {name for n in nodes for name in n.input}
    return model(nodes, {name: value for name, value in CONSTANTS.items() if name in used}, **options)


@pytest.mark.parametrize("name", OPERATIONS)
def test_operations_compute_what_the_reference_computes(save, name):
    proto = with_constants(OPERATIONS[name], opset=24 if name == "split even" else 17)
    compare(save(proto), proto)


@pytest.mark.parametrize(
    ("shape", "nodes", "opset"),
    [
        ((SIZE,), [node("MatMul", "x square", "m"), node("Relu", "m", "y")], 17),
        ((1, 1, 1, SIZE), [node("Flatten", "x", "f"), node("Gemm", "f square vector", "y")], 12),
        ((1, SIZE), [node("Clip", "x", "y", min=-0.25, max=0.5)], 9),
        ((1, SIZE), [node("Gelu", "x", "y")], 20),
        ((1, SIZE), [node("Swish", "x", "y")], 24),
        ((1, SIZE), [node("Slice", "x", "y", starts=[1], ends=[3], axes=[1])], 9),
        ((1, 2, 3), [node("BatchNormalization", "x g2 g2 g2 v2", "y", epsilon=0.01)], 15),
    ],
)
def test_shapes_and_older_and_newer_operator_sets(save, shape, nodes, opset):
    pair = {"g2": np.array([0.5, -2], np.float32), "v2": np.array([0.5, 2], np.float32)}
    proto = model(nodes, {k: v for k, v in {**CONSTANTS, **pair}.items() if any(k in n.input for n in nodes)}, shape, opset)
    compare(save(proto), proto, shape if len(shape) == 1 else shape[1:])


def test_sigmoid_linear_units_and_biases_are_recognised(save):
    proto = with_constants(
        [*OPERATIONS["silu"][:1], node("Mul", "x s", "m"), node("MatMul", "m square", "p"), node("Add", "p vector", "y")]
    )
    graph = compare(save(proto), proto).graph
    assert [n.op for n in graph.nodes] == ["input", "silu", "affine"]
    assert graph.nodes[2].attributes["bias"] is not None
    read_chain(graph)


@pytest.mark.parametrize("name", [name for name in OPERATIONS if name != "split even"])
def test_networks_of_every_shape_are_bounded_with_proof(save, name):
    """Skips, branches and pieces of signals too: only products of signals and exponentials have no bound."""
    graph = read_onnx(save(with_constants(OPERATIONS[name]))).graph
    if name in ("Exp", "broadcast"):
        with pytest.raises(InputError, match="cannot be bounded"):
            certify_lipschitz(graph)
        return
    x = 3 * array(200, SIZE).astype(np.float64)
    y = x + array(200, SIZE) * 10.0 ** GENERATOR.uniform(-3, 1, (200, 1))
    function = compile_numpy(graph, np.float64)
    rise = function(observation=x)["action"] - function(observation=y)["action"]
    for norm, order in (("l2", 2), ("linf", np.inf)):
        found = certify_lipschitz(graph, norm)
        assert found.check().level == "proved" and found.lower.value <= found.upper.value
        slopes = np.linalg.norm(rise, order, axis=1) / np.linalg.norm(x - y, order, axis=1)
        assert slopes.max() <= found.upper.value * (1 + 1e-9)


def test_batch_normalisation_is_diagonal_and_exact(save):
    proto = with_constants([*OPERATIONS["batch norm"][:1], node("Gemm", "n square vector", "y")])
    network = compare(save(proto), proto)
    assert [n.op for n in network.graph.nodes] == ["input", "constant", "mul", "constant", "add", "affine"]
    factors = np.float32(1) / np.sqrt(CONSTANTS["variance"] + np.float32(1e-5)) * CONSTANTS["gamma"]
    assert [float(v) for v in network.graph.nodes[1].attributes["values"]] == factors.tolist()
    assert any("BatchNormalization" in note for note in network.notes)
    assert certify_lipschitz(network.graph).upper.value > 0


REFUSED = {
    "operation 'Softmax' is not read": [node("Softmax", "x", "y")],
    "operation 'com.acme.Gemm' is not read": [helper.make_node("Gemm", ["x"], ["y"], domain="com.acme")],
    "rounds and is not read": [node("Add", "vector slope", "c"), node("Add", "x c", "y")],
    "expected the same": [node("Add", "x double", "y")],
    "float64 is rounded to float32": [node("Cast", "x", "d", to=TensorProto.DOUBLE), node("Cast", "d", "y", to=TensorProto.FLOAT)],
    "is active": [helper.make_node("Dropout", ["x", "", "yes"], ["y"])],
    "does not fit": [node("MatMul", "x tall", "y")],
    "expected one vector and one constant matrix": [node("Transpose", "x", "t"), node("MatMul", "x t", "y")],
    "does not depend on its input": [node("Identity", "vector", "y")],
    "not finite": [node("Add", "x bad", "y")],
    "no integer constant": [node("Gather", "vector picks2", "y")],
    "is malformed": [node("Reshape", "x rest7", "y")],
    "Clip 'c1'": [node("Add", "x one", "a"), node("Clip", "x a", "y", name="c1")],
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_is_not_exact_or_not_known_is_refused(save, message):
    more = {"yes": np.array(True), "tall": array(3, 2), "bad": np.float32(np.nan), "picks2": np.array([0.5], np.float32)}
    used = {name for n in REFUSED[message] for name in n.input}
    constants = {k: v for k, v in {**CONSTANTS, **more, "rest7": np.array([7, -1])}.items() if k in used}
    with pytest.raises(InputError, match=message):
        read_onnx(save(model(REFUSED[message], constants)))


def test_gelu_in_its_tanh_form_and_batch_statistics_are_refused(save):
    with pytest.raises(InputError, match="only the exact form"):
        read_onnx(save(model([node("Gelu", "x", "y", approximate="tanh")], opset=20)))
    training = helper.make_node("BatchNormalization", "x gamma vector mean variance".split(), ["y", "m", "v"], training_mode=1)
    with pytest.raises(InputError, match="training mode"):
        read_onnx(save(with_constants([training])))


@pytest.mark.parametrize(
    ("shape", "message"),
    [((3, SIZE), "shape"), (("N", "M"), "shape"), (("N",), "shape"), ((), "shape"), ((1, 1 << 20), "inputs"), ((1, 0), "shape")],
)
def test_inputs_of_unknown_or_huge_size_are_refused(save, shape, message):
    with pytest.raises(InputError, match=message):
        read_onnx(save(model([node("Relu", "x", "y")], shape=shape)))


def test_data_outside_the_file_is_never_opened(save, tmp_path):
    (tmp_path / "secret.bin").write_bytes(array(SIZE).tobytes())
    proto = with_constants([node("Add", "x vector", "y")])
    tensor = proto.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", "secret.bin"
    with pytest.raises(InputError, match="outside the file"):
        read_onnx(save(proto))


@pytest.mark.parametrize("size", [0, 1, 40, 200, 400])
def test_damaged_files_are_refused(save, size):
    with pytest.raises(InputError, match=r"net\.onnx"):
        read_onnx(save(mlp().SerializeToString()[:size]))


def test_flipped_bytes_end_in_a_network_or_in_one_sentence(save):
    data = bytearray(mlp().SerializeToString())
    for position in GENERATOR.integers(0, len(data), 150):
        broken = bytearray(data)
        broken[position] ^= int(GENERATOR.integers(1, 256))
        try:
            network = read_onnx(save(bytes(broken)))
        except InputError as error:
            assert "\n" not in str(error)
        else:
            assert network.graph.output_sizes


def test_growth_is_refused_before_memory_is_spent(save):
    doubling = [node("Concat", f"c{i} c{i}", f"c{i + 1}", axis=0) for i in range(60)]
    with pytest.raises(InputError, match="bytes"):
        read_onnx(save(model([*doubling, node("Add", "x c60", "y")], {"c0": array(1 << 16)})))
    wide = [node("Concat", f"x{i} x{i}", f"x{i + 1}", axis=1) for i in range(60)]
    with pytest.raises(InputError, match="entries"):
        read_onnx(save(model([node("Relu", "x", "x0"), *wide, node("Relu", "x60", "y")])))
    with pytest.raises(InputError, match="picks more"):
        read_onnx(save(model([node("Gather", "big many", "y")], {"big": array(512, 512), "many": np.zeros(1 << 16, np.int32)})))


def test_operator_sets_and_several_inputs_are_checked(save):
    with pytest.raises(InputError, match="operator sets"):
        read_onnx(save(model([node("Relu", "x", "y")], opset=6)))
    two = [helper.make_tensor_value_info(name, TensorProto.FLOAT, (1, SIZE)) for name in ("x", "u")]
    with pytest.raises(InputError, match="2 inputs"):
        read_onnx(save(model([node("Add", "x u", "y")], inputs=two)))
    half = model([node("Relu", "x", "y")], dtype=np.float16)
    with pytest.raises(InputError, match="element type"):
        read_onnx(save(half))


def test_large_files_and_things_that_are_no_files_are_refused(tmp_path):
    path = tmp_path / "net.onnx"
    with pytest.raises(InputError, match="no such file"):
        read_network(path)
    with open(path, "wb") as file:
        os.truncate(file.fileno(), (256 << 20) + 1)
    with pytest.raises(InputError, match="largest file that is read"):
        read_network(path)
    with pytest.raises(InputError, match=r"Stable-Baselines3 \.zip only"):
        read_network(path, squash=True)
    (tmp_path / "net.txt").write_text("x")
    with pytest.raises(InputError, match="neither a policy folder"):
        read_network(tmp_path / "net.txt")
    with pytest.raises(InputError, match="not a policy folder"):
        read_network(tmp_path)


def test_reading_needs_no_runtime(save):
    read_onnx(save(mlp()))
    assert "onnxruntime" not in sys.modules


def test_policy_folders_are_read_too_and_the_package_is_lazy(save, tmp_path):
    graph = read_onnx(save(mlp())).graph
    names = [[(f"{kind}{i}", "1") for i in range(size)] for kind, size in (("o", SIZE), ("a", 2))]
    network = read_network(Policy(graph, *names).save(tmp_path / "policy"))
    assert (network.graph.digest(), network.units) == (graph.digest(), "physical")
    assert dir(readers) == ["Network", "read_network", "read_onnx", "read_sb3", "read_torch"]
    with pytest.raises(AttributeError, match="it has Network, read_network"):
        readers.read_everything  # noqa: B018
    script = "import sys, lipctrl.readers.onnx; sys.exit('torch' in sys.modules or 'onnx' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
