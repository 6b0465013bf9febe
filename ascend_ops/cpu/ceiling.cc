// The memory traffic of Adam with next to no arithmetic: what `pangu-sigma bench adam` holds the kernel against.
#include <algorithm>
#include <cstdint>

extern "C" void AdamTraffic(float *w, float *m, float *v, const float *grad, int64_t n) {
  constexpr int64_t kPiece = 65536;
#pragma omp parallel for schedule(dynamic)
  for (int64_t begin = 0; begin < n; begin += kPiece)
    for (int64_t i = begin, end = std::min(begin + kPiece, n); i < end; ++i) {
      w[i] += grad[i];
      m[i] += grad[i];
      v[i] += grad[i];
    }
}
