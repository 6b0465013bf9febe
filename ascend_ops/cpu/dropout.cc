// Dropout whose mask is a function of where a value is and of nothing else. See ascend_ops/dropout.py for the contract.
#include <algorithm>

#include "aot.h"
#include "kernels.h"

namespace {
constexpr int64_t kPiece = 64 * kDrawn;           // elements of one task, which fit into the first-level cache as floats
constexpr int64_t kMost = int64_t{4} << 32;       // elements of a sequence: their blocks of four have 32 bits
constexpr double kWords = 4294967296.0;           // number of different words
constexpr int64_t kParallel = 1 << 15;            // below this a second thread costs more than it brings

void DropHalves(const Half *in, Half *out, int64_t first, int64_t n, const Draws &draws) {
  alignas(64) float values[kPiece];
  BestKernels().widen_half(in, values, n);
  BestKernels().drop(values, values, first, n, draws);
  BestKernels().narrow_half(values, out, n);
}
}  // namespace

// x[B·P, in any shape], draws[B, 4] = seed and sample number, low word first; settings[2] = site, threshold -> y like x
extern "C" int Dropout(int n, void **data, int *ranks, int64_t **shapes, const char **dtypes, void *, void *) {
  const Args in{data, ranks, shapes, dtypes};
  if (n != 4) return 1;
  const bool half = in.is(0, "float16");
  if ((!half && !in.is(0, "float32")) || !in.is(1, "int32") || !in.is(2, "int32") || !in.is(3, dtypes[0])) return 2;
  if (ranks[1] != 2 || in.dim(1, 1) != 4 || in.count(2) != 2 || in.count(3) != in.count(0)) return 3;
  const int64_t sequences = in.dim(1, 0), size = sequences ? in.count(0) / sequences : 0;
  if (size * sequences != in.count(0)) return 4;
  if (size > kMost) return 5;
  const uint32_t *draws = in.as<uint32_t>(1), *settings = in.as<uint32_t>(2);
  const float scale = static_cast<float>(1.0 / (1.0 - settings[1] / kWords));
  const int64_t pieces = (size + kPiece - 1) / kPiece;
#pragma omp parallel for schedule(static) if (in.count(0) > kParallel)
  for (int64_t i = 0; i < sequences * pieces; ++i) {
    const int64_t sequence = i / pieces, first = i % pieces * kPiece, at = sequence * size + first;
    const uint32_t *own = draws + 4 * sequence;
    const Draws of{{own[0], own[1]}, settings[0], {own[2], own[3]}, settings[1], scale};
    const int64_t count = std::min(kPiece, size - first);
    if (half)
      DropHalves(in.as<Half>(0) + at, in.as<Half>(3) + at, first, count, of);
    else
      BestKernels().drop(in.f32(0) + at, in.f32(3) + at, first, count, of);
  }
  return 0;
}
