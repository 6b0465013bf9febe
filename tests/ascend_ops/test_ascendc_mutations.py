"""Every mutation of a kernel or its host side is caught by the compiler, by a rule of the emulation, or by a wrong result.

This is the evidence that the emulation would notice if the shipped kernels had such a defect. Mutations that
change no behaviour, such as one more barrier, are not defects; those of HARMLESS must pass.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
from helpers.host_cases import check_host
from helpers.kernel_cases import check_everything

from ascend_ops.emulation import Emulator, KernelError, OpHost, TilingError, compile_emulator, compile_host
from ascend_ops.emulation.compiling import FOLDERS, PROJECT
from ascend_ops.errors import BuildError


@dataclass(frozen=True)
class Mutation:
    """`old` is replaced by `new`, everywhere in `file`; `caught` is what the error must say."""

    name: str
    file: str
    old: str
    new: str
    caught: str
    chip: str = "910B"
    dtype: str = "float16"

    @property
    def on_host(self) -> bool:
        """True of the operators' host side, which is compiled for itself, and runs with the kernels as shipped."""
        return self.file.startswith("op_host")


def dropped(name: str, file: str, line: str, caught: str, chip: str = "910B", dtype: str = "float16") -> Mutation:
    return Mutation(f"dropped {name}", file, line, "", caught, chip, dtype)


MOVE, ADD, TINY, CHIP, INDEX, TILING = (
    "op_kernel/move_rows.h",
    "op_kernel/add_rows.h",
    "op_kernel/tiny_rows.h",
    "op_kernel/chip.h",
    "op_kernel/index_tile.h",
    "op_host/tiling.h",
)
HOST, DISPATCH_HOST, COMBINE_HOST = "op_host/operator.h", "op_host/expert_dispatch.cpp", "op_host/expert_combine.cpp"
LOAD_RESIDUAL = "      LoadPieces(residual, residualGm, at + c, run, n);\n      residualQueue.EnQue(residual);\n"
ENQUEUED_FIRST = "".join(reversed(LOAD_RESIDUAL.splitlines(keepends=True)))
LOAD_INDEX = "    LoadPieces(buffer.template Get<int32_t>(), gm, first, 1, loaded);\n    Sync<HardEvent::MTE2_S>();\n"
ASKED_FOR_910B = "== platform_ascendc::SocVersion::ASCEND910B;"
STORED_ZEROS = "uint32_t n = count < t.zeroTile ? static_cast<uint32_t>(count) : t.zeroTile;"
LACKING = (
    "CAST_ROUND",
    "L1",
    "910A has no DataCopyPad",
    "910A has no bfloat16",
    "no chip adds bfloat16",
)  # these do not compile, all others do
STORE_TAIL = "    if (whole < n) DataCopy(gm[at + n - Lane<T>()], from[i * Slot<T>(n) + whole], Lane<T>());\n"
LOAD_TAIL = "    if (whole < n) DataCopy(to[i * Slot<T>(n) + whole], gm[at + n - Lane<T>()], Lane<T>());\n"

