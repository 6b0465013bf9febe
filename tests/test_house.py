"""The house that the code lives in: nothing imports upward or in a circle, every module has its test, a name means one thing,
and no text points to a document that is not here."""

from __future__ import annotations

import ast
import io
import re
import subprocess
import sys
import tokenize
from collections import defaultdict
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

FLOORS = [
    [
        *(
            "bars",
            "errors",
            "garbage",
            "children",
            "chips",
            "config",
            "config_file",
            "domains",
            "device",
            "host_memory",
            "kinds",
            "lock",
            "mindformers_import",
            "npus",
            "results",
        ),
        *("sealed", "sections", "shipped", "writable"),
    ],
    ["rre", "text"],
    ["model", "parallel"],
    ["ecss", "optimizer"],
    ["checkpoint", "data"],
    ["foreign"],
    ["stored"],
    ["generate"],
    ["train"],
    ["ascend", "evaluate", "launching", "serve"],
    ["convert"],
    ["inherit"],
    ["finetune"],
    ["planning", "inspection", "speed", "mindformers_adapter"],
    ["arguments"],
    ["doctor", "loaded"],
    ["api", "programs"],
    ["commands"],
    ["cli"],
    ["__main__"],
]
"""Folders and files of `pangu_sigma` from the ground up. A folder imports its own files and those of lower floors. Files of the
ground floor may import each other."""


INNER_FLOORS = {
    "data": [".", "prepare"],
    "evaluate": ["sandbox", "benchmarks", "held_out", "."],
    "train": ["log", "."],
}
"""Folders inside of a room from the ground up; "." are the room's own files. None imports one above it."""


