"""PanGu-Σ: sparse language models with Random Routed Experts on MindSpore.

    import pangu_sigma as ps
    config = ps.load_config("sigma_tiny", {"train.steps": 100})
    ps.prepare_data(config)
    model = ps.train(config, "runs/mine")
    print(model.generate("The", domain="en", max_new_tokens=32, temperature=0.8))
    model.export("exports/mine", format="mindir")

Text and training: load_config, prepare_data, write_routing, train, launch, finetune. Measures: metrics, evaluate, benchmark,
report, inspect, plan, doctor. Models from models: inherit, extend, extract, export. A trained one: load, which gives a Model;
generate, chat, serve. Most are commands of `pangu-sigma`, too. Further classes, each with a help of its own: Config is a
configuration, Receipt what inherit, extend and extract return, Score what Model.score does, UserError any mistake that its message
says how to mend. Importing this package is quick: dependencies come at first use.
"""

from __future__ import annotations

import importlib
import os
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pangu_sigma.api import *
    from pangu_sigma.api import Receipt as Receipt

    __version__: str

__all__ = ["Model", "__version__", "benchmark", "chat", "doctor", "evaluate", "export", "extend", "extract", "finetune"]
__all__ += ["generate", "inherit", "inspect", "launch", "load", "load_config", "metrics", "plan", "prepare_data"]
__all__ += ["report", "serve", "train", "write_routing"]
_CLASSES = ("Config", "Receipt", "Score", "UserError")
"""Public classes that help(ps) leaves out: they are made by calls, and what they inherit from pydantic fills pages."""

# MindSpore crashes when another package has loaded protobuf's compiled backend before it.
os.environ.setdefault("PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION", "python")

# The kernels of `ascend_ops` run on OpenMP threads, MindSpore on threads of its own. By default OpenMP's threads spin for
# milliseconds after a kernel and hold the cores that MindSpore's next operators need: a sixth of a step on two cores. It must be
# set before MindSpore is imported, which loads OpenMP.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# MindSpore's many warnings are about its internals; 3 shows its errors only.
os.environ.setdefault("GLOG_v", "3")


class _Face(ModuleType):
    """Module type of this package, whose public functions stay visible although some folders have the same names. Code of the
    project writes `from pangu_sigma.training.loop import …`, which does not read attributes."""

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute, except a folder under a public name: importing the folder `serve` would hide the function `serve`."""
        if not (name in __all__ and isinstance(value, ModuleType)):
            super().__setattr__(name, value)

    def __getattr__(self, name: str) -> Any:
        """Import a public name when it is first used, so that importing the package stays quick."""
        if name == "__version__":
            return importlib.import_module("importlib.metadata").version("pangu-sigma")
        if name == "Receipt":  # it needs MindSpore, unlike the rest of this interface
            return importlib.import_module("pangu_sigma.inherit.receipt").Receipt
        if name in __all__ or name in _CLASSES:
            return getattr(importlib.import_module("pangu_sigma.api"), name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __dir__(self) -> list[str]:
        """Return the public names: not the folders that happen to be imported, which would fill help(ps) and completion."""
        return sorted({*(name for name in globals() if name.startswith("__")), *__all__, *_CLASSES})


sys.modules[__name__].__class__ = _Face