MUTATIONS = [
    # flags and barriers
    dropped("V_MTE3 before zeros are stored", MOVE, "    Sync<HardEvent::V_MTE3>();", "[sync]"),
    dropped("S_MTE2 before indices are overwritten", INDEX, "    Sync<HardEvent::S_MTE2>();", "[sync]"),
    dropped("MTE2_S before indices are read", INDEX, "    Sync<HardEvent::MTE2_S>();", "[sync]"),
    dropped("S_V before the flat sum", TINY, "      Sync<HardEvent::S_V>();", "[sync]", "910A"),
    dropped("V_MTE3 after the flat sum", TINY, "      Sync<HardEvent::V_MTE3>();", "[sync]", "910A"),
    dropped("S_MTE3 before a flat tile is stored", TINY, "      Sync<HardEvent::S_MTE3>();", "[sync]", "910A"),
    dropped("MTE3_S before a flat tile is refilled", TINY, "    Sync<HardEvent::MTE3_S>();", "[sync]", "910A"),
    dropped("SetFlag", CHIP, "  SetFlag<event>(id);\n", "[flags]"),
    dropped("WaitFlag", CHIP, "  WaitFlag<event>(id);\n", "["),
    dropped(
        "barrier after clearing", ADD, "    PipeBarrier<PIPE_V>();  // the sum reads what was cleared\n", "[barrier]"
    ),
    Mutation(
        "dropped barrier after Cast",
        ADD,
        "n);\n        PipeBarrier<PIPE_V>();\n        Add(",
        "n);\n        Add(",
        "[barrier]",
        dtype="bfloat16",
    ),
    Mutation(
        "dropped barrier after Add",
        ADD,
        "PipeBarrier<PIPE_V>();\n        Cast(sum",
        "Cast(sum",
        "[barrier]",
        dtype="bfloat16",
    ),
    dropped(
        "barrier before the next Cast",
        ADD,
        "        PipeBarrier<PIPE_V>();  // the next turn overwrites fa\n",
        "[barrier]",
        dtype="bfloat16",
    ),
    # queues
    dropped("EnQue", MOVE, "      queue.EnQue(group);\n", "[queue]"),
    dropped("DeQue", MOVE, "      group = queue.template DeQue<T>();", "[sync]"),
    dropped("FreeTensor", MOVE, "      queue.FreeTensor(group);\n", "[queue]"),
    dropped("FreeTensor of the source", ADD, "      sourceQueue.FreeTensor(source);\n", "[queue]"),
    dropped("FreeTensor of the sum", ADD, "      outQueue.FreeTensor(sum);\n", "[queue]"),
    dropped("EnQue of the residual", ADD, "      residualQueue.EnQue(residual);\n", "[queue]"),
    dropped("DeQue of the residual", ADD, "      residual = residualQueue.template DeQue<T>();\n", "[sync]"),
    dropped("DeQue of the sum", ADD, "      sum = outQueue.template DeQue<T>();\n", "[sync]"),
    Mutation(
        "more queue buffers than 910A has",
        MOVE,
        "InitBuffer(queue, t.buffers,",
        "InitBuffer(queue, 5,",
        "[capacity]",
        "910A",
    ),
    # the unified buffer
    Mutation(
        "buffer of one row for a group", MOVE, "t.groupRows * t.colTile * sizeof", "t.colTile * sizeof", "[range]"
    ),
    Mutation(
        "buffer too small by half",
        ADD,
        "bytes = t.groupRows * t.colTile * sizeof(T)",
        "bytes = t.groupRows * t.colTile",
        "[range]",
    ),
    Mutation("six buffers counted as two", TILING, "hasResidual ? 3 * t", "false ? 3 * t", "[capacity]"),
    Mutation("eight buffers", TILING, "<= capacity(4) ? 4", "<= capacity(8) ? 8", "[capacity]", "910A"),
    Mutation("four buffers whatever a row takes", TILING, "<= capacity(4) ?", "> 0 ?", "wrong tiling"),
    Mutation(
        "cast buffers not counted",
        TILING,
        "t->castTile * uint64_t(8)",
        "t->castTile * 0",
        "[capacity]",
        dtype="bfloat16",
    ),
    Mutation("slots not on 32 B", CHIP, "from[i * Slot<T>(n)]", "from[i * n]", "[alignment]", "910A"),
    # what is written, and by whom
    Mutation("cores overlap by a row", CHIP, "GetBlockIdx()) * perCore;", "GetBlockIdx()) * (perCore - 1);", "[cores]"),
    Mutation(
        "one row too many at the end",
        MOVE,
        "rows = CoreCount(t.rows, t.rowsPerCore, t.cores);",
        "rows = CoreCount(t.rows, t.rowsPerCore, t.cores) + 1;",
        "[",
    ),
    Mutation(
        "one row too few at the end",
        MOVE,
        "rows = CoreCount(t.rows, t.rowsPerCore, t.cores);",
        "rows = CoreCount(t.rows, t.rowsPerCore, t.cores) - 1;",
        "wrong",
    ),
    Mutation("first row left out", MOVE, "uint32_t first = 0;", "uint32_t first = 1;", "wrong"),
    Mutation(
        "last core ignores the rest", CHIP, "== cores ? total - begin : perCore", "== cores ? perCore : perCore", "["
    ),
    Mutation(
        "tail not shifted back", CHIP, STORE_TAIL, STORE_TAIL.replace("at + n - Lane<T>()", "at + whole"), "[", "910A"
    ),
    Mutation(
        "tail loaded from a wrong place",
        CHIP,
        LOAD_TAIL,
        LOAD_TAIL.replace("at + n - Lane<T>()", "at + whole - Lane<T>()"),
        "wrong",
        "910A",
    ),
    dropped("tail", CHIP, STORE_TAIL, "wrong", "910A"),
    Mutation("part of a block", CHIP, "from[i * Slot<T>(n)], whole)", "from[i * Slot<T>(n)], n)", "[length]", "910A"),
    Mutation("cores start inside a block", TILING, "% lane != 0 ? lane : 1", "% lane != 0 ? 1 : 1", "[", "910A"),
    Mutation(
        "a core owns less than a block",
        TILING,
        "&& last < lane) --t->cores;",
        "&& last < 0) --t->cores;",
        "[range]",
        "910A",
    ),
    Mutation("flat tail not shifted back", TINY, "at = count < n ? 0 : count - n;", "at = at;", "[", "910A"),
    Mutation(
        "flat rows forgotten",
        "op_kernel/expert_dispatch.cpp",
        "t.cols < ascend_ops::Lane<DTYPE_X>()",
        "false",
        "[",
        "910A",
    ),
    # what the chip lacks
    Mutation(
        "DataCopyPad on 910A",
        CHIP,
        "#define ASCEND_OPS_WHOLE_BLOCKS 1",
        "#define ASCEND_OPS_WHOLE_BLOCKS 0",
        "910A has no DataCopyPad",
        "910A",
    ),
    Mutation(
        "bfloat16 on 910A",
        "op_kernel/expert_dispatch.cpp",
        "MoveRows<DTYPE_X>",
        "MoveRows<bfloat16_t>",
        "910A has no bfloat16",
        "910A",
    ),
    Mutation(
        "Add in bfloat16",
        ADD,
        "CAST = std::is_same<T, bfloat16_t>::value",
        "CAST = false",
        "no chip adds bfloat16",
        dtype="bfloat16",
    ),
    Mutation(
        "rounding Cast without a mode",
        ADD,
        "RoundMode::CAST_RINT",
        "RoundMode::CAST_NONE",
        "[length]",
        dtype="bfloat16",
    ),
    # values
    dropped(
        "zero fill",
        MOVE,
        "    Duplicate(zeros, static_cast<T>(0), static_cast<int32_t>(t.zeroTile));\n",
        "[uninitialised]",
    ),
    Mutation(
        "dropped tokens not cleared",
        ADD,
        "if (indices.At(i + r) < 0) Duplicate",
        "if (indices.At(i + r) < -1) Duplicate",
        "[",
    ),
    Mutation("token 0 taken for padding", MOVE, "indices.At(i) < 0", "indices.At(i) <= 0", "wrong"),
    Mutation("padding inside a group not seen", MOVE, " && (indices.At(i + run) < 0) == padding", "", "["),
    Mutation("one row for the whole group", MOVE, "indices.At(i + r)", "indices.At(i)", "wrong"),
    Mutation("column ignored", MOVE, "* t.cols + c;", "* t.cols;", "wrong"),
    Mutation("residual of core 0", ADD, "(residual) + offset", "(residual)", "wrong"),
    Mutation("residual forgotten", ADD, "Add(sum, a, b,", "Add(sum, a, a,", "wrong"),
    Mutation("index tail not read from GM", INDEX, "i < loaded ?", "true ?", "", "910A"),
    Mutation(
        "index tail read as a block", INDEX, "n / Lane<int32_t>() * Lane<int32_t>() : n", "n : n", "wrong", "910A"
    ),
    # offsets beyond 2^31 and 2^32 elements, lengths from 2^16 on
    Mutation(
        "32-bit offset of a source row",
        MOVE,
        "static_cast<uint64_t>(indices.At(i + r))",
        "static_cast<uint32_t>(indices.At(i + r))",
        "[uninitialised]",
    ),
    Mutation("32-bit offset of a core", MOVE, "static_cast<uint64_t>(begin)", "begin", "wrong bits"),
    Mutation(
        "32-bit offset in a core",
        MOVE,
        "const uint64_t at = static_cast<uint64_t>(first + i)",
        "const uint64_t at = (first + i)",
        "wrong bits",
    ),
    Mutation(
        "31-bit offset in a core",
        MOVE,
        "static_cast<uint64_t>(first + i) * t.cols",
        "static_cast<int32_t>((first + i) * t.cols)",
        "[range]",
    ),
    Mutation("32-bit run of padding", MOVE, "static_cast<uint64_t>(run)", "run", "wrong end"),
    Mutation("32-bit size of the source", MOVE, "static_cast<uint64_t>(t.sourceRows)", "t.sourceRows", "[range]"),
    Mutation(
        "32-bit offset of a source row in a sum",
        ADD,
        "static_cast<uint64_t>(row)",
        "static_cast<uint32_t>(row)",
        "[uninitialised]",
    ),
    Mutation("32-bit offset of a core's sums", ADD, "offset = static_cast<uint64_t>(begin)", "offset = begin", "["),
    Mutation(
        "32-bit offset of a flat element",
        TINY,
        "static_cast<uint64_t>(row)",
        "static_cast<uint32_t>(row)",
        "wrong bits",
        "910A",
    ),
    Mutation(
        "32-bit offset of a load",
        CHIP,
        "GlobalTensor<T> &gm, uint64_t at, uint32_t pieces",
        "GlobalTensor<T> &gm, uint32_t at, uint32_t pieces",
        "[",
    ),
    Mutation(
        "32-bit offset of a store",
        CHIP,
        "void StorePieces(const GlobalTensor<T> &gm, uint64_t",
        "void StorePieces(const GlobalTensor<T> &gm, uint32_t",
        "wrong bits",
    ),
    Mutation(
        "16-bit length of a transfer",
        CHIP,
        "static_cast<uint32_t>(n * sizeof(T))",
        "static_cast<uint16_t>(n * sizeof(T))",
        "wrong bits",
    ),
    # padding is any negative index
    Mutation(
        "padding only at -1",
        MOVE,
        "const bool padding = indices.At(i) < 0",
        "const bool padding = indices.At(i) == -1",
        "[",
    ),
    Mutation(
        "padding only at -1 inside a group", MOVE, "(indices.At(i + run) < 0)", "(indices.At(i + run) == -1)", "["
    ),
    Mutation("dropped tokens only at -1", ADD, "if (row >= 0) LoadPieces", "if (row != -1) LoadPieces", "["),
    Mutation("only -1 cleared", ADD, "if (indices.At(i + r) < 0) Dup", "if (indices.At(i + r) == -1) Dup", "["),
    Mutation("padding of flat rows only at -1", TINY, "row < 0 ?", "row == -1 ?", "[range]", "910A"),
    # the host side: definitions, the chip, shapes, dtypes
    Mutation("cube cores for vector cores", HOST, "GetCoreNumAiv()", "GetCoreNumAic()", "wrong tiling"),
    Mutation(
        "AI cores for vector cores", HOST, "platform.GetCoreNumAiv() :", "platform.GetCoreNum() :", "wrong tiling"
    ),
    Mutation(
        "all cores launched",
        HOST,
        "Launch(context, tiling->cores)",
        "Launch(context, ReadChip(context).cores)",
        "wrong number of blocks",
    ),
    Mutation("element size of the index", HOST, "GetInputDesc(0)->", "GetInputDesc(1)->", "wrong tiling"),
    Mutation("four bytes an element", HOST, "ge::GetSizeByDataType(dtype)", "4", "wrong tiling"),
    Mutation("rows of the source inferred", HOST, "? index->GetDim(0)", "? source->GetDim(0)", "wrong shape"),
    Mutation("rows of the source tiled", HOST, "rows = index.GetDim(0)", "rows = source.GetDim(0)", "wrong tiling"),
    Mutation("DataCopyPad on the wrong chip", HOST, "!= platform_ascendc", "== platform_ascendc", "wrong tiling"),
    Mutation("bfloat16 not seen", HOST, "dtype == ge::DT_BF16", "dtype == ge::DT_FLOAT16", "wrong tiling"),
    Mutation("residual not seen", HOST, "residual != nullptr, dtype", "false, dtype", "wrong tiling"),
    Mutation("inverse taken for the residual", COMBINE_HOST, "InputShape(2)", "InputShape(1)", "shapes"),
    Mutation("workspace not set", HOST, "[0] = 0;", ";", "wrong workspace"),
    Mutation("size of all tensors", HOST, "most = INT32_MAX", "most = UINT32_MAX", "not refused"),
    Mutation("length of the residual not checked", HOST, "shape.GetDim(0) != rows || ", "", "not refused"),
    Mutation("width of the residual not checked", HOST, " || shape.GetDim(1) != cols", "", "not refused"),
    Mutation("unknown rank taken for one axis", HOST, "&& index->GetDim(0) >= 0", "", "wrong shape"),
    Mutation("dtype of the index inferred", HOST, "GetInputDataType(0)", "GetInputDataType(1)", "wrong dtype"),
    Mutation(
        "a strided view",
        DISPATCH_HOST,
        ".AutoContiguous();\n    definition.Output",
        ";\n    definition.Output",
        "strided",
    ),
    Mutation(
        "a strided view on 910A alone",
        COMBINE_HOST,
        "Declare(ascend910, false)",
        'ascend910.Input("rows").ParamType(REQUIRED).DataType(RowTypes(false)).Format(Formats(false))',
        "strided",
    ),
    Mutation(
        "bfloat16 offered on 910A",
        DISPATCH_HOST,
        "Declare(ascend910, false)",
        "Declare(ascend910, true)",
        "wrong dtypes",
    ),
    dropped("bfloat16 on 910B", HOST, "  if (bfloat16) types.push_back(ge::DT_BF16);\n", "wrong dtypes"),
    Mutation("a chip left out", DISPATCH_HOST, '.AddConfig("ascend910_93")', "", "wrong chips"),
    Mutation("residual required", COMBINE_HOST, "OPTIONAL", "REQUIRED", "wrong arguments"),
    # of an attack from outside
    Mutation(
        "pieces cut to 8 bits", CHIP, "static_cast<uint16_t>(pieces)", "static_cast<uint8_t>(pieces)", "[uninitialised]"
    ),
    Mutation(
        "index tail read from the table's start", INDEX, "uint64_t>(start) + i", "uint64_t>(0) + i", "wrong", "910A"
    ),
    Mutation("column of the source ignored in a sum", ADD, "row) * t.cols + c, 1", "row) * t.cols, 1", "wrong"),
    Mutation("column of the residual ignored", ADD, "residualGm, at + c, run", "residualGm, at, run", "wrong"),
    Mutation("residual enqueued before its load", ADD, LOAD_RESIDUAL, ENQUEUED_FIRST, "["),
    Mutation("half up and not to even", ADD, "CAST_RINT", "CAST_ROUND", "CAST_ROUND", dtype="bfloat16"),
    Mutation("core of exactly one block given away", TILING, "last < lane", "last <= lane", "wrong tiling", "910A"),
    Mutation("L1 for the unified buffer", HOST, "CoreMemType::UB", "CoreMemType::L1", "L1"),
    Mutation(
        "no dynamic shapes", DISPATCH_HOST, "ShapeSupportFlag(true)", "ShapeSupportFlag(false)", "no dynamic shapes"
    ),
    Mutation("no dynamic ranks", COMBINE_HOST, "RankSupportFlag(true)", "RankSupportFlag(false)", "no dynamic shapes"),
    Mutation(
        "static shapes compiled apart", COMBINE_HOST, "StaticFlag(true)", "StaticFlag(false)", "no dynamic shapes"
    ),
    Mutation("no InferDataType", COMBINE_HOST, ".SetInferDataType(InferRowDataType)", "", "has no InferDataType"),
    Mutation("no InferShape", DISPATCH_HOST, "SetInferShape(InferRowShape).", "", "has no InferShape"),
    Mutation("no tiling", DISPATCH_HOST, ".SetTiling(optiling::TileExpertDispatch)", "", "has no Tiling"),
    Mutation(
        "flag before the load of the index", INDEX, LOAD_INDEX, "".join(reversed(LOAD_INDEX.splitlines(True))), "[sync]"
    ),
    Mutation("last cast too long", ADD, "CAST_RINT, n", "CAST_RINT, t.castTile", "[", dtype="bfloat16"),
    Mutation(
        "flat row one too far", TINY, "indexGm.GetValue(at / t.cols)", "indexGm.GetValue(at / t.cols + 1)", "[", "910A"
    ),
]