TESTED_ELSEWHERE = {
    "src/pangu_sigma/__init__.py": "the Python face; tests/test_api.py",
    "src/pangu_sigma/arguments.py": "tests/test_api.py gives every function wrong ones",
    "src/pangu_sigma/programs.py": "tests/test_cli.py and tests/test_doctor.py; tests/serve starts servers",
    "src/pangu_sigma/evaluate/held_out/text.py": "tests/test_loaded.py evaluates texts and files, and by hand",
    "src/pangu_sigma/sections.py": "tests/test_config.py loads them in a whole configuration",
    "src/pangu_sigma/data/prepare/{blocks,encoding,input_files,passes,reading,segmenting,writing}.py": (
        "tests/data/prepare/test_prepare.py and tests/data/prepare/stages/test_executors.py: the passes, one after another"
    ),
    "src/pangu_sigma/data/prepare/{held_out/holding_out,stages/staging}.py": "the same",
    "src/pangu_sigma/results.py": "tests/test_api.py and tests/commands: what calls return, and commands print",
    "src/pangu_sigma/__main__.py": "one call of cli.program; tests/launching/test_launch_training.py starts it",
    "src/pangu_sigma/mindformers_import.py": "tests/test_mindformers_adapter.py, as all of the adapter",
    "src/pangu_sigma/commands/{answering,measuring,models,options,tools,training}.py": (
        "tests/test_cli.py runs every command through the command line"
    ),
    "src/pangu_sigma/inherit/{equality,parent,tensor_origin,variation}.py": (
        "tests/inherit/test_from_alpha.py inherits with it, from parents of every form"
    ),
    "src/pangu_sigma/checkpoint/{format,root,save}.py": (
        "tests/checkpoint/test_checkpoint.py saves, damages, loads: one way through all"
    ),
    "src/pangu_sigma/stored/{hf_config,hf_folder,network,run,weights_file}.py": (
        "tests/stored/test_open.py opens every kind; damage of folders: test_hf_folder.py"
    ),
    "src/pangu_sigma/convert/{conversion,model_card}.py": (
        "tests/convert/test_hf_folder.py: one way there, one way back, and who is refused"
    ),
    "src/pangu_sigma/generate/{cpu/matrices,cpu/network,cpu/operators,weights}.py": (
        "tests/generate/cpu/test_decoder.py computes with it; test_exact.py the exact way"
    ),
    "src/pangu_sigma/evaluate/sandbox/{isolation,jail,libc,program_limits,system_calls}.py": (
        "tests/evaluate/sandbox/test_sandbox.py: what programs can and cannot do"
    ),
    "src/pangu_sigma/generate/decoder.py": "the base of decoders; tests/generate/cpu/test_decoder.py holds what it promises",
    "src/pangu_sigma/model/declare.py": "tests/model/test_pangu_sigma.py: every parameter and tensor is made with it",
    "src/pangu_sigma/model/dense_ffn.py": "tests/model/test_pangu_sigma.py compares the layers that use it with NumPy",
    "src/pangu_sigma/generate/graph/kv_cache.py": (
        "tests/generate/graph/test_cached.py: texts that grow, documents, lanes"
    ),
    "src/pangu_sigma/convert/export_readme.py": "tests/convert/test_mindir.py runs the program in it",
    "src/pangu_sigma/generate/{request,running}.py": "tests/generate/test_engine.py: every answer against a plain loop",
    "src/pangu_sigma/parallel/{all_to_all,reduce}.py": (
        "tests/parallel/test_ranks_train.py: several processes train with it"
    ),
    "src/pangu_sigma/parallel/connect.py": "tests/parallel/test_ranks.py and test_ranks_train.py",
    "src/pangu_sigma/launching/host/{access,check,network_checks,npu_checks,system_checks,version_checks}.py": (
        "tests/launching/host/test_checks.py: forty broken hosts, and healthy ones"
    ),
    "src/pangu_sigma/planning/machine.py": (
        "constants; tests/planning/test_memory.py and test_cost.py compute with them"
    ),
    "src/pangu_sigma/ascend/{active_experts,device_adam,exchange}.py": (
        "tests/ascend/test_step.py compares whole steps with those of the CPU"
    ),
    "src/pangu_sigma/ascend/context.py": "tests/planning/test_compile.py compiles under its context",
    "src/pangu_sigma/ascend/inputs.py": "tests/ascend/test_backend.py",
    "src/pangu_sigma/ascend/micro_batches.py": "tests/ascend/test_step.py, in one pass and in two",
    "src/pangu_sigma/ascend/overflow.py": "tests/ascend/test_step.py",
    "src/pangu_sigma/ascend/saved_parts.py": "tests/ascend/test_backend.py saves and loads by it",
    (
        "src/pangu_sigma/mindformers_adapter/{__init__,__main__,checkpoint_monitor,dataset,model,registration,"
        "tokenizer_adapter,train_one_step,trainer,yaml_keys}.py"
    ): "tests/test_mindformers_adapter.py starts MindFormers once for all",
    "experiments/{bench/__main__,compare/__main__,finetune_packages/__main__}.py": (
        "options; experiments/tests/test_small.py, and the tests of what it calls"
    ),
    "experiments/bench/dcp.py": (
        "a program of the peers' environment; experiments/tests/bench/test_checkpoint.py starts it"
    ),
    "experiments/bench/gpt2.py": (
        "a program of the peers' environment; experiments/tests/bench/test_decode.py starts it"
    ),
    "experiments/bench/mixtral.py": (
        "a program of the peers' environment; experiments/tests/bench/test_train.py starts it"
    ),
    "experiments/pangu_preprocess.py": "a program of the peers' environment; experiments/text_at_size.py starts it with --peer",
    "ascend_ops/activation.py": (
        "the oracle; tests/ascend_ops/test_grouped_ffn.py and tests/model/test_pangu_sigma.py use it"
    ),
    "ascend_ops/device.py": (
        "tests/ascend_ops/test_expert_dispatch.py on the CPU, tests/device/test_ascend_ops.py on a chip"
    ),
    "ascend_ops/emulation/compiling.py": (
        "tests/ascend_ops/test_ascendc_mutations.py compiles with it, and what does not compile"
    ),
    "ascend_ops/emulation/emulator.py": "tests/ascend_ops/test_emulation.py",
    "ascend_ops/emulation/op_host.py": "tests/ascend_ops/test_ascendc_host.py",
    "ascend_ops/errors.py": "two empty classes; tests/ascend_ops/test_library.py shows what they are for",
    "ascend_ops/host.py": "makes every operator of the host; tests/ascend_ops/test_adam.py and test_grouped_ffn.py",
    (
        "experiments/chaos/{__main__,cases,crash_points,damage,disk,drift,forked,ill,inputs,"
        "launches,layouts,ledger,not_finite,resumes,rows,soak,worker_kills}.py"
    ): "cases; experiments/tests/chaos/test_chaos.py counts them",
    "experiments/chaos/config_faults.py": "faults of a configuration; tests/test_config_file.py meets each",
    "experiments/chaos/poisoned.py": "lines and files; tests/text/test_documents.py meets each",
    "experiments/chaos/exact_resume.py": "tests/train/test_exact_resume.py",
    "experiments/chaos/saves_behind.py": "tests/train/test_loop.py",
    "experiments/chaos/launched.py": "tests/launching/test_launch.py",
    "experiments/chaos/rank_processes.py": "tests/parallel/test_ranks.py",
    "experiments/chaos/runs.py": "hashes of a run; tests/train/test_loop.py compares by them",
    "experiments/chaos/stops.py": "tests/serve/test_server.py",
    "experiments/tiny.py": "a configuration; tests/train/test_loop.py and many others train with it",
}
"""Modules without a test of their own name, and where they are tested; {a,b} stands for one and the other."""

