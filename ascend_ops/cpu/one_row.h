// What a row of floats needs of itself: LayerNorm, softmax. Loops of kernels.cc, for vectors V of one instruction set. The order of
// addition depends on the length of the row only.
#pragma once
#include <cmath>

#include "exp.h"
#include "few_rows.h"

namespace one_row {
using few_rows::kLanes;
using few_rows::Load;
using few_rows::Totals;

template <class V>
INLINE float Total(const V &v) {
  float total[kLanes<V>];
  V copy = v;
  Totals<V, 1>(&copy, total);
  return total[0];
}

// y = (x - mean) / √(variance + eps) · gain + bias
template <class V>
INLINE void Norm(const float *x, const float *gain, const float *bias, float *y, int64_t n, float eps) {
  const int64_t whole = n - n % kLanes<V>;
  V sums = {}, v, of_gain, of_bias;
  for (int64_t i = 0; i < whole; i += kLanes<V>) {
    Load(&v, x + i);
    sums += v;
  }
  float mean = Total(sums);
  for (int64_t i = whole; i < n; ++i) mean += x[i];
  mean /= n;
  sums = V{};
  for (int64_t i = 0; i < whole; i += kLanes<V>) {
    Load(&v, x + i);
    v -= mean;
    sums += v * v;
  }
  float variance = Total(sums);
  for (int64_t i = whole; i < n; ++i) variance += (x[i] - mean) * (x[i] - mean);
  const float scale = 1.0f / std::sqrt(variance / n + eps);
  for (int64_t i = 0; i < whole; i += kLanes<V>) {
    Load(&v, x + i);
    Load(&of_gain, gain + i);
    Load(&of_bias, bias + i);
    few_rows::Store<V, false>(y + i, (v - mean) * scale * of_gain + of_bias);
  }
  for (int64_t i = whole; i < n; ++i) y[i] = (x[i] - mean) * scale * gain[i] + bias[i];
}

// x = e^(x - max x); returns the sum. Reads and changes whole vectors: what is beyond n is 0 afterwards.
template <class V>
INLINE float Soften(float *x, int64_t n) {
  V most, v, sums = {};
  float largest[kLanes<V>];
  for (int64_t i = n; i % kLanes<V> != 0; ++i) x[i] = x[0];
  Load(&most, x);
  for (int64_t i = kLanes<V>; i < n; i += kLanes<V>) {
    Load(&v, x + i);
    most = v > most ? v : most;
  }
  std::memcpy(largest, &most, sizeof(V));
  UNROLL for (int s = kLanes<V> / 2; s > 0; s /= 2) UNROLL for (int i = 0; i < s; ++i) largest[i] = largest[i] > largest[i + s] ? largest[i] : largest[i + s];
  int64_t i = 0;
  for (; i + kLanes<V> <= n; i += kLanes<V>) {
    Load(&v, x + i);
    v -= largest[0];
    ExpOf(&v);
    sums += v;
    few_rows::Store<V, false>(x + i, v);
  }
  if (i < n) {
    Load(&v, x + i);
    v -= largest[0];
    ExpOf(&v);
    for (int lane = n - i; lane < kLanes<V>; ++lane) v[lane] = 0.0f;
    sums += v;
    few_rows::Store<V, false>(x + i, v);
  }
  return Total(sums);
}
}  // namespace one_row
