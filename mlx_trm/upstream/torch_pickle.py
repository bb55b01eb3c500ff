"""Reads the pickles of ``torch.save`` without running anything in them.

A pickle is a program: unpickling may import and call whatever it names. Here the standard
library's unpickler asks this module for each name, and gets no function or class but a
:class:`_Name`: nothing in a pickle can change it, and calling it describes a tensor, or gives
:data:`UNREAD`, which stands for what trainers keep beside weights (arrays of NumPy, options). Any
other name is refused. Besides, only the instructions that a checkpoint takes reach the unpickler,
in bounded numbers: others take objects without asking, fill the memory, or go on for hours
(:func:`_copy_permitted`).
"""

import io
import pickle
import pickletools
from typing import IO, Any, Callable, Dict, Mapping, NamedTuple, Optional, Tuple

import mlx.core as mx

from mlx_trm.errors import shown

# A state dict takes some kilobytes, a few dozen instructions a tensor.
MOST_PICKLED, _MOST_INSTRUCTIONS = 1 << 24, 1_000_000
_MOST_DIMENSIONS, _LONGEST_DIMENSION, _LONGEST_KEY = 8, 2**31 - 1, 2**16
# Keys that are numbers: an optimiser's, of its parameters. Small ones, which cannot collide.
_MOST_KEYS = 2**20
_MEND = "save model.state_dict() alone"
_NO_FUNCTION = "it calls what is no function of a state dict; nothing was executed"
_NO_PICKLE = "its pickle is damaged or cut short; copy the file again"
_NO_STORAGE = "its storages are described in a way that is not known"
_NO_STATE_DICT = f"its pickle makes something other than a state dict; {_MEND}"


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


# What names mean ---------------------------------------------------------------------------------


class _Name(NamedTuple):
    """What stands for a name in the pickle; calling it does what the name means here.

    It is a tuple because functions and classes have attributes, which instructions can set: then
    the name would do something else, in this file and in the next one.
    """

    module: str
    name: str

    def __call__(self, *arguments: Any) -> Any:
        """Do what the table says; nothing that the file brings is ever called."""
        meaning = _MEANINGS[self]
        if meaning is None:
            raise RefusedError(_NO_FUNCTION)
        try:
            return meaning(*arguments)
        except TypeError as error:  # too few arguments, or too many
            raise ValueError("a tensor's description is malformed") from error


class _Unread:
    """Stands for an object that is not read; whatever a pickle puts into it is dropped."""

    __slots__ = ()

    def __setstate__(self, _state: Any) -> None:
        """Drop a state."""

    def __setitem__(self, _key: Any, _value: Any) -> None:
        """Drop an item."""

    def append(self, _item: Any) -> None:
        """Drop an element."""

    def extend(self, _items: Any) -> None:
        """Drop elements."""


UNREAD = _Unread()


class _PlainDict(Dict[Any, Any]):
    """A dict whose keys are texts, or an optimiser's numbers.

    Others, as tuples of tuples of tuples, could hash for hours.
    """

    __slots__ = ()

    def __setitem__(self, key: Any, value: Any) -> None:
        """Take an item from the pickle."""
        if not isinstance(key, str) and not (_is_count(key) and key < _MOST_KEYS):
            raise ValueError(_NO_STATE_DICT)
        super().__setitem__(key, value)

    def __setstate__(self, _attributes: Any) -> None:
        """Drop attributes, such as the versions that torch keeps beside a state dict."""


def _new_dict(*content: Any) -> Dict[Any, Any]:
    if content:
        raise ValueError("collections.OrderedDict with content, which torch.save never writes")
    return _PlainDict()


def _leave_unread(*_: Any) -> _Unread:
    """Give what stands for an object that no weights are in."""
    return UNREAD


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _sizes(value: Any = ()) -> Tuple[int, ...]:
    """Check a shape, or strides."""
    whole = isinstance(value, tuple) and all(map(_is_count, value))
    if not whole or len(value) > _MOST_DIMENSIONS or max(value, default=0) > _LONGEST_DIMENSION:
        raise ValueError("a tensor's shape or strides make no sense")
    return value


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
    shape, strides = _sizes(shape), _sizes(strides)
    if len(shape) != len(strides):
        raise ValueError("a tensor's shape and strides make no sense")
    last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides))
    if offset > storage.size or (0 not in shape and last >= storage.size):
        raise ValueError(
            f"a tensor of shape {shape} lies outside of its {storage.size} numbers: offset "
            f"{min(offset, _LONGEST_DIMENSION)}, strides {strides}"
        )
    return Tensor(storage, offset, shape, strides)


