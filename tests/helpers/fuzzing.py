"""Cases for models and configurations in files, half of them made from valid ones, and the judge of what loading them does.

A case passes if loading ends in time and in bounded memory, with a result or with a UserError, and starts, connects to and writes
nothing.
"""

from __future__ import annotations

import io
import json
import logging
import re
import resource
import shutil
import signal
import sys
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import xxhash
import yaml
from helpers import foreign_files
from helpers.saved import save_checkpoint
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from experiments.chaos.runs import opened_whole
from experiments.tiny import tiny_tree
from pangu_sigma.checkpoint.checkpoint import Identity, load_checkpoint
from pangu_sigma.checkpoint.parts import SavedArray
from pangu_sigma.config_file import load_config
from pangu_sigma.errors import UserError
from pangu_sigma.foreign.dense_files import open_dense_model
from pangu_sigma.rre.table import RoutingTable, draw_tables
from pangu_sigma.sealed import SEAL, seal_folder, sealed
from pangu_sigma.sections import RoutingConfig
from pangu_sigma.stored.open import open_model
from pangu_sigma.text.sentencepieces import alpha_model, train_english
from pangu_sigma.text.tokenizer import Tokenizer
from pangu_sigma.text.vocabulary import FIRST_BYTE, FIRST_ENGLISH

SECONDS = 5
"""Time of the processor that one case may take, which other programs do not lengthen; waiting may take twelve times as long."""
MEMORY = 3 << 30
"""Bytes of address space that loading may add to those of the process."""

_FORBIDDEN = (
    *("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "pty.spawn", "socket.connect"),
    *("pickle.find_class", "os.remove", "os.rename", "shutil.rmtree", "os.mkdir", "ctypes.dlopen"),
)
"""Events of Python's audit that no loading of a file has a reason for. `open` for writing is one more."""


@dataclass
class Tally:
    """Counts of the cases of a target: all, those past the first look, and those that were taken."""

    cases: int = 0
    past_first: int = 0
    taken: int = 0


class Hang(AssertionError):
    """A case took too long."""


class Executed(AssertionError):
    """Loading did what no loading of a file does."""


def fuzz(target: Target, mutated: bool, cases: int, folder: Path, seed: int = 0) -> Tally:
    """Load `cases` cases. Raises what loading raised and should not, after hypothesis has made the case small."""
    tally = Tally()

    @hypothesis.seed(seed)
    @settings(
        max_examples=cases,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=(Phase.generate, Phase.shrink),
    )
    @given(target.mutated if mutated else target.anything)
    def one(case: Any) -> None:
        here = folder / "case"
        shutil.rmtree(here, ignore_errors=True)
        here.mkdir(parents=True)
        tally.cases += 1
        try:
            with judged():
                taken = target.load(here, case)
        except UserError as error:
            tally.past_first += not re.search(target.first, str(error))
        else:
            tally.past_first += taken
            tally.taken += taken

    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)  # thousands of warnings about lines that are cut off
    try:
        with limited_memory():
            one()
    finally:
        logging.disable(level)
    return tally


_loading = False
_seen: list[str] = []
"""What the case at hand has done and should not: raising at once is not enough, somebody may catch it."""


def _audit(event: str, arguments: tuple) -> None:
    if not _loading:
        return
    writes = event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+")
    if event in _FORBIDDEN or writes:
        _seen.append(f"{event} {arguments}")


@cache
def _install_audit() -> None:
    sys.addaudithook(_audit)  # for good: Python has no way to remove one


@contextmanager
def judged() -> Iterator[None]:
    """Ends what takes too long; what is written into a case's folder is written before, with `put`."""
    _install_audit()

    def late(*_: object) -> None:
        raise Hang(f"more than {SECONDS} s")

    clocks = ((signal.ITIMER_PROF, signal.SIGPROF, SECONDS), (signal.ITIMER_REAL, signal.SIGALRM, 12 * SECONDS))
    before = {number: signal.signal(number, late) for _, number, _ in clocks}
    try:
        for clock, _, seconds in clocks:
            signal.setitimer(clock, seconds)
        yield
    finally:
        for clock, number, _ in clocks:
            signal.setitimer(clock, 0)
            signal.signal(number, before[number])


@contextmanager
def watched() -> Iterator[None]:
    """Nothing is executed, written or removed in this block."""
    global _loading
    _seen.clear()
    _loading = True
    try:
        yield
    finally:
        _loading = False
        if _seen:
            raise Executed("; ".join(_seen))


