#include "kernels.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>

#include "exp.h"
#include "few_rows.h"
#include "nibbles.h"
#include "one_row.h"

#if defined(__x86_64__)
#include <immintrin.h>
#define AVX512 __attribute__((target("arch=x86-64-v4,prefer-vector-width=512")))
#define AVX2 __attribute__((target("arch=x86-64-v3")))
#endif

namespace {
INLINE void Adam(float *__restrict w, float *__restrict m, float *__restrict v, const float *__restrict grad, int64_t n,
                 const AdamScalars &s) {
  const float rest1 = 1.0f - s.beta1, rest2 = 1.0f - s.beta2;
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    const float g = grad[i] * s.grad_scale;
    m[i] = s.beta1 * m[i] + rest1 * g;
    v[i] = s.beta2 * v[i] + rest2 * g * g;
    w[i] = w[i] * s.keep - s.rate * m[i] / (std::sqrt(v[i]) * s.unbias + s.eps);
  }
}

INLINE double SquareSum(const float *x, int64_t n) {  // in double: squares of float32 overflow and vanish otherwise
  double sum = 0.0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < n; ++i) sum += static_cast<double>(x[i]) * x[i];
  return sum;
}

INLINE uint16_t FloatToBfloat(float x) {
  const uint32_t bits = Bits(x), rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  return static_cast<uint16_t>((bits & 0x7fffffffu) > 0x7f800000u ? 0x7fc0u : rounded);
}

INLINE void WidenHalf(const uint16_t *__restrict in, float *__restrict out, int64_t n) {
  for (int64_t i = 0; i < n; ++i) out[i] = HalfToFloat(in[i]);
}

INLINE void NarrowHalf(const float *__restrict in, uint16_t *__restrict out, int64_t n) {
  for (int64_t i = 0; i < n; ++i) out[i] = FloatToHalf(in[i]);
}

INLINE void WidenBfloat(const uint16_t *__restrict in, float *__restrict out, int64_t n) {
  for (int64_t i = 0; i < n; ++i) out[i] = Float(static_cast<uint32_t>(in[i]) << 16);
}

INLINE void NarrowBfloat(const float *__restrict in, uint16_t *__restrict out, int64_t n) {
  for (int64_t i = 0; i < n; ++i) out[i] = FloatToBfloat(in[i]);
}

// FastGeLU(x) = x · sigmoid(1.702 x), and its derivative.
INLINE void Gelu(const float *__restrict x, float *__restrict y, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) y[i] = x[i] / (1.0f + Exp(-1.702f * x[i]));
}

INLINE void GeluGrad(const float *__restrict x, float *__restrict y, float *__restrict grad, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    const float s = 1.0f / (1.0f + Exp(-1.702f * x[i]));
    y[i] = x[i] * s;
    grad[i] *= s * (1.0f + 1.702f * x[i] * (1.0f - s));
  }
}

// GELU with PanGu-α's tanh: x/2 · (1 + tanh(√(2/π) (x + 0.044715 x³))) = x · sigmoid(z) with z = √(8/π) (x + 0.044715 x³). Within 2 units
// in the last place for each of 1 + max(-z, 0), because z is rounded. Beyond ±10 the sigmoid is that of ±10, so that x² is finite.
INLINE float Inside(float x) { return x > 10.0f ? 10.0f : x < -10.0f ? -10.0f : x; }

INLINE void TanhGelu(const float *__restrict x, float *__restrict y, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    const float c = Inside(x[i]);
    y[i] = x[i] / (1.0f + Exp(-c * (1.5957691216f + 0.0713548163f * c * c)));
  }
}

INLINE void TanhGeluGrad(const float *__restrict x, float *__restrict y, float *__restrict grad, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    const float c = Inside(x[i]), cubic = 0.0713548163f * c * c;
    const float e = Exp(-c * (1.5957691216f + cubic)), s = 1.0f / (1.0f + e);
    y[i] = x[i] * s;
    grad[i] *= s * (1.0f + c * (1.5957691216f + 3.0f * cubic) * (e * s));  // e · s = 1 - s, also where s is nearly 1
  }
}

struct Gauss {
  float below;  // Φ(x), the share of a standard normal distribution that is below x
  float bell;   // e^(-x²/2)
};

