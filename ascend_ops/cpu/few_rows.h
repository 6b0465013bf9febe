// Products of few rows with a matrix that is read, or written, exactly once. Loops of kernels.cc, for vectors V of one instruction set.
//
// Matrices are row-major, of elements W: float, or Half, which is widened when read into a register and rounded, to nearest even, when
// written; or int8_t, which is only read. All arithmetic is float. What stays in registers is a tile of the result. The order of addition depends on the sizes only.
#pragma once
#include <cstdint>
#include <cstring>
#include <utility>

#include "half.h"

#define UNROLL _Pragma("GCC unroll 16")

namespace few_rows {
template <class V>
constexpr int kLanes = sizeof(V) / sizeof(float);

template <class V>
constexpr int kWide = sizeof(V) == 64 ? 4 : 2;  // sides of a tile: AVX-512 has 32 registers, the others 16

template <class V>
using Halves __attribute__((vector_size(sizeof(V) / 2), aligned(2), may_alias)) = Half;  // as many as V has floats

template <class V>
constexpr bool kConverts = sizeof(V) > 16;  // the set has instructions for Half

INLINE void Narrow(float x, float *to) { *to = x; }
INLINE void Narrow(float x, Half *to) { *to = FloatToHalf(x); }

template <class V>
INLINE void Load(V *v, const float *at) {
  std::memcpy(v, at, sizeof(V));
}

template <class V>
INLINE void Load(V *v, const Half *at) {
#if defined(__x86_64__)
  if constexpr (kConverts<V>) {
    asm("vcvtph2ps %1, %0" : "=v"(*v) : "m"(*reinterpret_cast<const Halves<V> *>(at)));
    return;
  }
#endif
  UNROLL for (int i = 0; i < kLanes<V>; ++i)(*v)[i] = HalfToFloat(at[i]);
}

template <class V>
INLINE void Load(V *v, const int8_t *at) {
#if defined(__x86_64__)
  if constexpr (kConverts<V>) {
    typedef int8_t Bytes __attribute__((vector_size(sizeof(V) / 4), aligned(1), may_alias));
    typedef int32_t Ints __attribute__((vector_size(sizeof(V))));
    Ints ints;
    asm("vpmovsxbd %1, %0" : "=v"(ints) : "m"(*reinterpret_cast<const Bytes *>(at)));
    *v = __builtin_convertvector(ints, V);
    return;
  }
#endif
  V wide = {};
  UNROLL for (int i = 0; i < kLanes<V>; ++i) wide[i] = at[i];
  *v = wide;
}

template <class V, bool kStream>
INLINE void Store(Half *at, const V &v) {
#if defined(__x86_64__)
  if constexpr (kConverts<V>) {
    Halves<V> rounded, *to = reinterpret_cast<Halves<V> *>(at);
    asm("vcvtps2ph $0, %1, %0" : "=v"(rounded) : "v"(v));
    if constexpr (kStream)
      asm volatile("vmovntdq %1, %0" : "=m"(*to) : "v"(rounded));
    else
      *to = rounded;
    return;
  }
#endif
  UNROLL for (int i = 0; i < kLanes<V>; ++i) at[i] = FloatToHalf(v[i]);
}

template <class V, bool kStream>
INLINE void Store(float *at, const V &v) {
#if defined(__x86_64__)
  if constexpr (kStream) {  // past the caches: nobody reads it soon, and the line need not be fetched
    if constexpr (sizeof(V) == 16)
      asm volatile("movntps %1, %0" : "=m"(*reinterpret_cast<V *>(at)) : "x"(v));
    else
      asm volatile("vmovntps %1, %0" : "=m"(*reinterpret_cast<V *>(at)) : "v"(v));
    return;
  }
#endif
  std::memcpy(at, &v, sizeof(V));
}

// The first n lanes; the others are 0.
template <class V, class W>
INLINE void LoadFirst(V *v, const W *at, int64_t n) {
  W some[kLanes<V>] = {};
  std::memcpy(some, at, n * sizeof(W));
  Load(v, some);
}

template <class V, class W>
INLINE void StoreFirst(W *at, const V &v, int64_t n) {
  W some[kLanes<V>];
  Store<V, false>(some, v);
  std::memcpy(at, some, n * sizeof(W));
}

template <class V, class W>
INLINE bool Streams(const W *out, int64_t width) {
  return reinterpret_cast<uintptr_t>(out) % (kLanes<V> * sizeof(W)) == 0 && width % kLanes<V> == 0;
}

// Before another thread reads what was streamed.
INLINE void Fence() {
#if defined(__x86_64__)
  asm volatile("sfence" ::: "memory");
#endif
}

// a and b each have the partial sums of kLanes / S numbers, S lanes for each number. *out gets the partial sums of all these numbers, in
// order, S / 2 lanes for each.
template <class V, int S, int... I>
INLINE void Fold(const V &a, const V &b, V *out, std::integer_sequence<int, I...>) {
  *out = __builtin_shufflevector(a, b, (I / (S / 2) * S + I % (S / 2))...) + __builtin_shufflevector(a, b, (I / (S / 2) * S + I % (S / 2) + S / 2)...);
}

// out[i] = sum of the lanes of v[i]. N: a power of two.
template <class V, int N, int S = kLanes<V>>
INLINE void Totals(V *v, float *out) {
  constexpr int kHalf = N > 1 ? N / 2 : 1;
  V folded[kHalf];
  UNROLL for (int i = 0; i < kHalf; ++i)
    Fold<V, S>(v[2 * i < N ? 2 * i : 0], v[2 * i + 1 < N ? 2 * i + 1 : 0], &folded[i], std::make_integer_sequence<int, kLanes<V>>());
  if constexpr (S > 2)
    Totals<V, kHalf, S / 2>(folded, out);
  else
    std::memcpy(out, folded, sizeof(folded));
}

template <class V, int R, int F, class W>
INLINE void DotTile(const float *__restrict x, const W *__restrict w, int64_t width, float *out, int64_t stride, const W *next) {
  V sum[R * F] = {};
  int64_t c = 0;
  for (; c + kLanes<V> <= width; c += kLanes<V>) {
    V of_w[F];
    UNROLL for (int f = 0; f < F; ++f) Load(&of_w[f], w + f * width + c);
    if (next != nullptr) UNROLL for (int f = 0; f < F; ++f) __builtin_prefetch(next + f * width + c, 0, 2);
    UNROLL for (int r = 0; r < R; ++r) {
      V of_x;
      Load(&of_x, x + r * width + c);
      UNROLL for (int f = 0; f < F; ++f) sum[r * F + f] += of_x * of_w[f];
    }
  }
  if (c < width) {
    V of_w[F];
    UNROLL for (int f = 0; f < F; ++f) LoadFirst(&of_w[f], w + f * width + c, width - c);
    UNROLL for (int r = 0; r < R; ++r) {
      V of_x;
      LoadFirst(&of_x, x + r * width + c, width - c);
      UNROLL for (int f = 0; f < F; ++f) sum[r * F + f] += of_x * of_w[f];
    }
  }
  float total[R * F > kLanes<V> ? R * F : kLanes<V>];
  Totals<V, R * F>(sum, total);
  UNROLL for (int r = 0; r < R; ++r) UNROLL for (int f = 0; f < F; ++f) out[r * stride + f] += total[r * F + f];
}

template <class V, int F, class W>
INLINE void DotRows(const float *x, int64_t rows, const W *w, int64_t width, float *out, int64_t stride, const W *next) {
  int64_t r = 0;
  for (; r + 4 <= rows; r += 4, next = nullptr) DotTile<V, 4, F>(x + r * width, w, width, out + r * stride, stride, next);
  for (; r + 2 <= rows; r += 2, next = nullptr) DotTile<V, 2, F>(x + r * width, w, width, out + r * stride, stride, next);
  for (; r < rows; ++r, next = nullptr) DotTile<V, 1, F>(x + r * width, w, width, out + r * stride, stride, next);
}

// out[r, f] += x[r] · w[f]; meanwhile next[f], rows as long as those of w, come into the cache.
template <class V, class W>
INLINE void Dot(const float *x, int64_t rows, const W *w, int64_t count, int64_t width, float *out, int64_t stride, const W *next) {
  constexpr int F = kWide<V>;
  int64_t f = 0;
  for (; f + F <= count; f += F) DotRows<V, F>(x, rows, w + f * width, width, out + f, stride, next + f * width);
  for (; f < count; ++f) DotRows<V, 1>(x, rows, w + f * width, width, out + f, stride, next + f * width);
}

struct Factors {  // of row i of the result and row k of the matrix
  const float *at;
  int64_t by_i, by_k;

