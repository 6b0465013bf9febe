// AdamW over the rows that a step used, in place in host memory, and the norm pass before it. See ascend_ops/adam.py for the contract.
#include <algorithm>
#include <cmath>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "aot.h"
#include "kernels.h"

namespace {
constexpr int64_t kPiece = 16384;  // elements of one piece of the parallel loop
constexpr int64_t kBlock = 2048;   // elements converted at a time: they stay in the first-level cache

struct Hyper {  // the order of ascend_ops.adam.HYPER
  float lr, grad_scale, apply, beta1, beta2, eps, zero_grad;
};

struct Row {
  int64_t place, row;  // in the gradients, in the store
  int64_t next;        // place in the copy, or -1
  bool used;
  float rate, unbias;
};

struct Piece {
  int tensor;
  const Row *row;
  int64_t begin, end;
};

enum class Float { f32, f16, bf16, other };

Float FloatOf(const char *dtype) {
  if (std::strcmp(dtype, "float32") == 0) return Float::f32;
  if (std::strcmp(dtype, "float16") == 0) return Float::f16;
  // NumPy has no bfloat16: the bits of moments travel as uint16
  return std::strcmp(dtype, "bfloat16") == 0 || std::strcmp(dtype, "uint16") == 0 ? Float::bf16 : Float::other;
}

int64_t SizeOf(Float type) { return type == Float::f32 ? 4 : 2; }

// Subnormal moments are real numbers here, whatever a library has set in this thread.
class KeepSubnormals {
#if defined(__x86_64__)
 public:
  KeepSubnormals() : before_(_mm_getcsr()) { _mm_setcsr(before_ & ~0x8040u); }
  ~KeepSubnormals() { _mm_setcsr(before_); }

 private:
  unsigned before_;
#endif
};

// Up to kBlock elements as float32: those of the array itself, or widened into `scratch`.
const float *Widened(const char *at, Float type, float *scratch, int64_t n) {
  if (type == Float::f32) return reinterpret_cast<const float *>(at);
  const auto widen = type == Float::f16 ? BestKernels().widen_half : BestKernels().widen_bfloat;
  widen(reinterpret_cast<const uint16_t *>(at), scratch, n);
  return scratch;
}

void Narrowed(const float *from, char *to, Float type, int64_t n) {
  if (type == Float::f16)
    BestKernels().narrow_half(from, reinterpret_cast<uint16_t *>(to), n);
  else if (type == Float::bf16)
    BestKernels().narrow_bfloat(from, reinterpret_cast<uint16_t *>(to), n);
  else
    std::memcpy(to, from, n * sizeof(float));
}

struct Tensors {  // where the five arrays of one tensor are, and what they hold
  float *w;
  char *m, *v, *grad, *copy;
  Float moment_type, grad_type, copy_type;
};

void UpdateBlock(const Tensors &t, int64_t at, int64_t grad_at, int64_t n, const AdamScalars &s) {
  alignas(64) float scratch[3][kBlock];
  char *m_at = t.m + at * SizeOf(t.moment_type), *v_at = t.v + at * SizeOf(t.moment_type);
  float *m = const_cast<float *>(Widened(m_at, t.moment_type, scratch[0], n));
  float *v = const_cast<float *>(Widened(v_at, t.moment_type, scratch[1], n));
  BestKernels().adam(t.w + at, m, v, Widened(t.grad + grad_at * SizeOf(t.grad_type), t.grad_type, scratch[2], n), n, s);
  if (t.moment_type != Float::f32) {
    Narrowed(m, m_at, t.moment_type, n);
    Narrowed(v, v_at, t.moment_type, n);
  }
}

// Arrays of the call, checked. copies: whether copy[G] and next[A] are among them.
struct Call {
  int G;
  int64_t K, A;
  std::vector<Tensors> tensors;
  std::vector<int64_t> P;  // elements of a row of each tensor
  int32_t *step;
  const int32_t *active, *offsets, *next;
  Hyper hyper;
  const float *decay;
  float *updated;

