"""Stand-ins for the CANN libraries, so that MindSpore's Ascend plugin loads on a machine without CANN: `MS_SIMULATION_LEVEL=0`
compiles a whole graph for any number of ranks. Nothing runs and no kernel exists.

A process that uses the stand-ins must turn off the check for HCCL's Python package (`GlobalComm.CHECK_ENVS`), call `name_soc`,
because MindSpore decides several things by the NPU's name and under simulation asks nobody for it, and exit through `os._exit`,
because unloading the stand-ins crashes. The compiled graph is the last `*_validate_*.ir` that MindSpore saved.
"""

from __future__ import annotations

import ctypes
import hashlib
import re
import shutil
import subprocess
import sysconfig
import tempfile
from pathlib import Path

from ascend_ops.errors import BuildError
from ascend_ops.library import cache_folder
from pangu_sigma.chips import CHIP_DATA, Chip, family
from pangu_sigma.npu.host.access import COMPUTE_UNITS
from pangu_sigma.process import child_environment

MINDSPORE_LIB = Path(sysconfig.get_paths()["purelib"]) / "mindspore" / "lib"

_LIBRARIES = (
    "libge_runner libgraph libascendcl libmsprofiler libhccl libruntime libplatform libc_sec libnnopbase libascend_hal libprofapi "
    "libregister libmmpa libascendalog libatb libacl_op_compiler libacl_tdt_channel driver/libascend_hal"
)
"""Libraries that the plugin loads, by blanks."""

_TOOLS = ("gcc", "g++", "nm", "strings", "c++filt")
_DLSYM_NAME = re.compile(r"(acl\w*|hal[A-Z]\w+|Hccl\w+|Hcom\w+)")
"""Symbols that the plugin looks up with dlsym when it loads."""

_STATUS_FACTORY = """
#include <cstdint>
#include <map>
#include <string>
namespace ge {  // used by inline code at load time, so it needs a real map, of the old C++ ABI that CANN is built with
struct StatusFactory { static StatusFactory *Instance(); };
StatusFactory *StatusFactory::Instance() {
  static std::map<uint32_t, std::string> errors;
  return reinterpret_cast<StatusFactory *>(&errors);
}
}
"""
_DEFINED_IN_STATUS_SOURCE = {"_ZN2ge13StatusFactory8InstanceEv"}

_NAME_SOURCE = """
#include <memory>
#include <string>
namespace mindspore {
struct MsContext {
  static std::shared_ptr<MsContext> GetInstance();
  std::string ascend_soc_version() const;
  void set_ascend_soc_name(const std::string &);
  void set_ascend_soc_version(const std::string &);
};
}
extern "C" void name_soc(const char *name, const char *version) {
  auto context = mindspore::MsContext::GetInstance();
  context->ascend_soc_version();  // asks once in a process, and under simulation notes that there is no name
  context->set_ascend_soc_name(name);
  context->set_ascend_soc_version(version);
}
"""
"""Source of a library that gives MindSpore's context the name of an NPU."""


def name_soc(chip: Chip) -> None:
    """Give MindSpore in this process the name of the NPU, as CANN would. Call it after importing MindSpore and first of all."""
    library = ctypes.CDLL(str(build_cann_stub() / "cann" / "lib64" / "libname_soc.so"))
    library.name_soc(CHIP_DATA[chip].soc.encode(), COMPUTE_UNITS[family(chip)].encode())


def ascend_environment(ranks: int, rank: int = 0) -> dict[str, str]:
    """Return the environment of a process that compiles the graph of rank `rank` of `ranks`. The first call builds the
    stand-ins."""
    root = build_cann_stub()
    lib64 = root / "cann" / "lib64"
    paths = [lib64, MINDSPORE_LIB, MINDSPORE_LIB / "plugin", MINDSPORE_LIB / "plugin" / "ascend"]
    return {
        **child_environment(),
        "LD_LIBRARY_PATH": ":".join(map(str, paths)),
        "ASCEND_OPP_PATH": str(root / "cann" / "opp"),
        "MS_SIMULATION_LEVEL": "0",
        "RANK_SIZE": str(ranks),
        "RANK_ID": str(rank),
        "GLOG_v": "3",
    }


def build_cann_stub() -> Path:
    """Build stand-ins for CANN's libraries with g++, once for a MindSpore version, and return the folder that has `cann/lib64`."""
    version = (MINDSPORE_LIB.parent / "version.py").read_bytes()
    digest = hashlib.sha256(Path(__file__).read_bytes() + version).hexdigest()[:16]
    target = cache_folder() / f"cann_stub_{digest}"
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as temporary:
            root = Path(temporary) / target.name
            _build(root)
            try:
                root.rename(target)
            except OSError:
                if not target.exists():  # else another process was faster
                    raise
    return target