TWICE = {
    "Layout": "one of ranks, one of the records that people bring",
    "STEPS": "the tiny run of experiments/ has its own",
    "__all__": "Python's own",
    "add_commands": "each file of commands/ adds its own; cli.py calls them all",
    "cases": "each kind of fault of experiments/chaos has its own",
    "inherit": "the Python face takes strings, and calls the one of inherit/from_dense.py",
    "inspect": "the Python face takes models too, and calls the one of inspection/inspect.py",
    "load_config": "the Python face takes a shipped name too, and calls the one of config_file.py",
    "logger": "each module has its own, by its name",
    "main": "where a program begins",
    "run": "each benchmark's entry, called by name in experiments/bench/__main__.py",
    "serve": "the Python face takes a model, and calls the one of serve/server.py",
    "train": "the Python face gives back a model, and calls the loop",
}
"""Public names that several modules define at their top level, and why."""

ONE_MEANING = {
    "place": (),
    "places": (),
    "stem": (),
    "part": ("checkpoint/", "convert/", "foreign/", "ascend/saved_parts.py", "ascend/backend.py"),
    "shard": (
        "api.py",  # --shard I/N of prepare-data, as array jobs of other tools name it
        "data/prepare/",
        "checkpoint/",
        "ascend/",
        "convert/",
        "data/",
        "stored/",
        "inherit/",
        "train/",
        "mindformers_adapter/",
        "inspection/inspect_files.py",
        "finetune/tuning.py",
    ),
    "shards": ("checkpoint/", "ascend/", "convert/", "data/", "inherit/", "train/", "mindformers_adapter/"),
    "piece": ("data/", "text/", "mindformers_adapter/tokenizer_adapter.py"),
    "pieces": ("data/", "text/", "mindformers_adapter/tokenizer_adapter.py"),
}
"""Words that code may make a name of only in these folders and files of `pangu_sigma`, where they have their one meaning."""

ELSEWHERE = re.compile(r"\bspec §|\bdesign (decision|§)|\(spec[:,\s]", re.IGNORECASE)
"""References to documents that are not in the repository."""


def sources() -> dict[str, Path]:
    """Every module of the product, and of the experiments on it, by its dotted name."""
    files = [file for folder in ("src", "ascend_ops", "experiments") for file in (ROOT / folder).rglob("*.py")]
    elsewhere = (
        ROOT / "experiments/tests",
        ROOT / "src/pangu_sigma/convert/hf_code",
    )  # the latter runs where we are not
    files = [file for file in files if not set(elsewhere) & {*file.parents}]
    found = {}
    for file in files:
        base = ROOT / "src" if (ROOT / "src") in file.parents else ROOT
        parts = file.relative_to(base).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


