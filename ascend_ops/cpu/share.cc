#include "share.h"

#include <linux/futex.h>
#include <omp.h>
#include <pthread.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <mutex>
#include <thread>

namespace {
constexpr int kSpins = 4000;  // pauses, together some tenths of a millisecond: longer than Python needs between two kernels

void Pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#else
  std::this_thread::yield();
#endif
}

class Helpers {
 public:
  explicit Helpers(int64_t threads) : threads_(threads) {
    for (int64_t i = 1; i < threads; ++i) std::thread([this] { Help(); }).detach();
  }

  int64_t threads() const { return threads_; }

  void Run(int64_t pieces, void (*work)(void *, int64_t), void *context) {
    std::unique_lock<std::mutex> alone(one_job_, std::try_to_lock);
    if (threads_ == 1 || pieces == 1 || !alone.owns_lock()) {
      for (int64_t i = 0; i < pieces; ++i) work(context, i);
      return;
    }
    pieces_ = pieces, work_ = work, context_ = context;
    next_.store(0, std::memory_order_relaxed);
    open_.store(true);
    turn_.fetch_add(1);
    if (sleeping_.load() > 0) syscall(SYS_futex, &turn_, FUTEX_WAKE_PRIVATE, threads_, nullptr, nullptr, 0);
    Take();
    open_.store(false);
    while (helping_.load() > 0) Pause();  // helpers finish their last piece, or see that the job is closed
  }

 private:
  void Take() {
    for (int64_t i; (i = next_.fetch_add(1)) < pieces_;) work_(context_, i);
  }

  void Help() {
    for (uint32_t seen = 0;; seen = Wait(seen)) {
      helping_.fetch_add(1);  // before the helper reads open_, because `Run` closes the job first and then reads helping_
      if (open_.load()) Take();
      helping_.fetch_sub(1);
    }
  }

  uint32_t Wait(uint32_t seen) {
    for (int i = 0; i < kSpins; ++i) {
      if (turn_.load() != seen) return turn_.load();
      Pause();
    }
    sleeping_.fetch_add(1);
    while (turn_.load() == seen) syscall(SYS_futex, &turn_, FUTEX_WAIT_PRIVATE, seen, nullptr, nullptr, 0);
    sleeping_.fetch_sub(1);
    return turn_.load();
  }

  const int64_t threads_;
  std::mutex one_job_;
  int64_t pieces_ = 0;
  void (*work_)(void *, int64_t) = nullptr;
  void *context_ = nullptr;
  alignas(64) std::atomic<int64_t> next_{0};
  alignas(64) std::atomic<uint32_t> turn_{0};
  std::atomic<bool> open_{false};
  alignas(64) std::atomic<int> helping_{0};
  std::atomic<int> sleeping_{0};
};

int64_t WantedThreads() {
  cpu_set_t cores;
  const int64_t count = sched_getaffinity(0, sizeof(cores), &cores) == 0 ? CPU_COUNT(&cores) : 1;
  // what OpenMP has read when it was loaded: MindSpore sets OMP_NUM_THREADS to 1 when it is imported
  return std::min<int64_t>(omp_get_max_threads(), count);
}

// Never freed: the threads use it until the process ends. A forked process has none of these threads, and makes new helpers.
std::atomic<Helpers *> helpers{nullptr};

Helpers &TheHelpers() {
  static std::mutex making;
  Helpers *found = helpers.load();
  if (found != nullptr) return *found;
  const std::lock_guard<std::mutex> one(making);
  if (helpers.load() == nullptr) {
    static const int forks = pthread_atfork(nullptr, nullptr, [] { helpers.store(nullptr); });
    (void)forks;
    helpers.store(new Helpers(WantedThreads()));
  }
  return *helpers.load();
}
}  // namespace

void Share(int64_t pieces, void (*work)(void *, int64_t), void *context) { TheHelpers().Run(pieces, work, context); }

int64_t ShareThreads() { return TheHelpers().threads(); }
