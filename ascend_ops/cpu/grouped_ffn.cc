// FFN of many experts over rows sorted by expert, forward and backward, float32. See ascend_ops/grouped_ffn.py for the contract.
//
// An expert with many rows is a few large GEMMs, each single threaded inside OpenBLAS. With few rows, reading the weights is the work,
// and OpenBLAS would copy them first: a slice of ffn rows of both matrices is contiguous, and the whole FFN is computed slice by slice
// while it is in the cache, each weight read once (few_rows.h). The parallel loop is over (expert, rows) and (expert, slice) pieces, so
// that one heavy expert, many light ones and a single dense one all keep every core busy. Nothing is padded. What is added, and in which
// order, depends on the sizes only: results are the same for any number of threads.
#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <new>
#include <numeric>
#include <vector>

#include "aot.h"
#include "cblas.h"
#include "kernels.h"

extern "C" void scipy_openblas_set_num_threads(int);

namespace {
// Up to so many rows, the slices are 1.1 (128 rows) … 3 times (8 rows) as fast as GEMMs on Zen 4, forward and backward together.
constexpr int64_t kFewRows = 128;
constexpr int64_t kRows = 512;     // at most, of a piece of many rows; 256 would copy the weights more often, 6% slower
constexpr int64_t kColumns = 512;  // ffn columns of one weight-gradient piece, likewise
constexpr int64_t kSlice = 256;    // ffn columns of a piece of few rows; a partial result each
constexpr int64_t kChunk = 32;     // of which so many at a time: 3 · kChunk · hidden weights stay in the second-level cache

struct Piece {
  int64_t expert, begin, end;  // rows
  int64_t first, last;         // ffn columns
  float *partial;              // of few rows: its share of their result; of many rows: null
};

// Uninitialised floats, kept for the next call.
class Scratch {
 public:
  ~Scratch() { std::free(at_); }

  float *Get(int64_t n) {
    if (n > size_) {
      std::free(at_);
      const int64_t bytes = (n * sizeof(float) + kHuge - 1) / kHuge * kHuge;
      at_ = static_cast<float *>(std::aligned_alloc(kHuge, bytes));
      size_ = at_ == nullptr ? 0 : n;
      if (at_ == nullptr) throw std::bad_alloc();
      madvise(at_, bytes, MADV_HUGEPAGE);
    }
    return at_;
  }

 private:
  static constexpr int64_t kHuge = 2 << 20;  // pages of this size are asked for
  float *at_ = nullptr;
  int64_t size_ = 0;
};

void FillRows(float *out, const float *bias, int64_t rows, int64_t width, int64_t stride) {
  for (int64_t r = 0; r < rows; ++r) std::memcpy(out + r * stride, bias, width * sizeof(float));
}

// Which rows meet which weights, as pieces for the threads.
struct Plan {
  const int32_t *offsets;
  int64_t A, F, H;
  std::vector<Piece> pieces;     // the largest first: the threads then end together
  std::vector<int64_t> experts;  // likewise
  int64_t partials = 0;          // floats

  Plan(const int32_t *offsets_, int64_t A_, int64_t F_, int64_t H_) : offsets(offsets_), A(A_), F(F_), H(H_) {
    static thread_local Scratch scratch;
    for (int64_t e = 0; e < A; ++e)
      if (Few(e))
        partials += Slices() * Rows(e) * H;
      else
        AddRows(e);
    float *partial = scratch.Get(partials);
    for (int64_t e = 0; e < A; ++e)
      for (int64_t f = 0; Few(e) && f < F; f += kSlice, partial += Rows(e) * H)
        pieces.push_back({e, offsets[e], offsets[e + 1], f, std::min(f + kSlice, F), partial});
    const auto size = [](const Piece &p) { return (p.end - p.begin) * (p.last - p.first); };
    std::stable_sort(pieces.begin(), pieces.end(), [&](const Piece &p, const Piece &q) { return size(p) > size(q); });
    experts.resize(A);
    std::iota(experts.begin(), experts.end(), 0);
    std::stable_sort(experts.begin(), experts.end(), [&](int64_t d, int64_t e) { return Rows(d) > Rows(e); });
  }

  int64_t Rows(int64_t e) const { return offsets[e + 1] - offsets[e]; }
  bool Few(int64_t e) const { return Rows(e) > 0 && Rows(e) <= kFewRows; }
  int64_t Slices() const { return (F + kSlice - 1) / kSlice; }

  void AddRows(int64_t e) {
    const int64_t count = (Rows(e) + kRows - 1) / kRows;
    const auto cut = [&](int64_t i) { return offsets[e] + Rows(e) * i / count; };
    for (int64_t i = 0; i < count; ++i) pieces.push_back({e, cut(i), cut(i + 1), 0, F, nullptr});
  }

