// Rows of a store, one record [w, m, v, step count] for each, gathered by key and updated by AdamW: see ascend_ops/rows.py. And the look-up
// of rows by their keys in decoding: see ascend_ops/few_rows.py.
#include <algorithm>

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

// All fields have eight bytes, and the same names in few_rows.py.
struct MetRows {
  const int32_t *row, *before;  // [vocabulary], [vocabulary + 1]
  int64_t rows, of_domain;      // a key is below `rows`, and `of_domain` more for each domain before the token's
  const int64_t *keys;          // [met], ascending
  const float *weight;          // [met, width]
  int64_t met, width;
};

// e [T, sum of widths] = the rows of each token side by side, zeros for keys that are not there. tokens [4, most], of which T are used:
// ids, domains, positions in the document, and ids before.
void HostFindRows(int64_t T, const MetRows *entries, int64_t count, int64_t vocabulary, const int64_t *tokens, int64_t most, float *e) {
  const int64_t *ids = tokens, *domains = ids + most, *positions = domains + most, *before = positions + most;
  for (int64_t t = 0; t < T; ++t) {
    for (const MetRows *of = entries; of != entries + count; e += of->width, ++of) {
      int64_t key = of->row[ids[t]] + of->before[positions[t] == 0 ? vocabulary : before[t]];
      key += domains[t] * of->of_domain - (key >= of->rows ? of->rows : 0);
      const int64_t *end = of->keys + of->met, *found = std::lower_bound(of->keys, end, key);
      if (found != end && *found == key)
        std::memcpy(e, of->weight + (found - of->keys) * of->width, of->width * sizeof(float));
      else
        std::fill_n(e, of->width, 0.0f);
    }
  }
}
}