@contextmanager
def limited_memory() -> Iterator[None]:
    """The process gets at most MEMORY more address space."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


# what cases are made of

NUMBERS = [0, -1, 2**15, 2**31, 2**32, 2**63, 2**64 + 1, 10**30, 1e308, -0.0, 1e-320, float("nan"), float("inf")]
TEXTS = ["", "\0", "../../etc/passwd", "/dev/zero", "\ud800", "a" * 5_000, "null", "__class__", "1" * 5_000, "训练"]
JUNK = st.one_of(
    *(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=12), st.sampled_from([*NUMBERS, *TEXTS])),
    *(st.lists(st.integers(-1, 9), max_size=3), st.dictionaries(st.text(max_size=3), st.integers(), max_size=2)),
)
TREES = st.recursive(
    JUNK, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4)
)


@st.composite
def changed_bytes(draw: st.DrawFn, valid: bytes) -> bytes:
    """A valid file with a few bytes flipped, overwritten, cut out, repeated or put in, or cut short."""
    content = bytearray(valid)
    for _ in range(draw(st.integers(1, 3))):
        kind, at = draw(st.integers(0, 5)), draw(st.integers(0, max(0, len(content) - 1)))
        if not content:
            break
        length = draw(st.integers(1, 16))
        if kind == 0:
            content[at] ^= 1 << draw(st.integers(0, 7))
        elif kind == 1:
            content[at : at + length] = draw(st.binary(min_size=1, max_size=16))
        elif kind == 2:
            del content[at : at + length]
        elif kind == 3:
            content[at:at] = content[at : at + length]
        elif kind == 4:
            content[at:at] = draw(
                st.sampled_from([b"\0" * 8, b"\xff" * 8, b"[" * 5_000, b"9" * 5_000, b"\n", b"{", b'"'])
            )
        else:
            del content[at:]
    return bytes(content)


def _paths(tree: Any, path: tuple = ()) -> Iterator[tuple]:
    yield path
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in items:
        yield from _paths(value, (*path, key))


@st.composite
def changed_tree(draw: st.DrawFn, valid: Any) -> Any:
    """A valid tree with one or two values replaced, removed, doubled or added."""
    tree = deepcopy(valid)
    for _ in range(draw(st.integers(1, 2))):
        path = draw(st.sampled_from(list(_paths(tree))))
        if not path:
            if draw(st.integers(0, 9)) == 0:
                return draw(JUNK)
            continue
        node = tree
        for key in path[:-1]:
            node = node[key]
        kind = draw(st.integers(0, 3))
        if kind == 0:
            del node[path[-1]]
        elif kind == 1 and isinstance(node, dict):
            node[draw(st.text(max_size=8))] = deepcopy(node[path[-1]])
        elif kind == 1:
            node.append(deepcopy(node[path[-1]]))
        else:
            node[path[-1]] = draw(JUNK)
    return tree


def as_text(tree: Any) -> bytes:
    """JSON of any tree, NaN and halves of pairs included."""
    return json.dumps(tree).encode()


def resealed(tree: Any) -> bytes:
    """A tree with its own hash, so that more than the hash is asked; where JSON cannot hold it, as it is."""
    try:
        return sealed({key: value for key, value in tree.items() if key != "manifest"})
    except (ValueError, AttributeError):
        return as_text(tree)


def put(file: Path, content: bytes) -> Path:
    """Write a file of a case."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)
    return file


ANYTHING = st.one_of(st.binary(max_size=200), TREES.map(as_text))
SEALED = st.one_of(st.binary(max_size=100), TREES.map(as_text), TREES.map(resealed))
"""Files of anything: bytes and JSON; and JSON with its own hash."""


@dataclass(frozen=True)
class Target:
    """Something that is loaded.

    mutated, anything: cases from valid ones, and from nothing.
    load: writes a case into an empty folder, loads it, and says if anything of it was taken.
    first: what the messages say if the very first look at the file refuses it.
    share: part of all cases that it gets, relative to the others.
    """

    mutated: st.SearchStrategy
    load: Callable[[Path, Any], bool]
    first: str
    anything: st.SearchStrategy = ANYTHING
    share: float = 1.0


# the targets