  __attribute__((always_inline)) Factors From(int64_t i) const { return {at + i * by_i, by_i, by_k}; }
};

template <class M>
struct Columns {  // some columns of a matrix
  const M *at;
  int64_t rows, count, stride;
  const M *next;  // as many, which come into the cache meanwhile; or null

  __attribute__((always_inline)) Columns From(int64_t c) const { return {at + c, rows, count - c, stride, next == nullptr ? next : next + c}; }
  __attribute__((always_inline)) Columns Again() const { return {at, rows, count, stride, nullptr}; }
};

template <class V, int I, int C, bool kAdd, bool kStream, class M, class W>
INLINE void MixTile(Factors g, Columns<M> m, W *__restrict out, int64_t stride) {
  V sum[I][C] = {};
  for (int64_t k = 0; k < m.rows; ++k) {
    V of_m[C];
    UNROLL for (int c = 0; c < C; ++c) Load(&of_m[c], m.at + k * m.stride + c * kLanes<V>);
    if (m.next != nullptr) UNROLL for (int c = 0; c < C; ++c) __builtin_prefetch(m.next + k * m.stride + c * kLanes<V>, 0, 2);
    UNROLL for (int i = 0; i < I; ++i) UNROLL for (int c = 0; c < C; ++c) sum[i][c] += g.at[i * g.by_i + k * g.by_k] * of_m[c];
  }
  UNROLL for (int i = 0; i < I; ++i) UNROLL for (int c = 0; c < C; ++c) {
    W *at = out + i * stride + c * kLanes<V>;
    V before = {};
    if constexpr (kAdd) Load(&before, at);
    Store<V, kStream>(at, before + sum[i][c]);
  }
}

// The last columns, fewer than a vector.
template <class V, int I, bool kAdd, class M, class W>
INLINE void MixRest(Factors g, Columns<M> m, W *__restrict out, int64_t stride) {
  V sum[I] = {};
  for (int64_t k = 0; k < m.rows; ++k) {
    V of_m;
    LoadFirst(&of_m, m.at + k * m.stride, m.count);
    UNROLL for (int i = 0; i < I; ++i) sum[i] += g.at[i * g.by_i + k * g.by_k] * of_m;
  }
  UNROLL for (int i = 0; i < I; ++i) {
    V before = {};
    if constexpr (kAdd) LoadFirst(&before, out + i * stride, m.count);
    StoreFirst(out + i * stride, before + sum[i], m.count);
  }
}

template <class V, int I, int C, bool kAdd, bool kStream, class M, class W>
INLINE void MixRows(Factors g, Columns<M> m, W *out, int64_t stride) {
  int64_t c = 0;
  for (; c + C * kLanes<V> <= m.count; c += C * kLanes<V>) MixTile<V, I, C, kAdd, kStream>(g, m.From(c), out + c, stride);
  if constexpr (C > 1) {
    MixRows<V, I, C / 2, kAdd, kStream>(g, m.From(c), out + c, stride);
    return;
  }
  if (c < m.count) MixRest<V, I, kAdd>(g, m.From(c), out + c, stride);
}

// out[i] = Σ_k g[i, k] m[k], or += it.
template <class V, bool kAdd, bool kStream, class M, class W>
INLINE void Mix(Factors g, int64_t rows, Columns<M> m, W *out, int64_t stride) {
  constexpr int N = kWide<V>;
  int64_t i = 0;
  for (; i + 2 * N <= rows; i += 2 * N, m = m.Again()) MixRows<V, 2 * N, 2, kAdd, kStream>(g.From(i), m, out + i * stride, stride);
  for (; i + N <= rows; i += N, m = m.Again()) MixRows<V, N, N, kAdd, kStream>(g.From(i), m, out + i * stride, stride);
  for (; i + 2 <= rows; i += 2, m = m.Again()) MixRows<V, 2, N, kAdd, kStream>(g.From(i), m, out + i * stride, stride);
  for (; i < rows; ++i, m = m.Again()) MixRows<V, 1, 2 * N, kAdd, kStream>(g.From(i), m, out + i * stride, stride);
}

// out[r] += Σ_f g[r, f] w[f]; meanwhile next[f], rows as long as those of w, come into the cache.
template <class V, class W>
INLINE void Sum(const float *g, int64_t stride, int64_t rows, const W *w, int64_t count, int64_t width, float *out, const W *next) {
  Mix<V, true, false, W>({g, stride, 1}, rows, {w, count, width, width, next}, out, width);
}

// out[r, c] += Σ_f g[r, f] w[f, c] for some columns of a matrix and of a result; meanwhile the rows of w `ahead` come into the cache.
template <class V, class W>
INLINE void SumColumns(const float *g, int64_t stride, int64_t rows, const W *w, int64_t count, int64_t width, int64_t of, float *out,
                       int64_t out_stride, int64_t ahead) {
  Mix<V, true, false, W>({g, stride, 1}, rows, {w, count, width, of, w + ahead * of}, out, out_stride);
}

// out[f] = Σ_r g[r, f] x[r]
template <class V, class W>
INLINE void Outer(const float *g, int64_t stride, const float *x, int64_t rows, int64_t width, W *out, int64_t count) {
  if (Streams<V>(out, width)) {
    Mix<V, false, true, float>({g, 1, stride}, count, {x, rows, width, width, nullptr}, out, width);
    Fence();
  } else {
    Mix<V, false, false, float>({g, 1, stride}, count, {x, rows, width, width, nullptr}, out, width);
  }
}

// Zeros, past the caches.
template <class V, class W>
INLINE void Clear(W *out, int64_t n) {
  int64_t i = 0;
  for (; i < n && !Streams<V>(out + i, 0); ++i) out[i] = 0;
  for (; i + kLanes<V> <= n; i += kLanes<V>) Store<V, true>(out + i, V{});
  for (; i < n; ++i) out[i] = 0;
  Fence();
}

// The nearest halves, past the caches.
template <class V>
INLINE void NarrowPast(const float *in, Half *out, int64_t n) {
  int64_t i = 0;
  for (; i < n && !Streams<V>(out + i, 0); ++i) Narrow(in[i], out + i);
  for (; i + kLanes<V> <= n; i += kLanes<V>) {
    V v;
    Load(&v, in + i);
    Store<V, true>(out + i, v);
  }
  for (; i < n; ++i) Narrow(in[i], out + i);
  Fence();
}
}  // namespace few_rows