  int Read(int n, const Args &in, bool copies) {
    const int arrays = copies ? 5 : 4, others = copies ? 7 : 6;
    G = (n - others) / arrays;
    if (G < 1 || n != arrays * G + others) return 1;
    int at = arrays * G;
    const int step_at = at++, active_at = at++, offsets_at = at++, next_at = copies ? at++ : -1, hyper_at = at++, decay_at = at++;
    for (int i : {step_at, active_at, offsets_at, copies ? next_at : step_at})
      if (!in.is(i, "int32")) return 2;
    for (int i : {hyper_at, decay_at})
      if (!in.is(i, "float32")) return 2;
    K = in.count(step_at), A = in.count(active_at);
    if (in.count(offsets_at) != A + 1 || (copies && in.count(next_at) != A) || in.count(hyper_at) != 7 || in.count(decay_at) != G) return 3;
    if (K < 1) return 3;
    for (int g = 0; g < G; ++g) {
      const int m = G + g, v = 2 * G + g, grad = 3 * G + g, copy = copies ? 4 * G + g : grad;
      const auto raw = [&](int i) { return static_cast<char *>(in.data[i]); };
      const auto type = [&](int i) { return FloatOf(in.dtypes[i]); };
      if (type(g) != Float::f32 || type(m) != type(v)) return 2;
      if (type(m) != Float::f32 && type(m) != Float::bf16) return 2;
      for (int i : {grad, copy})
        if (type(i) == Float::other || in.is(i, "uint16")) return 2;
      if (in.count(g) % K || in.count(grad) * K != in.count(g) * A || in.count(m) != in.count(g) || in.count(v) != in.count(g)) return 3;
      if (in.count(copy) != in.count(grad)) return 3;
      tensors.push_back({in.f32(g), raw(m), raw(v), raw(grad), copies ? raw(copy) : nullptr, type(m), type(grad), type(copy)});
      P.push_back(in.count(g) / K);
    }
    step = in.i32(step_at), active = in.i32(active_at), offsets = in.i32(offsets_at), next = copies ? in.i32(next_at) : nullptr;
    hyper = *reinterpret_cast<const Hyper *>(in.f32(hyper_at));
    decay = in.f32(decay_at), updated = in.f32(decay_at + 1);
    return 0;
  }

  // Rows that something is done to; step counts advance only when all rows are good.
  int Rows(std::vector<Row> *rows) const {
    for (int64_t a = 0; a < A; ++a) {
      const bool used = hyper.apply != 0.0f && offsets[a + 1] != offsets[a];  // no token, or an overflow: nothing changes
      const int64_t to = next ? next[a] : -1;
      if (!used && to < 0 && hyper.zero_grad == 0.0f) continue;
      if ((used || to >= 0) && (active[a] < 0 || active[a] >= K || to >= A)) return 4;
      rows->push_back({a, active[a], to, used, 0.0f, 0.0f});
    }
    for (Row &r : *rows) {
      if (!r.used) continue;
      const int32_t t = ++step[r.row];
      r.rate = static_cast<float>(hyper.lr / (1.0 - std::pow(static_cast<double>(hyper.beta1), t)));
      r.unbias = static_cast<float>(1.0 / std::sqrt(1.0 - std::pow(static_cast<double>(hyper.beta2), t)));
    }
    return 0;
  }

