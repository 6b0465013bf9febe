"""Every mutation of a kernel or its host side is caught by the compiler, by a rule of the emulation, or by a wrong result.

This is the evidence that the emulation would notice if the shipped kernels had such a defect. Mutations that change no
behaviour, such as one more barrier, are not defects; those of HARMLESS must pass. Each rule of the emulation alone is
broken in broken_kernels.cpp.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from copy import copy
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import pytest
from helpers.host_cases import check_host
from helpers.kernel_cases import check_everything

from ascend_ops.emulation import Emulator, KernelError, OpHost, TilingError, compile_emulator, compile_host
from ascend_ops.emulation.compiling import FOLDERS, PROJECT
from ascend_ops.errors import BuildError


class Mutation(NamedTuple):
    """`old` is replaced by `new`, everywhere in `file`; `caught` is what the error must say."""

    name: str
    file: str
    chip: str
    dtype: str
    old: str
    new: str
    caught: str

    @property
    def on_host(self) -> bool:
        """True of the operators' host side, which is compiled for itself, and runs with the kernels as shipped."""
        return self.file.startswith("op_host")


Table = dict[tuple[str, str, str], dict[str, tuple[str, str, str]]]


def listed(table: Table) -> list[Mutation]:
    return [Mutation(name, *where, *how) for where, mutations in table.items() for name, how in mutations.items()]


MOVE, ADD, TINY = "op_kernel/move_rows.h", "op_kernel/add_rows.h", "op_kernel/tiny_rows.h"
CHIP, INDEX, DISPATCH = "op_kernel/chip.h", "op_kernel/index_tile.h", "op_kernel/expert_dispatch.cpp"
TILING, HOST = "op_host/tiling.h", "op_host/operator.h"
DISPATCH_HOST, COMBINE_HOST = "op_host/expert_dispatch.cpp", "op_host/expert_combine.cpp"
LOAD_RESIDUAL = [
    "      LoadPieces(residual, residualGm, at + c, run, n);\n",
    "      residualQueue.EnQue(residual);\n",
]
LOAD_INDEX = [
    "    LoadPieces(buffer.template Get<int32_t>(), gm, first, 1, loaded);\n",
    "    Sync<HardEvent::MTE2_S>();\n",
]
ZERO_FILL = "Duplicate(zeros, static_cast<T>(0), static_cast<int32_t>(t.zeroTile));"
LACKING = ("CAST_ROUND", "L1", "910A has no DataCopyPad", "910A has no bfloat16", "no chip adds bfloat16")
"""These do not compile, all others do."""

