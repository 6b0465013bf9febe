// Products of few rows with a matrix of four-bit numbers, which is read exactly once. Loops of kernels.cc beside those of few_rows.h.
//
// 64 columns of a row are a group with a scale: 16 words, of which word i has the numbers of the columns i, 16 + i, 32 + i and 48 + i, lowest
// bits first, in two's complement. With AVX-512 a number becomes a float by a look into a register of all sixteen, which costs no more
// instructions than an int8_t does. All arithmetic is float; the order of addition depends on the sizes only.
#pragma once
#include "few_rows.h"

namespace few_rows {
constexpr int kGroup = 64;

template <class V>
constexpr int kPerGroup = kGroup / kLanes<V>;  // vectors

template <class V>
using Ints __attribute__((vector_size(sizeof(V)))) = int32_t;

template <class V>
using Words __attribute__((vector_size(sizeof(V) / 2), aligned(2), may_alias)) = uint16_t;

template <class V>
INLINE void Widen(Ints<V> *v, const uint16_t *at) {
  const Words<V> *words = reinterpret_cast<const Words<V> *>(at);
#if defined(__x86_64__)
  if constexpr (kConverts<V>) {
    asm("vpmovzxwd %1, %0" : "=v"(*v) : "m"(*words));
    return;
  }
#endif
  *v = __builtin_convertvector(*words, Ints<V>);
}

// The numbers in four bits of each word, from bit `first` on.
template <class V>
INLINE V NumbersAt(const Ints<V> &words, int first) {
  if constexpr (kLanes<V> == 16)
    return __builtin_shuffle(V{0, 1, 2, 3, 4, 5, 6, 7, -8, -7, -6, -5, -4, -3, -2, -1}, words >> first);
  else
    return __builtin_convertvector((words << (28 - first)) >> 28, V);
}

// The numbers of a group, in the order of its columns.
template <class V>
INLINE void Unpack(const uint16_t *at, V *w) {
  constexpr int kParts = kPerGroup<V> / 4;
  UNROLL for (int part = 0; part < kParts; ++part) {
    Ints<V> words;
    Widen<V>(&words, at + part * kLanes<V>);
    UNROLL for (int i = 0; i < 4; ++i) w[i * kParts + part] = NumbersAt<V>(words, 4 * i);
  }
}

template <class V, int R, int F>
INLINE void DotTile(const float *__restrict x, Nibbles w, int64_t width, float *out, int64_t stride, Nibbles next) {
  V sum[R * F] = {};
  for (int64_t c = 0; c < width; c += kGroup) UNROLL for (int f = 0; f < F; ++f) {
    const Nibbles group = w + (f * width + c);
    V of_w[kPerGroup<V>];
    Unpack(group.words, of_w);
    __builtin_prefetch((next + (f * width + c)).words, 0, 2);
    UNROLL for (int r = 0; r < R; ++r) {
      V of_group = {};
      UNROLL for (int i = 0; i < kPerGroup<V>; ++i) {
        V of_x;
        Load(&of_x, x + r * width + c + i * kLanes<V>);
        of_group += of_x * of_w[i];
      }
      sum[r * F + f] += of_group * *group.scale;
    }
  }
  float total[R * F > kLanes<V> ? R * F : kLanes<V>];
  Totals<V, R * F>(sum, total);
  UNROLL for (int r = 0; r < R; ++r) UNROLL for (int f = 0; f < F; ++f) out[r * stride + f] += total[r * F + f];
}

template <class V, int F>
INLINE void DotRows(const float *x, int64_t rows, Nibbles w, int64_t width, float *out, int64_t stride, Nibbles next) {
  int64_t r = 0;
  for (; r + 4 <= rows; r += 4) DotTile<V, 4, F>(x + r * width, w, width, out + r * stride, stride, next);
  for (; r + 2 <= rows; r += 2) DotTile<V, 2, F>(x + r * width, w, width, out + r * stride, stride, next);
  for (; r < rows; ++r) DotTile<V, 1, F>(x + r * width, w, width, out + r * stride, stride, next);
}

// out[r, f] += x[r] · w[f]; meanwhile next[f], rows as long as those of w, come into the cache.
template <class V>
INLINE void Dot(const float *x, int64_t rows, Nibbles w, int64_t count, int64_t width, float *out, int64_t stride, Nibbles next) {
  constexpr int F = kWide<V>;
  int64_t f = 0;
  for (; f + F <= count; f += F) DotRows<V, F>(x, rows, w + f * width, width, out + f, stride, next + f * width);
  for (; f < count; ++f) DotRows<V, 1>(x, rows, w + f * width, width, out + f, stride, next + f * width);
}

struct Groups {  // some groups of each row of a matrix of `of` columns
  Nibbles at;
  int64_t rows, width, of;
  Nibbles next;  // as many, which come into the cache meanwhile

