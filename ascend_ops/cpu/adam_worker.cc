// Adam of a store's experts behind the step: a thread updates rows while the graph goes on. See ascend_ops/adam_worker.py.
//
// A segment is busy from `StartUpdate`, which has its gradients and the step's hyperparameters, until the thread has updated all its
// rows. One mutex guards which segments are busy; the thread updates a segment without it.
#include <sched.h>

#include <chrono>
#include <condition_variable>
#include <map>
#include <memory>
#include <mutex>
#include <thread>
#include <utility>

#include "adam.h"

namespace {
using namespace adam;

constexpr int kNotRegistered = 5;  // what an operator returns for a worker or a segment that this process has not registered
constexpr int kFailed = 8;         // after the worker, or a step, has failed
constexpr int kBusy = 9;           // for gradients of a segment whose last update was not waited for

double Now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

struct Segment {
  int64_t rows = 0;             // number of its experts; 0: it has no arrays
  Update arrays;                // arrays of its experts, without gradients and rows
  Update job;                   // the update that the thread does while the segment is busy
  std::vector<char> gradients;  // the job's gradients, if the worker copies them
  std::vector<int32_t> active;  // the experts of the step, which `Await` copies to `fetched`: G tensors of that type
  std::vector<char *> fetched;
  Float fetched_type = Float::f32;
  bool busy = false;

  // Returns true if a row to copy is not in the segment. The number of rows is allowed: it stands for zeros.
  bool Lacks(const int32_t *active, int64_t A) const {
    return std::any_of(active, active + A, [this](int32_t row) { return row < 0 || row > rows; });
  }
};

struct Span {  // the update of a segment, for a timeline
  double begin, end;
  int64_t segment;
};

class AdamWorker {
 public:
  AdamWorker(int64_t segments, bool copies_gradients)
      : segments_(segments), copies_gradients_(copies_gradients), thread_([this] { Work(); }) {}

  ~AdamWorker() {
    {
      const std::lock_guard<std::mutex> held(lock_);
      stop_ = true;
      changed_.notify_all();
    }
    thread_.join();
  }

  Segment *segment(int64_t n) { return n >= 0 && n < static_cast<int64_t>(segments_.size()) ? &segments_[n] : nullptr; }

  int Start(Segment *segment, Update &&update) {
    const std::lock_guard<std::mutex> held(lock_);
    if (failed_) return kFailed;
    if (segment->busy) return kBusy;
    segment->job = std::move(update);
    if (copies_gradients_) CopyGradients(segment);
    segment->busy = true;
    changed_.notify_all();
    return 0;
  }

  // Waits until a segment is no longer busy. A step does so, and its seconds are counted. Null: waits until no segment is busy.
  int Wait(const Segment *segment) {
    std::unique_lock<std::mutex> held(lock_);
    const double from = Now();
    changed_.wait(held, [&] { return failed_ || !(segment ? segment->busy : Busy() != nullptr); });
    if (segment) waited_ += Now() - from;
    return failed_ ? kFailed : 0;
  }

  void Fail() {
    const std::lock_guard<std::mutex> held(lock_);
    failed_ = true;
    changed_.notify_all();
  }

  // Seconds in which steps waited, and the updates that were done, since the last reading.
  double Read(std::vector<Span> *spans) {
    const std::lock_guard<std::mutex> held(lock_);
    spans->swap(spans_), spans_.clear();
    return std::exchange(waited_, 0.0);
  }

 private:
  void Work() {
    std::unique_lock<std::mutex> held(lock_);
    for (;;) {
      changed_.wait(held, [&] { return stop_ || (!failed_ && Busy() != nullptr); });
      if (stop_) return;
      Segment *segment = Busy();
      held.unlock();
      bool failed = false;
      const double begin = Now();
      try {
        Run(segment->job);
      } catch (...) {  // no memory for the list of pieces
        failed = true;
      }
      const double end = Now();
      held.lock();
      if (spans_.size() < 4096) spans_.push_back({begin, end, segment - segments_.data()});  // else nobody reads them
      failed_ |= failed, segment->busy = false;
      changed_.notify_all();
    }
  }

  // Returns the first busy segment, which the next step reads before others; null if none is busy.
  Segment *Busy() {
    const auto found = std::find_if(segments_.begin(), segments_.end(), [](const Segment &s) { return s.busy; });
    return found == segments_.end() ? nullptr : &*found;
  }

  void Run(const Update &job) const {
    const KeepSubnormals scope;  // without a team of OpenMP: its threads would wait on cores that the graph needs
    for (const Piece &piece : job.Pieces()) job.Run(piece);
    job.Count();
  }

