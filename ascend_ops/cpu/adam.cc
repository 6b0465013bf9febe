// AdamW over the rows that a step used, in place in host memory, float32. See ascend_ops/adam.py for the contract.
#include <cmath>
#include <initializer_list>

#include "aot.h"

namespace {
constexpr int64_t kChunk = 16384;  // elements of one piece of the parallel loop

struct Hyper {  // the order of ascend_ops.adam.HYPER
  float lr, grad_scale, apply, beta1, beta2, eps, weight_decay;
};
}  // namespace

// w[K,P] m[K,P] v[K,P] step[K] grad[A,P] active[A] offsets[A+1] hyper[7] -> updated[1], the number of rows that changed
extern "C" int AdamRows(int n, void **data, int *ranks, int64_t **shapes, const char **dtypes, void *, void *) {
  const Args in{data, ranks, shapes, dtypes};
  if (n != 9) return 1;
  for (int i : {0, 1, 2, 4, 7})
    if (!in.is(i, "float32")) return 2;
  for (int i : {3, 5, 6})
    if (!in.is(i, "int32")) return 2;
  const int64_t K = in.count(3), A = in.count(5), P = in.count(0) / K;
  if (in.count(4) != A * P || in.count(6) != A + 1 || in.count(7) != 7) return 3;
  float *w = in.f32(0), *m = in.f32(1), *v = in.f32(2);
  int32_t *step = in.i32(3);
  const float *grad = in.f32(4);
  const int32_t *active = in.i32(5), *offsets = in.i32(6);
  const Hyper h = *reinterpret_cast<const Hyper *>(in.f32(7));
  float *updated = in.f32(8);
  *updated = 0.0f;
  if (h.apply == 0.0f) return 0;  // gradients overflowed: the step changes nothing
  for (int64_t a = 0; a < A; ++a)
    if (offsets[a + 1] > offsets[a] && (active[a] < 0 || active[a] >= K)) return 4;
  for (int64_t a = 0; a < A; ++a) {
    if (offsets[a + 1] == offsets[a]) continue;  // no token reached this expert: weights, moments and step count stay as they are
    const int64_t row = active[a];
    const int32_t t = ++step[row];
    const float rate = static_cast<float>(h.lr / (1.0 - std::pow(static_cast<double>(h.beta1), t)));
    const float unbias = static_cast<float>(1.0 / std::sqrt(1.0 - std::pow(static_cast<double>(h.beta2), t)));
    const float keep = 1.0f - h.lr * h.weight_decay;
    float *wr = w + row * P, *mr = m + row * P, *vr = v + row * P;
    const float *gr = grad + a * P;
#pragma omp parallel for schedule(static) if (P > kChunk)
    for (int64_t begin = 0; begin < P; begin += kChunk) {
      const int64_t end = begin + kChunk < P ? begin + kChunk : P;
#pragma omp simd
      for (int64_t i = begin; i < end; ++i) {
        const float g = gr[i] * h.grad_scale;
        mr[i] = h.beta1 * mr[i] + (1.0f - h.beta1) * g;
        vr[i] = h.beta2 * vr[i] + (1.0f - h.beta2) * g * g;
        wr[i] = wr[i] * keep - rate * mr[i] / (std::sqrt(vr[i]) * unbias + h.eps);
      }
    }
    *updated += 1.0f;
  }
  return 0;
}