HARMLESS = [
    Mutation(
        "the same chips named the other way", HOST, "!= platform_ascendc::SocVersion::ASCEND910;", ASKED_FOR_910B, ""
    ),
    Mutation(
        "32-bit position in a flat core",
        TINY,
        "for (uint64_t at = 0; at < count;)",
        "for (uint32_t at = 0; at < count;)",
        "",
        "910A",
    ),
    Mutation("zeros in two transfers", MOVE, STORED_ZEROS, STORED_ZEROS + " n -= n / 2;", ""),
]
"""Changes without an effect: 910B and 910_93 are one version to CANN, and no core has 2^32 elements of short rows."""


NO_CASE = SimpleNamespace(params={})
IN_EVERY_RUN = 8
"""One mutation of so many is in the suite, each a compilation of seconds; `-m slow` has the others."""


@pytest.fixture(scope="module")
def libraries(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Future[Path]]]:
    """A library for every mutation that this run tests, compiled in the background."""
    items = [item for item in request.session.items if "mutation" in getattr(item, "callspec", NO_CASE).params]
    with ThreadPoolExecutor() as pool:
        yield {
            mutation.name: pool.submit(_compile, mutation, tmp_path_factory.mktemp("mutant"))
            for mutation in (item.callspec.params["mutation"] for item in items)
        }