def imports(modules: dict[str, ast.Module]) -> dict[str, set[str]]:
    """What each module imports of the others, inside functions too; not under `if TYPE_CHECKING`."""
    edges: dict[str, set[str]] = {}
    for name, tree in modules.items():
        typing_only = {
            id(inner)
            for node in ast.walk(tree)
            if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
            for inner in ast.walk(node)
        }
        edges[name] = set()
        for node in ast.walk(tree):
            if id(node) in typing_only:
                continue
            if isinstance(node, ast.ImportFrom) and node.module:
                for alias in node.names:
                    inner = f"{node.module}.{alias.name}"
                    edges[name] |= {inner if inner in modules else node.module} & modules.keys()
            elif isinstance(node, ast.Import):
                edges[name] |= {alias.name for alias in node.names} & modules.keys()
        edges[name].discard(name)
    return edges


def room(module: str) -> str:
    """The folder or file of `pangu_sigma` that a module belongs to."""
    return module.removeprefix("pangu_sigma.").split(".")[0]


def test_file_of(file: str) -> str:
    """The test that mirrors a module: src/pangu_sigma/rre/plan.py → tests/rre/test_plan.py, those of experiments/ inside of it."""
    base = Path("experiments" if file.startswith("experiments/") else "")
    path = Path(file.removeprefix("src/pangu_sigma/")).relative_to(base)
    return str(base / "tests" / path.parent / f"test_{path.name}")


test_file_of.__test__ = False  # type: ignore[attr-defined]


def mirror_faults(modules: set[str], tests: set[str], exceptions: set[str]) -> list[str]:
    """Modules without their test that are no exceptions, and exceptions that are none any more."""
    untested = {module for module in modules if test_file_of(module) not in tests}
    return [
        *(f"{module} has no {test_file_of(module)}" for module in sorted(untested - exceptions)),
        *(f"{module} is no exception any more" for module in sorted(exceptions - untested)),
    ]


def spelled_out(braces: str) -> list[str]:
    """The paths that "a/{b,c}.py" stands for."""
    head, _, rest = braces.partition("{")
    names, _, tail = rest.partition("}")
    return [f"{head}{name}{tail}" for name in names.split(",")]


def public_names(tree: ast.Module) -> Iterator[str]:
    """What a module defines at its top level, names with an underscore excepted."""
    for node in tree.body:
        found = [node.name] if isinstance(node, ast.FunctionDef | ast.ClassDef) else []
        if isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found = [name.id for target in targets for name in ast.walk(target) if isinstance(name, ast.Name)]
        yield from (name for name in found if name == "__all__" or not name.startswith("_"))


def defines(tree: ast.Module) -> bool:
    """True if a module has functions or classes of its own; a package that only gathers names has none."""
    return any(isinstance(node, ast.FunctionDef | ast.ClassDef) for node in tree.body)


def names_made_twice(trees: dict[str, ast.Module]) -> dict[str, list[str]]:
    """The files of every public name that more than one of them defines."""
    files: dict[str, set[str]] = defaultdict(set)
    for file, tree in trees.items():
        for name in public_names(tree):
            files[name].add(file)
    return {name: sorted(where) for name, where in sorted(files.items()) if len(where) > 1}


