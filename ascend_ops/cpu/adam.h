// AdamW of rows of a store, as pieces of work that any thread may do: what adam.cc does at once and adam_worker.cc behind the step.
#pragma once
#include <algorithm>
#include <cmath>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "aot.h"
#include "kernels.h"

namespace adam {
constexpr int64_t kPiece = 16384;  // elements of one piece of the parallel loop
constexpr int64_t kBlock = 2048;   // elements converted at a time: they stay in the first-level cache

struct Hyper {  // the order of ascend_ops.adam.HYPER
  float lr, grad_scale, apply, beta1, beta2, eps;

  // What the kernel needs for a row with this step count after the update.
  AdamScalars ForRow(int32_t step, float decay) const {
    const float rate = static_cast<float>(lr / (1.0 - std::pow(static_cast<double>(beta1), step)));
    const float unbias = static_cast<float>(1.0 / std::sqrt(1.0 - std::pow(static_cast<double>(beta2), step)));
    return {grad_scale, beta1, beta2, eps, rate, unbias, 1.0f - lr * decay};
  }
};

struct Row {
  int64_t place, row;  // in the gradients, in the store
  int32_t step;        // its step count after the update
};

struct Piece {
  int tensor;
  size_t row;  // number of the row among those of the update
  int64_t begin, end;
};

enum class Float { f32, f16, bf16, other };

inline Float FloatOf(const char *dtype) {
  if (std::strcmp(dtype, "float32") == 0) return Float::f32;
  if (std::strcmp(dtype, "float16") == 0) return Float::f16;
  // NumPy has no bfloat16: the bits of moments travel as uint16
  return std::strcmp(dtype, "bfloat16") == 0 || std::strcmp(dtype, "uint16") == 0 ? Float::bf16 : Float::other;
}

inline int64_t SizeOf(Float type) { return type == Float::f32 ? 4 : 2; }

// Keeps subnormal moments, while it lives, even if a library has told this thread to flush them to zero.
class KeepSubnormals {
#if defined(__x86_64__)
 public:
  KeepSubnormals() : before_(_mm_getcsr()) { _mm_setcsr(before_ & ~0x8040u); }
  ~KeepSubnormals() { _mm_setcsr(before_); }

 private:
  unsigned before_;
#endif
};

// Returns n ≤ kBlock elements as float32: the array itself if it has this type, else a converted copy in `scratch`.
inline const float *Widened(const char *at, Float type, float *scratch, int64_t n) {
  if (type == Float::f32) return reinterpret_cast<const float *>(at);
  const auto widen = type == Float::f16 ? BestKernels().widen_half : BestKernels().widen_bfloat;
  widen(reinterpret_cast<const uint16_t *>(at), scratch, n);
  return scratch;
}

inline void Narrowed(const float *from, char *to, Float type, int64_t n) {
  if (type == Float::f16)
    BestKernels().narrow_half(from, reinterpret_cast<uint16_t *>(to), n);
  else if (type == Float::bf16)
    BestKernels().narrow_bfloat(from, reinterpret_cast<uint16_t *>(to), n);
  else
    std::memcpy(to, from, n * sizeof(float));
}

struct Tensors {  // where the four arrays of one tensor are, and what they hold
  float *w;
  char *m, *v, *grad;
  Float moment_type, grad_type;
};

inline void UpdateBlock(const Tensors &t, int64_t at, int64_t grad_at, int64_t n, const AdamScalars &s) {
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

struct Update {  // of some rows of the tensors of a segment, which share step counts
  std::vector<Tensors> tensors;
  std::vector<int64_t> width;  // elements of a row of each tensor
  std::vector<float> decay;    // of each tensor
  int32_t *step = nullptr;
  Hyper hyper{};
  int64_t gradient_rows = 0;
  std::vector<Row> rows;  // those that are updated

  // Fills `rows` from the active list of a store of K rows. Returns 0, or 4 for a row that the store does not have.
  int Choose(int64_t K, int64_t A, const int32_t *active, const int32_t *offsets) {
    for (int64_t a = 0; a < A; ++a) {
      if (hyper.apply == 0.0f || offsets[a + 1] == offsets[a]) continue;  // an overflow, or no token: nothing changes
      if (active[a] < 0 || active[a] >= K) return 4;
      rows.push_back({a, active[a], step[active[a]] + 1});
    }
    return 0;
  }

  std::vector<Piece> Pieces() const {
    std::vector<Piece> pieces;
    for (int g = 0; g < static_cast<int>(tensors.size()); ++g)
      for (size_t r = 0; r < rows.size(); ++r)
        for (int64_t begin = 0; begin < width[g]; begin += kPiece) pieces.push_back({g, r, begin, std::min(begin + kPiece, width[g])});
    return pieces;
  }

  // Writes the step counts of the updated rows, and returns their number.
  int64_t Count() const {
    for (const Row &r : rows) step[r.row] = r.step;
    return rows.size();
  }

  void Run(const Piece &p) const {
    const Tensors &t = tensors[p.tensor];
    const Row &r = rows[p.row];
    const AdamScalars s = hyper.ForRow(r.step, decay[p.tensor]);
    for (int64_t i = p.begin; i < p.end; i += kBlock) {
      const int64_t n = std::min(kBlock, p.end - i), at = r.row * width[p.tensor] + i, grad_at = r.place * width[p.tensor] + i;
      UpdateBlock(t, at, grad_at, n, s);
    }
  }
};
}  // namespace adam