  void Run(const Piece &p) const {
    const Tensors &t = tensors[p.tensor];
    const Row &r = *p.row;
    const int64_t width = P[p.tensor];
    const AdamScalars s{hyper.grad_scale, hyper.beta1, hyper.beta2, hyper.eps, r.rate, r.unbias, 1.0f - hyper.lr * decay[p.tensor]};
    for (int64_t i = p.begin; i < p.end; i += kBlock) {
      const int64_t n = std::min(kBlock, p.end - i), at = r.row * width + i;
      if (r.used) UpdateBlock(t, at, r.place * width + i, n, s);
      if (hyper.zero_grad != 0.0f) std::memset(t.grad + (r.place * width + i) * SizeOf(t.grad_type), 0, n * SizeOf(t.grad_type));
      if (r.next >= 0) Narrowed(t.w + at, t.copy + (r.next * width + i) * SizeOf(t.copy_type), t.copy_type, n);
    }
  }
};

int AdamRowsOf(int n, const Args &in, bool copies) {
  Call call;
  if (const int failed = call.Read(n, in, copies)) return failed;
  std::vector<Row> rows;
  if (const int failed = call.Rows(&rows)) return failed;
  std::vector<Piece> pieces;
  for (int g = 0; g < call.G; ++g)
    for (const Row &r : rows)
      for (int64_t begin = 0; begin < call.P[g]; begin += kPiece) pieces.push_back({g, &r, begin, std::min(begin + kPiece, call.P[g])});
#pragma omp parallel
  {
    const KeepSubnormals scope;
#pragma omp for schedule(dynamic, 4)
    for (size_t i = 0; i < pieces.size(); ++i) call.Run(pieces[i]);
  }
  *call.updated = static_cast<float>(std::count_if(rows.begin(), rows.end(), [](const Row &r) { return r.used; }));
  return 0;
}
}  // namespace

// G tensors: w[G][K,P] m[G][K,P] v[G][K,P] grad[G][A,P], then step[K] active[A] offsets[A+1] hyper[7] decay[G] -> rows updated [1]
extern "C" int AdamRows(int n, void **data, int *ranks, int64_t **shapes, const char **dtypes, void *, void *) {
  return AdamRowsOf(n, Args{data, ranks, shapes, dtypes}, false);
}

// The same with copy[G][A,P] after grad and next[A] after offsets: row a, as it is after the step, also goes to copy[next[a]].
extern "C" int AdamRowsCopied(int n, void **data, int *ranks, int64_t **shapes, const char **dtypes, void *, void *) {
  return AdamRowsOf(n, Args{data, ranks, shapes, dtypes}, true);
}

// Any number of tensors -> sum of the squares of all their elements [1], or that and the sum of each tensor [1 + tensors].
// The order of addition does not depend on the threads.
extern "C" int SquareSum(int n, void **data, int *ranks, int64_t **shapes, const char **dtypes, void *, void *) {
  const Args in{data, ranks, shapes, dtypes};
  if (n < 2) return 1;
  if (in.count(n - 1) != 1 && in.count(n - 1) != n) return 3;
  std::vector<Piece> pieces;
  for (int i = 0; i + 1 < n; ++i) {
    if (FloatOf(dtypes[i]) != Float::f32 && FloatOf(dtypes[i]) != Float::f16) return 2;
    for (int64_t begin = 0, count = in.count(i); begin < count; begin += kPiece) pieces.push_back({i, nullptr, begin, std::min(begin + kPiece, count)});
  }
  std::vector<double> sums(pieces.size());
#pragma omp parallel for schedule(dynamic, 4)
  for (size_t i = 0; i < pieces.size(); ++i) {
    const Piece &p = pieces[i];
    const Float type = FloatOf(dtypes[p.tensor]);
    alignas(64) float scratch[kBlock];
    for (int64_t at = p.begin; at < p.end; at += kBlock) {
      const int64_t count = std::min(kBlock, p.end - at);
      const char *x = static_cast<char *>(data[p.tensor]) + at * SizeOf(type);
      sums[i] += BestKernels().square_sum(Widened(x, type, scratch, count), count);
    }
  }
  double total = 0.0;
  for (double sum : sums) total += sum;
  in.f32(n - 1)[0] = static_cast<float>(total);
  if (in.count(n - 1) == n) {
    std::vector<double> own(n - 1);
    for (size_t i = 0; i < pieces.size(); ++i) own[pieces[i].tensor] += sums[i];
    for (int i = 0; i + 1 < n; ++i) in.f32(n - 1)[1 + i] = static_cast<float>(own[i]);
  }
  return 0;
}
