"""Unpickler for files of weights that cannot execute code, because none of its instructions does.

Python's own unpickler imports and calls what a file names. This one builds the few objects of files of weights itself: numbers,
texts, containers, `argparse.Namespace`, and *descriptions* of tensors. It imports nothing and calls nothing. Objects of random
states and optimizers (NumPy's arrays, loss scalers) become an `OpaqueObject`, which holds the name only. Any other name in a file
raises LayoutError.
"""

from __future__ import annotations

import pickletools
import struct
from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from pangu_sigma.foreign.dense_model import LayoutError

MOST_PICKLED = 64 << 20
"""Maximum bytes of a pickle: the pickle of a 13B model with its optimizer has less than a hundredth."""
MOST_STEPS = 2_000_000
"""Maximum number of instructions of a pickle."""

STORAGES = {
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "DoubleStorage": "float64",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
    "UntypedStorage": "uint8",
}
"""Storage class of torch → dtype of its values."""
_DTYPES = frozenset(
    (
        *("float16", "half", "float32", "float", "float64", "double", "bfloat16", "int8", "int16", "short"),
        *("int32", "int", "int64", "long", "uint8", "bool"),
    )
)
_INERT = frozenset(
    (
        *("numpy ndarray", "numpy dtype", "numpy.core.multiarray _reconstruct", "numpy._core.multiarray _reconstruct"),
        *("numpy.core.multiarray scalar", "numpy._core.multiarray scalar", "_codecs encode", "torch device"),
        *("builtins set", "__builtin__ set", "collections defaultdict", "__builtin__ bytes", "__builtin__ bytearray"),
        *("torch Generator", "torch.serialization _get_layout"),
    )
)
_INERT_MODULES = ("megatron.", "fp16.", "deepspeed.", "apex.")
"""Module prefixes of the trainers that wrote the files: states of their loss scalers and optimizers are skipped."""


@dataclass(frozen=True)
class OpaqueObject:
    """Placeholder for an object of a pickle that is not built; name: class or function that makes it."""

    name: str


@dataclass(frozen=True)
class Storage:
    """Storage of a torch tensor. kind: dtype of the values. key: name of the storage in the file. size: number of values."""

    kind: str
    key: str
    size: int


@dataclass(frozen=True)
class PickledTensor:
    """Torch tensor that a pickle describes: a view of a storage. offset, shape, strides: values in the file, unchecked."""

    storage: Storage
    offset: Any
    shape: Any
    strides: Any


@dataclass(frozen=True)
class _Global:
    """Name of a class or function that a pickle may use."""

    name: str


class _Mark:
    """Mark on the unpickler's stack before a group of values."""


_ALLOWED = frozenset(
    (
        *("collections OrderedDict", "argparse Namespace", "torch Size", "builtins object", "__builtin__ object"),
        *("torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_tensor", "torch._utils _rebuild_parameter"),
        *("copyreg _reconstructor", "copy_reg _reconstructor"),
    )
)


def load_pickle(stream: BinaryIO, file: Path, kinds: dict[str, str] | None = None) -> Any:
    """Read the pickle at a stream's position without executing it, and return its value; the stream is then after the pickle.
    kinds: gets the dtype of each storage, by its key. Raises LayoutError, which names the file and the problem."""
    machine = _Machine(file, {} if kinds is None else kinds)
    try:
        return machine.run(stream)
    except LayoutError:
        raise
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError, struct.error, RecursionError) as error:
        raise LayoutError(f"{file}: its pickle is damaged ({str(error)[:80]}); download it again") from None


class _Limited:
    """Stream limited to MOST_PICKLED bytes from its position on, for the reader of instructions."""

    def __init__(self, stream: BinaryIO):
        self._stream, self._left, self.tell = stream, MOST_PICKLED, stream.tell

    def read(self, size: int) -> bytes:
        if not 0 <= size <= self._left:
            raise ValueError(f"{size} bytes are asked for")
        self._left -= size
        return self._stream.read(size)

    def readline(self) -> bytes:
        line = self._stream.readline(self._left)
        self._left -= len(line)
        return line


