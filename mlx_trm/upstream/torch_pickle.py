"""Reads the pickles of ``torch.save`` without unpickling.

A pickle is a program: unpickling may import and call whatever it names. Here no unpickler runs. A
reader follows the few instructions that a state dict takes. The names that a pickle may mention
stand in a table and mean descriptions of tensors, not calls; any other name is refused.
"""

import pickletools
from typing import Any, Callable, Dict, Iterator, List, Mapping, NamedTuple, Optional, Tuple

import mlx.core as mx

from mlx_trm.errors import shown

# A state dict takes a few dozen instructions a tensor; what takes more was not made by torch.save.
_MOST_INSTRUCTIONS = 1_000_000
_MOST_DIMENSIONS, _LONGEST_DIMENSION = 8, 2**31 - 1
# What Python raises for sizes and depths that no state dict has.
_TOO_LARGE = (MemoryError, OverflowError, RecursionError)


class RefusedError(ValueError):
    """A pickle that asks for what no state dict needs."""


class Kind(NamedTuple):
    """A dtype: torch's name, the NumPy dtype of the same bits, and MLX's where they differ."""

    name: str
    bits: str
    dtype: Optional[mx.Dtype] = None


KINDS = {
    "DoubleStorage": Kind("float64", "<f8"),
    "FloatStorage": Kind("float32", "<f4"),
    "HalfStorage": Kind("float16", "<f2"),
    "BFloat16Storage": Kind("bfloat16", "<u2", mx.bfloat16),
    "LongStorage": Kind("int64", "<i8"),
    "IntStorage": Kind("int32", "<i4"),
    "ShortStorage": Kind("int16", "<i2"),
    "CharStorage": Kind("int8", "|i1"),
    "ByteStorage": Kind("uint8", "|u1"),
    "BoolStorage": Kind("bool", "|b1"),
}


class _Name(NamedTuple):
    """A name that the pickle mentions, one of the table's."""

    module: str
    name: str


class Storage(NamedTuple):
    """Numbers that tensors view: where they are, of what kind, how many."""

    key: str
    kind: Kind
    size: int


class Tensor(NamedTuple):
    """A view of a storage: where it begins, its shape and strides, all in elements."""

    storage: Storage
    offset: int
    shape: Tuple[int, ...]
    strides: Tuple[int, ...]


def _whole_numbers(value: Any) -> Tuple[int, ...]:
    """Read a shape or strides."""
    if not isinstance(value, tuple) or len(value) > _MOST_DIMENSIONS:
        raise ValueError("a tensor's shape or strides make no sense")
    for number in value:
        if not _is_count(number) or number > _LONGEST_DIMENSION:
            raise ValueError("a tensor's shape or strides make no sense")
    return value


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _view(
    storage: Any,
    offset: Any,
    shape: Any,
    strides: Any,
    _needs_gradient: Any = None,
    _hooks: Any = None,
    metadata: Any = None,
) -> Tensor:
    """Describe a tensor; weights need neither the flag nor the hooks.

    The metadata say that the numbers mean others: their negatives or conjugates.
    """
    if metadata is not None and metadata != {}:
        raise ValueError(
            "a tensor has metadata, as of a negated or conjugate view, which is not read; save it "
            "after resolve_neg() and resolve_conj()"
        )
    if not isinstance(storage, Storage) or not _is_count(offset):
        raise ValueError("a tensor without numbers of its own")
    shape, strides = _whole_numbers(shape), _whole_numbers(strides)
    if len(shape) != len(strides):
        raise ValueError("a tensor's shape and strides make no sense")
    last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides))
    if offset > storage.size or (0 not in shape and last >= storage.size):
        raise ValueError(
            f"a tensor of shape {shape} lies outside of its {storage.size} numbers: offset "
            f"{min(offset, _LONGEST_DIMENSION)}, strides {strides}"
        )
    return Tensor(storage, offset, shape, strides)


def _same(value: Any, *_: Any) -> Any:
    """Give a parameter's tensor."""
    return value


def _from_type(function: Any, _: Any, arguments: Any, *__: Any) -> Any:
    """Give a tensor that carried attributes of its own; such a one is not in another."""
    return _call(function, arguments, inside=True)


def _new_dict(*arguments: Any) -> Dict[str, Any]:
    if arguments:
        raise ValueError("collections.OrderedDict with content, which torch.save never writes")
    return {}


def _size(*arguments: Any) -> Tuple[int, ...]:
    return _whole_numbers(arguments[0] if arguments else ())


# What a file may call, and what is done instead; None: a name that is mentioned only.
_MEANINGS: Mapping[_Name, Optional[Callable[..., Any]]] = {
    _Name("collections", "OrderedDict"): _new_dict,
    _Name("torch._utils", "_rebuild_tensor"): _view,
    _Name("torch._utils", "_rebuild_tensor_v2"): _view,
    _Name("torch._utils", "_rebuild_parameter"): _same,
    _Name("torch._utils", "_rebuild_parameter_with_state"): _same,
    _Name("torch._tensor", "_rebuild_from_type_v2"): _from_type,
    _Name("torch", "Size"): _size,
    _Name("torch", "Tensor"): None,
    _Name("torch.nn.parameter", "Parameter"): None,
    _Name("torch.nn.parameter", "Buffer"): None,
    **{_Name("torch", storage): None for storage in KINDS},
}


def _call(function: Any, arguments: Any, inside: bool = False) -> Any:
    """Do what a known name means; nothing of the file's own is ever called."""
    meaning = _MEANINGS.get(function) if isinstance(function, _Name) else None
    if inside and meaning is _from_type:
        meaning = None
    if meaning is None or not isinstance(arguments, tuple):
        raise RefusedError("it calls what is no function of a state dict; nothing was executed")
    try:
        return meaning(*arguments)
    except TypeError as error:  # too few arguments, or too many
        raise ValueError("a tensor's description is malformed") from error


