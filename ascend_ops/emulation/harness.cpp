// The kernels behind C functions, for one chip (its macros) and one dtype (-DDTYPE): see emulator.py.
#include "kernel_operator.h"
#define DTYPE_X DTYPE
#define DTYPE_ROWS DTYPE
#include "../op_kernel/expert_combine.cpp"
#include "../op_kernel/expert_dispatch.cpp"

namespace {
// A tensor in a guarded buffer: every access outside it is an error. `data` is its last `given` bytes, and only they are watched.
uint8_t *In(const void *data, size_t bytes, size_t given) {
  uint8_t *buffer = emulation::GmAllocate(bytes, bytes - given);
  if (given) std::memcpy(buffer + bytes - given, data, given);
  return buffer;
}

void Run(bool combine, uint32_t blocks, uint32_t first, bool reversed, uint8_t *tiling, void **data, const int64_t *sizes) {
  const size_t row = sizes[2] * sizeof(DTYPE), bytes = sizes[1] * row, given = sizes[4] * row;
  uint8_t *source = In(data[0], sizes[0] * row, sizes[3] * row), *index = In(data[1], sizes[1] * 4, sizes[1] * 4);
  uint8_t *residual = data[2] != nullptr ? In(data[2], bytes, given) : nullptr;
  uint8_t *out = emulation::GmAllocate(bytes, bytes - given);
  const auto kernel = [&] {
    if (combine) {
      expert_combine(source, index, residual, out, nullptr, tiling);
    } else {
      expert_dispatch(source, index, out, nullptr, tiling);
    }
  };
  emulation::Launch(blocks, reversed, kernel, first);
  if (given) std::memcpy(data[3], out + bytes - given, given);
}
}  // namespace

// Returns nullptr, or the rule that the kernel broke. data: source, index, residual or nullptr, output; sizes: rows of the source,
// rows of the output, columns, and how many of the rows are given: the last ones of the source, and of residual and output. Blocks
// before `first` do not run.
extern "C" const char *run(const char *op, int64_t blocks, int64_t first, int reversed, void *tiling, void **data,
                           const int64_t *sizes) {
  static std::string error;
  emulation::World &world = emulation::TheWorld();
  world.gm.clear();
  world.transfers.clear();
  try {
    Run(std::string(op) == "ExpertCombine", blocks, first, reversed != 0, static_cast<uint8_t *>(tiling), data, sizes);
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
