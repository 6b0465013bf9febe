// The kernels behind C functions, for one chip (its macros) and one dtype (-DDTYPE): see emulator.py.
#include "kernel_operator.h"
#define DTYPE_X DTYPE
#define DTYPE_ROWS DTYPE
#include "../op_kernel/expert_combine.cpp"
#include "../op_kernel/expert_dispatch.cpp"

namespace {
// Tensors are copied into guarded buffers: every access outside them is an error.
uint8_t *In(const void *data, size_t bytes) {
  uint8_t *buffer = emulation::GmAllocate(bytes);
  if (bytes) std::memcpy(buffer, data, bytes);
  return buffer;
}

void Run(bool combine, uint32_t blocks, bool reversed, uint8_t *tiling, void **data, const int64_t *sizes) {
  const int64_t sourceRows = sizes[0], rows = sizes[1], cols = sizes[2];
  const size_t bytes = rows * cols * sizeof(DTYPE);
  uint8_t *source = In(data[0], sourceRows * cols * sizeof(DTYPE)), *index = In(data[1], rows * 4);
  uint8_t *residual = data[2] != nullptr ? In(data[2], bytes) : nullptr, *out = emulation::GmAllocate(bytes);
  emulation::Launch(blocks, reversed, [&] {
    if (combine) {
      expert_combine(source, index, residual, out, nullptr, tiling);
    } else {
      expert_dispatch(source, index, out, nullptr, tiling);
    }
  });
  if (bytes) std::memcpy(data[3], out, bytes);
}
}  // namespace

// Returns nullptr, or the rule that the kernel broke. data: source, index, residual or nullptr, output; sizes: rows of the source,
// rows of the output, columns.
extern "C" const char *run(const char *op, int64_t blocks, int reversed, void *tiling, void **data, const int64_t *sizes) {
  static std::string error;
  emulation::World &world = emulation::TheWorld();
  world.gm.clear();
  world.transfers.clear();
  try {
    Run(std::string(op) == "ExpertCombine", blocks, reversed != 0, static_cast<uint8_t *>(tiling), data, sizes);
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
