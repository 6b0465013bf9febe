// FFN of many experts over rows sorted by expert, forward and backward. See ascend_ops/grouped_ffn.py for the contract.
//
// Weights are float or Half; a half is widened when it is read, and a gradient rounded when it is written, so nothing of the size of the
// weights is converted in memory. Rows and biases are small: they are converted at the edges, and all between is float.
//
// An expert with many rows is a few large GEMMs, each single threaded inside OpenBLAS. With few rows, reading the weights is the work,
// and OpenBLAS would copy them first: a slice of ffn rows of both matrices is contiguous, and the whole FFN is computed slice by slice
// while it is in the cache, each weight read once (few_rows.h). The parallel loop is over (expert, rows) and (expert, slice) pieces, so
// that one heavy expert, many light ones and a single dense one all keep every core busy. Nothing is padded. What is added, and in which
// order, depends on the sizes only: results are the same for any number of threads.
#include <algorithm>
#include <initializer_list>
#include <numeric>
#include <type_traits>
#include <vector>

#include "aot.h"
#include "cblas.h"
#include "kernels.h"
#include "scratch.h"

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

// An argument of a kernel with rows or biases. Floats are used in place; halves are converted: `In` reads an input, `Out` makes room for an
// output, and `Write` stores it.
class Edge {
 public:
  const float *In(const Args &in, int i) {
    if (!in.is(i, "float16")) return in.f32(i);
    const Half *from = in.as<Half>(i);
    float *to = floats_.Get(in.count(i));
    Blocks(in.count(i), [=](int64_t at, int64_t n) { BestKernels().widen_half(from + at, to + at, n); });
    return to;
  }

  float *Out(const Args &in, int i) {
    halves_ = in.is(i, "float16") ? in.as<Half>(i) : nullptr;
    count_ = in.count(i);
    return from_ = halves_ == nullptr ? in.f32(i) : floats_.Get(count_);
  }

  void Write() const {
    if (halves_ == nullptr) return;
    Blocks(count_, [this](int64_t at, int64_t n) { BestKernels().narrow_half(from_ + at, halves_ + at, n); });
  }

 private:
  template <class Work>
  static void Blocks(int64_t count, Work work) {
    constexpr int64_t kBlock = 16384;
#pragma omp parallel for schedule(static) if (count > kBlock)
    for (int64_t at = 0; at < count; at += kBlock) work(at, std::min(kBlock, count - at));
  }

  Scratch floats_;
  float *from_;
  Half *halves_;
  int64_t count_;
};

void FillRows(float *out, const float *bias, int64_t rows, int64_t width, int64_t stride) {
  for (int64_t r = 0; r < rows; ++r) std::memcpy(out + r * stride, bias, width * sizeof(float));
}

// Division of the work into pieces for the threads: some rows of an expert with all its weights, or all its few rows with some ffn columns.
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

  int64_t End() const { return offsets[A]; }  // rows from here on are of no expert
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
  if (offsets[0] != 0 || offsets[experts] > rows) return false;
  for (int64_t e = 0; e < experts; ++e)
    if (offsets[e] > offsets[e + 1]) return false;
  return true;
}

// Whether these arguments are all float32, or all float16.
bool OneFloatType(const Args &in, std::initializer_list<int> arguments) {
  const char *dtype = in.is(*arguments.begin(), "float16") ? "float16" : "float32";
  return std::all_of(arguments.begin(), arguments.end(), [&](int i) { return in.is(i, dtype); });
}

template <class W>
const FewRowsKernels<W> &FewRows() {
  if constexpr (std::is_same_v<W, Half>)
    return BestKernels().few_rows_half;
  else
    return BestKernels().few_rows;
}

