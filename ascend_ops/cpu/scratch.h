// Memory for what is computed on the way.
#pragma once
#include <sys/mman.h>

#include <cstdint>
#include <cstdlib>
#include <new>

// Uninitialised floats, kept for the next call.
class Scratch {
 public:
  ~Scratch() { std::free(at_); }

  float *Get(int64_t n) {
    if (n > size_) {
      std::free(at_);
      const int64_t bytes = (n * sizeof(float) + kHuge - 1) / kHuge * kHuge;
      at_ = static_cast<float *>(std::aligned_alloc(kHuge, bytes));
      size_ = at_ == nullptr ? 0 : n;
      if (at_ == nullptr) throw std::bad_alloc();
      madvise(at_, bytes, MADV_HUGEPAGE);
    }
    return at_;
  }

 private:
  static constexpr int64_t kHuge = 2 << 20;  // pages of this size are asked for
  float *at_ = nullptr;
  int64_t size_ = 0;
};
