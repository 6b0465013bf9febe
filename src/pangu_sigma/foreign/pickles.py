"""Unpickler for files of weights, which imports and calls nothing that a file names.

`_BUILDERS` has the few names that are built: dictionaries, `argparse.Namespace`, and tensors, whose values stay in the file. Random
states and optimizers become an `OpaqueObject`, which holds the name only. Any other name in a file raises LayoutError.

The base is the standard library's unpickler in Python. The one in C keeps its memo as an array, which one instruction of a hostile
file makes 32 GB long.
"""

from __future__ import annotations

import io
import pickle
import re
import struct
from argparse import Namespace
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np

from pangu_sigma.errors import LayoutError
from pangu_sigma.foreign.file_tensors import KINDS, FileTensor, map_tensor

_KINDS = {"FloatStorage": "float32", "HalfStorage": "float16", "BFloat16Storage": "bfloat16"}
_KINDS |= {f"{kind}Storage": kind for kind in ("Double", "Long", "Int", "Short", "Char", "Byte", "Bool", "Untyped")}
"""Storage class of torch → dtype of its values; tensors of the others are no weights."""
_OPAQUE_NAMES = re.compile(
    r"numpy(\._?core\.multiarray)?\.(ndarray|dtype|_reconstruct|scalar)|_codecs\.encode|collections\.defaultdict|"
    r"(builtins|__builtin__)\.(set|object|bytes|bytearray)|(megatron|fp16|deepspeed|apex)\..*|"
    r"torch\.(device|Generator|serialization\._get_layout|bool|u?int\d*|short|long|half|b?float\d*|double)"
)
"""Names of which an OpaqueObject is made. The last but one are trainers', states of their loss scalers and optimizers."""
_REFUSED = (
    *("INST", "OBJ", "NEWOBJ_EX", "EXT1", "EXT2", "EXT4", "PERSID"),
    *("BYTEARRAY8", "NEXT_BUFFER", "READONLY_BUFFER"),
)
"""Instructions of pickles that files of weights do not need."""


@dataclass(frozen=True)
class OpaqueObject:
    """Placeholder for an object of a pickle that is not built; name: class or function that makes it."""

    name: str

    def __call__(self, *_: Any) -> OpaqueObject:
        return self

    append = extend = add = __setitem__ = __call__  # contents are dropped


class Storage(NamedTuple):
    """Bytes of a storage in a mapped file. kind: dtype of the values. check: as in `FileTensor`."""

    file: Path
    content: np.ndarray
    check: Callable[[], None] | None = None
    kind: str = ""


class _SafeDict(dict[Any, Any]):
    """Dictionary of a pickle. Refuses keys whose hashes take a hostile file's time or stack, such as deep tuples."""

    __slots__ = ()

    def __setitem__(self, key: Any, value: Any) -> None:
        if not (isinstance(key, str | bytes | float | bool | None) or (type(key) is int and abs(key) < 1 << 32)):
            raise TypeError(f"a key that is a {type(key).__name__}")
        super().__setitem__(key, value)


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> FileTensor:
    """Return a tensor of torch, a view of a storage."""
    if not isinstance(storage, Storage) or not type(shape) is type(strides) is tuple or len(shape) != len(strides):
        raise TypeError("a tensor without storage, shape and strides")
    tensor = map_tensor(storage.file, "a tensor", storage.kind, shape, storage.content, offset, strides)
    return replace(tensor, check=storage.check)


_BUILDERS: dict[str, Any] = {
    "collections.OrderedDict": lambda: _SafeDict(),  # without arguments: no copies of what a file repeats
    "argparse.Namespace": lambda: Namespace(),
    "torch.Size": lambda sizes: sizes,
    **dict.fromkeys(("torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_tensor"), _tensor),
    "torch._utils._rebuild_parameter": lambda tensor, *_: tensor,
    **dict.fromkeys(("copyreg._reconstructor", "copy_reg._reconstructor"), lambda cls, *_: cls()),
    **{f"{module}.{name}": kind for module in ("torch", "torch.storage") for name, kind in _KINDS.items()},
}
"""Name in a pickle → function that makes the object, or the value."""


