"""Cases for everything that is loaded from files, half of them made from valid ones, and the judge of what loading them does.

A case passes if loading ends in time and in bounded memory, with a result or with a UserError, and starts, connects to and writes
nothing.
"""

from __future__ import annotations

import gzip
import io
import json
import logging
import re
import resource
import shutil
import signal
import struct
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
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from experiments.chaos.runs import opened_whole
from experiments.tiny import tiny_config, tiny_tree
from pangu_sigma.checkpoint.checkpoint import load_checkpoint
from pangu_sigma.checkpoint.format import Identity
from pangu_sigma.checkpoint.parts import SavedArray
from pangu_sigma.checkpoint.safetensors_file import map_arrays, metadata_of, write_arrays
from pangu_sigma.checkpoint.save import save_checkpoint
from pangu_sigma.config_file import load_config
from pangu_sigma.data.manifest import DATA_FORMAT, load_manifest
from pangu_sigma.data.token_files import TokenFile
from pangu_sigma.domains import domains_of
from pangu_sigma.errors import UserError
from pangu_sigma.finetune.conversation import parse_conversation
from pangu_sigma.foreign.dense_files import open_dense_model
from pangu_sigma.rre.table import RoutingTable, draw_tables
from pangu_sigma.sealed import SEAL, check_folder, fingerprint, seal_folder, sealed
from pangu_sigma.sections import RoutingConfig
from pangu_sigma.stored.open import open_model
from pangu_sigma.text.documents import Rejected
from pangu_sigma.text.inputs import input_units, read_unit
from pangu_sigma.text.json_lines import read_lines
from pangu_sigma.text.layout import Layout
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


@dataclass(frozen=True)
class Target:
    """Something that is loaded.

    anything, mutated: cases from nothing, and from valid ones.
    load: writes a case into an empty folder, loads it, and says if anything of it was taken.
    first: what the messages say if the very first look at the file refuses it.
    share: part of all cases that it gets, relative to the others.
    """

    anything: st.SearchStrategy
    mutated: st.SearchStrategy
    load: Callable[[Path, Any], bool]
    first: str
    share: float = 1.0


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
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=12),
    st.sampled_from(NUMBERS),
    st.sampled_from(TEXTS),
    st.lists(st.integers(-1, 9), max_size=3),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
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


def sealed_cases(tree: Any) -> tuple[st.SearchStrategy[bytes], st.SearchStrategy[bytes]]:
    """Cases of a file that holds a tree and its hash: from nothing, and from the valid one, mostly with a right hash."""
    anything = st.one_of(st.binary(max_size=100), TREES.map(as_text), TREES.map(resealed))
    return anything, st.one_of(changed_bytes(resealed(tree)), changed_tree(tree).map(resealed))