def _with_type(function: Any, _type: Any, arguments: Any, *_: Any) -> Any:
    """Describe a tensor that carried attributes of its own; such a one is not in another."""
    inner = isinstance(function, _Name) and _MEANINGS[function] is not _with_type
    if not inner or not isinstance(arguments, tuple):
        raise RefusedError(_NO_FUNCTION)
    return function(*arguments)


# What trainers keep beside weights, by module: states of random generators, options, paths, dates,
# dtypes. None of these is ever looked up; a call of one gives UNREAD.
_BESIDE = {
    "_codecs": "encode",
    "argparse": "Namespace",
    "collections": "Counter deque",
    "datetime": "date datetime timedelta timezone",
    "lightning.fabric.utilities.data": "AttributeDict",
    "lightning_fabric.utilities.data": "AttributeDict",
    "numpy": "dtype ndarray",
    "numpy._core.multiarray": "_reconstruct scalar",
    "numpy.core.multiarray": "_reconstruct scalar",
    "pathlib": "Path PosixPath PurePath PurePosixPath PureWindowsPath WindowsPath",
    "pathlib._local": "Path PosixPath PurePath PurePosixPath PureWindowsPath WindowsPath",
    "pytorch_lightning.utilities.parsing": "AttributeDict",
    "torch": "bfloat16 bool device float16 float32 float64 int16 int32 int64 int8 uint8",
    "types": "SimpleNamespace",
    "typing": "Any",
}
# What each name means; None: it is mentioned only.
_MEANINGS: Mapping[_Name, Optional[Callable[..., Any]]] = {
    **{
        _Name(module, name): _leave_unread
        for module, names in _BESIDE.items()
        for name in names.split()
    },
    _Name("collections", "OrderedDict"): _new_dict,
    _Name("torch._utils", "_rebuild_tensor"): _view,
    _Name("torch._utils", "_rebuild_tensor_v2"): _view,
    _Name("torch._utils", "_rebuild_parameter"): lambda tensor, *_: tensor,
    _Name("torch._utils", "_rebuild_parameter_with_state"): lambda tensor, *_: tensor,
    _Name("torch._tensor", "_rebuild_from_type_v2"): _with_type,
    _Name("torch", "Size"): _sizes,
    _Name("torch", "Tensor"): None,
    _Name("torch.nn.parameter", "Parameter"): None,
    _Name("torch.nn.parameter", "Buffer"): None,
    **{_Name("torch", storage): None for storage in KINDS},
}


# The pickle --------------------------------------------------------------------------------------

# What the unpickler raises for one that makes no sense, or needs more than there is.
_DAMAGED = (
    *(pickle.UnpicklingError, EOFError, LookupError, UnicodeDecodeError),
    *(MemoryError, OverflowError, RecursionError),
)
# Those of protocols 2 to 5 that torch.save uses. Of the others, EXT1 hands out any object that this
# process has given a number, without asking, and LONG may read a million digits for hours.
_OPCODES = {opcode.code.encode("latin-1"): opcode for opcode in pickletools.opcodes}
_PERMITTED = frozenset(
    "PROTO FRAME STOP MARK NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1 BINFLOAT BINUNICODE "
    "SHORT_BINUNICODE BINSTRING SHORT_BINSTRING EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 EMPTY_LIST "
    "APPEND APPENDS EMPTY_DICT SETITEM SETITEMS BINPUT LONG_BINPUT MEMOIZE BINGET LONG_BINGET "
    "GLOBAL STACK_GLOBAL REDUCE BUILD BINPERSID NEWOBJ".split()
)
# What the unpickler follows instead. A dict is made as an OrderedDict is, since its own would take
# any key; a new object is made by a call, since no name stands for a class. That changes the sizes
# of frames, which say only how far to read ahead.
_REPLACED = {
    "EMPTY_DICT": b"ccollections\nOrderedDict\n)R",
    "FRAME": b"",
    "NEWOBJ": b"R",
    "PROTO": b"",
}