class _Machine:
    """Stack machine of the unpickler: a stack, a memo, and one method for each instruction that needs one."""

    def __init__(self, file: Path, kinds: dict[str, str]):
        self.file, self.kinds = file, kinds
        self.stack: list[Any] = []
        self.memory: dict[int, Any] = {}

    def run(self, stream: BinaryIO) -> Any:
        for steps, (opcode, argument, _) in enumerate(pickletools.genops(_Limited(stream))):  # type: ignore[arg-type]
            if steps > MOST_STEPS:
                raise LayoutError(
                    f"{self.file}: its pickle has more than {MOST_STEPS:,} instructions; no file of weights needs them"
                )
            name = opcode.name
            if name == "STOP":
                (value,) = self.stack
                return value
            if name in _CONSTANTS:
                self.stack.append(_CONSTANTS[name])
            elif name in _VALUES:
                self.stack.append(argument)
            elif name in _INSTRUCTIONS:
                _INSTRUCTIONS[name](self, argument)
            else:
                raise LayoutError(f"{self.file}: its pickle uses the instruction {name}, which no weights need")
        raise ValueError("it has no end")

    def to_mark(self) -> list[Any]:
        """Pop the values above the newest mark, and the mark, from the stack, and return the values."""
        group: list[Any] = []
        while not isinstance(value := self.stack.pop(), _Mark):
            group.append(value)
        return group[::-1]

    def last(self, count: int) -> list[Any]:
        """Pop the last values of the stack, and return them."""
        if len(self.stack) < count:
            raise ValueError("fewer values than are needed")
        group = self.stack[len(self.stack) - count :]
        del self.stack[len(self.stack) - count :]
        return group

    def named(self, name: str) -> None:
        """Push the class or function of a name. Raises LayoutError for a name that a pickle may not use."""
        module, _, attribute = name.partition(" ")
        if module in ("torch", "torch.storage") and attribute in STORAGES:
            self.stack.append(_Global(attribute))
        elif name in _ALLOWED:
            self.stack.append(_Global(name))
        elif module == "torch" and attribute in _DTYPES:
            self.stack.append(attribute)
        elif name in _INERT or name.startswith(_INERT_MODULES):
            self.stack.append(OpaqueObject(name))
        else:
            raise LayoutError(
                f"{self.file}: its pickle asks for {name.replace(' ', '.')[:80]}, which is not loaded: it could execute anything; "
                "save the weights alone and use that file"
            )

    def made(self, function: Any, arguments: Any, names: Any = None) -> Any:
        """Return the object that a known class or function makes of its arguments. names: arguments by name; there may be none."""
        if isinstance(function, OpaqueObject):
            return function
        if not isinstance(function, _Global) or type(arguments) is not tuple or names:
            raise ValueError(f"a call of {type(function).__name__}")
        match function.name.split(" ")[-1], arguments:
            case "OrderedDict", ():
                return {}
            case "OrderedDict", ([*pairs],):
                return self.filled([value for key, item in pairs for value in (key, item)], {})
            case "Namespace", ():
                return Namespace()
            case "_reconstructor", (_Global(name="argparse Namespace"), _, None):
                return Namespace()
            case "Size", (sizes,):
                return tuple(sizes)
            case (("_rebuild_tensor_v2" | "_rebuild_tensor"), (Storage() as storage, offset, shape, strides, *_)):
                return PickledTensor(storage, offset, shape, strides)
            case "_rebuild_parameter", (PickledTensor() as tensor, *_):
                return tensor
        raise ValueError(f"a call of {function.name}")

    def storage(self, _: Any) -> None:
        """Push the storage that a persistent id describes."""
        match self.stack.pop():
            case ("storage", _Global(name=kind), str(key), str(), int(size), *view) if (
                kind in STORAGES and 0 <= size < 1 << 48 and view in ([], [None])
            ):
                self.kinds[key] = STORAGES[kind]
                self.stack.append(Storage(STORAGES[kind], key, size))
            case ("storage", OpaqueObject(name=name) | _Global(name=name), *_):
                raise LayoutError(f"{self.file}: a storage is a {name}, which is not read")
            case _:
                raise ValueError("a persistent id that is not of a storage")

    def state(self, _: Any) -> None:
        """Set the values of a Namespace. The state of other objects is dropped: `_metadata` of modules, states of loss scalers."""
        values, target = self.stack.pop(), self.stack[-1]
        if isinstance(target, Namespace):
            if type(values) is not dict or not all(isinstance(key, str) for key in values):
                raise ValueError("a Namespace without names")
            vars(target).update(values)
        elif type(target) is not dict and not isinstance(target, OpaqueObject):
            raise ValueError(f"a state of a {type(target).__name__}")

    def filled(self, group: list[Any], target: Any) -> Any:
        """Add keys and values, in turn, to a dictionary, and return that."""
        if isinstance(target, OpaqueObject):
            return target
        if type(target) is not dict or len(group) % 2:
            raise ValueError("keys and values of what is no dictionary")
        for key, value in zip(group[::2], group[1::2], strict=True):
            if isinstance(key, str | bytes | float | bool | None) or (type(key) is int and abs(key) < 1 << 32):
                target[key] = value
            else:
                raise ValueError(f"a key that is a {type(key).__name__}")
        return target

    def extend(self, group: list[Any], target: Any) -> None:
        """Add values to a list."""
        if type(target) is list:
            target.extend(group)
        elif not isinstance(target, OpaqueObject):
            raise ValueError("values for what is no list")


