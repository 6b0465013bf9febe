// Rows to experts and back. See ascend_ops/expert_dispatch.py for the contract.
#include <algorithm>
#include <cstring>

#include "aot.h"
#include "kernels.h"

namespace {
constexpr int64_t kParallelBytes = 1 << 17;  // below this a second thread costs more than it brings

int64_t SizeOf(const char *dtype) {
  if (std::strcmp(dtype, "float32") == 0) return 4;
  if (std::strcmp(dtype, "float16") == 0 || std::strcmp(dtype, "bfloat16") == 0) return 2;
  return 0;
}

void AddRow(char *out, const char *a, const char *b, int64_t bytes) {
  const float *left = reinterpret_cast<const float *>(a), *right = reinterpret_cast<const float *>(b);
  float *sum = reinterpret_cast<float *>(out);
  for (int64_t i = 0, n = bytes / 4; i < n; ++i) sum[i] = left[i] + right[i];
}

// Half precision, or bfloat16: the sum in float32, rounded once.
void AddHalfRow(char *out, const char *a, const char *b, int64_t bytes, bool half) {
  constexpr int64_t kBlock = 1024;
  const Kernels &kernels = BestKernels();
  const auto widen = half ? kernels.widen_half : kernels.widen_bfloat;
  const auto narrow = half ? kernels.narrow_half : kernels.narrow_bfloat;
  float left[kBlock], right[kBlock];
  for (int64_t i = 0, total = bytes / 2; i < total; i += kBlock) {
    const int64_t n = std::min(kBlock, total - i);
    widen(reinterpret_cast<const uint16_t *>(a) + i, left, n);
    widen(reinterpret_cast<const uint16_t *>(b) + i, right, n);
    for (int64_t j = 0; j < n; ++j) left[j] += right[j];
    narrow(left, reinterpret_cast<uint16_t *>(out) + i, n);
  }
}

bool InRange(const int32_t *index, int64_t count, int64_t rows) {
  return std::all_of(index, index + count, [rows](int32_t i) { return i < rows; });
}
}  // namespace

// x[R,H] index[M] -> rows[M,H]: row index[i] of x, zeros where index[i] < 0
extern "C" int ExpertDispatch(int n, void **data, int *ranks, int64_t **shapes, const char **dtypes, void *, void *) {
  const Args in{data, ranks, shapes, dtypes};
  if (n != 3) return 1;
  const int64_t size = SizeOf(dtypes[0]);
  if (size == 0 || !in.is(1, "int32")) return 2;
  if (ranks[0] != 2 || ranks[1] != 1 || in.count(2) != in.dim(1, 0) * in.dim(0, 1)) return 3;
  const int64_t M = in.dim(1, 0), bytes = in.dim(0, 1) * size;
  const int32_t *index = in.i32(1);
  if (!InRange(index, M, in.dim(0, 0))) return 4;
  const char *x = static_cast<char *>(data[0]);
  char *out = static_cast<char *>(data[2]);
#pragma omp parallel for schedule(static) if (M * bytes > kParallelBytes)
  for (int64_t i = 0; i < M; ++i) {
    if (index[i] < 0)
      std::memset(out + i * bytes, 0, bytes);
    else
      std::memcpy(out + i * bytes, x + index[i] * bytes, bytes);
  }
  return 0;
}

// rows[M,H] index[T] residual[T,H] -> out[T,H]: residual plus row index[t], or residual alone where index[t] < 0
extern "C" int ExpertCombine(int n, void **data, int *ranks, int64_t **shapes, const char **dtypes, void *, void *) {
  const Args in{data, ranks, shapes, dtypes};
  if (n != 4) return 1;
  const int64_t size = SizeOf(dtypes[0]);
  if (size == 0 || !in.is(1, "int32") || std::strcmp(dtypes[0], dtypes[2]) != 0) return 2;
  if (ranks[0] != 2 || ranks[1] != 1 || ranks[2] != 2 || in.dim(2, 0) != in.dim(1, 0) || in.dim(2, 1) != in.dim(0, 1)) return 3;
  const int64_t T = in.dim(1, 0), bytes = in.dim(0, 1) * size;
  const int32_t *index = in.i32(1);
  if (!InRange(index, T, in.dim(0, 0))) return 4;
  const char *rows = static_cast<char *>(data[0]), *residual = static_cast<char *>(data[2]);
  char *out = static_cast<char *>(data[3]);
  const bool wide = size == 4, half = in.is(0, "float16");
#pragma omp parallel for schedule(static) if (T * bytes > kParallelBytes)
  for (int64_t t = 0; t < T; ++t) {
    char *o = out + t * bytes;
    const char *r = residual + t * bytes, *y = rows + index[t] * bytes;
    if (index[t] < 0)
      std::memcpy(o, r, bytes);
    else if (wide)
      AddRow(o, r, y, bytes);
    else
      AddHalfRow(o, r, y, bytes, half);
  }
  return 0;
}
