// Active rows of a store, in the precision of the device. See ascend_ops/fetch.py for the contract.
#include <algorithm>

#include "aot.h"
#include "kernels.h"

namespace {
constexpr int64_t kPiece = 16384;  // elements of one piece of the parallel loop
}

// w[G][K,P] active[A] like[G][A,P] -> rows[G][A,P]: row active[a] of w, float32, float16 or bfloat16; zeros where active[a] == K
extern "C" int FetchRows(int n, void **data, int *ranks, int64_t **shapes, const char **dtypes, void *, void *) {
  const Args in{data, ranks, shapes, dtypes};
  const int G = (n - 1) / 3;
  if (G < 1 || n != 3 * G + 1) return 1;
  if (!in.is(G, "int32")) return 2;
  const int64_t K = in.dim(0, 0), A = in.count(G);
  const int32_t *active = in.i32(G);
  if (K < 1) return 3;
  for (int g = 0; g < G; ++g) {
    const int out = 2 * G + 1 + g;
    if (!in.is(g, "float32") || (!in.is(out, "float32") && !in.is(out, "float16") && !in.is(out, "bfloat16"))) return 2;
    if (in.dim(g, 0) != K || in.count(out) * K != in.count(g) * A) return 3;
  }
  if (std::any_of(active, active + A, [=](int32_t row) { return row < 0 || row > K; })) return 4;
  for (int g = 0; g < G; ++g) {
    const int out = 2 * G + 1 + g;
    const int64_t P = in.count(g) / K, pieces = (P + kPiece - 1) / kPiece;
    const bool half = !in.is(out, "float32");
    const auto narrow = in.is(out, "float16") ? BestKernels().narrow_half : BestKernels().narrow_bfloat;
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < A * pieces; ++i) {
      const int64_t a = i / pieces, begin = i % pieces * kPiece, count = std::min(kPiece, P - begin);
      const float *from = in.f32(g) + active[a] * P + begin;
      if (active[a] == K)
        std::memset(static_cast<char *>(data[out]) + (a * P + begin) * (half ? 2 : 4), 0, count * (half ? 2 : 4));
      else if (half)
        narrow(from, static_cast<uint16_t *>(data[out]) + a * P + begin, count);
      else
        std::memcpy(in.f32(out) + a * P + begin, from, count * sizeof(float));
    }
  }
  return 0;
}
