// Rows of a store that are one record each, [w, m, v, step count]: gathered by key, and updated by AdamW. See ascend_ops/rows.py.
#include "adam.h"

namespace {
using namespace adam;
}  // namespace

extern "C" {
// out[i] = w of row keys[i]. out has `stride` floats from one row to the next.
void RowsGather(const float *records, int64_t width, int64_t n, const int64_t *keys, float *out, int64_t stride) {
  const int64_t size = 3 * width + 1;
  for (int64_t i = 0; i < n; ++i) std::memcpy(out + i * stride, records + keys[i] * size, width * sizeof(float));
}

// Row keys[u] gets the sum of the gradients grads[order[offsets[u]]] … grads[order[offsets[u + 1] - 1]], each `width` floats and
// `stride` floats from the next. Rows have no weight decay.
void RowsUpdate(float *records, int64_t width, int64_t unique, const int64_t *keys, const int64_t *offsets, const int64_t *order,
                const float *grads, int64_t stride, const float *hyper_at) {
  const KeepSubnormals scope;
  const Hyper hyper = *reinterpret_cast<const Hyper *>(hyper_at);
  if (hyper.apply == 0.0f) return;
  std::vector<float> sum(width);
  for (int64_t u = 0; u < unique; ++u) {
    float *w = records + keys[u] * (3 * width + 1), *m = w + width, *v = m + width;
    int32_t *step = reinterpret_cast<int32_t *>(v + width);
    std::fill(sum.begin(), sum.end(), 0.0f);
    for (int64_t i = offsets[u]; i < offsets[u + 1]; ++i) {
      const float *grad = grads + order[i] * stride;
      for (int64_t j = 0; j < width; ++j) sum[j] += grad[j];
    }
    BestKernels().adam(w, m, v, sum.data(), width, hyper.ForRow(++*step, 0.0f));
  }
}
}