  __attribute__((always_inline)) Groups From(int64_t c) const { return {at + c, rows, width - c, of, next + c}; }
};

template <class V, int I, int G>
INLINE void MixTile(const float *g, int64_t stride, Groups m, float *__restrict out, int64_t out_stride) {
  constexpr int N = kPerGroup<V>;
  V sum[I][G * N] = {};
  for (int64_t k = 0; k < m.rows; ++k) UNROLL for (int j = 0; j < G; ++j) {
    const int64_t at = k * m.of + j * kGroup;
    const Nibbles group = m.at + at;
    V of_w[N];
    Unpack(group.words, of_w);
    if (j % 2 == 0) __builtin_prefetch((m.next + at).words, 0, 2);  // a line of the cache is two groups
    UNROLL for (int i = 0; i < I; ++i) {
      const float factor = g[i * stride + k] * *group.scale;
      UNROLL for (int n = 0; n < N; ++n) sum[i][j * N + n] += factor * of_w[n];
    }
  }
  UNROLL for (int i = 0; i < I; ++i) UNROLL for (int n = 0; n < G * N; ++n) {
    V before;
    float *at = out + i * out_stride + n * kLanes<V>;
    Load(&before, at);
    Store<V, false>(at, before + sum[i][n]);
  }
}

template <class V, int I, int G>
INLINE void MixRows(const float *g, int64_t stride, Groups m, float *out, int64_t out_stride) {
  int64_t c = 0;
  for (; c + G * kGroup <= m.width; c += G * kGroup) MixTile<V, I, G>(g, stride, m.From(c), out + c, out_stride);
  if constexpr (G > 1) MixRows<V, I, G / 2>(g, stride, m.From(c), out + c, out_stride);
}

// out[r] += Σ_k g[r, k] m[k]
template <class V>
INLINE void Mix(const float *g, int64_t stride, int64_t rows, Groups m, float *out, int64_t out_stride) {
  constexpr int N = kWide<V>;
  int64_t r = 0;
  for (; r + N <= rows; r += N) MixRows<V, N, 1>(g + r * stride, stride, m, out + r * out_stride, out_stride);
  for (; r + 2 <= rows; r += 2) MixRows<V, 2, N / 2>(g + r * stride, stride, m, out + r * out_stride, out_stride);
  for (; r < rows; ++r) MixRows<V, 1, N>(g + r * stride, stride, m, out + r * out_stride, out_stride);
}

// The contracts of few_rows.h.
template <class V>
INLINE void Sum(const float *g, int64_t stride, int64_t rows, Nibbles w, int64_t count, int64_t width, float *out, Nibbles next) {
  Mix<V>(g, stride, rows, {w, count, width, width, next}, out, width);
}

template <class V>
INLINE void SumColumns(const float *g, int64_t stride, int64_t rows, Nibbles w, int64_t count, int64_t width, int64_t of, float *out,
                       int64_t out_stride, int64_t ahead) {
  Mix<V>(g, stride, rows, {w, count, width, of, w + ahead * of}, out, out_stride);
}
}  // namespace few_rows