_CONSTANTS: dict[str, Any] = {
    "NONE": None,
    "NEWTRUE": True,
    "NEWFALSE": False,
    "EMPTY_TUPLE": (),
    "EMPTY_SET": OpaqueObject("set"),
}
_VALUES = frozenset(
    (
        *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT", "STRING", "BINSTRING"),
        *("SHORT_BINSTRING", "UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "SHORT_BINBYTES", "BINBYTES"),
        *("BINBYTES8", "BYTEARRAY8"),
    )
)
"""Instructions that push their own argument."""
_INSTRUCTIONS: dict[str, Callable[[_Machine, Any], Any]] = {
    **dict.fromkeys(("PROTO", "FRAME"), lambda machine, _: None),
    "MARK": lambda machine, _: machine.stack.append(_Mark()),
    "POP": lambda machine, _: machine.stack.pop(),
    "DUP": lambda machine, _: machine.stack.append(machine.stack[-1]),
    "EMPTY_LIST": lambda machine, _: machine.stack.append([]),
    "EMPTY_DICT": lambda machine, _: machine.stack.append({}),
    "LIST": lambda machine, _: machine.stack.append(machine.to_mark()),
    "TUPLE": lambda machine, _: machine.stack.append(tuple(machine.to_mark())),
    "DICT": lambda machine, _: machine.stack.append(machine.filled(machine.to_mark(), {})),
    "FROZENSET": lambda machine, _: machine.stack.append(OpaqueObject(f"frozenset of {len(machine.to_mark())}")),
    "TUPLE1": lambda machine, _: machine.stack.append(tuple(machine.last(1))),
    "TUPLE2": lambda machine, _: machine.stack.append(tuple(machine.last(2))),
    "TUPLE3": lambda machine, _: machine.stack.append(tuple(machine.last(3))),
    "APPEND": lambda machine, _: machine.extend(machine.last(1), machine.stack[-1]),
    "APPENDS": lambda machine, _: machine.extend(machine.to_mark(), machine.stack[-1]),
    "SETITEM": lambda machine, _: machine.filled(machine.last(2), machine.stack[-1]),
    "SETITEMS": lambda machine, _: machine.filled(machine.to_mark(), machine.stack[-1]),
    **dict.fromkeys(("POP_MARK", "ADDITEMS"), lambda machine, _: machine.to_mark()),  # sets are not built
    **dict.fromkeys(
        ("GET", "BINGET", "LONG_BINGET"), lambda machine, index: machine.stack.append(machine.memory[index])
    ),
    **dict.fromkeys(
        ("PUT", "BINPUT", "LONG_BINPUT"), lambda machine, index: machine.memory.update({index: machine.stack[-1]})
    ),
    "MEMOIZE": lambda machine, _: machine.memory.update({len(machine.memory): machine.stack[-1]}),
    "GLOBAL": _Machine.named,
    "STACK_GLOBAL": lambda machine, _: machine.named(" ".join(machine.last(2))),
    **dict.fromkeys(("REDUCE", "NEWOBJ"), lambda machine, _: machine.stack.append(machine.made(*machine.last(2)))),
    "NEWOBJ_EX": lambda machine, _: machine.stack.append(machine.made(*machine.last(3))),
    "BUILD": _Machine.state,
    "BINPERSID": _Machine.storage,
}