// Of a = |x|: e^(-a²/2), with a in two parts so that the square of the first is exact; and Φ(-a) e^(a²/2) as a polynomial in 3 / (3 + a),
// fitted to 1e-9 for a ≤ 13.5. Both values are within 4 units in the last place, also where they are small; beyond 13.19, where Φ(-a) is
// no normal number any more, they are 0. NaN stays NaN.
INLINE Gauss GaussOf(float x) {
  const float a = std::fabs(x), high = Float(Bits(a) & 0xfffff000u);
  const float d = 0.5f * (a - high) * (a + high), t = 3.0f / (3.0f + a);
  const float near = Exp(-0.5f * high * high) * (1.0f - d * (1.0f - d * (0.5f - d * (0.16666667f - d * 0.041666668f))));
  float p = 0.018538255244f;
  p = p * t - 0.115036390722f;
  p = p * t + 0.288213163614f;
  p = p * t - 0.351553410292f;
  p = p * t + 0.199376925826f;
  p = p * t - 0.084383726120f;
  p = p * t + 0.076736159623f;
  p = p * t + 0.083334147930f;
  p = p * t + 0.118857547641f;
  p = p * t + 0.132935166359f;
  p = p * t + 0.132982134819f;
  const float bell = a > 13.19f ? 0.0f : near, tail = a > 13.19f ? 0.0f : near * (p * t);
  return {x < 0.0f ? tail : 1.0f - tail, bell};
}

// GELU(x) = x · Φ(x) = x/2 · (1 + erf(x/√2)), and its derivative.
INLINE void ErfGelu(const float *__restrict x, float *__restrict y, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) y[i] = x[i] * GaussOf(x[i]).below;
}

INLINE void ErfGeluGrad(const float *__restrict x, float *__restrict y, float *__restrict grad, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    const Gauss gauss = GaussOf(x[i]);
    y[i] = x[i] * gauss.below;
    grad[i] *= gauss.below + 0.3989422804f * x[i] * gauss.bell;
  }
}

INLINE void ColumnSum(const float *__restrict x, int64_t rows, int64_t stride, int64_t width, float *__restrict sum) {
  for (int64_t c = 0; c < width; ++c) sum[c] = 0.0f;
  for (int64_t r = 0; r < rows; ++r) {
#pragma omp simd
    for (int64_t c = 0; c < width; ++c) sum[c] += x[r * stride + c];
  }
}

// The four words of Philox4x32-10 (Salmon et al., 2011) for each of 16 blocks from `block` on; word w of block b is at [16 w + b].
// Counter: block, site, sample number (64 bits); key: the seed (64 bits). So no two elements of a run share a word.
INLINE void Philox(uint32_t block, const Draws &draws, uint32_t *__restrict words) {
#pragma omp simd
  for (uint32_t lane = 0; lane < 16; ++lane) {
    uint32_t c0 = block + lane, c1 = draws.site, c2 = draws.sample[0], c3 = draws.sample[1];
    uint32_t k0 = draws.key[0], k1 = draws.key[1];
    for (int round = 0; round < 10; ++round) {
      const uint64_t p0 = static_cast<uint64_t>(0xD2511F53u) * c0, p1 = static_cast<uint64_t>(0xCD9E8D57u) * c2;
      c0 = static_cast<uint32_t>(p1 >> 32) ^ c1 ^ k0;
      c2 = static_cast<uint32_t>(p0 >> 32) ^ c3 ^ k1;
      c1 = static_cast<uint32_t>(p1);
      c3 = static_cast<uint32_t>(p0);
      k0 += 0x9E3779B9u;
      k1 += 0xBB67AE85u;
    }
    words[lane] = c0;
    words[16 + lane] = c1;
    words[32 + lane] = c2;
    words[48 + lane] = c3;
  }
}

INLINE void Drop(const float *__restrict in, float *__restrict out, int64_t first, int64_t n, const Draws &draws) {
  alignas(64) uint32_t words[kDrawn];
  for (int64_t at = 0; at < n; at += kDrawn) {
    Philox(static_cast<uint32_t>((first + at) / 4), draws, words);
    const int64_t count = std::min(kDrawn, n - at);
#pragma omp simd
    for (int64_t i = 0; i < count; ++i) out[at + i] = words[i] < draws.threshold ? 0.0f : in[at + i] * draws.scale;
  }
}

