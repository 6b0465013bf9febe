"""Unpickler for files of weights, which imports and calls nothing that a file names.

`_BUILDERS` has the few names that are built: dictionaries, `argparse.Namespace`, and tensors, whose values stay in the file. Random
states and optimizers become an `OpaqueObject`, which holds the name only. Any other name in a file raises LayoutError. A hostile
file can still ask for more memory than there is, as of torch's own unpickler.
"""

from __future__ import annotations

import io
import pickle
import pickletools
import re
from argparse import Namespace
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

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
_MOST_TUPLES = 30_000
"""Maximum number of tuples, of which a tensor has four or five: nested ones have a hash that takes the stack of the process."""


class OpaqueObject:
    """Placeholder for an object of a pickle that is not built: its contents are dropped. name: class or function that makes it."""

    name = ""

    def __new__(cls, *_: Any) -> OpaqueObject:
        return super().__new__(cls)

    def _drop(self, *_: Any) -> None:
        """Take contents, in each of the ways that pickles have."""

    __init__ = append = extend = add = __setitem__ = __setstate__ = _drop


class Storage(NamedTuple):
    """Bytes of a storage in a mapped file. kind: dtype of the values. check: as in `FileTensor`."""

    file: Path
    content: np.ndarray
    check: Callable[[], None] | None = None
    kind: str = ""


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> FileTensor:
    """Return a tensor of torch, a view of a storage. offset, shape, strides: in values, as the pickle states them, unchecked."""
    if not isinstance(storage, Storage) or not type(shape) is type(strides) is tuple or len(shape) != len(strides):
        raise TypeError("a tensor without storage, shape and strides")
    tensor = map_tensor(storage.file, "a tensor", storage.kind, shape, storage.content, offset, strides)
    return replace(tensor, check=storage.check)


_BUILDERS: dict[str, Any] = {
    "collections.OrderedDict": dict,
    "argparse.Namespace": Namespace,
    "torch.Size": lambda sizes: sizes,
    **dict.fromkeys(("torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_tensor"), _tensor),
    "torch._utils._rebuild_parameter": lambda tensor, *_: tensor,
    **dict.fromkeys(("copyreg._reconstructor", "copy_reg._reconstructor"), lambda cls, *_: cls()),
    **{f"{module}.{name}": kind for module in ("torch", "torch.storage") for name, kind in _KINDS.items()},
}
"""Name in a pickle → class or function that makes the object, or the value."""


def load_pickle(content: bytes, file: Path, storages: Mapping[str, Storage]) -> Any:
    """Return the object in a pickle, with a `FileTensor` for each tensor. storages: the tensors' bytes, by the keys in the pickle.

    Raises LayoutError for a damaged pickle, and for one that names a class or function that is not built here.
    """
    try:
        if sum(code.name.startswith("TUPLE") for code, _, _ in pickletools.genops(content)) > _MOST_TUPLES:
            raise LayoutError(f"{file}: its pickle has more than {_MOST_TUPLES:,} tuples; save the weights alone")
        return _WeightsUnpickler(content, file, storages).load()
    except LayoutError:
        raise
    except (
        *(pickle.UnpicklingError, ValueError, LookupError, TypeError, AttributeError, EOFError, OverflowError),
        *(MemoryError, RecursionError),
    ) as error:
        raise LayoutError(f"{file}: its pickle is damaged ({str(error)[:80]}); download it again") from None


class _WeightsUnpickler(pickle.Unpickler):
    def __init__(self, content: bytes, file: Path, storages: Mapping[str, Storage]):
        super().__init__(io.BytesIO(content))
        self.file, self.storages = file, storages

    def find_class(self, module: str, name: str) -> Any:
        """Return the class, function or value that a name in the pickle stands for: the one in _BUILDERS, or for _OPAQUE_NAMES a
        class of OpaqueObject. Raises LayoutError for any other name."""
        full = f"{module[:99]}.{name[:99]}"
        if full in _BUILDERS:
            builder = _BUILDERS[full]
            # a subclass or a partial of its own, because a pickle can set attributes of what it names
            if isinstance(builder, type):
                return type(name, (builder,), {})
            return partial(builder) if callable(builder) else builder
        if _OPAQUE_NAMES.fullmatch(full):
            return type(name, (OpaqueObject,), {"name": full})
        raise LayoutError(f"{self.file}: its pickle asks for {full}, which could run anything; save the weights alone")

    def persistent_load(self, pid: Any) -> Storage:
        """Return the storage that a persistent id describes: ("storage", dtype, key, device, number of values). Raises ValueError
        for any other id, LayoutError if the file lacks the storage."""
        match pid:
            case ("storage", str(kind), str(key), str(), int(size)) if kind in _KINDS.values():
                if key not in self.storages:
                    raise LayoutError(f"{self.file}: the storage {key[:40]} is missing; take the whole file")
                storage = self.storages[key]._replace(kind=kind)
                if kind in KINDS and size * KINDS[kind].itemsize != len(storage.content):
                    raise ValueError(f"the storage {key[:40]} has {len(storage.content)} bytes, not {size} values")
                return storage
        raise ValueError("a persistent id that is not of a storage")