def _copy_permitted(stream: IO[bytes]) -> Tuple[bytearray, str]:
    """Copy one pickle up to the first instruction that is not permitted.

    Args:
        stream: stands where the pickle begins; a whole pickle leaves it behind the pickle.

    Returns:
        The copy, and what is wrong with the instruction, or an empty string.
    """
    start, copy = stream.tell(), bytearray()
    source = io.BytesIO(stream.read(MOST_PICKLED))
    for _ in range(_MOST_INSTRUCTIONS):
        place = source.tell()
        opcode = _OPCODES.get(source.read(1))
        if opcode is None:
            return copy, _NO_PICKLE
        if opcode.name not in _PERMITTED:
            return copy, f"its pickle uses {opcode.name}, which no state dict needs; {_MEND}"
        try:
            argument = opcode.arg.reader(source) if opcode.arg else 0
        except (ValueError, Warning) as error:  # a warning: of escapes in a name, under -W error
            return copy, f"its pickle is damaged ({shown(error)}); copy the file again"
        if opcode.name == "LONG_BINPUT" and argument > _MOST_INSTRUCTIONS:
            return copy, _NO_PICKLE
        copy += _REPLACED.get(opcode.name, source.getbuffer()[place : source.tell()])
        if opcode.name == "STOP":
            stream.seek(start + source.tell())
            return copy, ""
    return copy, f"its pickle is longer than any state dict's; {_MEND}"


class _Unpickler(pickle.Unpickler):
    """The standard library's, with answers of our own to all that it asks."""

    storages: Dict[str, Storage]

    def find_class(self, module: str, name: str) -> _Name:
        """Give what stands for a name."""
        found = _Name(module, name)
        if found not in _MEANINGS:
            raise RefusedError(
                f"it asks for {shown(module)}.{shown(name)}, which no state dict needs; nothing "
                "was executed, and it is best not to open the file with torch; where you trust "
                f"it, {_MEND}"
            )
        return found

    def persistent_load(self, pid: Any) -> Storage:
        """Read the description of a storage."""
        if not isinstance(pid, tuple) or len(pid) not in (5, 6) or pid[0] != "storage":
            raise ValueError(_NO_STORAGE)
        _, kind, key, _, count = pid[:5]
        if not isinstance(kind, _Name) or kind.name not in KINDS:
            raise ValueError(_NO_STORAGE)
        if not isinstance(key, str) or len(key) > _LONGEST_KEY:
            raise ValueError(_NO_STORAGE)
        if not _is_count(count) or count > 2**48:
            raise ValueError("a storage's size makes no sense")
        if len(pid) == 6 and pid[5] is not None:
            raise ValueError("it holds views of storages, as torch before 0.4 wrote them")
        storage = Storage(key, KINDS[kind.name], count)
        if self.storages.setdefault(key, storage) != storage:
            raise ValueError(f"it describes the numbers {shown(key)} in two ways")
        return storage


class PickleReader:
    """Reads one pickle of a file.

    Attributes:
        storages: described so far, by key.
    """

    def __init__(self, stream: IO[bytes]) -> None:
        """Begin where the stream stands; reading leaves it behind the pickle."""
        self.storages: Dict[str, Storage] = {}
        self._stream = stream

    def read(self) -> Any:
        """Give what the pickle describes.

        Raises:
            RefusedError: for a name that no state dict takes, or a call of no function.
            ValueError: for an instruction that none takes, or nonsense, as in a file that is no
                pickle.
        """
        # What comes before a bad instruction is followed all the same: a name may tell more.
        copied, wrong = _copy_permitted(self._stream)
        unpickler = _Unpickler(io.BytesIO(copied), encoding="latin-1")  # as Python 2 wrote texts
        unpickler.storages = self.storages
        try:
            return unpickler.load()
        except (AttributeError, TypeError) as error:
            raise ValueError(wrong or _NO_STATE_DICT) from error
        except _DAMAGED as error:
            raise ValueError(wrong or _NO_PICKLE) from error