def _compile(mutation: Mutation, folder: Path) -> Path:
    for name in FOLDERS:
        shutil.copytree(PROJECT / name, folder / name)
    path = folder / mutation.file
    text = path.read_text()
    if mutation.old not in text:
        raise LookupError(f"{mutation.name}: {mutation.file} has changed; mutate it as it is now")
    path.write_text(text.replace(mutation.old, mutation.new))
    if mutation.on_host:
        return compile_host(folder, folder)
    return compile_emulator(mutation.chip, mutation.dtype, folder, folder)


def test_names_are_unique():
    assert len({mutation.name for mutation in MUTATIONS}) == len(MUTATIONS) >= 20


def check_mutant(mutation: Mutation, emulators, libraries) -> None:
    library = libraries[mutation.name].result()
    if mutation.file == TILING:  # what no kernel can do
        emulator = copy(emulators[mutation.chip, mutation.dtype])
        emulator.host = OpHost(library)
        check_everything(emulator)
        check_host(emulator.host)
    elif mutation.on_host:
        check_host(OpHost(library))
    else:
        check_everything(Emulator(mutation.chip, mutation.dtype, library))


@pytest.mark.parametrize(
    "mutation",
    [
        pytest.param(mutation, id=mutation.name, marks=[pytest.mark.slow] if number % IN_EVERY_RUN else [])
        for number, mutation in enumerate(MUTATIONS)
    ],
)
def test_mutation_is_caught(emulators, libraries, mutation: Mutation):
    how = BuildError if mutation.caught in LACKING else (KernelError, AssertionError, TilingError)
    with pytest.raises(how) as caught:
        check_mutant(mutation, emulators, libraries)
    assert mutation.caught in str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize("mutation", HARMLESS, ids=lambda mutation: mutation.name)
def test_a_change_without_an_effect_is_not_taken_for_a_defect(emulators, libraries, mutation: Mutation):
    check_mutant(mutation, emulators, libraries)