typedef float Vector16 __attribute__((vector_size(16)));
typedef float Vector32 __attribute__((vector_size(32)));
typedef float Vector64 __attribute__((vector_size(64)));

// The loops of few_rows.h and nibbles.h, and those above, as functions of one instruction set.
#define PRODUCTS(ISA, TARGET, BYTES, AT) \
  TARGET void Dot##ISA(const float *x, int64_t rows, AT w, int64_t count, int64_t width, float *out, int64_t stride, AT next) { \
    few_rows::Dot<Vector##BYTES>(x, rows, w, count, width, out, stride, next); \
  } \
  TARGET void Sum##ISA(const float *g, int64_t stride, int64_t rows, AT w, int64_t count, int64_t width, float *out, AT next) { \
    few_rows::Sum<Vector##BYTES>(g, stride, rows, w, count, width, out, next); \
  } \
  TARGET void SumColumns##ISA(const float *g, int64_t stride, int64_t rows, AT w, int64_t count, int64_t width, int64_t of, \
                              float *out, int64_t out_stride, int64_t ahead) { \
    few_rows::SumColumns<Vector##BYTES>(g, stride, rows, w, count, width, of, out, out_stride, ahead); \
  }

#define FEW_ROWS(ISA, TARGET, BYTES, W) \
  PRODUCTS(ISA, TARGET, BYTES, const W *) \
  TARGET void Outer##ISA(const float *g, int64_t stride, const float *x, int64_t rows, int64_t width, W *out, int64_t count) { \
    few_rows::Outer<Vector##BYTES>(g, stride, x, rows, width, out, count); \
  } \
  TARGET void Clear##ISA(W *out, int64_t n) { few_rows::Clear<Vector##BYTES>(out, n); }

#define KERNELS(ISA, TARGET, BYTES) \
  TARGET void Adam##ISA(float *w, float *m, float *v, const float *g, int64_t n, const AdamScalars &s) { Adam(w, m, v, g, n, s); } \
  TARGET double SquareSum##ISA(const float *x, int64_t n) { return SquareSum(x, n); } \
  TARGET void WidenBfloat##ISA(const uint16_t *in, float *out, int64_t n) { WidenBfloat(in, out, n); } \
  TARGET void NarrowBfloat##ISA(const float *in, uint16_t *out, int64_t n) { NarrowBfloat(in, out, n); } \
  TARGET void Gelu##ISA(const float *x, float *y, int64_t n) { Gelu(x, y, n); } \
  TARGET void GeluGrad##ISA(const float *x, float *y, float *grad, int64_t n) { GeluGrad(x, y, grad, n); } \
  TARGET void TanhGelu##ISA(const float *x, float *y, int64_t n) { TanhGelu(x, y, n); } \
  TARGET void TanhGeluGrad##ISA(const float *x, float *y, float *grad, int64_t n) { TanhGeluGrad(x, y, grad, n); } \
  TARGET void ErfGelu##ISA(const float *x, float *y, int64_t n) { ErfGelu(x, y, n); } \
  TARGET void ErfGeluGrad##ISA(const float *x, float *y, float *grad, int64_t n) { ErfGeluGrad(x, y, grad, n); } \
  TARGET void ColumnSum##ISA(const float *x, int64_t rows, int64_t stride, int64_t width, float *sum) { \
    ColumnSum(x, rows, stride, width, sum); \
  } \
  TARGET void Drop##ISA(const float *in, float *out, int64_t first, int64_t n, const Draws &draws) { Drop(in, out, first, n, draws); } \
  FEW_ROWS(ISA, TARGET, BYTES, float) \
  FEW_ROWS(ISA, TARGET, BYTES, Half) \
  PRODUCTS(ISA, TARGET, BYTES, const int8_t *) \
  PRODUCTS(ISA, TARGET, BYTES, Nibbles) \
  TARGET void Norm##ISA(const float *x, const float *gain, const float *bias, float *y, int64_t n, float eps) { \
    one_row::Norm<Vector##BYTES>(x, gain, bias, y, n, eps); \
  } \
  TARGET float Soften##ISA(float *x, int64_t n) { return one_row::Soften<Vector##BYTES>(x, n); } \
  TARGET void NarrowHalfPast##ISA(const float *in, Half *out, int64_t n) { few_rows::NarrowPast<Vector##BYTES>(in, out, n); }