  // MindSpore may reuse the memory of gradients as soon as the operator returns.
  void CopyGradients(Segment *segment) const {
    Update &job = segment->job;
    const auto bytes = [&](size_t g) { return job.gradient_rows * job.width[g] * SizeOf(job.tensors[g].grad_type); };
    int64_t total = 0;
    for (size_t g = 0; g < job.tensors.size(); ++g) total += bytes(g);
    segment->gradients.resize(total);
    char *to = segment->gradients.data();
    for (size_t g = 0; g < job.tensors.size(); to += bytes(g), ++g) {
      std::memcpy(to, job.tensors[g].grad, bytes(g));
      job.tensors[g].grad = to;
    }
  }

  std::mutex lock_;
  std::condition_variable changed_;
  std::vector<Segment> segments_;
  bool stop_ = false, failed_ = false;
  double waited_ = 0.0;
  std::vector<Span> spans_;
  const bool copies_gradients_;
  std::thread thread_;  // last: it uses all others
};

// The workers of this process, by the numbers that operators know them by: 0, 1, … in the order in which they are made.
std::mutex registry_lock;
std::map<int64_t, std::shared_ptr<AdamWorker>> registry;
int64_t next_number = 0;

std::shared_ptr<AdamWorker> Registered(int64_t number) {
  const std::lock_guard<std::mutex> held(registry_lock);
  const auto found = registry.find(number);
  return found == registry.end() ? nullptr : found->second;
}

// The segment that an operator's input int64 [2] names: numbers of the worker and of the segment. segment is null if there is none.
struct At {
  std::shared_ptr<AdamWorker> worker;
  Segment *segment = nullptr;

  At(const Args &in, int i) : worker(Registered(in.as<int64_t>(i)[0])) {
    if (worker) segment = worker->segment(in.as<int64_t>(i)[1]);
    if (segment && segment->rows == 0) segment = nullptr;
  }
};

// Row active[a] of tensor g to entry a of `to`; zeros where active[a] is the number of rows.
void CopyRows(const Segment &segment, int g, const int32_t *active, int64_t A, char *to, Float type) {
  const int64_t P = segment.arrays.width[g], pieces = (P + kPiece - 1) / kPiece, size = SizeOf(type);
#pragma omp parallel for schedule(static)
  for (int64_t i = 0; i < A * pieces; ++i) {
    const int64_t a = i / pieces, begin = i % pieces * kPiece, count = std::min(kPiece, P - begin);
    char *entry = to + (a * P + begin) * size;
    if (active[a] == segment.rows)
      std::memset(entry, 0, count * size);
    else
      Narrowed(segment.arrays.tensors[g].w + active[a] * P + begin, entry, type, count);
  }
}
}  // namespace

