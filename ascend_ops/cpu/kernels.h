// Loops over contiguous floats, each compiled for AVX-512, AVX2 and the baseline of the processor, and chosen when first used.
// PANGU_SIGMA_ISA=avx512|avx2|scalar asks for a narrower set, so that tests reach all of them on one machine.
#pragma once
#include <cstdint>

using Half = uint16_t;  // bits of a float16

struct AdamScalars {  // constants of the update of one row of a tensor
  float grad_scale, beta1, beta2, eps;
  float rate;    // lr / (1 − β1ᵗ)
  float unbias;  // 1 / √(1 − β2ᵗ)
  float keep;    // 1 − lr · decay
};

struct Draws {  // key and counter of the random words of one sequence at one site, see Philox in kernels.cc
  uint32_t key[2], site, sample[2];
  uint32_t threshold;  // a value whose word is below it is dropped
  float scale;         // factor of the values that are kept
};

constexpr int64_t kDrawn = 64;  // words that are drawn at a time

struct Nibbles {  // matrix of four-bit numbers, see nibbles.h. It is moved by multiples of 64 columns
  const uint16_t *words;
  const float *scale;

  __attribute__((always_inline)) Nibbles operator+(int64_t n) const { return {words + n / 4, scale + n / 64}; }
};

// Few rows times a matrix of elements W, see few_rows.h and nibbles.h.
template <class W, class At = const W *>
struct ProductKernels {
  void (*dot)(const float *x, int64_t rows, At w, int64_t count, int64_t width, float *out, int64_t stride,
              At next);  // out[r, f] += x[r] · w[f]
  void (*sum)(const float *g, int64_t stride, int64_t rows, At w, int64_t count, int64_t width, float *out,
              At next);  // out[r] += Σ_f g[r, f] w[f]
  void (*sum_columns)(const float *g, int64_t stride, int64_t rows, At w, int64_t count, int64_t width, int64_t of, float *out,
                      int64_t out_stride, int64_t ahead);  // the same for `width` columns of a matrix that has `of`
};

// The same, and kernels that write the gradient of such a matrix.
template <class W>
struct FewRowsKernels : ProductKernels<W> {
  void (*outer)(const float *g, int64_t stride, const float *x, int64_t rows, int64_t width, W *out,
                int64_t count);        // out[f] = Σ_r g[r, f] x[r]
  void (*clear)(W *out, int64_t n);    // zeros; like outer, past the caches
};

// An activation of the FFN, over n floats.
struct Activation {
  void (*value)(const float *x, float *y, int64_t n);              // y = f(x)
  void (*slope)(const float *x, float *y, float *grad, int64_t n);  // y = f(x), and grad *= f'(x)
};

struct Kernels {
  const char *isa;
  void (*adam)(float *w, float *m, float *v, const float *grad, int64_t n, const AdamScalars &s);
  double (*square_sum)(const float *x, int64_t n);
  void (*widen_half)(const uint16_t *in, float *out, int64_t n);
  void (*narrow_half)(const float *in, uint16_t *out, int64_t n);  // to nearest even
  void (*widen_bfloat)(const uint16_t *in, float *out, int64_t n);
  void (*narrow_bfloat)(const float *in, uint16_t *out, int64_t n);  // to nearest even
  Activation fast_gelu, tanh, erf;  // x·sigmoid(1.702 x), and the tanh and erf forms of GELU
  void (*column_sum)(const float *x, int64_t rows, int64_t stride, int64_t width, float *sum);
  FewRowsKernels<float> few_rows;
  FewRowsKernels<Half> few_rows_half;
  ProductKernels<int8_t> few_rows_byte;
  ProductKernels<Nibbles, Nibbles> few_rows_nibble;
  void (*narrow_half_past)(const float *in, Half *out, int64_t n);  // narrow_half, past the caches
  // out = in · scale or 0 for n elements of a sequence, from element `first` on, a multiple of kDrawn
  void (*drop)(const float *in, float *out, int64_t first, int64_t n, const Draws &draws);
  void (*norm)(const float *x, const float *gain, const float *bias, float *y, int64_t n, float eps);  // LayerNorm of a row
  float (*soften)(float *x, int64_t n);  // x = e^(x - max x), and zeros up to a multiple of 16; returns the sum
};

constexpr int64_t kPadded = 16;  // floats of the longest vector

const Kernels &BestKernels();