def config_target(folder: Path) -> Target:
    valid = tiny_tree(Path("data"))
    text = yaml.safe_dump(valid, allow_unicode=True).encode()
    lines = st.lists(
        st.sampled_from([*text.decode().splitlines(), "a: &a [*a]", "? [b]", "<<: {x: 1}", "!!int ''", "- x"])
    )

    def load(here: Path, case: bytes) -> bool:
        file = put(here / "c.yaml", case)
        with watched():
            load_config(file)
        return True

    broken = lines.map(lambda some: "\n".join(some).encode())
    mutated = st.one_of(changed_bytes(text), changed_tree(valid).map(_yaml), broken)
    return Target(mutated, load, "not valid YAML|must be a mapping|more than .* bytes")


def _yaml(tree: Any) -> bytes:
    return yaml.safe_dump(tree).encode("utf-8", "surrogatepass")


def checkpoint_target(folder: Path) -> Target:
    values = np.arange(12, dtype=np.float32).reshape(3, 4)
    state = {"step": 3, "updates": 3, "cursor": {"draws": [1, 2]}}
    identity = Identity("v", "r", {"name": "tiny"})
    valid = save_checkpoint(folder / "checkpoints", 3, {"dense": {"w": SavedArray.whole(values)}}, state, identity, 1)
    files = {file.name: file.read_bytes() for file in valid.iterdir()}
    seal = json.loads(files[SEAL])

    @st.composite
    def fingerprinted(draw: st.DrawFn) -> dict[str, bytes]:
        """A file is changed, and its hash with it."""
        name, tree = draw(st.sampled_from(["dense.safetensors", "state.json"])), deepcopy(seal)
        changed = draw(changed_bytes(files[name]))
        tree["files"][name] = {"bytes": len(changed), "xxh3_128": xxhash.xxh3_128_hexdigest(changed)}
        return {SEAL: resealed(tree), name: changed}

    def load(here: Path, case: dict[str, bytes]) -> bool:
        for name, content in {**files, **case}.items():
            put(here / "step_00000003" / name, content)
        with watched():
            _ = load_checkpoint(here / "step_00000003").parts
        return True

    def alone(seals: st.SearchStrategy[bytes]) -> st.SearchStrategy[dict[str, bytes]]:
        return seals.map(lambda content: {SEAL: content})

    mutated = st.one_of(alone(changed_tree(seal).map(resealed)), fingerprinted())
    return Target(mutated, load, "not the JSON|its own hash", alone(SEALED))


def routing_target(folder: Path) -> Target:
    table = draw_tables(RoutingConfig(), 2, 2, 50, 4, None)
    folder.mkdir(parents=True, exist_ok=True)
    table.save(folder / "routing.npz")
    content = (folder / "routing.npz").read_bytes()
    arrays = {"first_NDV": table.first_NDV, "spread_DV": table.spread_DV, "experts": np.array(4)}

    def npy(array: np.ndarray) -> bytes:
        stream = io.BytesIO()
        np.lib.format.write_array(stream, array, version=(1, 0), allow_pickle=True)
        return stream.getvalue()

    def npz(members: dict[str, bytes]) -> bytes:
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, inner in members.items():
                archive.writestr(f"{name}.npy", inner)
        return stream.getvalue()

    plain = {name: npy(array) for name, array in arrays.items()}
    huge = npy(np.zeros(1, np.int16)).replace(b"(1,)", b"(999999999999,)").ljust(4_000, b"\0")
    strange = st.one_of(
        st.sampled_from(
            [np.array([print], object), np.array([1.5]), np.array("x"), np.zeros((2, 0)), np.array(-3)]
        ).map(npy),
        st.sampled_from(
            [huge, npy(np.zeros(1, np.int16)).replace(b"'descr'", b"'desc'+'r'"), b"\x93NUMPY\1\0\xff\xff", b""]
        ),
        st.integers(0, 7).map(lambda shift: npy(np.full((2, 2, 50), shift - 2, np.int16))),
        st.integers(0, 3).map(lambda size: npy(np.zeros((size, 2, 50), np.int16))),
    )

    @st.composite
    def changed_member(draw: st.DrawFn) -> bytes:
        members, name = dict(plain), draw(st.sampled_from(list(plain)))
        members[name] = draw(st.one_of(strange, changed_bytes(plain[name])))
        if draw(st.integers(0, 5)) == 0:
            del members[draw(st.sampled_from(list(plain)))]
        return npz(members)

    def load(here: Path, case: bytes) -> bool:
        file = put(here / "routing.npz", case)
        with watched():
            loaded = RoutingTable.load(file)
        return loaded.experts > 0

    return Target(st.one_of(changed_bytes(content), changed_member()), load, "not a zip file")


