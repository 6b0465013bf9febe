// Products of few rows with a matrix that is read, or written, exactly once. Loops of kernels.cc, for vectors V of one instruction set.
//
// All matrices are row-major and have `width` columns; `stride` is that of the narrow matrix of numbers between them. Tiles of
// rows and of the matrix's rows stay in registers. A column's sum never depends on how the work was divided.
#pragma once
#include <cstdint>
#include <cstring>

#define INLINE static inline __attribute__((always_inline))  // becomes part of, and is compiled for, the set that calls it
#define UNROLL _Pragma("GCC unroll 16")

namespace few_rows {
template <class V>
constexpr int kLanes = sizeof(V) / sizeof(float);

// Of a register tile: AVX-512 has 32 registers, the others 16.
template <class V>
constexpr int kTile = sizeof(V) == 64 ? 4 : 2;

template <class V>
INLINE void Load(V *v, const float *at) {
  std::memcpy(v, at, sizeof(V));
}

template <class V>
INLINE void Spread(V *v, float x) {
  *v = x - V{};  // -0 would become 0 as x + V{}
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

template <class V>
INLINE bool Streams(const float *out, int64_t width) {
  return reinterpret_cast<uintptr_t>(out) % sizeof(V) == 0 && width % kLanes<V> == 0;
}

// Before another thread reads what was streamed.
INLINE void Fence() {
#if defined(__x86_64__)
  asm volatile("sfence" ::: "memory");
#endif
}

template <class V>
INLINE float Total(const V &v) {
  float lanes[kLanes<V>];
  std::memcpy(lanes, &v, sizeof(V));
  UNROLL for (int half = kLanes<V> / 2; half > 0; half /= 2) UNROLL for (int i = 0; i < half; ++i) lanes[i] += lanes[i + half];
  return lanes[0];
}

template <class V, int R, int F>
INLINE void DotTile(const float *__restrict x, const float *__restrict w, int64_t width, float *out, int64_t stride) {
  V sum[R][F] = {};
  int64_t c = 0;
  for (; c + kLanes<V> <= width; c += kLanes<V>) {
    V of_w[F];
    UNROLL for (int f = 0; f < F; ++f) Load(&of_w[f], w + f * width + c);
    UNROLL for (int r = 0; r < R; ++r) {
      V of_x;
      Load(&of_x, x + r * width + c);
      UNROLL for (int f = 0; f < F; ++f) sum[r][f] += of_x * of_w[f];
    }
  }
  UNROLL for (int r = 0; r < R; ++r) UNROLL for (int f = 0; f < F; ++f) {
    float total = Total(sum[r][f]);
    for (int64_t i = c; i < width; ++i) total += x[r * width + i] * w[f * width + i];
    out[r * stride + f] += total;
  }
}

template <class V, int R, int F>
INLINE void SumTile(const float *__restrict g, int64_t stride, const float *__restrict w, int64_t width, float *__restrict out) {
  V factor[R][F];
  UNROLL for (int r = 0; r < R; ++r) UNROLL for (int f = 0; f < F; ++f) Spread(&factor[r][f], g[r * stride + f]);
  int64_t c = 0;
  for (; c + kLanes<V> <= width; c += kLanes<V>) {
    V of_w[F];
    UNROLL for (int f = 0; f < F; ++f) Load(&of_w[f], w + f * width + c);
    UNROLL for (int r = 0; r < R; ++r) {
      V sum;
      Load(&sum, out + r * width + c);
      UNROLL for (int f = 0; f < F; ++f) sum += factor[r][f] * of_w[f];
      Store<V, false>(out + r * width + c, sum);
    }
  }
  for (; c < width; ++c)
    UNROLL for (int r = 0; r < R; ++r) UNROLL for (int f = 0; f < F; ++f) out[r * width + c] += g[r * stride + f] * w[f * width + c];
}

template <class V, int F, int C, bool kStream>
INLINE void OuterTile(const float *__restrict g, int64_t stride, const float *__restrict x, int64_t rows, int64_t width, float *__restrict out) {
  V sum[F][C] = {};
  for (int64_t r = 0; r < rows; ++r) {
    V of_x[C];
    UNROLL for (int c = 0; c < C; ++c) Load(&of_x[c], x + r * width + c * kLanes<V>);
    UNROLL for (int f = 0; f < F; ++f) {
      V factor;
      Spread(&factor, g[r * stride + f]);
      UNROLL for (int c = 0; c < C; ++c) sum[f][c] += factor * of_x[c];
    }
  }
  UNROLL for (int f = 0; f < F; ++f) UNROLL for (int c = 0; c < C; ++c) Store<V, kStream>(out + f * width + c * kLanes<V>, sum[f][c]);
}

template <class V, int F, bool kStream>
INLINE void OuterRows(const float *g, int64_t stride, const float *x, int64_t rows, int64_t width, float *out) {
  constexpr int64_t kLine = 64 / sizeof(float) > kLanes<V> ? 64 / sizeof(float) : kLanes<V>;  // whole cache lines at a time
  constexpr int kLineVectors = kLine / kLanes<V>;
  int64_t c = 0;
  if constexpr (kLineVectors == 1)
    for (; c + 2 * kLine <= width; c += 2 * kLine) OuterTile<V, F, 2, kStream>(g, stride, x + c, rows, width, out + c);
  for (; c + kLine <= width; c += kLine) OuterTile<V, F, kLineVectors, kStream>(g, stride, x + c, rows, width, out + c);
  for (; c < width; ++c)
    for (int f = 0; f < F; ++f) {
      float sum = 0.0f;
      for (int64_t r = 0; r < rows; ++r) sum += g[r * stride + f] * x[r * width + c];
      out[f * width + c] = sum;
    }
}

// out[r, f] += x[r] · w[f]
template <class V>
INLINE void Dot(const float *x, int64_t rows, const float *w, int64_t count, int64_t width, float *out, int64_t stride) {
  constexpr int F = kTile<V>;
  int64_t f = 0;
  for (; f + F <= count; f += F) {
    int64_t r = 0;
    for (; r + 4 <= rows; r += 4) DotTile<V, 4, F>(x + r * width, w + f * width, width, out + r * stride + f, stride);
    for (; r + 2 <= rows; r += 2) DotTile<V, 2, F>(x + r * width, w + f * width, width, out + r * stride + f, stride);
    for (; r < rows; ++r) DotTile<V, 1, F>(x + r * width, w + f * width, width, out + r * stride + f, stride);
  }
  for (; f < count; ++f)
    for (int64_t r = 0; r < rows; ++r) DotTile<V, 1, 1>(x + r * width, w + f * width, width, out + r * stride + f, stride);
}

// out[r] += Σ_f g[r, f] w[f]
template <class V>
INLINE void Sum(const float *g, int64_t stride, int64_t rows, const float *w, int64_t count, int64_t width, float *out) {
  constexpr int F = kTile<V>;
  int64_t f = 0;
  for (; f + F <= count; f += F) {
    int64_t r = 0;
    for (; r + 4 <= rows; r += 4) SumTile<V, 4, F>(g + r * stride + f, stride, w + f * width, width, out + r * width);
    for (; r + 2 <= rows; r += 2) SumTile<V, 2, F>(g + r * stride + f, stride, w + f * width, width, out + r * width);
    for (; r < rows; ++r) SumTile<V, 1, F>(g + r * stride + f, stride, w + f * width, width, out + r * width);
  }
  for (; f < count; ++f)
    for (int64_t r = 0; r < rows; ++r) SumTile<V, 1, 1>(g + r * stride + f, stride, w + f * width, width, out + r * width);
}

// out[f] = Σ_r g[r, f] x[r]
template <class V>
INLINE void Outer(const float *g, int64_t stride, const float *x, int64_t rows, int64_t width, float *out, int64_t count) {
  constexpr int F = 2 * kTile<V>;
  int64_t f = 0;
  if (Streams<V>(out, width))
    for (; f + F <= count; f += F) OuterRows<V, F, true>(g + f, stride, x, rows, width, out + f * width);
  for (; f + F <= count; f += F) OuterRows<V, F, false>(g + f, stride, x, rows, width, out + f * width);
  for (; f < count; ++f) OuterRows<V, 1, false>(g + f, stride, x, rows, width, out + f * width);
  Fence();
}

// Zeros, past the caches.
template <class V>
INLINE void Clear(float *out, int64_t n) {
  int64_t i = 0;
  for (; i < n && !Streams<V>(out + i, 0); ++i) out[i] = 0.0f;
  for (; i + kLanes<V> <= n; i += kLanes<V>) Store<V, true>(out + i, V{});
  for (; i < n; ++i) out[i] = 0.0f;
  Fence();
}
}  // namespace few_rows