// GEMMs of many rows with a matrix W [F, H] of an expert. Halves are converted in a scratch, block by block, so that they stay in the cache.
template <class W>
struct Matrix {
  // c [rows, F] = a [rows, H] · Wᵀ + beta · c
  static void TimesTransposed(const float *a, const W *w, int64_t rows, int64_t F, int64_t H, float beta, float *c) {
    for (int64_t f = 0, block = Block(F); f < F; f += block) {
      const int64_t n = std::min(block, F - f);
      Gemm(false, true, rows, n, H, a, H, Read(w + f * H, n * H), H, beta, c + f, F);
    }
  }

  // c [rows, H] = a [rows, F] · W + beta · c
  static void Times(const float *a, const W *w, int64_t rows, int64_t F, int64_t H, float beta, float *c) {
    for (int64_t f = 0, block = Block(F); f < F; f += block) {
      const int64_t n = std::min(block, F - f);
      Gemm(false, false, rows, H, n, a + f, F, Read(w + f * H, n * H), H, f == 0 ? beta : 1.0f, c, H);
    }
  }

  // w [n, H] = columns of a [rows, F], transposed, · b [rows, H]
  static void Outer(const float *a, const float *b, int64_t rows, int64_t n, int64_t F, int64_t H, W *w) {
    if constexpr (std::is_same_v<W, Half>) {
      float *floats = OfThread().Get(n * H);
      Gemm(true, false, n, H, rows, a, F, b, H, 0.0f, floats, H);
      BestKernels().narrow_half_past(floats, w, n * H);
    } else {
      Gemm(true, false, n, H, rows, a, F, b, H, 0.0f, w, H);
    }
  }

 private:
  static int64_t Block(int64_t F) { return std::is_same_v<W, Half> ? kColumns : F; }

  static Scratch &OfThread() {
    static thread_local Scratch scratch;
    return scratch;
  }

  static const float *Read(const W *w, int64_t n) {
    if constexpr (std::is_same_v<W, Half>) {
      float *floats = OfThread().Get(n);
      BestKernels().widen_half(w, floats, n);
      return floats;
    } else {
      return w;
    }
  }
};

template <class W>
struct Forward {
  const Plan &plan;
  const Activation &activation;
  const float *x;
  const W *w1;
  const float *b1;
  const W *w2;
  const float *b2;
  float *y, *inner;

  void Many(const Piece &p, float *gate) const {
    const int64_t rows = p.end - p.begin, F = plan.F, H = plan.H;
    const int64_t weights = p.expert * F * H;
    float *h = inner + p.begin * F, *out = y + p.begin * H;
    FillRows(h, b1 + p.expert * F, rows, F, F);
    Matrix<W>::TimesTransposed(x + p.begin * H, w1 + weights, rows, F, H, 1.0f, h);
    activation.value(h, gate, rows * F);
    FillRows(out, b2 + p.expert * H, rows, H, H);
    Matrix<W>::Times(gate, w2 + weights, rows, F, H, 1.0f, out);
  }

  void Few(const Piece &p) const {
    const auto &kernels = FewRows<W>();
    const int64_t rows = p.end - p.begin, F = plan.F, H = plan.H;
    alignas(64) float gate[kFewRows * kChunk];
    std::fill_n(p.partial, rows * H, 0.0f);
    for (int64_t f = p.first; f < p.last; f += kChunk) {
      const int64_t n = std::min(kChunk, p.last - f), weights = (p.expert * F + f) * H;
      float *h = inner + p.begin * F + f;
      FillRows(h, b1 + p.expert * F + f, rows, n, F);
      kernels.dot(x + p.begin * H, rows, w1 + weights, n, H, h, F, w2 + weights);
      for (int64_t r = 0; r < rows; ++r) activation.value(h + r * F, gate + r * kChunk, n);
      kernels.sum(gate, kChunk, rows, w2 + weights, n, H, p.partial, w1 + weights + n * H);
    }
  }
};

template <class W>
struct Backward {
  const Plan &plan;
  const Activation &activation;
  const float *dy, *x, *inner;
  const W *w1, *w2;
  float *dx;
  W *dw1;
  float *db1;
  W *dw2;
  float *db2;
  float *gate, *dinner;  // scratch [T, F] each, for experts with many rows

