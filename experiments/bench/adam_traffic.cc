// The memory traffic of Adam with next to no arithmetic: what `experiments.bench adam` holds the kernel against.
#include <algorithm>
#include <cstdint>

extern "C" void AdamTraffic(float *__restrict w, float *__restrict m, float *__restrict v, const float *__restrict grad, int64_t n) {
  constexpr int64_t kPiece = 65536;
#pragma omp parallel for schedule(dynamic)
  for (int64_t begin = 0; begin < n; begin += kPiece) {
    const int64_t end = std::min(begin + kPiece, n);
#pragma omp simd
    for (int64_t i = begin; i < end; ++i) {
      w[i] += grad[i];
      m[i] += grad[i];
      v[i] += grad[i];
    }
  }
}