extern "C" {
// Returns the worker's number.
int64_t WorkerNew(int64_t segments, int64_t copies_gradients) {
  auto worker = std::make_shared<AdamWorker>(segments, copies_gradients != 0);
  const std::lock_guard<std::mutex> held(registry_lock);
  registry[next_number] = std::move(worker);
  return next_number++;
}

void WorkerFree(int64_t number) {
  const std::shared_ptr<AdamWorker> worker = Registered(number);  // its thread is joined after the lock is released
  const std::lock_guard<std::mutex> held(registry_lock);
  registry.erase(number);
}

// arrays: w, m, v of each tensor, as addresses. width, decay: of each tensor. fetched: where each tensor of the active experts goes,
// as float16 or float32; A is 0 if nothing goes anywhere.
void WorkerRegister(int64_t number, int64_t n, int64_t tensors, char **arrays, int64_t bfloat, const int64_t *width, const float *decay,
                    int32_t *step, int64_t rows, int64_t A, const int32_t *active, char **fetched, int64_t half) {
  Segment &segment = *Registered(number)->segment(n);
  segment.arrays = Update{};
  const Float moments = bfloat ? Float::bf16 : Float::f32;
  for (int64_t g = 0; g < tensors; ++g) {
    char **of = arrays + 3 * g;
    segment.arrays.tensors.push_back({reinterpret_cast<float *>(of[0]), of[1], of[2], nullptr, moments, Float::f32});
  }
  segment.arrays.width.assign(width, width + tensors), segment.arrays.decay.assign(decay, decay + tensors);
  segment.arrays.step = step, segment.rows = rows;
  segment.active.assign(active, active + A), segment.fetched.assign(fetched, fetched + (A ? tensors : 0));
  segment.fetched_type = half ? Float::f16 : Float::f32;
}

int64_t WorkerSettle(int64_t number) { return Registered(number)->Wait(nullptr); }
void WorkerFail(int64_t number) { Registered(number)->Fail(); }

// spans: begin, end, segment of each. Returns their number.
int64_t WorkerRead(int64_t number, double *waited, double *spans, int64_t most) {
  std::vector<Span> found;
  *waited = Registered(number)->Read(&found);
  const int64_t count = std::min<int64_t>(found.size(), most);
  for (int64_t i = 0; i < count; ++i) {
    const double span[] = {found[i].begin, found[i].end, double(found[i].segment)};
    std::copy(std::begin(span), std::end(span), spans + 3 * i);
  }
  return count;
}

// grad[G][A,P] active[A] offsets[A+1] hyper[6] at[2] -> token [1]
int StartUpdate(int n, void **data, int *ranks, int64_t **shapes, const char **dtypes, void *, void *) {
  const Args in{data, ranks, shapes, dtypes};
  in.f32(n - 1)[0] = 0.0f;
  const At at(in, n - 2);
  if (!at.segment) return kNotRegistered;
  Update update = at.segment->arrays;
  const int G = update.tensors.size(), active_at = G, offsets_at = G + 1, hyper_at = G + 2;
  if (n != G + 5) return 1;
  for (int i : {active_at, offsets_at})
    if (!in.is(i, "int32")) return 2;
  if (!in.is(hyper_at, "float32")) return 2;
  const int64_t A = in.count(active_at);
  if (in.count(offsets_at) != A + 1 || in.count(hyper_at) != 6) return 3;
  for (int g = 0; g < G; ++g) {
    if (FloatOf(dtypes[g]) == Float::other || in.is(g, "uint16")) return 2;
    if (in.count(g) != A * update.width[g]) return 3;
    update.tensors[g].grad = in.as<char>(g), update.tensors[g].grad_type = FloatOf(dtypes[g]);
  }
  update.gradient_rows = A;
  update.hyper = *reinterpret_cast<const Hyper *>(in.f32(hyper_at));
  if (const int failed = update.Choose(at.segment->rows, A, in.i32(active_at), in.i32(offsets_at))) return failed;
  return at.worker->Start(at.segment, std::move(update));
}

// Any tensor, which only says when, and at[2] -> token [1], once the segment's experts are those of the last step, and the active
// ones where `WorkerRegister` said; that is done once
int Await(int n, void **data, int *ranks, int64_t **shapes, const char **dtypes, void *, void *) {
  const Args in{data, ranks, shapes, dtypes};
  in.f32(n - 1)[0] = 0.0f;
  const At at(in, n - 2);
  if (!at.segment) return kNotRegistered;
  if (const int failed = at.worker->Wait(at.segment)) return failed;
  Segment &segment = *at.segment;
  const std::vector<int32_t> active = std::exchange(segment.active, {});
  const int64_t A = active.size();
  if (segment.Lacks(active.data(), A)) return 4;
  for (size_t g = 0; A && g < segment.fetched.size(); ++g) CopyRows(segment, g, active.data(), A, segment.fetched[g], segment.fetched_type);
  return 0;
}

// active[A] like[G][A,P] any token, at[2] -> rows[G][A,P], token [1]: row active[a] of each tensor once the segment's experts are
// those of the last step, as float32, float16 or bfloat16; zeros where active[a] is the number of rows
int FetchStored(int n, void **data, int *ranks, int64_t **shapes, const char **dtypes, void *, void *) {
  const Args in{data, ranks, shapes, dtypes};
  in.f32(n - 1)[0] = 0.0f;
  const int G = (n - 4) / 2, first_out = G + 3;
  if (G < 1 || n != 2 * G + 4) return 1;
  const At at(in, G + 2);
  if (!at.segment) return kNotRegistered;
  const Segment &segment = *at.segment;
  if (static_cast<int>(segment.arrays.tensors.size()) != G) return 1;
  if (!in.is(0, "int32")) return 2;
  const int64_t A = in.count(0);
  const int32_t *active = in.i32(0);
  for (int g = 0; g < G; ++g) {
    if (FloatOf(dtypes[first_out + g]) == Float::other || in.is(first_out + g, "uint16")) return 2;
    if (in.count(first_out + g) != A * segment.arrays.width[g]) return 3;
  }
  if (segment.Lacks(active, A)) return 4;
  if (const int failed = at.worker->Wait(&segment)) return failed;
  for (int g = 0; g < G; ++g) CopyRows(segment, g, active, A, in.as<char>(first_out + g), FloatOf(dtypes[first_out + g]));
  return 0;
}
}
