// FFN of many experts over rows sorted by expert, forward and backward, float32. See ascend_ops/grouped_ffn.py for the contract.
//
// Every GEMM is single threaded inside OpenBLAS; the parallel loop is ours, over (expert, rows) or (expert, columns) pieces, so
// that one heavy expert, many light ones and a single dense one all keep every core busy. Nothing is padded.
#include <algorithm>
#include <cmath>
#include <vector>

#include "aot.h"
#include "cblas.h"

extern "C" void scipy_openblas_set_num_threads(int);

namespace {
constexpr int64_t kRows = 256;     // rows of one forward piece: its activations stay in the second-level cache
constexpr int64_t kColumns = 256;  // ffn columns of one weight-gradient piece

struct Piece {
  int64_t expert, begin, end;
};

void Gemm(bool ta, bool tb, int64_t m, int64_t n, int64_t k, const float *a, int64_t lda, const float *b, int64_t ldb, float beta,
          float *c, int64_t ldc) {
  scipy_cblas_sgemm(CblasRowMajor, ta ? CblasTrans : CblasNoTrans, tb ? CblasTrans : CblasNoTrans, m, n, k, 1.0f, a, lda, b, ldb, beta,
                    c, ldc);
}

std::vector<Piece> RowPieces(const int32_t *offsets, int64_t experts) {
  std::vector<Piece> pieces;
  for (int64_t e = 0; e < experts; ++e)
    for (int64_t r = offsets[e]; r < offsets[e + 1]; r += kRows) pieces.push_back({e, r, std::min<int64_t>(r + kRows, offsets[e + 1])});
  return pieces;
}

bool OffsetsFit(const int32_t *offsets, int64_t experts, int64_t rows) {
  if (offsets[0] != 0 || offsets[experts] != rows) return false;
  for (int64_t e = 0; e < experts; ++e)
    if (offsets[e] > offsets[e + 1]) return false;
  return true;
}

// Inputs 0 … 4 of both kernels are float32 and input 5 holds the offsets.
bool FloatsThenOffsets(const Args &in) {
  for (int i = 0; i < 5; ++i)
    if (!in.is(i, "float32")) return false;
  return in.is(5, "int32");
}

void FillRows(float *out, const float *bias, int64_t rows, int64_t width) {
  for (int64_t r = 0; r < rows; ++r) std::memcpy(out + r * width, bias, width * sizeof(float));
}

// FastGeLU(x) = x · sigmoid(1.702 x), and its derivative.
void Activate(const float *x, float *y, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) y[i] = x[i] / (1.0f + expf(-1.702f * x[i]));
}

// On return: gate = FastGeLU(x), grad *= FastGeLU'(x).
void ActivateBackward(const float *x, float *gate, float *grad, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    const float s = 1.0f / (1.0f + expf(-1.702f * x[i]));
    gate[i] = x[i] * s;
    grad[i] *= s * (1.0f + 1.702f * x[i] * (1.0f - s));
  }
}

void ColumnSum(const float *x, int64_t rows, int64_t stride, int64_t width, float *sum) {
  std::fill(sum, sum + width, 0.0f);
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t c = 0; c < width; ++c) sum[c] += x[r * stride + c];
}
}  // namespace

// x[T,H] w1[A,F,H] b1[A,F] w2[A,F,H] b2[A,H] offsets[A+1] -> y[T,H] inner[T,F] (before the activation, kept for the backward)
extern "C" int GroupedFfn(int n, void **data, int *ranks, int64_t **shapes, const char **dtypes, void *, void *) {
  const Args in{data, ranks, shapes, dtypes};
  if (n != 8) return 1;
  if (!FloatsThenOffsets(in)) return 2;
  const int64_t T = in.dim(0, 0), A = in.dim(1, 0), F = in.dim(1, 1), H = in.dim(1, 2);
  const float *x = in.f32(0), *w1 = in.f32(1), *b1 = in.f32(2), *w2 = in.f32(3), *b2 = in.f32(4);
  const int32_t *offsets = in.i32(5);
  float *y = in.f32(6), *inner = in.f32(7);
  if (in.count(0) != T * H || in.count(2) != A * F || in.count(3) != A * F * H || in.count(4) != A * H) return 3;
  if (in.count(5) != A + 1 || !OffsetsFit(offsets, A, T)) return 3;
  scipy_openblas_set_num_threads(1);
  const auto pieces = RowPieces(offsets, A);
#pragma omp parallel
  {
    std::vector<float> gate(kRows * F);
#pragma omp for schedule(dynamic)
    for (size_t i = 0; i < pieces.size(); ++i) {
      const auto [e, begin, end] = pieces[i];
      const int64_t rows = end - begin;
      float *h = inner + begin * F, *out = y + begin * H;
      FillRows(h, b1 + e * F, rows, F);
      Gemm(false, true, rows, F, H, x + begin * H, H, w1 + e * F * H, H, 1.0f, h, F);
      Activate(h, gate.data(), rows * F);
      FillRows(out, b2 + e * H, rows, H);
      Gemm(false, false, rows, H, F, gate.data(), F, w2 + e * F * H, H, 1.0f, out, H);
    }
  }
  return 0;
}