MUTATIONS = listed(
    {
        (MOVE, "910B", "float16"): {
            "dropped DeQue": ("group = queue.template DeQue<T>();", "", "[sync]"),
            "buffer of one row for a group": ("t.groupRows * t.colTile * sizeof", "t.colTile * sizeof", "[range]"),
            "one row too many at the end": ("t.cores);", "t.cores) + 1;", "["),
            "one row too few at the end": ("t.cores);", "t.cores) - 1;", "wrong"),
            "first row left out": ("uint32_t first = 0;", "uint32_t first = 1;", "wrong"),
            "no zero fill": (ZERO_FILL, "", "[uninitialised]"),
            "token 0 taken for padding": ("indices.At(i) < 0", "indices.At(i) <= 0", "wrong"),
            "padding inside a group not seen": (" && (indices.At(i + run) < 0) == padding", "", "["),
            "one row for the whole group": ("indices.At(i + r)", "indices.At(i)", "wrong"),
            "column ignored": ("* t.cols + c;", "* t.cols;", "wrong"),
            # offsets beyond 2^31 and 2^32 elements
            "32-bit source row": ("<uint64_t>(indices.At", "<uint32_t>(indices.At", "[uninitialised]"),
            "32-bit offset of a core": ("static_cast<uint64_t>(begin)", "begin", "wrong bits"),
            "32-bit offset in a core": ("at = static_cast<uint64_t>(first + i)", "at = (first + i)", "wrong bits"),
            "31-bit offset": ("uint64_t>(first + i) * t.cols", "int32_t>((first + i) * t.cols)", "[range]"),
            "32-bit run of padding": ("static_cast<uint64_t>(run)", "run", "wrong end"),
            "32-bit size of the source": ("static_cast<uint64_t>(t.sourceRows)", "t.sourceRows", "[range]"),
            # padding is any negative index
            "padding only at -1": ("padding = indices.At(i) < 0", "padding = indices.At(i) == -1", "["),
            "padding only at -1 inside a group": ("indices.At(i + run) < 0", "indices.At(i + run) == -1", "["),
        },
        (INDEX, "910B", "float16"): {
            "dropped S_MTE2 before indices are overwritten": ("Sync<HardEvent::S_MTE2>();", "", "[sync]"),
            "flag before the load of the index": ("".join(LOAD_INDEX), "".join(reversed(LOAD_INDEX)), "[sync]"),
        },
        (INDEX, "910A", "float16"): {
            "index tail not read from GM": ("i < loaded ?", "true ?", ""),
            "index tail read as a block": ("n / Lane<int32_t>() * Lane<int32_t>() : n", "n : n", "wrong"),
            "index tail read from the table's start": ("uint64_t>(start) + i", "uint64_t>(0) + i", "wrong"),
        },
        (ADD, "910B", "float16"): {
            "buffer too small by half": ("t.colTile * sizeof(T)", "t.colTile", "[range]"),
            "dropped tokens not cleared": ("indices.At(i + r) < 0", "indices.At(i + r) < -1", "["),
            "residual of core 0": ("(residual) + offset", "(residual)", "wrong"),
            "residual forgotten": ("Add(sum, a, b,", "Add(sum, a, a,", "wrong"),
            "residual enqueued early": ("".join(LOAD_RESIDUAL), "".join(reversed(LOAD_RESIDUAL)), "["),
            "column of the source ignored": ("row) * t.cols + c, 1", "row) * t.cols, 1", "wrong"),
            "column of the residual ignored": ("residualGm, at + c, run", "residualGm, at, run", "wrong"),
            "32-bit source row in a sum": ("<uint64_t>(row)", "<uint32_t>(row)", "[uninitialised]"),
            "32-bit offset of a core's sums": ("offset = static_cast<uint64_t>(begin)", "offset = begin", "["),
            "dropped tokens only at -1": ("if (row >= 0) LoadPieces", "if (row != -1) LoadPieces", "["),
            "only -1 cleared": ("indices.At(i + r) < 0", "indices.At(i + r) == -1", "["),
        },
        (ADD, "910B", "bfloat16"): {
            "dropped barrier": ("PipeBarrier<PIPE_V>();  // the next turn overwrites fa\n", "", "[barrier]"),
            "Add in bfloat16": ("std::is_same<T, bfloat16_t>::value", "false", "no chip adds bfloat16"),
            "rounding Cast without a mode": ("RoundMode::CAST_RINT", "RoundMode::CAST_NONE", "[length]"),
            "half up and not to even": ("CAST_RINT", "CAST_ROUND", "CAST_ROUND"),
            "last cast too long": ("CAST_RINT, n", "CAST_RINT, t.castTile", "["),
        },
        (TINY, "910A", "float16"): {
            "dropped S_V before the flat sum": ("Sync<HardEvent::S_V>();", "", "[sync]"),
            "dropped MTE3_S before a flat tile is refilled": ("Sync<HardEvent::MTE3_S>();", "", "[sync]"),
            "flat tail not shifted back": ("at = count < n ? 0 : count - n;", "at = at;", "["),
            "flat row one too far": ("indexGm.GetValue(at / t.cols)", "indexGm.GetValue(at / t.cols + 1)", "["),
            "32-bit offset of a flat element": ("<uint64_t>(row)", "<uint32_t>(row)", "wrong bits"),
            "padding of flat rows only at -1": ("row < 0 ?", "row == -1 ?", "[range]"),
        },
        (DISPATCH, "910A", "float16"): {
            "flat rows forgotten": ("t.cols < ascend_ops::Lane<DTYPE_X>()", "false", "["),
            "bfloat16 on 910A": ("MoveRows<DTYPE_X>", "MoveRows<bfloat16_t>", "910A has no bfloat16"),
        },
        (CHIP, "910B", "float16"): {
            "cores overlap by a row": ("GetBlockIdx()) * perCore;", "GetBlockIdx()) * (perCore - 1);", "[cores]"),
            "last core ignores the rest": ("== cores ? total - begin :", "== cores ? perCore :", "["),
            "32-bit offset of a load": ("uint64_t at, uint32_t pieces", "uint32_t at, uint32_t pieces", "["),
            "32-bit offset of a store": ("uint64_t at, const", "uint32_t at, const", "wrong bits"),
            "16-bit length of a transfer": ("uint32_t>(n * sizeof(T))", "uint16_t>(n * sizeof(T))", "wrong bits"),
            "pieces cut to 8 bits": ("uint16_t>(pieces)", "uint8_t>(pieces)", "[uninitialised]"),
        },
        (CHIP, "910A", "float16"): {
            "slots not on 32 B": ("from[i * Slot<T>(n)]", "from[i * n]", "[alignment]"),
            "tail not shifted back": ("gm[at + n - Lane<T>()], from", "gm[at + whole], from", "["),
            "tail loaded from a wrong place": ("+ whole], gm[at + n", "+ whole], gm[at + whole", "wrong"),
            "no tail": ("if (whole < n) DataCopy(gm", "if (false) DataCopy(gm", "wrong"),
            "part of a block": ("from[i * Slot<T>(n)], whole)", "from[i * Slot<T>(n)], n)", "[length]"),
            "DataCopyPad on 910A": ("WHOLE_BLOCKS 1", "WHOLE_BLOCKS 0", "910A has no DataCopyPad"),
        },
        (TILING, "910A", "float16"): {
            "eight buffers": ("<= capacity(4) ? 4", "<= capacity(8) ? 8", "[capacity]"),
            "cores start inside a block": ("% lane != 0 ? lane : 1", "% lane != 0 ? 1 : 1", "["),
            "a core owns less than a block": ("last < lane", "last < 0", "[range]"),
            "core of exactly one block given away": ("last < lane", "last <= lane", "wrong tiling"),
        },
        (TILING, "910B", "float16"): {
            "six buffers counted as two": ("hasResidual ? 3 * t", "false ? 3 * t", "[capacity]"),
            "four buffers whatever a row takes": ("<= capacity(4) ?", "> 0 ?", "wrong tiling"),
        },
        (TILING, "910B", "bfloat16"): {
            "cast buffers not counted": ("t->castTile * uint64_t(8)", "t->castTile * 0", "[capacity]"),
        },
        (HOST, "910B", "float16"): {
            "cube cores for vector cores": ("GetCoreNumAiv()", "GetCoreNumAic()", "wrong tiling"),
            "AI cores for vector cores": ("platform.GetCoreNumAiv() :", "platform.GetCoreNum() :", "wrong tiling"),
            "all cores launched": ("tiling->cores)", "ReadChip(context).cores)", "wrong number of blocks"),
            "element size of the index": ("GetInputDesc(0)->", "GetInputDesc(1)->", "wrong tiling"),
            "four bytes an element": ("ge::GetSizeByDataType(dtype)", "4", "wrong tiling"),
            "rows of the source inferred": ("? index->GetDim(0)", "? source->GetDim(0)", "wrong shape"),
            "rows of the source tiled": ("rows = index.GetDim(0)", "rows = source.GetDim(0)", "wrong tiling"),
            "DataCopyPad on the wrong chip": ("!= platform_ascendc", "== platform_ascendc", "wrong tiling"),
            "bfloat16 not seen": ("dtype == ge::DT_BF16", "dtype == ge::DT_FLOAT16", "wrong tiling"),
            "residual not seen": ("residual != nullptr, dtype", "false, dtype", "wrong tiling"),
            "workspace not set": ("[0] = 0;", ";", "wrong workspace"),
            "size of all tensors": ("most = INT32_MAX", "most = UINT32_MAX", "not refused"),
            "length of the residual not checked": ("shape.GetDim(0) != rows || ", "", "not refused"),
            "width of the residual not checked": (" || shape.GetDim(1) != cols", "", "not refused"),
            "unknown rank taken for one axis": ("&& index->GetDim(0) >= 0", "", "wrong shape"),
            "dtype of the index inferred": ("GetInputDataType(0)", "GetInputDataType(1)", "wrong dtype"),
            "dropped bfloat16 on 910B": ("if (bfloat16) types.push_back(ge::DT_BF16);\n", "", "wrong dtypes"),
            "L1 for the unified buffer": ("CoreMemType::UB", "CoreMemType::L1", "L1"),
        },
        (COMBINE_HOST, "910B", "float16"): {
            "inverse taken for the residual": ("InputShape(2)", "InputShape(1)", "shapes"),
            "a strided view on 910A alone": (
                "Declare(ascend910, false)",
                'ascend910.Input("rows").ParamType(REQUIRED).DataType(RowTypes(false)).Format(Formats(false))',
                "strided",
            ),
            "residual required": ("OPTIONAL", "REQUIRED", "wrong arguments"),
            "no dynamic ranks": ("RankSupportFlag(true)", "RankSupportFlag(false)", "no dynamic shapes"),
            "static shapes compiled apart": ("StaticFlag(true)", "StaticFlag(false)", "no dynamic shapes"),
            "no InferDataType": (".SetInferDataType(InferRowDataType)", "", "has no InferDataType"),
        },
        (DISPATCH_HOST, "910B", "float16"): {
            "a strided view": (".AutoContiguous();\n    definition.Output", ";\n    definition.Output", "strided"),
            "bfloat16 offered on 910A": ("Declare(ascend910, false)", "Declare(ascend910, true)", "wrong dtypes"),
            "a chip left out": ('.AddConfig("ascend910_93")', "", "wrong chips"),
            "no dynamic shapes": ("ShapeSupportFlag(true)", "ShapeSupportFlag(false)", "no dynamic shapes"),
            "no InferShape": ("SetInferShape(InferRowShape).", "", "has no InferShape"),
            "no tiling": (".SetTiling(optiling::TileExpertDispatch)", "", "has no Tiling"),
        },
    }
)

HARMLESS = listed(
    {
        (HOST, "910B", "float16"): {
            "the same chips named the other way": (
                "!= platform_ascendc::SocVersion::ASCEND910;",
                "== platform_ascendc::SocVersion::ASCEND910B;",
                "",
            ),
        },
        (TINY, "910A", "float16"): {"32-bit position in a flat core": ("for (uint64_t at", "for (uint32_t at", "")},
        (MOVE, "910B", "float16"): {"zeros in two transfers": (": t.zeroTile;", ": t.zeroTile; n -= n / 2;", "")},
    }
)
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
