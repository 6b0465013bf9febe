// The exponential function, of floats and of vectors of floats.
#pragma once
#include "half.h"

template <class T>
struct BitsOf {
  typedef int32_t Type __attribute__((vector_size(sizeof(T))));
};

template <>
struct BitsOf<float> {
  using Type = int32_t;
};

// *x = eˣ to 1 unit in the last place where the result is a normal number; what is beyond has the value at the edge, NaN stays NaN.
// Plain arithmetic, because compilers call their vector libraries only when told to compute carelessly.
template <class T>
INLINE void ExpOf(T *at) {
  T x = *at;
  constexpr float kRound = 12582912.0f;  // 1.5 · 2²³: adding it rounds to an integer, which is then in the lowest bits
  const T most = T{} + 88.0f, least = T{} - 87.0f;
  x = x > most ? most : x < least ? least : x;
  const T shifted = x * 1.44269504f + kRound, n = shifted - kRound;
  const T r = (x - n * 0.693359375f) + n * 2.12194440e-4f;  // ln 2 in two parts
  T p = T{} + 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  typename BitsOf<T>::Type bits;
  std::memcpy(&bits, &shifted, sizeof(T));
  bits = (bits << 23) + (127 << 23);
  T power;
  std::memcpy(&power, &bits, sizeof(T));
  *at = (p * r * r + r + 1.0f) * power;
}

INLINE float Exp(float x) {
  ExpOf(&x);
  return x;
}