def hf_target(folder: Path) -> Target:
    """Configuration and headers of a Hugging Face style folder, mostly sealed anew: else the seal alone would be asked."""
    from helpers.hf_folders import small_hf_folder

    small_hf_folder(folder / "hf")
    config = (folder / "hf" / "config.json").read_bytes()
    shards = {file.name: file.read_bytes() for file in (folder / "hf").glob("*.safetensors")}
    heads = {name: 8 + int.from_bytes(content[:8], "little") for name, content in shards.items()}

    def of_file(name: str) -> st.SearchStrategy:
        if name == "config.json":
            tree = json.loads(config)
            return st.one_of(changed_bytes(config), changed_tree(tree).map(as_text), changed_tree(tree).map(as_text))
        return changed_bytes(shards[name][: heads[name]]).map(lambda head: head + shards[name][heads[name] :])

    def load(here: Path, case: tuple[str, bytes, bool]) -> bool:
        name, content, meant = case
        copy = shutil.copytree(folder / "hf", here / "hf")
        put(copy / name, content)
        if meant:
            seal_folder(copy, json.loads((copy / SEAL).read_bytes())["files"], {"kind": "pangu_sigma"})
        with watched():
            opened_whole(copy, "hf")
        return True

    names = st.sampled_from(["config.json", *shards])
    return Target(
        names.flatmap(lambda name: st.tuples(st.just(name), of_file(name), st.sampled_from([True, True, True, False]))),
        load,
        "was written; the file is damaged",
        st.tuples(names, ANYTHING, st.just(True)),
        share=0.2,  # the tokenizer is read each time
    )


def tokenizer_target(folder: Path) -> Target:
    english = train_english(["the cat sees a dog and likes the small old house"] * 40, 270)
    bytes_too = [*range(FIRST_BYTE, FIRST_ENGLISH)]
    tokenizer = Tokenizer(alpha_model(), english, np.array([[*range(384), *bytes_too]], np.int32))
    tokenizer.save(folder / "valid")
    content = json.loads((folder / "valid" / "vocabulary.json").read_text(encoding="utf-8"))
    content["pieces"] = content["pieces"][:3]  # for people; nobody reads them
    content["slots"] = [[*range(200), *bytes_too]]
    short = Tokenizer(alpha_model(), english, np.array([[*range(200), *bytes_too] + [-1] * 184], np.int32))
    content["hash"] = short.hash

    def load(here: Path, case: tuple[bytes, bytes | None]) -> bool:
        shutil.copytree(folder / "valid", here / "t")
        put(here / "t" / "vocabulary.json", case[0])
        if case[1] is not None:
            put(here / "t" / "english.model", case[1])
        with watched():
            Tokenizer.load(here / "t")
        return True

    return Target(
        st.one_of(
            st.tuples(st.one_of(changed_bytes(as_text(content)), changed_tree(content).map(as_text)), st.none()),
            st.tuples(st.just(as_text(content)), st.one_of(st.binary(max_size=60), changed_bytes(english))),
        ),
        load,
        "damaged",
        st.tuples(ANYTHING, st.none()),
        share=0.05,  # a model is read each time
    )


def mindir_target(folder: Path) -> Target:
    values = np.arange(6, dtype=np.float32)

    def message(*of: tuple[int, bytes | int]) -> bytes:
        """A protobuf message of fields that are short."""
        return b"".join(
            bytes([number << 3, value]) if isinstance(value, int) else bytes([number << 3 | 2, len(value)]) + value
            for number, value in of
        )

    inside = message((1, 2), (1, 3), (2, 1), (7, b"network.a"), (9, values.tobytes()))
    beside = message((1, 6), (2, 1), (7, b"b"), (12, message((1, b"data_0"), (2, 0), (3, values.nbytes))))
    valid = message((1, b"0.1"), (7, message((2, b"graph"), (3, inside), (3, beside))))

    def load(here: Path, case: bytes) -> bool:
        put(here / "data_0", values.tobytes())
        put(here / "model.mindir", case)
        seal_folder(here, ["model.mindir", "data_0"], {})
        with watched():
            return all(values.sum() is not None for values in open_model(here, "export").arrays.values())

    inside = st.binary(max_size=120).map(lambda b: b"\x3a" + b)
    return Target(changed_bytes(valid), load, "is no file|no graph", inside)


