"""An ONNX graph that grows operation by operation; values are known by their names."""

from typing import Any, Dict, List, Sequence, Tuple

import numpy as np

from mlx_trm.errors import ConfigError

# Old enough for every runtime of the last years, and it has all that is needed.
OPSET, IR_VERSION = 17, 8
# Protobuf, in which ONNX files are written, takes less than 2 GiB.
MOST_BYTES = (1 << 31) - (1 << 20)


def load_onnx() -> Any:
    """Import the package ``onnx``.

    Raises:
        ConfigError: if it is not installed.
    """
    try:
        import onnx
    except ImportError as error:
        raise ConfigError(
            f"--format onnx: needs the package onnx ({error}); pip install 'mlx-trm[onnx]'"
        ) from error
    return onnx


class Graph:
    """Nodes, weights, inputs and outputs of a graph of float32 numbers.

    A weight is in the graph once, however often it is used. The first dimension of every input
    and output is ``B``, which a caller chooses.
    """

    def __init__(self) -> None:
        """Begin with nothing.

        Raises:
            ConfigError: if the package ``onnx`` is not installed.
        """
        self._onnx = load_onnx()
        self._nodes: List[Any] = []
        self._arrays: Dict[str, np.ndarray] = {}
        self._constants: Dict[Tuple[Any, ...], str] = {}
        self._inputs: List[Any] = []
        self._outputs: List[Any] = []

    def add(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """Add an operation with one result.

        Args:
            kind: ONNX's name of it.
            inputs: names of values.
            attributes: of the operation.

        Returns:
            The name of its result.
        """
        return self.add_many(kind, 1, *inputs, **attributes)[0]

    def add_many(self, kind: str, count: int, *inputs: str, **attributes: Any) -> List[str]:
        """Add an operation with ``count`` results, and give their names. See :meth:`add`."""
        number = len(self._nodes)
        names = [f"{kind}_{number}" + (f"_{i}" if count > 1 else "") for i in range(count)]
        node = self._onnx.helper.make_node(
            kind, inputs, names, name=f"{kind}_{number}", **attributes
        )
        self._nodes.append(node)
        return names

    def weight(self, name: str, array: np.ndarray) -> str:
        """Put an array into the graph, unless one of that name is there, and give the name."""
        self._arrays.setdefault(name, np.array(array, order="C"))
        return name

    def constant(self, value: Any, dtype: Any = np.float32) -> str:
        """Put numbers into the graph, equal ones once, and give their name.

        Args:
            value: a number or a nested list.
            dtype: of NumPy.
        """
        array = np.array(value, dtype=dtype)
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._constants:
            self._constants[key] = self.weight(f"constant_{len(self._constants)}", array)
        return self._constants[key]

    def reshape(self, value: str, shape: Sequence[int]) -> str:
        """Give a value another shape; 0 leaves a dimension as it is, -1 is what remains."""
        return self.add("Reshape", value, self.constant(list(shape), np.int64))

    def add_input(self, name: str, shape: Sequence[int], dtype: Any = np.float32) -> str:
        """Declare an input, (B, *shape)."""
        self._inputs.append(self._describe(name, shape, dtype))
        return name

    def add_output(self, name: str, value: str, shape: Sequence[int]) -> None:
        """Declare a value, (B, *shape) float32, an output of that name."""
        self._nodes.append(self._onnx.helper.make_node("Identity", [value], [name], name=name))
        self._outputs.append(self._describe(name, shape, np.float32))

    def build(self, name: str, properties: Dict[str, str]) -> Any:
        """Give the whole as an ``onnx.ModelProto``, checked.

        Args:
            name: of the graph.
            properties: kept with the model, texts by name.

        Raises:
            ConfigError: if it would not fit into a file.
        """
        from mlx_trm.version import __version__

        size = sum(array.nbytes for array in self._arrays.values())
        if size > MOST_BYTES:
            raise ConfigError(
                f"--format onnx: weights and puzzle table are {size:,} bytes, and an ONNX file "
                f"takes {MOST_BYTES:,}; leave --format out"
            )
        helper = self._onnx.helper
        arrays = [
            self._onnx.numpy_helper.from_array(array, key) for key, array in self._arrays.items()
        ]
        graph = helper.make_graph(self._nodes, name, self._inputs, self._outputs, arrays)
        model = helper.make_model(
            graph,
            producer_name="mlx_trm",
            producer_version=__version__,
            opset_imports=[helper.make_opsetid("", OPSET)],
            ir_version=IR_VERSION,
        )
        helper.set_model_props(model, properties)
        self._onnx.checker.check_model(model, full_check=True)
        return model

    def _describe(self, name: str, shape: Sequence[int], dtype: Any) -> Any:
        helper = self._onnx.helper
        element = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        return helper.make_tensor_value_info(name, element, ["B", *shape])
