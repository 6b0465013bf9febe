"""Runs preprocess_data_pangu.py of PanGu-α's authors in the environment of the peers: the script's path and its options.

The script and the files that do its work are unchanged. What is passed over are the initial files of their packages, which import
the training of old versions of torch; numpy.float, which has gone, is float.
"""

from __future__ import annotations

import runpy
import sys
import types
from pathlib import Path

import numpy

numpy.float = float  # type: ignore[attr-defined]
script = Path(sys.argv[1])
megatron, *inner = (types.ModuleType(name) for name in ("megatron", "megatron.tokenizer", "megatron.data"))
megatron.print_rank_0 = print  # type: ignore[attr-defined]
for module in (megatron, *inner):
    module.__path__ = [str(script.parents[1] / module.__name__.replace(".", "/"))]
    sys.modules[module.__name__] = module
for module in inner:
    setattr(megatron, module.__name__.rpartition(".")[2], module)
del sys.argv[0]
runpy.run_path(str(script), run_name="__main__")
