// AdamW over the rows that a step used, in place in host memory, float32. See ascend_ops/adam.py for the contract.
#include <algorithm>
#include <cmath>
#include <vector>

#include "aot.h"

namespace {
constexpr int64_t kChunk = 16384;  // elements of one piece of the parallel loop

struct Hyper {  // the order of ascend_ops.adam.HYPER
  float lr, grad_scale, apply, beta1, beta2, eps;
};

struct Row {  // what is the same for all elements of an active row
  int64_t place, row;
  float rate, unbias;
};

struct Piece {
  int tensor;
  const Row *row;
  int64_t begin, end;
};

void Update(float *w, float *m, float *v, const float *grad, int64_t n, const Hyper &h, const Row &row, float keep) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    const float g = grad[i] * h.grad_scale;
    m[i] = h.beta1 * m[i] + (1.0f - h.beta1) * g;
    v[i] = h.beta2 * v[i] + (1.0f - h.beta2) * g * g;
    w[i] = w[i] * keep - row.rate * m[i] / (std::sqrt(v[i]) * row.unbias + h.eps);
  }
}
}  // namespace

// G tensors: w[G][K,P] m[G][K,P] v[G][K,P] grad[G][A,P], then step[K] active[A] offsets[A+1] hyper[6] decay[G] -> rows updated [1]
extern "C" int AdamRows(int n, void **data, int *ranks, int64_t **shapes, const char **dtypes, void *, void *) {
  const Args in{data, ranks, shapes, dtypes};
  const int G = (n - 6) / 4, step_at = 4 * G;
  if (G < 1 || n != 4 * G + 6) return 1;
  for (int i = 0; i < 4 * G; ++i)
    if (!in.is(i, "float32")) return 2;
  for (int i = step_at; i < step_at + 3; ++i)
    if (!in.is(i, "int32")) return 2;
  const int64_t K = in.count(step_at), A = in.count(step_at + 1);
  int32_t *step = in.i32(step_at);
  const int32_t *active = in.i32(step_at + 1), *offsets = in.i32(step_at + 2);
  const Hyper h = *reinterpret_cast<const Hyper *>(in.f32(step_at + 3));
  const float *decay = in.f32(step_at + 4);
  float *updated = in.f32(step_at + 5);
  if (in.count(step_at + 2) != A + 1 || in.count(step_at + 3) != 6 || in.count(step_at + 4) != G) return 3;
  for (int g = 0; g < G; ++g)
    if (in.count(3 * G + g) * K != in.count(g) * A || in.count(G + g) != in.count(g) || in.count(2 * G + g) != in.count(g)) return 3;

  *updated = 0.0f;
  if (h.apply == 0.0f) return 0;  // the gradients overflowed: the step changes nothing
  std::vector<Row> rows;
  for (int64_t a = 0; a < A; ++a) {
    if (offsets[a + 1] == offsets[a]) continue;  // no token came: weights, moments and step count stay as they are
    if (active[a] < 0 || active[a] >= K) return 4;
    rows.push_back({a, active[a], 0.0f, 0.0f});
  }
  for (Row &r : rows) {
    const int32_t t = ++step[r.row];
    r.rate = static_cast<float>(h.lr / (1.0 - std::pow(static_cast<double>(h.beta1), t)));
    r.unbias = static_cast<float>(1.0 / std::sqrt(1.0 - std::pow(static_cast<double>(h.beta2), t)));
  }
  std::vector<Piece> pieces;
  for (int g = 0; g < G; ++g)
    for (const Row &r : rows)
      for (int64_t begin = 0, P = in.count(g) / K; begin < P; begin += kChunk) pieces.push_back({g, &r, begin, std::min(begin + kChunk, P)});
#pragma omp parallel for schedule(dynamic, 4)
  for (size_t i = 0; i < pieces.size(); ++i) {
    const Piece &p = pieces[i];
    const int64_t P = in.count(p.tensor) / K, at = p.row->row * P + p.begin;
    Update(in.f32(p.tensor) + at, in.f32(G + p.tensor) + at, in.f32(2 * G + p.tensor) + at,
           in.f32(3 * G + p.tensor) + p.row->place * P + p.begin, p.end - p.begin, h, *p.row, 1.0f - h.lr * decay[p.tensor]);
  }
  *updated = static_cast<float>(rows.size());
  return 0;
}
