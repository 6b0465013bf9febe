// AdamW over the rows that a step used, in place in host memory, and the norm pass before it. See ascend_ops/adam.py for the contract.
#include "adam.h"

namespace {
using namespace adam;

// Arrays of the call, checked.
struct Call {
  Update update;
  float *updated;

  int Read(int n, const Args &in) {
    const int G = (n - 6) / 4, step_at = 4 * G, active_at = step_at + 1, offsets_at = step_at + 2, hyper_at = step_at + 3, decay_at = step_at + 4;
    if (G < 1 || n != 4 * G + 6) return 1;
    for (int i : {step_at, active_at, offsets_at})
      if (!in.is(i, "int32")) return 2;
    for (int i : {hyper_at, decay_at})
      if (!in.is(i, "float32")) return 2;
    const int64_t K = in.count(step_at), A = in.count(active_at);
    if (in.count(offsets_at) != A + 1 || in.count(hyper_at) != 6 || in.count(decay_at) != G) return 3;
    if (K < 1) return 3;
    for (int g = 0; g < G; ++g) {
      const int m = G + g, v = 2 * G + g, grad = 3 * G + g;
      const auto raw = [&](int i) { return static_cast<char *>(in.data[i]); };
      const auto type = [&](int i) { return FloatOf(in.dtypes[i]); };
      if (type(g) != Float::f32 || type(m) != type(v)) return 2;
      if (type(m) != Float::f32 && type(m) != Float::bf16) return 2;
      if (type(grad) == Float::other || in.is(grad, "uint16")) return 2;
      if (in.count(g) % K || in.count(grad) * K != in.count(g) * A || in.count(m) != in.count(g) || in.count(v) != in.count(g)) return 3;
      update.tensors.push_back({in.f32(g), raw(m), raw(v), raw(grad), type(m), type(grad)});
      update.width.push_back(in.count(g) / K);
    }
    update.step = in.i32(step_at);
    update.hyper = *reinterpret_cast<const Hyper *>(in.f32(hyper_at));
    update.decay.assign(in.f32(decay_at), in.f32(decay_at) + G), updated = in.f32(decay_at + 1);
    return update.Choose(K, A, in.i32(active_at), in.i32(offsets_at));
  }
};
}  // namespace

// G tensors: w[G][K,P] m[G][K,P] v[G][K,P] grad[G][A,P], then step[K] active[A] offsets[A+1] hyper[6] decay[G] -> rows updated [1]
extern "C" int AdamRows(int n, void **data, int *ranks, int64_t **shapes, const char **dtypes, void *, void *) {
  Call call;
  if (const int failed = call.Read(n, Args{data, ranks, shapes, dtypes})) return failed;
  const std::vector<Piece> pieces = call.update.Pieces();
#pragma omp parallel
  {
    const KeepSubnormals scope;
#pragma omp for schedule(dynamic, 4)
    for (size_t i = 0; i < pieces.size(); ++i) call.update.Run(pieces[i]);
  }
  *call.updated = static_cast<float>(call.update.Count());
  return 0;
}

// Any number of tensors -> sum of the squares of all their elements [1], or that and the sum of each tensor [1 + tensors].
// The order of addition does not depend on the threads.
extern "C" int SquareSum(int n, void **data, int *ranks, int64_t **shapes, const char **dtypes, void *, void *) {
  const Args in{data, ranks, shapes, dtypes};
  if (n < 2) return 1;
  if (in.count(n - 1) != 1 && in.count(n - 1) != n) return 3;
  std::vector<Piece> pieces;
  for (int i = 0; i + 1 < n; ++i) {
    if (FloatOf(dtypes[i]) != Float::f32 && FloatOf(dtypes[i]) != Float::f16) return 2;
    for (int64_t begin = 0, count = in.count(i); begin < count; begin += kPiece) pieces.push_back({i, 0, begin, std::min(begin + kPiece, count)});
  }
  std::vector<double> sums(pieces.size());
#pragma omp parallel for schedule(dynamic, 4)
  for (size_t i = 0; i < pieces.size(); ++i) {
    const Piece &p = pieces[i];
    const Float type = FloatOf(dtypes[p.tensor]);
    alignas(64) float scratch[kBlock];
    for (int64_t at = p.begin; at < p.end; at += kBlock) {
      const int64_t count = std::min(kBlock, p.end - at);
      const char *x = static_cast<char *>(data[p.tensor]) + at * SizeOf(type);
      sums[i] += BestKernels().square_sum(Widened(x, type, scratch, count), count);
    }
  }
  double total = 0.0;
  for (double sum : sums) total += sum;
  in.f32(n - 1)[0] = static_cast<float>(total);
  if (in.count(n - 1) == n) {
    std::vector<double> own(n - 1);
    for (size_t i = 0; i < pieces.size(); ++i) own[pieces[i].tensor] += sums[i];
    for (int i = 0; i + 1 < n; ++i) in.f32(n - 1)[1 + i] = static_cast<float>(own[i]);
  }
  return 0;
}