def torch_target(folder: Path) -> Target:
    values = foreign_files.in_megatron(foreign_files.parent())
    tree = {"args": foreign_files.arguments(1), "model": foreign_files.nested(values), **foreign_files.training_state()}
    zipped = foreign_files.torch_zip(tree)
    with zipfile.ZipFile(io.BytesIO(zipped)) as archive:
        pickled = archive.read("archive/data.pkl")
    words = [b"cos\nsystem\n", b"\x82\x01", b"r\xff\xff\xff\xff", b")R", b"b", b"\x81", b"Q", b"h\x01"]
    words += [b"}(", b"u", b"e"]

    @st.composite
    def changed_pickle(draw: st.DrawFn) -> bytes:
        content = draw(st.one_of(changed_bytes(pickled), st.sampled_from([pickled])))
        at = draw(st.integers(0, len(content)))
        inside = content[:at] + draw(st.sampled_from([b"", *words])) + content[at:]
        return foreign_files.torch_zip(tree, lambda _: inside)

    more = [b"(", b"t", b"]", b"a", b"K\x01", b"X\x01\0\0\0a", b"q\x01"]
    programs = st.lists(st.sampled_from([*words, *more])).map(lambda some: b"\x80\x02" + b"".join(some) + b".")

    def load(here: Path, case: bytes) -> bool:
        file = put(here / "a.pt", case)
        with watched():
            model = open_dense_model(file)
            model.tensors["norm.gain"].read()
        return True

    return Target(
        st.one_of(changed_bytes(zipped), changed_pickle()),
        load,
        "neither a zip file nor a pickle",
        st.one_of(ANYTHING, programs.map(lambda program: foreign_files.torch_zip(tree, lambda _: program))),
        share=0.3,
    )


def ckpt_target(folder: Path) -> Target:
    values = foreign_files.parent()
    release = foreign_files.write_release(folder, values, 1, 2, 1)
    files = {file.name: file.read_bytes() for file in release.iterdir()}

    @st.composite
    def changed_release(draw: st.DrawFn) -> dict[str, bytes]:
        name = draw(st.sampled_from(sorted(files)))
        return {**files, name: draw(changed_bytes(files[name]))}

    def load(here: Path, case: dict[str, bytes]) -> bool:
        for name, content in case.items():
            put(here / name, content)
        with watched():
            model = open_dense_model(here)
            for name in ("norm.gain", "embedding", "layers.0.ffn.w1"):
                model.tensors[name].read()
        return True

    whole = foreign_files.ckpt(foreign_files.in_mindspore(values))
    anything = st.one_of(ANYTHING, st.binary(max_size=60).map(lambda b: whole[:9] + b))
    return Target(
        st.one_of(changed_bytes(whole).map(lambda content: {"a.ckpt": content}), changed_release()),
        load,
        "at byte 0 |it is empty",
        anything.map(lambda content: {"a.ckpt": content}),
        share=0.3,
    )


def huggingface_target(folder: Path) -> Target:
    valid = foreign_files.write_huggingface(
        folder, foreign_files.in_huggingface(foreign_files.parent()), "safetensors-index"
    )
    files = {file.name: file.read_bytes() for file in valid.iterdir()}
    config, index = (json.loads(files[name]) for name in ("config.json", "model.safetensors.index.json"))

    def load(here: Path, case: tuple[str, bytes]) -> bool:
        for name, content in files.items():
            put(here / name, content)
        put(here / case[0], case[1])
        with watched():
            open_dense_model(here).tensors["norm.gain"].read()
        return True

    names = st.sampled_from(sorted(files))
    return Target(
        st.one_of(
            st.tuples(st.just("config.json"), changed_tree(config).map(as_text)),
            st.tuples(st.just("model.safetensors.index.json"), changed_tree(index).map(as_text)),
            names.flatmap(lambda name: st.tuples(st.just(name), changed_bytes(files[name]))),
        ),
        load,
        "it is not JSON",
        st.tuples(names, ANYTHING),
        share=0.3,
    )


_MAKERS = [config_target, checkpoint_target, routing_target, hf_target, tokenizer_target, mindir_target]
_MAKERS += [torch_target, ckpt_target, huggingface_target]
TARGETS: dict[str, Callable[[Path], Target]] = {make.__name__.removesuffix("_target"): make for make in _MAKERS}
"""What is loaded, by name; each is made in a folder of its own."""