def load_pickle(content: bytes, file: Path, storages: Mapping[str, Storage]) -> Any:
    """Return the value of a pickle, with a `FileTensor` for each tensor. storages: by their keys.

    Raises LayoutError, which names the file and the problem.
    """
    try:
        return _WeightsUnpickler(content, file, storages).load()
    except LayoutError:
        raise
    except (
        *(pickle.UnpicklingError, ValueError, LookupError, TypeError, AttributeError, EOFError, OverflowError),
        *(struct.error, MemoryError, RecursionError),
    ) as error:
        raise LayoutError(f"{file}: its pickle is damaged ({str(error)[:80]}); download it again") from None


class _WeightsUnpickler(pickle._Unpickler):
    dispatch: ClassVar[dict[int, Callable[[Any], Any]]] = dict(pickle._Unpickler.dispatch)
    stack: list[Any]
    append: Callable[[Any], None]

    def __init__(self, content: bytes, file: Path, storages: Mapping[str, Storage]):
        super().__init__(io.BytesIO(content))
        self.file, self.storages = file, storages

    def find_class(self, module: str, name: str) -> Any:
        """Return what a pickle may build by this name, an OpaqueObject for what is not built, or raise LayoutError."""
        full = f"{module[:99]}.{name[:99]}"
        if full in _BUILDERS:
            return _BUILDERS[full]
        if _OPAQUE_NAMES.fullmatch(full):
            return OpaqueObject(full)
        raise LayoutError(f"{self.file}: its pickle asks for {full}, which could run anything; save the weights alone")

    def persistent_load(self, pid: Any) -> Storage:
        """Return the storage that a persistent id describes."""
        match pid:
            case ("storage", str(kind), str(key), str(), int(size)) if kind in _KINDS.values():
                if key not in self.storages:
                    raise LayoutError(f"{self.file}: the storage {key[:40]} is missing; take the whole file")
                storage = self.storages[key]._replace(kind=kind)
                if kind in KINDS and size * KINDS[kind].itemsize != len(storage.content):
                    raise ValueError(f"the storage {key[:40]} has {len(storage.content)} bytes, not {size} values")
                return storage
        raise ValueError("a persistent id that is not of a storage")

    def _load_reduce(self) -> None:
        """Call what `find_class` returned."""
        arguments, function = self.stack.pop(), self.stack[-1]
        if type(arguments) is not tuple or len(arguments) > 9:  # which are copied
            raise TypeError(f"a call with a {type(arguments).__name__} of arguments, or more than nine")
        self.stack[-1] = function(*arguments)

    def _load_dict(self) -> None:
        items, safe_dict = self.pop_mark(), _SafeDict()  # type: ignore[attr-defined]
        for key, value in zip(items[::2], items[1::2], strict=True):
            safe_dict[key] = value
        self.append(safe_dict)

    def _load_build(self) -> None:
        """Set the values of a Namespace. Other states are dropped: `_metadata` of modules, states of loss scalers."""
        state, target = self.stack.pop(), self.stack[-1]
        if isinstance(target, Namespace) and isinstance(state, dict):
            target.__dict__ = state  # and no copy, of which a file could ask for millions
        elif not isinstance(target, _SafeDict | OpaqueObject):
            raise TypeError(f"a state of a {type(target).__name__}")

    def _refuse(self, name: str) -> None:
        raise LayoutError(f"{self.file}: its pickle uses the instruction {name}, which no weights need")


_WeightsUnpickler.dispatch |= {
    pickle.EMPTY_DICT[0]: lambda self: self.append(_SafeDict()),
    pickle.DICT[0]: _WeightsUnpickler._load_dict,
    pickle.EMPTY_SET[0]: lambda self: self.append(OpaqueObject("set")),
    pickle.FROZENSET[0]: lambda self: (self.pop_mark(), self.append(OpaqueObject("frozenset"))),
    # functions stand for classes
    **dict.fromkeys((pickle.REDUCE[0], pickle.NEWOBJ[0]), _WeightsUnpickler._load_reduce),
    pickle.BUILD[0]: _WeightsUnpickler._load_build,
    **{getattr(pickle, name)[0]: partial(_WeightsUnpickler._refuse, name=name) for name in _REFUSED},
}
