"""ONNX files to load: small graphs whose outputs are known by hand."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

OPSET = 20
TYPES = {
    np.float32: TensorProto.FLOAT,
    np.float16: TensorProto.FLOAT16,
    np.float64: TensorProto.DOUBLE,
    np.int64: TensorProto.INT64,
    np.uint8: TensorProto.UINT8,
}


def value(name: str, shape: Sequence[int | str] | None, dtype: type = np.float32) -> Any:
    return helper.make_tensor_value_info(name, TYPES[dtype], shape)


def model(
    nodes: Sequence[Any],
    inputs: Sequence[Any],
    outputs: Sequence[Any],
    weights: Sequence[Any] = (),
    functions: Sequence[Any] = (),
    domains: Sequence[str] = (),
) -> Any:
    graph = helper.make_graph(list(nodes), "graph", list(inputs), list(outputs), list(weights))
    opsets = [helper.make_opsetid("", OPSET), *(helper.make_opsetid(domain, 1) for domain in domains)]
    return helper.make_model(graph, ir_version=10, opset_imports=opsets, functions=list(functions))


def saved(path: Path, made: Any) -> Path:
    path.write_bytes(made.SerializeToString())
    return path


def linear(weight: np.ndarray, batch: int | str = "rows") -> Any:
    """y = x W, x (batch, n)."""
    kind = weight.dtype.type
    return model(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        [value("x", [batch, weight.shape[0]], kind)],
        [value("y", [batch, weight.shape[1]], kind)],
        [numpy_helper.from_array(weight, "w")],
    )


def channel_means(shape: Sequence[int | str], axes: Sequence[int]) -> Any:
    """The mean over two axes of a picture: of each channel, if they are those of its places."""
    node = helper.make_node("ReduceMean", ["x", "axes"], ["y"], keepdims=0)
    kept = [size for i, size in enumerate(shape) if i not in axes]
    weights = [numpy_helper.from_array(np.array(axes, dtype=np.int64), "axes")]
    return model([node], [value("x", shape)], [value("y", kept)], weights)


def outside(made: Any, location: str) -> Any:
    """The same, with the first weights said to lie in another file."""
    tensor = made.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", location
    return made


def two_outputs() -> Any:
    """`double` = 2 x, `triple` = 3 x, and `best`, a whole number."""
    nodes = [
        helper.make_node("Add", ["x", "x"], ["double"]),
        helper.make_node("Add", ["double", "x"], ["triple"]),
        helper.make_node("ArgMax", ["x"], ["best"], axis=1, keepdims=0),
    ]
    outputs = [value("double", ["rows", 2]), value("triple", ["rows", 2]), value("best", ["rows"], np.int64)]
    return model(nodes, [value("x", ["rows", 2])], outputs)


def two_inputs() -> Any:
    """y = a - 2 b + table[index]: not symmetric in its inputs, and one of them of whole numbers."""
    table = np.array([[0, 0], [10, 20]], dtype=np.float32)
    nodes = [
        helper.make_node("Gather", ["table", "index"], ["row"]),
        helper.make_node("Sub", ["a", "b"], ["once"]),
        helper.make_node("Sub", ["once", "b"], ["twice"]),
        helper.make_node("Add", ["twice", "row"], ["y"]),
    ]
    inputs = [value("a", ["rows", 2]), value("b", ["rows", 2]), value("index", ["rows"], np.int64)]
    return model(nodes, inputs, [value("y", ["rows", 2])], [numpy_helper.from_array(table, "table")])