  void Many(const Piece &p) const {
    const int64_t rows = p.end - p.begin, F = plan.F, H = plan.H;
    const int64_t weights = p.expert * F * H, at = p.begin * F;
    Matrix<W>::TimesTransposed(dy + p.begin * H, w2 + weights, rows, F, H, 0.0f, dinner + at);
    activation.slope(inner + at, gate + at, dinner + at, rows * F);
    Matrix<W>::Times(dinner + at, w1 + weights, rows, F, H, 0.0f, dx + p.begin * H);
  }

  void Few(const Piece &p) const {
    const auto &kernels = FewRows<W>();
    const int64_t rows = p.end - p.begin, F = plan.F, H = plan.H;
    const float *dy_rows = dy + p.begin * H, *x_rows = x + p.begin * H;
    alignas(64) float g[kFewRows * kChunk], dh[kFewRows * kChunk];
    std::fill_n(p.partial, rows * H, 0.0f);
    for (int64_t f = p.first; f < p.last; f += kChunk) {
      const int64_t n = std::min(kChunk, p.last - f), weights = (p.expert * F + f) * H;
      std::fill_n(dh, rows * kChunk, 0.0f);
      kernels.dot(dy_rows, rows, w2 + weights, n, H, dh, kChunk, w1 + weights);
      for (int64_t r = 0; r < rows; ++r)
        activation.slope(inner + (p.begin + r) * F + f, g + r * kChunk, dh + r * kChunk, n);
      kernels.sum(dh, kChunk, rows, w1 + weights, n, H, p.partial, w2 + weights + n * H);
      kernels.outer(g, kChunk, dy_rows, rows, H, dw2 + weights, n);
      kernels.outer(dh, kChunk, x_rows, rows, H, dw1 + weights, n);
      BestKernels().column_sum(dh, rows, kChunk, n, db1 + p.expert * F + f);
    }
  }

  // Weight gradients of an expert with many rows, or none.
  void Gradients(int64_t e, int64_t f) const {
    const int64_t F = plan.F, H = plan.H, n = std::min(kColumns, F - f), rows = plan.Rows(e);
    const int64_t begin = plan.offsets[e], at = begin * F + f, weights = (e * F + f) * H;
    if (rows == 0) {
      FewRows<W>().clear(dw1 + weights, n * H);
      FewRows<W>().clear(dw2 + weights, n * H);
    } else {
      Matrix<W>::Outer(dinner + at, x + begin * H, rows, n, F, H, dw1 + weights);
      Matrix<W>::Outer(gate + at, dy + begin * H, rows, n, F, H, dw2 + weights);
    }
    BestKernels().column_sum(dinner + at, rows, F, n, db1 + e * F + f);
  }
};

// The checked arguments of the entry below.
template <class W>
int RunForward(const Activation &activation, const Args &in, int64_t T, int64_t A, int64_t F, int64_t H) {
  const Plan plan(in.i32(5), A, F, H);
  const auto &pieces = plan.pieces;
  static thread_local Edge x, b1, b2, y;
  const Forward<W> forward{plan,        activation,   x.In(in, 0),  in.as<W>(1), b1.In(in, 2),
                           in.as<W>(3), b2.In(in, 4), y.Out(in, 6), in.f32(7)};
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
  std::fill(forward.y + plan.End() * H, forward.y + T * H, 0.0f);
  y.Write();
  return 0;
}