  // out[rows of a piece] = bias (or 0) + its partial results. For the first piece of an expert with few rows.
  void AddPartials(const Piece &p, const float *bias, float *out) const {
    const int64_t n = (p.end - p.begin) * H;
    out += p.begin * H;
    std::fill_n(out, n, 0.0f);
    if (bias != nullptr) FillRows(out, bias + p.expert * H, p.end - p.begin, H, H);
    for (int64_t s = 0; s < Slices(); ++s)
      for (int64_t i = 0; i < n; ++i) out[i] += p.partial[s * n + i];
  }
};

void Gemm(bool ta, bool tb, int64_t m, int64_t n, int64_t k, const float *a, int64_t lda, const float *b, int64_t ldb, float beta,
          float *c, int64_t ldc) {
  scipy_cblas_sgemm(CblasRowMajor, ta ? CblasTrans : CblasNoTrans, tb ? CblasTrans : CblasNoTrans, m, n, k, 1.0f, a, lda, b, ldb, beta,
                    c, ldc);
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

struct Forward {
  const Plan &plan;
  const float *x, *w1, *b1, *w2, *b2;
  float *y, *inner;

  void Many(const Piece &p, float *gate) const {
    const int64_t rows = p.end - p.begin, F = plan.F, H = plan.H;
    const int64_t weights = p.expert * F * H;
    float *h = inner + p.begin * F, *out = y + p.begin * H;
    FillRows(h, b1 + p.expert * F, rows, F, F);
    Gemm(false, true, rows, F, H, x + p.begin * H, H, w1 + weights, H, 1.0f, h, F);
    BestKernels().gelu(h, gate, rows * F);
    FillRows(out, b2 + p.expert * H, rows, H, H);
    Gemm(false, false, rows, H, F, gate, F, w2 + weights, H, 1.0f, out, H);
  }

  void Few(const Piece &p) const {
    const Kernels &kernels = BestKernels();
    const int64_t rows = p.end - p.begin, F = plan.F, H = plan.H;
    alignas(64) float gate[kFewRows * kChunk];
    std::fill_n(p.partial, rows * H, 0.0f);
    for (int64_t f = p.first; f < p.last; f += kChunk) {
      const int64_t n = std::min(kChunk, p.last - f), weights = (p.expert * F + f) * H;
      float *h = inner + p.begin * F + f;
      FillRows(h, b1 + p.expert * F + f, rows, n, F);
      kernels.dot(x + p.begin * H, rows, w1 + weights, n, H, h, F, w2 + weights);
      for (int64_t r = 0; r < rows; ++r) kernels.gelu(h + r * F, gate + r * kChunk, n);
      kernels.sum(gate, kChunk, rows, w2 + weights, n, H, p.partial, w1 + weights + n * H);
    }
  }
};

struct Backward {
  const Plan &plan;
  const float *dy, *x, *inner, *w1, *w2;
  float *dx, *dw1, *db1, *dw2, *db2;
  float *gate, *dinner;  // scratch [T, F] each, for experts with many rows

  void Many(const Piece &p) const {
    const int64_t rows = p.end - p.begin, F = plan.F, H = plan.H;
    const int64_t weights = p.expert * F * H, at = p.begin * F;
    Gemm(false, true, rows, F, H, dy + p.begin * H, H, w2 + weights, H, 0.0f, dinner + at, F);
    BestKernels().gelu_grad(inner + at, gate + at, dinner + at, rows * F);
    Gemm(false, false, rows, H, F, dinner + at, F, w1 + weights, H, 0.0f, dx + p.begin * H, H);
  }

  void Few(const Piece &p) const {
    const Kernels &kernels = BestKernels();
    const int64_t rows = p.end - p.begin, F = plan.F, H = plan.H;
    const float *dy_rows = dy + p.begin * H, *x_rows = x + p.begin * H;
    alignas(64) float g[kFewRows * kChunk], dh[kFewRows * kChunk];
    std::fill_n(p.partial, rows * H, 0.0f);
    for (int64_t f = p.first; f < p.last; f += kChunk) {
      const int64_t n = std::min(kChunk, p.last - f), weights = (p.expert * F + f) * H;
      std::fill_n(dh, rows * kChunk, 0.0f);
      kernels.dot(dy_rows, rows, w2 + weights, n, H, dh, kChunk, w1 + weights);
      for (int64_t r = 0; r < rows; ++r)
        kernels.gelu_grad(inner + (p.begin + r) * F + f, g + r * kChunk, dh + r * kChunk, n);
      kernels.sum(dh, kChunk, rows, w1 + weights, n, H, p.partial, w2 + weights + n * H);
      kernels.outer(g, kChunk, dy_rows, rows, H, dw2 + weights, n);
      kernels.outer(dh, kChunk, x_rows, rows, H, dw1 + weights, n);
      kernels.column_sum(dh, rows, kChunk, n, db1 + p.expert * F + f);
    }
  }

  // Weight gradients of an expert with many rows, or none.
  void Weights(int64_t e, int64_t f) const {
    const Kernels &kernels = BestKernels();
    const int64_t F = plan.F, H = plan.H, n = std::min(kColumns, F - f), rows = plan.Rows(e);
    const int64_t begin = plan.offsets[e], at = begin * F + f, weights = (e * F + f) * H;
    if (rows == 0) {
      kernels.clear(dw1 + weights, n * H);
      kernels.clear(dw2 + weights, n * H);
    } else {
      Gemm(true, false, n, H, rows, dinner + at, F, x + begin * H, H, 0.0f, dw1 + weights, H);
      Gemm(true, false, n, H, rows, gate + at, F, dy + begin * H, H, 0.0f, dw2 + weights, H);
    }
    kernels.column_sum(dinner + at, rows, F, n, db1 + e * F + f);
  }
};
}  // namespace

// x[T,H] w1[A,F,H] b1[A,F] w2[A,F,H] b2[A,H] offsets[A+1] -> y[T,H] inner[T,F] (before the activation, kept for the backward)
extern "C" int GroupedFfn(int n, void **data, int *ranks, int64_t **shapes, const char **dtypes, void *, void *) {
  const Args in{data, ranks, shapes, dtypes};
  if (n != 8) return 1;
  if (!FloatsThenOffsets(in)) return 2;
  const int64_t T = in.dim(0, 0), A = in.dim(1, 0), F = in.dim(1, 1), H = in.dim(1, 2);
  if (in.count(0) != T * H || in.count(2) != A * F || in.count(3) != A * F * H || in.count(4) != A * H) return 3;
  if (in.count(5) != A + 1 || !OffsetsFit(in.i32(5), A, T)) return 3;
  scipy_openblas_set_num_threads(1);
  const Plan plan(in.i32(5), A, F, H);
  const auto &pieces = plan.pieces;
  const Forward forward{plan, in.f32(0), in.f32(1), in.f32(2), in.f32(3), in.f32(4), in.f32(6), in.f32(7)};
#pragma omp parallel
  {
    static thread_local Scratch gate;
#pragma omp for schedule(dynamic)
    for (size_t i = 0; i < pieces.size(); ++i) {
      const Piece &p = pieces[i];
      p.partial == nullptr ? forward.Many(p, gate.Get(kRows * F)) : forward.Few(p);
    }
#pragma omp for schedule(dynamic)
    for (size_t i = 0; i < pieces.size(); ++i)
      if (pieces[i].partial != nullptr && pieces[i].first == 0) plan.AddPartials(pieces[i], forward.b2, forward.y);
  }
  return 0;
}

// dy[T,H] x[T,H] inner[T,F] w1[A,F,H] w2[A,F,H] offsets[A+1] -> dx[T,H] dw1[A,F,H] db1[A,F] dw2[A,F,H] db2[A,H]
extern "C" int GroupedFfnGrad(int n, void **data, int *ranks, int64_t **shapes, const char **dtypes, void *, void *) {
  const Args in{data, ranks, shapes, dtypes};
  if (n != 11) return 1;
  if (!FloatsThenOffsets(in)) return 2;
  const int64_t T = in.dim(1, 0), A = in.dim(3, 0), F = in.dim(3, 1), H = in.dim(3, 2);
  if (in.count(0) != T * H || in.count(1) != T * H || in.count(2) != T * F || in.count(4) != A * F * H) return 3;
  if (in.count(5) != A + 1 || !OffsetsFit(in.i32(5), A, T)) return 3;
  scipy_openblas_set_num_threads(1);
  const Plan plan(in.i32(5), A, F, H);
  const auto &pieces = plan.pieces;
  const bool many = std::any_of(pieces.begin(), pieces.end(), [](const Piece &p) { return p.partial == nullptr; });
  static thread_local Scratch gate, dinner;
  const Backward backward{plan,      in.f32(0), in.f32(1), in.f32(2),  in.f32(3),  in.f32(4),
                          in.f32(6), in.f32(7), in.f32(8), in.f32(9),  in.f32(10), gate.Get(many ? T * F : 0),
                          dinner.Get(many ? T * F : 0)};
#pragma omp parallel
  {
#pragma omp for schedule(dynamic)
    for (size_t i = 0; i < pieces.size(); ++i) pieces[i].partial == nullptr ? backward.Many(pieces[i]) : backward.Few(pieces[i]);
#pragma omp for schedule(dynamic) nowait
    for (size_t i = 0; i < pieces.size(); ++i)
      if (pieces[i].partial != nullptr && pieces[i].first == 0) plan.AddPartials(pieces[i], nullptr, backward.dx);
#pragma omp for schedule(dynamic) collapse(2)
    for (int64_t i = 0; i < A; ++i)
      for (int64_t f = 0; f < F; f += kColumns) {
        const int64_t e = plan.experts[i];
        if (!plan.Few(e)) backward.Weights(e, f);
        if (f == 0) BestKernels().column_sum(backward.dy + plan.offsets[e] * H, plan.Rows(e), H, H, backward.db2 + e * H);
      }
  }
  return 0;
}