def _build(root: Path) -> None:
    """Compile the libraries into `root`. Nearly all their functions return 0; the others are the few whose results MindSpore uses.
    Raises BuildError if a tool is missing or fails."""
    if missing_tools := [tool for tool in _TOOLS if shutil.which(tool) is None]:
        raise BuildError(f"CANN stand-ins need {', '.join(missing_tools)} on PATH; install gcc, g++ and binutils")
    lib64, work, acl = root / "cann/lib64", root / "build", root / "cann/include/acl"
    for folder in (lib64 / "driver", root / "cann/opp", acl, work):
        folder.mkdir(parents=True)
    (acl / "acl_base.h").write_text("#include <cstdint>\n")  # all that MindSpore's glue for aclnn operators needs of it
    plugin = _plugin_libraries()
    # linked: symbols that the loader needs at once; late: symbols that the plugin looks up by name
    linked_names = _missing_symbols(plugin)
    late_names = _dlsym_names(plugin) - set(linked_names) - _DEFINED_IN_STATUS_SOURCE
    late_source = "".join(f"long {name}(void) {{ return 0; }}\n" for name in sorted(late_names))
    sources = {"linked.c": _linked_source(linked_names), "late.c": late_source, "empty.c": ""}
    sources |= {"status.cc": _STATUS_FACTORY, "name_soc.cc": _NAME_SOURCE}
    for name, text in sources.items():
        (work / name).write_text(text)
    _run_tool(work, "gcc", "-w", "-c", "-fPIC", "linked.c", "late.c", "empty.c")
    _run_tool(work, "g++", "-w", "-c", "-fPIC", "-D_GLIBCXX_USE_CXX11_ABI=0", "status.cc", "name_soc.cc")
    late_libraries = ("libacl_op_compiler", "libacl_tdt_channel", "libmsprofiler", "driver/libascend_hal")
    objects = {"libascendcl": ["linked.o", "late.o", "status.o"]} | {name: ["late.o"] for name in late_libraries}
    for name in _LIBRARIES.split():
        soname = f"-Wl,-soname,{Path(name).name}.so"
        _run_tool(work, "g++", "-shared", "-o", f"{lib64}/{name}.so", *objects.get(name, ["empty.o"]), soname)
    core_flags = [f"-L{MINDSPORE_LIB}", "-lmindspore_core"]
    _run_tool(work, "g++", "-shared", "-o", f"{lib64}/libname_soc.so", "name_soc.o", *core_flags)


def _plugin_libraries() -> list[Path]:
    """Return the libraries of MindSpore's Ascend plugin."""
    plugin = MINDSPORE_LIB / "plugin"
    main_libraries = [plugin / "libmindspore_ascend.so.2", plugin / "libmindspore_ops_ascend.so"]
    return [*sorted((plugin / "ascend").rglob("*.so*")), *main_libraries, MINDSPORE_LIB / "libmindspore_ge_backend.so"]


def _missing_symbols(libraries: list[Path]) -> list[str]:
    """Return the symbols that the stub must define: the plugin's libraries need them, and neither MindSpore, Python nor the system
    has them. libraries: the plugin's."""
    system = Path("/lib/x86_64-linux-gnu").glob("lib*.so*")
    sources = [*MINDSPORE_LIB.glob("*.so*"), *MINDSPORE_LIB.parent.glob("*.so"), *system, *libraries]
    defined = {line[-1].split("@")[0] for library in sources for line in _symbols(library, "--defined-only")}
    undefined = (line[-2:] for library in libraries for line in _symbols(library, "--undefined-only"))
    # weak symbols (w, v) may stay undefined, and a name with @ has a version, which only system libraries have
    needed = {name for kind, name in undefined if kind not in "wv" and "@" not in name}
    foreign = needed - defined - _DEFINED_IN_STATUS_SOURCE
    return sorted(name for name in foreign if not name.startswith(("Py", "_Py")))


def _symbols(library: Path, option: str) -> list[list[str]]:
    """Return the fields of each line of `nm`: address if defined, kind, name. option: --defined-only or --undefined-only."""
    listing = subprocess.run(["nm", "-D", option, library], capture_output=True, text=True).stdout
    return [line.split() for line in listing.splitlines() if line.strip()]


def _dlsym_names(libraries: list[Path]) -> set[str]:
    """Return the symbols that the plugin looks up by name: those among the strings in its libraries."""
    text = subprocess.run(["strings", "-n", "5", *libraries], capture_output=True, text=True).stdout
    return {word for word in text.splitlines() if _DLSYM_NAME.fullmatch(word)}


def _linked_source(names: list[str]) -> str:
    """Return C source with a function for each symbol, which returns 0. A constructor fills its object with zeros. Most classes of
    ge are one shared pointer, 16 bytes."""
    listing = subprocess.run(["c++filt"], input="\n".join(names), capture_output=True, text=True).stdout
    lines = ["#include <string.h>"]
    for name, demangled_name in zip(names, listing.splitlines(), strict=True):
        constructor = re.match(r"ge::(\w+)::\1\(", demangled_name)
        if constructor:
            size = 24 if constructor[1] == "Operator" else 16
            lines.append(f"long {name}(void *self) {{ memset(self, 0, {size}); return (long)self; }}")
        else:
            lines.append(f"long {name}(void) {{ return 0; }}")
    return "\n".join(lines) + "\n"


def _run_tool(folder: Path, *command: str) -> None:
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if result.returncode:
        raise BuildError(f"building the CANN stand-ins: {' '.join(command[:3])} … failed:\n{result.stderr}")