template <class W>
int RunBackward(const Activation &activation, const Args &in, int64_t T, int64_t A, int64_t F, int64_t H) {
  const Plan plan(in.i32(5), A, F, H);
  const auto &pieces = plan.pieces;
  const bool many = std::any_of(pieces.begin(), pieces.end(), [](const Piece &p) { return p.partial == nullptr; });
  static thread_local Scratch gate, dinner;
  static thread_local Edge dy, x, dx, db1, db2;
  const Backward<W> backward{plan,           activation,      dy.In(in, 0),  x.In(in, 1),     in.f32(2),
                             in.as<W>(3),    in.as<W>(4),     dx.Out(in, 6), in.as<W>(7),     db1.Out(in, 8),
                             in.as<W>(9),    db2.Out(in, 10), gate.Get(many ? plan.End() * F : 0), dinner.Get(many ? plan.End() * F : 0)};
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
        if (!plan.Few(e)) backward.Gradients(e, f);
        if (f == 0) BestKernels().column_sum(backward.dy + plan.offsets[e] * H, plan.Rows(e), H, H, backward.db2 + e * H);
      }
  }
  std::fill(backward.dx + plan.End() * H, backward.dx + T * H, 0.0f);
  for (const Edge *edge : {&dx, &db1, &db2}) edge->Write();
  return 0;
}

// x[T,H] w1[A,F,H] b1[A,F] w2[A,F,H] b2[A,H] offsets[A+1] -> y[T,H] inner[T,F] (before the activation, kept for the backward)
int CheckedForward(const Activation &activation, int n, const Args &in) {
  if (n != 8) return 1;
  if (!OneFloatType(in, {0, 6}) || !OneFloatType(in, {1, 2, 3, 4}) || !in.is(5, "int32") || !in.is(7, "float32")) return 2;
  const int64_t T = in.dim(0, 0), A = in.dim(1, 0), F = in.dim(1, 1), H = in.dim(1, 2);
  if (in.count(0) != T * H || in.count(2) != A * F || in.count(3) != A * F * H || in.count(4) != A * H) return 3;
  if (in.count(5) != A + 1 || !OffsetsFit(in.i32(5), A, T)) return 3;
  scipy_openblas_set_num_threads(1);
  return in.is(1, "float16") ? RunForward<Half>(activation, in, T, A, F, H) : RunForward<float>(activation, in, T, A, F, H);
}

// dy[T,H] x[T,H] inner[T,F] w1[A,F,H] w2[A,F,H] offsets[A+1] -> dx[T,H] dw1[A,F,H] db1[A,F] dw2[A,F,H] db2[A,H]
int CheckedBackward(const Activation &activation, int n, const Args &in) {
  if (n != 11) return 1;
  if (!OneFloatType(in, {0, 1, 6}) || !OneFloatType(in, {3, 4, 7, 8, 9, 10}) || !in.is(2, "float32") || !in.is(5, "int32")) return 2;
  const int64_t T = in.dim(1, 0), A = in.dim(3, 0), F = in.dim(3, 1), H = in.dim(3, 2);
  if (in.count(0) != T * H || in.count(1) != T * H || in.count(2) != T * F || in.count(4) != A * F * H) return 3;
  if (in.count(5) != A + 1 || !OffsetsFit(in.i32(5), A, T)) return 3;
  scipy_openblas_set_num_threads(1);
  return in.is(3, "float16") ? RunBackward<Half>(activation, in, T, A, F, H) : RunBackward<float>(activation, in, T, A, F, H);
}
}  // namespace

// The operators, one of a name for each activation: an aot operator has no attributes but tensors.
#define OPERATORS(NAME, ACTIVATION) \
  extern "C" int NAME(int n, void **data, int *ranks, int64_t **shapes, const char **dtypes, void *, void *) { \
    return CheckedForward(BestKernels().ACTIVATION, n, {data, ranks, shapes, dtypes}); \
  } \
  extern "C" int NAME##Grad(int n, void **data, int *ranks, int64_t **shapes, const char **dtypes, void *, void *) { \
    return CheckedBackward(BestKernels().ACTIVATION, n, {data, ranks, shapes, dtypes}); \
  }
OPERATORS(GroupedFfn, fast_gelu)
OPERATORS(GroupedFfnTanh, tanh)
OPERATORS(GroupedFfnErf, erf)