# The pickle --------------------------------------------------------------------------------------


def _instructions(stream: Any) -> Iterator[Tuple[Any, Any, Any]]:
    """Give a pickle's instructions; what the parser says of a bad one may hold the file's text."""
    try:
        yield from pickletools.genops(stream)
    except ValueError as error:
        raise ValueError(f"its pickle is damaged ({shown(error)})") from error


class PickleReader:
    """Follows one pickle's instructions on a stack; knows those that a state dict takes.

    Attributes:
        storages: described so far, by key.
    """

    def __init__(self, stream: Any) -> None:
        """Begin where the stream stands; reading leaves it behind the pickle."""
        self.storages: Dict[str, Storage] = {}
        self._stream = stream
        self._stack: List[Any] = []
        self._marks: List[List[Any]] = []
        self._memo: Dict[int, Any] = {}

    def read(self) -> Any:
        """Give what the pickle describes.

        Raises:
            RefusedError: for a name that no state dict takes.
            ValueError: for an instruction that none takes, or nonsense, as in a file that is no
                pickle.
        """
        try:
            for count, (opcode, argument, _) in enumerate(_instructions(self._stream)):
                if count > _MOST_INSTRUCTIONS:
                    raise ValueError("its pickle is longer than any state dict's")
                if opcode.name == "STOP":
                    return self._stack.pop()
                self._follow(opcode.name, argument)
        except (IndexError, EOFError, UnicodeDecodeError, *_TOO_LARGE) as error:
            raise ValueError("its pickle is damaged") from error
        raise ValueError("its pickle is cut short")

    def _follow(self, name: str, argument: Any) -> None:
        """Build constants, tuples, lists and dicts."""
        stack = self._stack
        if name in _CONSTANTS:
            stack.append(_CONSTANTS[name]())
        elif name in _LITERALS:
            stack.append(argument)
        elif name == "MARK":
            self._marks.append(stack)
            self._stack = []
        elif name in _TUPLES:
            size = _TUPLES[name]
            if len(stack) < size:
                raise IndexError
            stack[len(stack) - size :] = [tuple(stack[len(stack) - size :])]
        elif name == "TUPLE":
            items = self._marked()
            self._stack.append(tuple(items))
        elif name in ("APPEND", "APPENDS"):
            items = [stack.pop()] if name == "APPEND" else self._marked()
            _expect(self._stack[-1], list).extend(items)
        elif name in ("SETITEM", "SETITEMS"):
            items = [stack.pop(-2), stack.pop()] if name == "SETITEM" else self._marked()
            for key, value in zip(items[::2], items[1::2]):
                _expect(self._stack[-1], dict)[_expect(key, str)] = value
        elif name in ("BINPUT", "LONG_BINPUT", "MEMOIZE"):
            self._memo[len(self._memo) if argument is None else argument] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            if argument not in self._memo:
                raise ValueError("its pickle is damaged")
            stack.append(self._memo[argument])
        elif name not in ("PROTO", "FRAME"):
            self._follow_name(name, argument)

    def _follow_name(self, name: str, argument: Any) -> None:
        """Look names up, and do what they mean."""
        stack = self._stack
        if name in ("GLOBAL", "INST"):
            stack.append(_known(*str(argument).split(" ", 1)))
        elif name == "STACK_GLOBAL":
            attribute, module = stack.pop(), stack.pop()
            stack.append(_known(_expect(module, str), _expect(attribute, str)))
        elif name == "REDUCE":
            arguments, function = stack.pop(), stack.pop()
            stack.append(_call(function, arguments))
        elif name == "BUILD":  # attributes, such as a state dict's versions
            stack.pop()
            _expect(stack[-1], dict)
        elif name == "BINPERSID":
            stack.append(self._storage(stack.pop()))
        else:
            raise ValueError(f"its pickle uses {name}, which no state dict needs")

    def _marked(self) -> List[Any]:
        """Give what was put on the stack since the last mark."""
        items, self._stack = self._stack, self._marks.pop()
        return items

    def _storage(self, description: Any) -> Storage:
        """Read the description of a storage, torch's persistent id."""
        if not isinstance(description, tuple) or len(description) not in (5, 6):
            raise ValueError("its storages are described in a way that is not known")
        kind, name, key, _, count = description[:5]
        if kind != "storage" or not isinstance(name, _Name) or name.name not in KINDS:
            raise ValueError("its storages are described in a way that is not known")
        if not isinstance(key, str) or not _is_count(count) or count > 2**48:
            raise ValueError("a storage's size makes no sense")
        if len(description) == 6 and description[5] is not None:
            raise ValueError("it holds views of storages, as torch before 0.4 wrote them")
        storage = Storage(key, KINDS[name.name], count)
        if self.storages.setdefault(key, storage) != storage:
            raise ValueError(f"it describes the numbers {shown(key)} in two ways")
        return storage


_CONSTANTS: Mapping[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_DICT": dict,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
}
_LITERALS = (
    *("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"),
    *("BINUNICODE", "SHORT_BINUNICODE", "SHORT_BINSTRING", "BINSTRING"),
)
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


def _known(module: str, name: str = "") -> _Name:
    """Look a name up in the table; all others are refused."""
    found = _Name(module, name)
    if found not in _MEANINGS:
        raise RefusedError(
            f"it asks for {shown(module)}.{shown(name)}, which no state dict needs; nothing was "
            "executed, and it is best not to open the file with torch"
        )
    return found


def _expect(value: Any, kind: type) -> Any:
    if not isinstance(value, kind):
        raise ValueError("its pickle makes something other than a state dict")
    return value