KERNELS(Scalar, , 16)
void WidenHalfScalar(const uint16_t *in, float *out, int64_t n) { WidenHalf(in, out, n); }
void NarrowHalfScalar(const float *in, uint16_t *out, int64_t n) { NarrowHalf(in, out, n); }

#define TABLE(NAME, ISA) \
  Kernels { \
    NAME, Adam##ISA, SquareSum##ISA, WidenHalf##ISA, NarrowHalf##ISA, WidenBfloat##ISA, NarrowBfloat##ISA, {Gelu##ISA, GeluGrad##ISA}, \
        {TanhGelu##ISA, TanhGeluGrad##ISA}, {ErfGelu##ISA, ErfGeluGrad##ISA}, ColumnSum##ISA, {{Dot##ISA, Sum##ISA, SumColumns##ISA}, Outer##ISA, Clear##ISA}, \
        {{Dot##ISA, Sum##ISA, SumColumns##ISA}, Outer##ISA, Clear##ISA}, {Dot##ISA, Sum##ISA, SumColumns##ISA}, {Dot##ISA, Sum##ISA, SumColumns##ISA}, \
        NarrowHalfPast##ISA, Drop##ISA, Norm##ISA, Soften##ISA \
  }
const Kernels kScalar = TABLE("scalar", Scalar);

#if defined(__x86_64__)
KERNELS(Avx512, AVX512, 64)
KERNELS(Avx2, AVX2, 32)

// g++ does not vectorise half precision by itself.
AVX512 void WidenHalfAvx512(const uint16_t *in, float *out, int64_t n) {
  int64_t i = 0;
  for (; i + 16 <= n; i += 16)
    _mm512_storeu_ps(out + i, _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(in + i))));
  WidenHalf(in + i, out + i, n - i);
}

AVX512 void NarrowHalfAvx512(const float *in, uint16_t *out, int64_t n) {
  int64_t i = 0;
  for (; i + 16 <= n; i += 16)
    _mm256_storeu_si256(reinterpret_cast<__m256i *>(out + i), _mm512_cvtps_ph(_mm512_loadu_ps(in + i), _MM_FROUND_TO_NEAREST_INT));
  NarrowHalf(in + i, out + i, n - i);
}

AVX2 void WidenHalfAvx2(const uint16_t *in, float *out, int64_t n) {
  int64_t i = 0;
  for (; i + 8 <= n; i += 8)
    _mm256_storeu_ps(out + i, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i *>(in + i))));
  WidenHalf(in + i, out + i, n - i);
}

AVX2 void NarrowHalfAvx2(const float *in, uint16_t *out, int64_t n) {
  int64_t i = 0;
  for (; i + 8 <= n; i += 8)
    _mm_storeu_si128(reinterpret_cast<__m128i *>(out + i), _mm256_cvtps_ph(_mm256_loadu_ps(in + i), _MM_FROUND_TO_NEAREST_INT));
  NarrowHalf(in + i, out + i, n - i);
}

const Kernels kAvx512 = TABLE("avx512", Avx512), kAvx2 = TABLE("avx2", Avx2);
#endif

const Kernels &Choose() {
  const char *limit = std::getenv("PANGU_SIGMA_ISA");
  const bool any = limit == nullptr || *limit == 0;
#if defined(__x86_64__)
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512cd") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2");
  if (avx512 && (any || std::strcmp(limit, "avx512") == 0)) return kAvx512;
  if (avx2 && (any || std::strcmp(limit, "avx512") == 0 || std::strcmp(limit, "avx2") == 0)) return kAvx2;
#endif
  return kScalar;
}
}  // namespace

const Kernels &BestKernels() {
  static const Kernels &best = Choose();
  return best;
}

extern "C" const char *KernelIsa() { return BestKernels().isa; }