def put(file: Path, content: bytes) -> Path:
    """Write a file of a case."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)
    return file


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

    return Target(
        st.one_of(st.binary(max_size=200), lines.map(lambda some: "\n".join(some).encode()), TREES.map(_yaml)),
        st.one_of(changed_bytes(text), changed_tree(valid).map(_yaml)),
        load,
        "not valid YAML|must be a mapping|more than .* bytes",
    )


def _yaml(tree: Any) -> bytes:
    return yaml.safe_dump(tree).encode("utf-8", "surrogatepass")


def overrides_target(folder: Path) -> Target:
    valid = tiny_tree(Path("data"))
    file = put(folder / "c.yaml", _yaml(valid))
    keys = [".".join(map(str, path)) for path in _paths(tiny_config(Path("data")).model_dump(mode="json")) if path]

    def load(here: Path, case: Any) -> bool:
        with watched():
            load_config(file, [case])
        return True

    values = st.one_of(
        st.text(max_size=20), st.sampled_from([*TEXTS, "[" * 3_000, "*a", "&a [*a]", "2020-13-45", "0x_"])
    )
    some_key = st.one_of(st.sampled_from(keys), st.text(max_size=12), st.sampled_from(keys).map(lambda key: f"{key}.x"))
    return Target(
        st.one_of(st.text(max_size=30), st.tuples(st.text(max_size=12), values).map("=".join)),
        st.one_of(st.tuples(some_key, values).map("=".join), st.tuples(some_key, JUNK)),
        load,
        "is not key|not a YAML value",
    )


def jsonl_target(folder: Path) -> Target:
    domains = domains_of(tiny_config(Path("data")))
    records = [
        {"domain": "en", "text": "a cat"},
        {"domain": "zh", "text": "今天天气"},
        {"domain": "code", "text": "x = 1"},
    ]
    text = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records).encode()

    def load(here: Path, case: tuple[str, bytes]) -> bool:
        file = put(here / case[0], case[1])
        with watched():
            found = [item for unit in input_units([file], 64) for item in read_unit(unit, Layout(), domains)]
        return any(not isinstance(one, Rejected) or one.reason not in ("not UTF-8", "not JSON") for one in found)

    names, packed = st.sampled_from(["a.jsonl", "a.jsonl.gz", "a.txt"]), gzip.compress(text)
    lines = st.lists(changed_tree(records[0]).map(as_text), max_size=4).map(b"\n".join)
    return Target(
        st.tuples(names, st.one_of(st.binary(max_size=200), TREES.map(as_text))),
        st.one_of(
            st.tuples(st.just("a.jsonl"), st.one_of(changed_bytes(text), lines)),
            st.tuples(st.just("a.jsonl.gz"), st.one_of(changed_bytes(packed), lines.map(gzip.compress))),
        ),
        load,
        "must end in|broken gzip",
    )


def task_lines_target(folder: Path) -> Target:
    domains = domains_of(tiny_config(Path("data")))
    messages = [{"role": "user", "content": "a cat"}, {"role": "assistant", "content": "a dog"}]
    records = [{"prompt": "a cat", "response": "a dog"}, {"messages": messages, "domain": "zh"}]

    def load(here: Path, case: bytes) -> bool:
        file = put(here / "a.jsonl", case)
        with watched():
            found = list(read_lines(file, lambda line, at: parse_conversation(line, domains, "en")))
        return any(not isinstance(one, Rejected) or one.reason not in ("not UTF-8", "not JSON") for one in found)

    text = "".join(json.dumps(record) + "\n" for record in records).encode()
    lines = st.lists(st.sampled_from(records).flatmap(changed_tree).map(as_text), max_size=4).map(b"\n".join)
    return Target(
        st.one_of(st.binary(max_size=200), TREES.map(as_text)),
        st.one_of(changed_bytes(text), lines),
        load,
        "empty file",
    )


def index_target(folder: Path) -> Target:
    lengths, header = [3, 1, 4], struct.Struct("<9sQBQQ")
    ids = np.arange(8, dtype="<i4").tobytes()

    def index(
        magic: bytes, version: int, code: int, number: int, bounds: int, lengths: list[int], offsets: list[int]
    ) -> bytes:
        tail = np.array(lengths, "<i4").tobytes() + np.array([*offsets, 0, 1, 2, 3], "<i8").tobytes()
        return header.pack(magic, version, code, number, bounds) + tail

    fields = (b"MMIDIDX\0\0", 1, 4, 3, 4, lengths, [0, 12, 16])
    valid = index(*fields)
    number, small = st.sampled_from([0, 1, 3, 4, 2**31, 2**63, 2**64 - 1]), st.integers(-(2**31), 2**31 - 1)

    @st.composite
    def changed_fields(draw: st.DrawFn) -> bytes:
        given = list(fields)
        which = draw(st.integers(1, 6))
        if which in (1, 3, 4):
            given[which] = draw(number)
        elif which == 2:
            given[which] = draw(st.integers(0, 255))
        else:
            given[which] = [draw(small) if draw(st.booleans()) else value for value in given[which]]
        return index(*given)

    def load(here: Path, case: tuple[bytes, bytes]) -> bool:
        put(here / "en.idx", case[0])
        put(here / "en.bin", case[1])
        with watched():
            file = TokenFile(here / "en", 8)
            file.read(0, file.tokens)
            assert file.lengths.sum() == file.tokens
        return True

    return Target(
        st.tuples(
            st.one_of(st.binary(max_size=80), st.binary(max_size=40).map(lambda b: valid[:33] + b)),
            st.binary(max_size=40),
        ),
        st.tuples(st.one_of(changed_bytes(valid), changed_fields()), st.one_of(st.just(ids), changed_bytes(ids))),
        load,
        "first difference at byte [0-9];",
    )


def safetensors_target(folder: Path) -> Target:
    file = folder / "valid.safetensors"
    arrays = {
        "a": np.arange(6, dtype=np.float32).reshape(2, 3),
        "b": np.zeros((0, 4), np.int32),
        "c": np.array(1, np.int64),
    }
    folder.mkdir(parents=True, exist_ok=True)
    write_arrays(file, arrays, lambda: None, {"parts": "{}"})
    content = file.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header, rest = json.loads(content[8 : 8 + length]), content[8 + length :]

    def with_header(tree: Any) -> bytes:
        text = as_text(tree)
        return len(text).to_bytes(8, "little") + text + rest

    def load(here: Path, case: bytes) -> bool:
        path = put(here / "x.safetensors", case)
        with watched():
            metadata_of(path)
            return all(len(array.tobytes()) == array.nbytes for array in map_arrays(path).values())

    return Target(
        st.one_of(
            st.binary(max_size=120), TREES.map(with_header), st.binary(max_size=60).map(lambda b: content[:8] + b)
        ),
        st.one_of(changed_bytes(content), changed_tree(header).map(with_header)),
        load,
        "its header",
    )


def checkpoint_target(folder: Path) -> Target:
    root = folder / "checkpoints"
    values = np.arange(12, dtype=np.float32).reshape(3, 4)
    state = {"step": 3, "updates": 3, "cursor": {"draws": [1, 2]}}
    identity = Identity("v", "r", {"name": "tiny"})
    valid = save_checkpoint(root, 3, {"dense": {"w": SavedArray.whole(values)}}, state, identity, 1)
    manifest = json.loads((valid / "manifest.json").read_text())
    arrays = safetensors_target(folder / "arrays").mutated

    @st.composite
    def fingerprinted(draw: st.DrawFn) -> tuple[bytes, bytes, bytes]:
        """A file is changed, and its hash with it."""
        dense, told = (valid / "dense.safetensors").read_bytes(), (valid / "state.json").read_bytes()
        dense, told = (draw(arrays), told) if draw(st.booleans()) else (dense, draw(changed_bytes(told)))
        tree = deepcopy(manifest)
        for name, content in (("dense.safetensors", dense), ("state.json", told)):
            tree["files"][name] = {"bytes": len(content), "xxh3_128": xxhash.xxh3_128_hexdigest(content)}
        return resealed(tree), dense, told

    whole = [(valid / name).read_bytes() for name in ("dense.safetensors", "state.json")]

    def load(here: Path, case: tuple[bytes, bytes, bytes]) -> bool:
        for name, content in zip(("manifest.json", "dense.safetensors", "state.json"), case, strict=True):
            put(here / "step_00000003" / name, content)
        with watched():
            checkpoint = load_checkpoint(here / "step_00000003")
            checkpoint.saved("dense")
        return True

    def beside(manifests: st.SearchStrategy[bytes]) -> st.SearchStrategy:
        return manifests.map(lambda content: (content, *whole))

    anything, mutated = map(beside, sealed_cases(manifest))
    return Target(anything, st.one_of(mutated, fingerprinted()), load, "not the JSON|its own hash")


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

    return Target(
        st.one_of(st.binary(max_size=200), st.binary(max_size=60).map(lambda b: npz({"first_NDV": b}))),
        st.one_of(changed_bytes(content), changed_member()),
        load,
        "not a zip file",
    )


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
        st.tuples(names, st.one_of(st.binary(max_size=200), TREES.map(as_text)), st.just(True)),
        names.flatmap(lambda name: st.tuples(st.just(name), of_file(name), st.sampled_from([True, True, True, False]))),
        load,
        "was written; the file is damaged",
        share=0.2,  # the tokenizer is read each time
    )


def metrics_target(folder: Path) -> Target:
    from pangu_sigma.sealed import sealed_line
    from pangu_sigma.training.log.metrics import FILE, read_metrics

    lines = [
        {"kind": "evaluation", "step": 0, "per_domain_loss": {"en": 3.5}},
        {"kind": "step", "step": 5, "loss": 3.25, "tokens_per_second": 100.5},
        {"kind": "load", "step": 5, "load": [[1, 2]]},
    ]
    text = "".join(map(sealed_line, lines)).encode()

    def with_own_hash(tree: Any) -> bytes:
        """So that more than the hash is asked; where there can be none, the line as it is."""
        try:
            return sealed_line(tree, allow_nan=True).encode()
        except UnicodeEncodeError:
            return as_text(tree) + b"\n"

    def load(here: Path, case: bytes) -> bool:
        put(here / FILE, case)
        with watched():
            found = read_metrics(here)
        assert all(isinstance(line["kind"], str) and isinstance(line["step"], int) for line in found)
        return bool(found)

    return Target(
        st.one_of(st.binary(max_size=200), st.lists(TREES.map(as_text), max_size=3).map(b"\n".join)),
        st.one_of(
            changed_bytes(text), st.lists(st.sampled_from(lines).flatmap(changed_tree).map(with_own_hash)).map(b"".join)
        ),
        load,
        "$^",
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
        st.tuples(st.one_of(st.binary(max_size=200), TREES.map(as_text)), st.none()),
        st.one_of(
            st.tuples(st.one_of(changed_bytes(as_text(content)), changed_tree(content).map(as_text)), st.none()),
            st.tuples(st.just(as_text(content)), st.one_of(st.binary(max_size=60), changed_bytes(english))),
        ),
        load,
        "damaged",
        share=0.05,  # a model is read each time
    )


def sealed_target(folder: Path) -> Target:
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("a", "b"):
        put(folder / name, name.encode() * 50)
    seal_folder(folder, ["a", "b"], {"format": 1})
    tree = json.loads((folder / SEAL).read_bytes())
    assert tree["files"]["a"] == fingerprint(folder / "a")

    def load(here: Path, case: bytes) -> bool:
        for name in ("a", "b"):
            put(here / name, name.encode() * 50)
        put(here / SEAL, case)
        with watched():
            check_folder(here, "restore it")
        return True

    return Target(*sealed_cases(tree), load, "not the JSON|its own hash")


def manifest_target(folder: Path) -> Target:
    counts = {"documents": 3, "tokens": 9, "bytes": 30, "unknown": 0, "folded": 0}
    overlap = {"window": 13, "windows": 9, "share": 0.1, "by_hash_alone": 0.2, "wanted": 1}
    overlap |= {"max_overlap": 0.01, "min_tokens": 9, "boilerplate": 0.5, "boilerplate_windows": 1, "by_boilerplate": 0}
    record = {
        **{"slot": "en", "rows": 5, "offered": 4, "duplicates": 1, "too_long": 0, "train": counts, "held_out": counts},
        **{"over_limit": 0, "offered_bytes": 40, "left_out_bytes": 0},
        **{
            "overlap": overlap
            | {"passed_over": 0, "passed_over_tokens": 0, "passages": [{"text": "x", "documents": 11}]},
            "shift": 0.1,
            "shift_deviation": 0.2,
            "unigram_entropy": 3.0,
            "sources": [{"name": "s", "version": "1", "licence": "MIT", "sha256": None}],
        },
    }
    tree = {
        **{"fingerprint": "f", "vocabulary_hash": "v", "vocabulary_size": 40_300, "domains": {"en": record}},
        **{"quarantined": {"not JSON": 1}, "config": {"seed": 0}, "format": DATA_FORMAT},
    }

    def load(here: Path, case: bytes) -> bool:
        put(here / "manifest.json", case)
        with watched():
            load_manifest(here)
        return True

    return Target(*sealed_cases(tree), load, "own hash|not the JSON")


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

    return Target(st.binary(max_size=120).map(lambda b: b"\x3a" + b), changed_bytes(valid), load, "is no file|no graph")


def torch_target(folder: Path) -> Target:
    values = foreign_files.in_megatron(foreign_files.parent())
    tree = {"args": foreign_files.arguments(1), "model": foreign_files.nested(values), **foreign_files.training_state()}
    zipped, older = foreign_files.torch_zip(tree), foreign_files.torch_older(tree)
    with zipfile.ZipFile(io.BytesIO(zipped)) as archive:
        pickled = archive.read("archive/data.pkl")
    words = [
        b"cos\nsystem\n",
        b"\x82\x01",
        b"r\xff\xff\xff\xff",
        b")R",
        b"b",
        b"\x81",
        b"Q",
        b"h\x01",
        b"}(",
        b"u",
        b"e",
    ]

    @st.composite
    def changed_pickle(draw: st.DrawFn) -> bytes:
        content = draw(st.one_of(changed_bytes(pickled), st.sampled_from([pickled])))
        at = draw(st.integers(0, len(content)))
        inside = content[:at] + draw(st.sampled_from([b"", *words])) + content[at:]
        return foreign_files.torch_zip(tree, lambda _: inside)

    programs = st.lists(st.sampled_from([*words, b"(", b"t", b"]", b"a", b"K\x01", b"X\x01\0\0\0a", b"q\x01"])).map(
        b"".join
    )

    def load(here: Path, case: bytes) -> bool:
        file = put(here / "a.pt", case)
        with watched():
            model = open_dense_model(file)
            model.tensors["norm.gain"].read()
        return True

    return Target(
        st.one_of(
            st.binary(max_size=200),
            programs.map(lambda some: foreign_files.torch_zip(tree, lambda _: b"\x80\x02" + some + b".")),
        ),
        st.one_of(changed_bytes(zipped), changed_bytes(older), changed_pickle()),
        load,
        "neither a zip file nor a pickle",
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
    return Target(
        st.one_of(st.binary(max_size=200), st.binary(max_size=60).map(lambda b: whole[:9] + b)).map(
            lambda c: {"a.ckpt": c}
        ),
        st.one_of(changed_bytes(whole).map(lambda content: {"a.ckpt": content}), changed_release()),
        load,
        "at byte 0 |it is empty",
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

    return Target(
        st.tuples(st.sampled_from(sorted(files)), st.one_of(st.binary(max_size=100), TREES.map(as_text))),
        st.one_of(
            st.tuples(st.just("config.json"), changed_tree(config).map(as_text)),
            st.tuples(st.just("model.safetensors.index.json"), changed_tree(index).map(as_text)),
            st.sampled_from(sorted(files)).flatmap(lambda name: st.tuples(st.just(name), changed_bytes(files[name]))),
        ),
        load,
        "it is not JSON",
        share=0.3,
    )


TARGETS: dict[str, Callable[[Path], Target]] = {
    "configuration": config_target,
    "overrides": overrides_target,
    "jsonl": jsonl_target,
    "task lines": task_lines_target,
    "token index": index_target,
    "safetensors": safetensors_target,
    "checkpoint": checkpoint_target,
    "routing tables": routing_target,
    "Hugging Face folder": hf_target,
    "metrics": metrics_target,
    "tokenizer": tokenizer_target,
    "sealed folder": sealed_target,
    "data manifest": manifest_target,
    "MindIR": mindir_target,
    "torch": torch_target,
    "checkpoints of MindSpore": ckpt_target,
    "Hugging Face": huggingface_target,
}
"""What is loaded, by name; each is made in a folder of its own."""
