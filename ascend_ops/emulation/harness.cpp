// The kernels and their tiling behind C functions, for one chip (-D__NPU_ARCH__) and one dtype (-DDTYPE): see emulator.py.
#include "kernel_operator.h"
#define DTYPE_X DTYPE
#define DTYPE_ROWS DTYPE
#include "../op_host/tiling.h"
#include "../op_kernel/expert_combine.cpp"
#include "../op_kernel/expert_dispatch.cpp"

namespace {
using ascend_ops_host::Chip;

Chip ChipOf(uint32_t cores) {
  return emulation::IS_910A ? Chip{cores, 262144, false} : Chip{cores, 196608, true};
}

bool IsBfloat16() {
  return std::is_same<DTYPE, bfloat16_t>::value;
}

// Tensors are copied into guarded buffers: every access outside them is an error.
uint8_t *In(const void *data, size_t bytes) {
  uint8_t *buffer = emulation::GmAllocate(bytes);
  if (bytes) std::memcpy(buffer, data, bytes);
  return buffer;
}

void Out(void *data, const uint8_t *buffer, size_t bytes) {
  if (bytes) std::memcpy(data, buffer, bytes);
}

void RunRows(bool combine, uint32_t cores, bool reversed, void **data, const int64_t *sizes, int64_t *blocks) {
  const int64_t sourceRows = sizes[0], rows = sizes[1], cols = sizes[2];
  const bool hasResidual = data[2] != nullptr;
  const size_t bytes = rows * cols * sizeof(DTYPE);
  RowsTilingData t;
  ascend_ops_host::TileRows(ChipOf(cores), sourceRows, rows, cols, sizeof(DTYPE), hasResidual, IsBfloat16(), &t);
  uint8_t *source = In(data[0], sourceRows * cols * sizeof(DTYPE)), *index = In(data[1], rows * 4);
  uint8_t *residual = hasResidual ? In(data[2], bytes) : nullptr, *out = emulation::GmAllocate(bytes);
  auto *tiling = reinterpret_cast<uint8_t *>(&t);
  emulation::Launch(t.cores, reversed, [&] {
    if (combine) {
      expert_combine(source, index, residual, out, nullptr, tiling);
    } else {
      expert_dispatch(source, index, out, nullptr, tiling);
    }
  });
  Out(data[3], out, bytes);
  *blocks = t.cores;
}
}  // namespace

// Returns nullptr, or the rule that the kernel broke. data: inputs, then outputs; expert_dispatch has no residual (data[2]).
extern "C" const char *run(const char *op, int cores, int reversed, void **data, const int64_t *sizes, int64_t *blocks) {
  static std::string error;
  emulation::World &world = emulation::TheWorld();
  world.gm.clear();
  world.transfers.clear();
  try {
    RunRows(std::string(op) == "expert_combine", cores, reversed != 0, data, sizes, blocks);
  } catch (const emulation::Error &broken) {
    error = broken.what();
    return error.c_str();
  }
  return nullptr;
}

// Bytes of every transfer of the last run: kind 0 loads, 1 stores, 2 scalar reads of GM. Returns their number.
extern "C" int64_t transfers(int kind, int64_t *bytes, int64_t capacity) {
  int64_t count = 0;
  for (const emulation::Transfer &each : emulation::TheWorld().transfers) {
    if ((each.scalar ? 2 : each.write ? 1 : 0) != kind) continue;
    if (count < capacity) bytes[count] = each.bytes;
    ++count;
  }
  return count;
}

// Bytes moved and the fewest possible, from the tiling arithmetic alone.
extern "C" void rows_traffic(int cores, const int64_t *sizes, int hasResidual, int64_t rowsRead, int64_t *moved, int64_t *minimum) {
  RowsTilingData t;
  ascend_ops_host::TileRows(ChipOf(cores), sizes[0], sizes[1], sizes[2], sizeof(DTYPE), hasResidual != 0, IsBfloat16(), &t);
  const auto traffic = ascend_ops_host::RowsTraffic(ChipOf(cores), t, sizeof(DTYPE), rowsRead);
  *moved = traffic.moved;
  *minimum = traffic.minimum;
}
