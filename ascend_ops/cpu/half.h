// Half precision by integer arithmetic, for the rests of arrays and for processors without the conversion.
#pragma once
#include <cstdint>
#include <cstring>

#include "kernels.h"

#define INLINE static inline __attribute__((always_inline))  // becomes part of, and is compiled for, the set that calls it

INLINE uint32_t Bits(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return bits;
}

INLINE float Float(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}

// The exponent is rebased by 112; subnormal numbers are normalised by one float addition or subtraction of a power of two, which never
// meets a subnormal float.
INLINE float HalfToFloat(Half half) {
  const uint32_t magnitude = (half & 0x7fffu) << 13, exponent = magnitude & 0x0f800000u, sign = (half & 0x8000u) << 16;
  const uint32_t rebased = magnitude + (112u << 23);
  const uint32_t special = magnitude + (224u << 23);  // infinity, NaN
  const uint32_t subnormal = Bits(Float(rebased + (1u << 23)) - Float(113u << 23));
  return Float(sign | (exponent == 0x0f800000u ? special : exponent == 0 ? subnormal : rebased));
}

INLINE Half FloatToHalf(float x) {
  const uint32_t sign = Bits(x) & 0x80000000u, magnitude = Bits(x) ^ sign;
  const uint32_t rounded = (magnitude - (112u << 23) + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  const uint32_t subnormal = Bits(Float(magnitude) + 0.5f) - Bits(0.5f);
  const uint32_t special = magnitude > 0x7f800000u ? 0x7e00u : 0x7c00u;
  return static_cast<Half>(sign >> 16 | (magnitude >= (143u << 23) ? special : magnitude < (113u << 23) ? subnormal : rounded));
}