def names_made(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Line and name of everything that code names: variables, arguments, attributes, functions, classes.

    Names that are only read do not count: whoever made them is asked, or is a library (`Path.stem`).
    """
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name) | ast.arg(arg=name):
                yield node.lineno, name
            case ast.Name(id=name, ctx=ast.Store()) | ast.Attribute(attr=name, ctx=ast.Store()):
                yield node.lineno, name
            case ast.ImportFrom() | ast.Import():
                yield from ((node.lineno, alias.asname) for alias in node.names if alias.asname)


def words_of_another_meaning(trees: dict[str, ast.Module]) -> list[str]:
    """Names that ONE_MEANING does not allow where they are made."""
    found = []
    for file, tree in trees.items():
        inside = file.removeprefix("src/pangu_sigma/")
        found += [
            f"{file}:{line} {name}"
            for line, name in sorted(names_made(tree))
            if name in ONE_MEANING and not inside.startswith(ONE_MEANING[name] or ("nowhere",))
        ]
    return found


def docstrings(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Line and text of every string that stands alone: docstrings of modules, classes, functions, fields and constants."""
    for node in ast.walk(tree):
        match node:
            case ast.Expr(value=ast.Constant(value=str(text))):
                yield node.lineno, text


def comments_and_strings(source: str) -> Iterator[tuple[int, str]]:
    """Line and text of everything in Python that is written for people."""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type in (tokenize.COMMENT, tokenize.STRING):
            yield from enumerate(token.string.splitlines(), token.start[0])


def references_elsewhere(suffix: str, text: str) -> list[int]:
    """Lines of a file that refer to a document that is not in the repository."""
    lines = comments_and_strings(text) if suffix == ".py" else enumerate(text.splitlines(), 1)
    return [number for number, line in lines if ELSEWHERE.search(line)]


@pytest.fixture(scope="module")
def trees() -> dict[str, ast.Module]:
    """Every Python file of the product, by its path from the root."""
    return {str(file.relative_to(ROOT)): ast.parse(file.read_text(encoding="utf-8")) for file in sources().values()}


@pytest.fixture(scope="module")
def edges(trees) -> dict[str, set[str]]:
    return imports({name: trees[str(file.relative_to(ROOT))] for name, file in sources().items()})


def test_no_module_imports_in_a_circle(edges):
    TopologicalSorter(edges).prepare()  # CycleError names the modules


def test_only_the_command_line_imports_the_face(edges):
    """The face imports what it is asked for, by names that `imports` does not see: who imports it may close a circle."""
    inside = {
        module for module, others in edges.items() if module.startswith("pangu_sigma.") and "pangu_sigma" in others
    }
    assert inside == {"pangu_sigma.cli"}


def test_every_room_has_a_floor(edges):
    rooms = {room(module) for module in edges if module.startswith("pangu_sigma.")}
    assert sorted(rooms) == sorted(name for floor in FLOORS for name in floor)


def test_no_folder_imports_one_above_it(edges):
    height = {name: number for number, floor in enumerate(FLOORS) for name in floor}
    upward = [
        f"{module} imports {other}"
        for module, others in edges.items()
        for other in others
        if module.startswith("pangu_sigma.")
        and other.startswith("pangu_sigma.")
        and room(module) != room(other)
        and (height[room(module)] < height[room(other)] or height[room(module)] == height[room(other)] > 0)
    ]
    assert upward == []


def test_no_folder_inside_of_a_room_imports_one_above_it(edges):
    def floor(module: str) -> int:
        own, _, inner = module.removeprefix("pangu_sigma.").partition(".")
        return INNER_FLOORS[own].index(inner.split(".")[0] if "." in inner else ".")

    inside = [m for m in edges if room(m) in INNER_FLOORS and m != f"pangu_sigma.{room(m)}"]
    found = [(m, o) for m in inside for o in edges[m] if o in inside and room(o) == room(m) and floor(m) < floor(o)]
    assert found == []
    full = {own: set(range(len(floors))) for own, floors in INNER_FLOORS.items()}
    assert {own: {floor(m) for m in inside if room(m) == own} for own in INNER_FLOORS} == full, "each of them has files"


def test_the_operators_import_nothing_of_the_product_and_neither_imports_experiments(edges):
    below = {
        m: o
        for m, others in edges.items()
        for o in others
        if (m.startswith("ascend_ops") and o.startswith("pangu_sigma"))
        or (not m.startswith("experiments") and o.startswith("experiments"))
    }
    assert below == {}


def test_routing_and_configuration_do_not_load_mindspore():
    """Routing belongs to the data pipeline, and a wrong configuration is refused at once."""
    pure = (
        "rre.table",
        "rre.plan",
        "rre.capacity",
        "chips",
        "config",
        "config_file",
        "domains",
        "errors",
        "parallel.layout",
    )
    loads = "; ".join(f"import pangu_sigma.{name}" for name in pure)
    code = f"import sys; {loads}; print([m for m in ('mindspore', 'mindformers') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_module_has_the_test_of_its_name(trees):
    modules = {file for file, tree in trees.items() if not file.endswith("/__init__.py") or defines(tree)}
    tests = {
        str(f.relative_to(ROOT))
        for folder in ("tests", "experiments/tests")
        for f in (ROOT / folder).rglob("test_*.py")
    }
    assert mirror_faults(modules, tests, {each for key in TESTED_ELSEWHERE for each in spelled_out(key)}) == []
    named = {test for reason in TESTED_ELSEWHERE.values() for test in re.findall(r"[\w/]*tests/[\w/]+\.py", reason)}
    assert sorted(test for test in named if not (ROOT / test).exists()) == []
    faults = mirror_faults(
        {"src/pangu_sigma/a/b.py", "ascend_ops/c.py"}, {"tests/a/test_b.py"}, {"src/pangu_sigma/a/b.py"}
    )
    assert faults == [
        "ascend_ops/c.py has no tests/ascend_ops/test_c.py",
        "src/pangu_sigma/a/b.py is no exception any more",
    ]


def test_a_public_name_is_defined_once(trees):
    twice = names_made_twice(trees)
    assert {name: files for name, files in twice.items() if name not in TWICE} == {}
    assert sorted(TWICE.keys() - twice.keys()) == [], "these are no exceptions any more"
    two = {"a.py": ast.parse("X, _y = 1, 2\ndef f(): Y = 1"), "b.py": ast.parse("class X: Y = 1\n_y: int = 2")}
    assert names_made_twice(two) == {"X": ["a.py", "b.py"]}


def test_a_word_has_one_meaning(trees):
    assert words_of_another_meaning({f: t for f, t in trees.items() if f.startswith("src/")}) == []
    code = "def f(place, *, part=1):\n    for shard in part.stem: self.piece = shard"
    found = words_of_another_meaning({"src/pangu_sigma/checkpoint/a.py": ast.parse(code)})
    assert found == ["src/pangu_sigma/checkpoint/a.py:1 place", "src/pangu_sigma/checkpoint/a.py:2 piece"]


def test_no_docstring_begins_with_of(trees):
    def begun(tree: ast.Module) -> list[int]:
        return [line for line, text in docstrings(tree) if text.lstrip().startswith("Of ")]

    assert [f"{file}:{line}" for file, tree in trees.items() for line in begun(tree)] == []
    assert begun(ast.parse('"""Of a module."""\nX = 1\n"""Often."""\nclass A:\n    y: int\n    """Of y."""')) == [1, 6]


def test_no_text_refers_to_a_document_that_is_not_here():
    suffixes = {".py", ".md", ".yaml", ".sh", ".h", ".cpp", ".cc"}
    folders = ("src", "ascend_ops", "examples", "experiments", "docs", "model_configs", "run_scripts", "tests")
    files = [
        f for folder in folders for f in (ROOT / folder).rglob("*") if f.suffix in suffixes and f != Path(__file__)
    ]
    files += ROOT.glob("*.md")
    found = [
        f"{file.relative_to(ROOT)}:{line}"
        for file in sorted(files)
        for line in references_elsewhere(file.suffix, file.read_text(encoding="utf-8"))
    ]
    assert found == []
    assert references_elsewhere(".py", 'def f(spec: int): ...\n"""\nAs (spec §1) has it."""\n# Design decision 3') == [
        3,
        4,
    ]
    assert references_elsewhere(".md", "a\n(Spec: b)\na design\nspecial (special)") == [2]


def test_the_long_files_of_tests_are_there(pytestconfig: pytest.Config):
    """tests/conftest.py begins with them; the list would rot in silence."""
    conftest = pytestconfig.pluginmanager.get_plugin(str(ROOT / "tests" / "conftest.py"))
    assert [name for name in conftest.LONG if not (ROOT / "tests" / name).exists()] == []


def test_no_module_is_called_utils(trees):
    assert [
        file for file in trees if Path(file).name in ("util.py", "utils.py", "helpers.py", "common.py", "misc.py")
    ] == []