// dy[T,H] x[T,H] inner[T,F] w1[A,F,H] w2[A,F,H] offsets[A+1] -> dx[T,H] dw1[A,F,H] db1[A,F] dw2[A,F,H] db2[A,H]
extern "C" int GroupedFfnGrad(int n, void **data, int *ranks, int64_t **shapes, const char **dtypes, void *, void *) {
  const Args in{data, ranks, shapes, dtypes};
  if (n != 11) return 1;
  if (!FloatsThenOffsets(in)) return 2;
  const int64_t T = in.dim(1, 0), A = in.dim(3, 0), F = in.dim(3, 1), H = in.dim(3, 2);
  const float *dy = in.f32(0), *x = in.f32(1), *inner = in.f32(2), *w1 = in.f32(3), *w2 = in.f32(4);
  const int32_t *offsets = in.i32(5);
  float *dx = in.f32(6), *dw1 = in.f32(7), *db1 = in.f32(8), *dw2 = in.f32(9), *db2 = in.f32(10);
  if (in.count(0) != T * H || in.count(1) != T * H || in.count(2) != T * F || in.count(4) != A * F * H) return 3;
  if (in.count(5) != A + 1 || !OffsetsFit(offsets, A, T)) return 3;
  scipy_openblas_set_num_threads(1);
  static thread_local std::vector<float> gate, dinner;  // grow once, then reused by every call
  gate.resize(T * F);
  dinner.resize(T * F);
  float *g = gate.data(), *dh = dinner.data();
  const auto pieces = RowPieces(offsets, A);
#pragma omp parallel for schedule(dynamic)
  for (size_t i = 0; i < pieces.size(); ++i) {
    const auto [e, begin, end] = pieces[i];
    const int64_t rows = end - begin;
    Gemm(false, true, rows, F, H, dy + begin * H, H, w2 + e * F * H, H, 0.0f, dh + begin * F, F);
    ActivateBackward(inner + begin * F, g + begin * F, dh + begin * F, rows * F);
    Gemm(false, false, rows, H, F, dh + begin * F, F, w1 + e * F * H, H, 0.0f, dx + begin * H, H);
  }
  const int64_t columns = (F + kColumns - 1) / kColumns;
#pragma omp parallel for schedule(dynamic) collapse(2)
  for (int64_t e = 0; e < A; ++e)
    for (int64_t c = 0; c < columns; ++c) {
      const int64_t first = c * kColumns, width = std::min(kColumns, F - first), begin = offsets[e], rows = offsets[e + 1] - begin;
      float *d1 = dw1 + (e * F + first) * H, *d2 = dw2 + (e * F + first) * H;
      if (rows == 0) {
        std::fill(d1, d1 + width * H, 0.0f);
        std::fill(d2, d2 + width * H, 0.0f);
      } else {
        Gemm(true, false, width, H, rows, dh + begin * F + first, F, x + begin * H, H, 0.0f, d1, H);
        Gemm(true, false, width, H, rows, g + begin * F + first, F, dy + begin * H, H, 0.0f, d2, H);
      }
      ColumnSum(dh + begin * F + first, rows, F, width, db1 + e * F + first);
      if (c == 0) ColumnSum(dy + begin * H, rows, H, H, db2 + e * H);
    }
  return 0;
}
