// Adam of a store's experts behind the step's back: a worker updates rows while the graph goes on. See ascend_ops/adam_worker.py.
//
// It speculates while the graph would have to wait for it: where an update ends before the next forward pass needs its rows, the log
// is of no use. What would have been speculated can be told from what is decided where nothing was, too, so the worker tries again
// after the first step that is neither clipped nor left out.
//
// A segment is idle, or has a job: handed out (its gradients are there), decided (so is the step's norm), and idle again when all its
// pieces are done. Before the decision the worker may speculate that nothing is clipped: it keeps what it overwrites in a log. A
// decision that agrees forgets the log, another one puts the old values back, and does the pieces again or, for a step that
// is not applied, leaves them. One mutex guards all of it; the worker lets go of it for a few pieces at a time.
#include <pthread.h>
#include <sched.h>

#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <thread>
#include <utility>

#include "adam.h"

namespace {
using namespace adam;
using Clock = std::chrono::steady_clock;

constexpr int kFailed = 8;         // what an operator returns after the worker has failed
constexpr int kOutOfTurn = 9;      // for gradients of a segment whose last update was not waited for
constexpr int kNotRegistered = 5;  // for a segment without arrays
constexpr int64_t kAtOnce = 8;     // pieces that a thread does before the worker looks for a decision
constexpr int kPatience = 3;       // steps in a row that are clipped or not applied, after which the worker waits for each decision
constexpr int kAhead = 64;         // steps that the worker speculates after one in which the graph had to wait for it
constexpr double kWaited = 1e-3;   // seconds of such a wait

double Seconds(Clock::time_point at) { return std::chrono::duration<double>(at.time_since_epoch()).count(); }

struct Segment {  // arrays of its experts
  int64_t rows = 0;
  Update arrays;  // without gradients and rows
};

struct Speculated {
  size_t piece;
  int64_t log;  // where its old values are
};

struct Job {
  Update update;
  std::vector<Piece> pieces;
  std::vector<Speculated> speculated;
  std::vector<char> own_gradients;
  size_t begun = 0;   // pieces of which the first time has come
  size_t again = 0;   // speculated pieces that are done again
  bool open = false, decided = false, weighed = false, differs = false;
};

constexpr int64_t kLine = 64;
int64_t Lines(int64_t bytes) { return (bytes + kLine - 1) / kLine * kLine; }
int64_t BlockBytes(const Tensors &t, int64_t n) { return Lines(4 * n) + 2 * Lines(n * SizeOf(t.moment_type)); }

// Old values of a block to the log, or back. Past the caches on their way out: nobody may ever read them.
void MoveOld(char *array, int64_t bytes, bool out, char **log) {
  int64_t done = 0;
#if defined(__x86_64__)
  if (out)
    for (; done + 16 <= bytes; done += 16)
      _mm_stream_si128(reinterpret_cast<__m128i *>(*log + done), _mm_loadu_si128(reinterpret_cast<const __m128i *>(array + done)));
#endif
  std::memcpy(out ? *log + done : array, out ? array + done : *log, bytes - done);
  *log += Lines(bytes);
}

void Flush() {  // another thread may read the log next
#if defined(__x86_64__)
  _mm_sfence();
#endif
}

struct Span {  // of one kind of work on one segment, for a timeline
  double begin, end;
  int64_t segment, kind;
};
enum Kind : int64_t { speculating, direct, repeating };

struct Counts {  // since the last reading
  double busy, step_waited, host_waited, in_use;
  int64_t kept, redone, dropped, late;  // jobs of which pieces were speculated: by what was decided; jobs that had none
};

class AdamWorker {
 public:
  AdamWorker(int64_t segments, int64_t log_bytes, int64_t threads, const int32_t *cores, int64_t count, bool copies_gradients)
      : segments_(segments),
        jobs_(segments),
        log_(static_cast<char *>(std::aligned_alloc(kLine, Lines(log_bytes) + kLine)), &std::free),
        log_bytes_(log_bytes),
        threads_(threads),
        cores_(cores, cores + count),
        copies_gradients_(copies_gradients),
        worker_([this] { Work(); }) {}

  ~AdamWorker() {
    {
      const std::lock_guard<std::mutex> held(lock_);
      stop_ = true;
      changed_.notify_all();
    }
    worker_.join();
  }

  Segment &segment(int64_t n) { return segments_[n]; }
  bool has(int64_t n) const { return n >= 0 && n < static_cast<int64_t>(segments_.size()) && segments_[n].rows > 0; }

  int HandOut(int64_t n, Update &&update) {
    const std::lock_guard<std::mutex> held(lock_);
    if (failed_) return kFailed;
    Job &job = jobs_[n];
    if (job.open) return kOutOfTurn;
    job = Job{};
    job.update = std::move(update);
    if (copies_gradients_) CopyGradients(&job);
    job.pieces = job.update.Pieces();
    job.open = true;
    if (order_.empty()) log_used_ = 0;
    last_handed_ = Seconds(Clock::now());
    order_.push_back(n);
    changed_.notify_all();
    return 0;
  }

  int Decide(const Hyper &truth) {
    const std::lock_guard<std::mutex> held(lock_);
    if (failed_) return kFailed;
    bool wrong = false;
    for (int64_t n : order_) {
      Job &job = jobs_[n];
      job.decided = true, job.differs = std::memcmp(&job.update.hyper, &truth, sizeof(Hyper)) != 0;
      truth_ = truth, wrong |= job.differs;
      if (job.speculated.empty())
        ++counts_.late;
      else
        ++(!job.differs ? counts_.kept : truth.apply == 0.0f ? counts_.dropped : counts_.redone);
    }
    if (!order_.empty()) wrong_in_a_row_ = wrong ? wrong_in_a_row_ + 1 : 0;
    if (read_since_ > 0.0) counts_.in_use += last_handed_ - read_since_;
    ahead_ = waited_in_step_ > kWaited ? kAhead : std::max(0, ahead_ - 1);
    waited_in_step_ = 0.0;
    order_.clear();
    changed_.notify_all();
    return 0;
  }

  // Waits until a segment is idle; n < 0: until all are. in_step: whether a step waits, or something else.
  int Wait(int64_t n, bool in_step) {
    std::unique_lock<std::mutex> held(lock_);
    const auto ready = [&] {
      if (failed_) return true;
      if (n >= 0) return !jobs_[n].open;
      return std::none_of(jobs_.begin(), jobs_.end(), [](const Job &job) { return job.open; });
    };
    if (!ready()) {
      const double from = Seconds(Clock::now());
      changed_.wait(held, ready);
      const double waited = Seconds(Clock::now()) - from;
      (in_step ? counts_.step_waited : counts_.host_waited) += waited;
      if (in_step) waited_in_step_ += waited;
    }
    if (n == 0) read_since_ = Seconds(Clock::now());
    return failed_ ? kFailed : 0;
  }

  Counts Read(std::vector<Span> *spans) {
    const std::lock_guard<std::mutex> held(lock_);
    spans->swap(spans_), spans_.clear();
    return std::exchange(counts_, Counts{});
  }

  void Fail() {  // for tests
    const std::lock_guard<std::mutex> held(lock_);
    failed_ = true;
    changed_.notify_all();
  }

 private:
  void Work() {
    if (!cores_.empty()) {  // threads that OpenMP starts for this one inherit them
      cpu_set_t set;
      CPU_ZERO(&set);
      for (int core : cores_) CPU_SET(core, &set);
      pthread_setaffinity_np(pthread_self(), sizeof(set), &set);
    }
    std::unique_lock<std::mutex> held(lock_);
    for (;;) {
      changed_.wait(held, [&] { return stop_ || Next() >= 0; });
      if (stop_) return;
      const int64_t n = Next();
      try {
        Advance(n, &held);
      } catch (...) {  // memory for a list; the arrays are no longer those of a step
        if (!held.owns_lock()) held.lock();
        failed_ = true;
        changed_.notify_all();
        return;
      }
    }
  }

  // The segment to go on with: of the decided ones the lowest, which the next step reads first; else the first that was handed out.
  int64_t Next() const {
    if (failed_) return -1;
    for (size_t n = 0; n < jobs_.size(); ++n)
      if (jobs_[n].open && jobs_[n].decided) return n;
    if (ahead_ > 0 && wrong_in_a_row_ < kPatience)
      for (int64_t n : order_)
        if (jobs_[n].begun < jobs_[n].pieces.size() && Room(jobs_[n], jobs_[n].begun)) return n;
    return -1;
  }

  int64_t LogBytes(const Job &job, size_t piece) const {
    const Piece &p = job.pieces[piece];
    int64_t bytes = 0;
    for (int64_t i = p.begin; i < p.end; i += kBlock) bytes += BlockBytes(job.update.tensors[p.tensor], std::min(kBlock, p.end - i));
    return bytes;
  }
  bool Room(const Job &job, size_t piece) const { return log_used_ + LogBytes(job, piece) <= log_bytes_; }

  // Does some pieces of a job without the lock, which is held before and afterwards.
  void Advance(int64_t n, std::unique_lock<std::mutex> *held) {
    Job &job = jobs_[n];
    if (job.decided && !job.weighed) Weigh(&job);
    std::vector<Speculated> pieces;  // to be done now
    Kind kind = direct;
    if (job.decided && job.again < job.speculated.size()) {
      kind = repeating;
      for (; job.again < job.speculated.size() && Few(pieces); ++job.again) pieces.push_back(job.speculated[job.again]);
    } else {
      if (!job.decided) kind = speculating;
      for (; job.begun < job.pieces.size() && Few(pieces); ++job.begun) {
        if (kind == speculating) {
          if (!Room(job, job.begun)) break;
          job.speculated.push_back({job.begun, log_used_});
        }
        pieces.push_back({job.begun, log_used_});
        if (kind == speculating) log_used_ += LogBytes(job, job.begun);
      }
    }
    held->unlock();
    const double from = Seconds(Clock::now());
    Run(job, pieces, kind);
    const double to = Seconds(Clock::now());
    held->lock();
    counts_.busy += to - from;
    Note({from, to, n, kind});
    if (job.decided && job.weighed && job.again == job.speculated.size() && job.begun == job.pieces.size()) {
      job.update.Count();
      job.open = false;
      changed_.notify_all();
    }
  }

  // The first look at a decided job: what it speculated stands, or is done again.
  void Weigh(Job *job) {
    job->weighed = true;
    job->update.hyper = truth_;
    if (!job->differs) job->again = job->speculated.size();
  }

  bool Few(const std::vector<Speculated> &pieces) const { return static_cast<int64_t>(pieces.size()) < kAtOnce * threads_; }

  void Run(const Job &job, const std::vector<Speculated> &pieces, Kind kind) {
    const auto one = [&](const Speculated &s) {
      char *log = log_.get() + s.log;
      const auto move = [&](const Tensors &t, int64_t at, int64_t n) {
        const int64_t size = SizeOf(t.moment_type);
        MoveOld(reinterpret_cast<char *>(t.w + at), 4 * n, kind == speculating, &log);
        MoveOld(t.m + at * size, n * size, kind == speculating, &log);
        MoveOld(t.v + at * size, n * size, kind == speculating, &log);
      };
      if (kind == direct)
        job.update.Run(job.pieces[s.piece]);
      else
        job.update.Run(job.pieces[s.piece], move);
    };
    if (threads_ == 1) {  // without a team: OpenMP's would wait for work on a core that the graph needs
      const KeepSubnormals scope;
      for (const Speculated &s : pieces) one(s);
      Flush();
      return;
    }
#pragma omp parallel num_threads(threads_)
    {
      const KeepSubnormals scope;
#pragma omp for schedule(dynamic, 2)
      for (size_t i = 0; i < pieces.size(); ++i) one(pieces[i]);
      Flush();
    }
  }

  void CopyGradients(Job *job) const {  // whose memory is another's as soon as the operator returns
    int64_t total = 0;
    const auto bytes = [&](size_t g) { return job->update.gradient_rows * job->update.width[g] * SizeOf(job->update.tensors[g].grad_type); };
    for (size_t g = 0; g < job->update.tensors.size(); ++g) total += bytes(g);
    job->own_gradients.resize(total);
    char *to = job->own_gradients.data();
    for (size_t g = 0; g < job->update.tensors.size(); to += bytes(g), ++g) {
      std::memcpy(to, job->update.tensors[g].grad, bytes(g));
      job->update.tensors[g].grad = to;
    }
  }

  void Note(const Span &span) {
    Span *last = spans_.empty() ? nullptr : &spans_.back();
    if (last != nullptr && last->segment == span.segment && last->kind == span.kind && span.begin - last->end < 1e-4)
      last->end = span.end;
    else if (spans_.size() < 4096)  // nobody reads them
      spans_.push_back(span);
  }

  std::mutex lock_;
  std::condition_variable changed_;
  std::vector<Segment> segments_;
  std::vector<Job> jobs_;        // of each segment
  std::vector<int64_t> order_;   // segments handed out and not decided, in that order
  const std::unique_ptr<char, decltype(&std::free)> log_;  // untouched memory takes none
  const int64_t log_bytes_;
  int64_t log_used_ = 0;
  Hyper truth_{};
  int wrong_in_a_row_ = 0, ahead_ = kAhead;
  double waited_in_step_ = 0.0;
  double read_since_ = 0.0, last_handed_ = 0.0;  // when segment 0 was waited for, and the last gradients were there
  bool stop_ = false, failed_ = false;
  Counts counts_{};
  std::vector<Span> spans_;
  const int64_t threads_;
  const std::vector<int> cores_;
  const bool copies_gradients_;
  std::thread worker_;  // last: it uses all others
};

// Where an operator finds its segment: the address of the object, and the segment's number, int64 [2].
struct At {
  AdamWorker *adam;
  int64_t segment;
};
At AtOf(const Args &in, int i) {
  const int64_t *at = in.as<int64_t>(i);
  return {reinterpret_cast<AdamWorker *>(at[0]), at[1]};
}
}  // namespace

extern "C" {
void *WorkerNew(int64_t segments, int64_t log_bytes, int64_t threads, const int32_t *cores, int64_t count, int64_t copies_gradients) {
  return new AdamWorker(segments, log_bytes, threads, cores, count, copies_gradients != 0);
}
void WorkerFree(void *adam) { delete static_cast<AdamWorker *>(adam); }
// arrays: w, m, v of each tensor, as addresses. width, decay: of each tensor.
void WorkerRegister(void *adam, int64_t n, int64_t tensors, char **arrays, int64_t bfloat, const int64_t *width, const float *decay,
                    int32_t *step, int64_t rows) {
  Segment &segment = static_cast<AdamWorker *>(adam)->segment(n);
  segment = Segment{};
  const Float moments = bfloat ? Float::bf16 : Float::f32;
  for (int64_t g = 0; g < tensors; ++g) {
    char **of = arrays + 3 * g;
    segment.arrays.tensors.push_back({reinterpret_cast<float *>(of[0]), of[1], of[2], nullptr, nullptr, moments, Float::f32, Float::f32});
  }
  segment.arrays.width.assign(width, width + tensors), segment.arrays.decay.assign(decay, decay + tensors);
  segment.arrays.step = step, segment.rows = rows;
}
int64_t WorkerSettle(void *adam, int64_t in_step) { return static_cast<AdamWorker *>(adam)->Wait(-1, in_step != 0); }
void WorkerFail(void *adam) { static_cast<AdamWorker *>(adam)->Fail(); }

// counts: busy, step_waited, host_waited, in_use, kept, redone, dropped, late. spans: begin, end, segment, kind of each. Returns their number.
int64_t WorkerRead(void *adam, double *counts, double *spans, int64_t most) {
  std::vector<Span> found;
  const Counts c = static_cast<AdamWorker *>(adam)->Read(&found);
  const double values[] = {c.busy, c.step_waited, c.host_waited, c.in_use, double(c.kept), double(c.redone), double(c.dropped), double(c.late)};
  std::copy(std::begin(values), std::end(values), counts);
  const int64_t count = std::min<int64_t>(found.size(), most);
  for (int64_t i = 0; i < count; ++i) {
    const double span[] = {found[i].begin, found[i].end, double(found[i].segment), double(found[i].kind)};
    std::copy(std::begin(span), std::end(span), spans + 4 * i);
  }
  return count;
}

// grad[G][A,P] (copy[G][A,P]) active[A] offsets[A+1] (next[A]) hyper[7], as it is speculated, at[2] -> token [1]
int HandOut(int n, void **data, int *ranks, int64_t **shapes, const char **dtypes, void *, void *) {
  const Args in{data, ranks, shapes, dtypes};
  in.f32(n - 1)[0] = 0.0f;
  const At at = AtOf(in, n - 2);
  if (!at.adam->has(at.segment)) return kNotRegistered;
  const Segment &segment = at.adam->segment(at.segment);
  const int G = segment.arrays.tensors.size(), inputs = n - 1;
  const bool copies = inputs == 2 * G + 5;
  if (!copies && inputs != G + 4) return 1;
  const int active_at = copies ? 2 * G : G, next_at = active_at + 2, hyper_at = inputs - 2;
  for (int i = active_at; i < hyper_at; ++i)
    if (!in.is(i, "int32")) return 2;
  if (!in.is(hyper_at, "float32")) return 2;
  const int64_t A = in.count(active_at);
  if (in.count(active_at + 1) != A + 1 || (copies && in.count(next_at) != A) || in.count(hyper_at) != 7) return 3;
  Update update = segment.arrays;
  for (int g = 0; g < G; ++g) {
    for (int i : {g, copies ? G + g : g}) {
      if (FloatOf(dtypes[i]) == Float::other || in.is(i, "uint16")) return 2;
      if (in.count(i) != A * update.width[g]) return 3;
    }
    Tensors &t = update.tensors[g];
    t.grad = in.as<char>(g), t.grad_type = FloatOf(dtypes[g]);
    if (copies) t.copy = in.as<char>(G + g), t.copy_type = FloatOf(dtypes[G + g]);
  }
  update.gradient_rows = A;
  update.hyper = *reinterpret_cast<const Hyper *>(in.f32(hyper_at));
  if (const int failed = update.Choose(segment.rows, A, in.i32(active_at), in.i32(active_at + 1), copies ? in.i32(next_at) : nullptr)) return failed;
  return at.adam->HandOut(at.segment, std::move(update));
}

// Any number of tokens, hyper[7] as it is, at[2] -> token [1]
int Decide(int n, void **data, int *ranks, int64_t **shapes, const char **dtypes, void *, void *) {
  const Args in{data, ranks, shapes, dtypes};
  in.f32(n - 1)[0] = 0.0f;
  if (!in.is(n - 3, "float32") || in.count(n - 3) != 7) return 3;
  return AtOf(in, n - 2).adam->Decide(*reinterpret_cast<const Hyper *>(in.f32(n - 3)));
}

// Any tensor, which only says when, and at[2] -> token [1], once the segment's experts are those of the last step
int Await(int n, void **data, int *ranks, int64_t **shapes, const char **dtypes, void *, void *) {
  const Args in{data, ranks, shapes, dtypes};
  in.f32(n - 1)[0] = 0.0f;
  const At at = AtOf(in, n - 2);
  return at.adam->has(at.segment) ? at.adam->Wait(at.segment, true) : kNotRegistered;
}

// active[A] like[G][A,P] any token, at[2] -> rows[G][A,P], token [1]: row active[a] of each tensor once the segment's experts are
// those of the last step, as float32, float16 or bfloat16; zeros where active[a] is the number of rows
int FetchStored(int n, void **data, int *ranks, int64_t **shapes, const char **dtypes, void *, void *) {
  const Args in{data, ranks, shapes, dtypes};
  in.f32(n - 1)[0] = 0.0f;
  const int G = (n - 4) / 2, first_out = G + 3;
  if (G < 1 || n != 2 * G + 4) return 1;
  const At at = AtOf(in, G + 2);
  if (!at.adam->has(at.segment)) return kNotRegistered;
  const Segment &segment = at.adam->segment(at.segment);
  if (static_cast<int>(segment.arrays.tensors.size()) != G) return 1;
  if (!in.is(0, "int32")) return 2;
  const int64_t A = in.count(0), K = segment.rows;
  const int32_t *active = in.i32(0);
  for (int g = 0; g < G; ++g) {
    if (FloatOf(dtypes[first_out + g]) == Float::other || in.is(first_out + g, "uint16")) return 2;
    if (in.count(first_out + g) != A * segment.arrays.width[g]) return 3;
  }
  if (std::any_of(active, active + A, [=](int32_t row) { return row < 0 || row > K; })) return 4;
  if (const int failed = at.adam->Wait(at.segment, true)) return failed;
  for (int g = 0; g < G; ++g) {
    const Float type = FloatOf(dtypes[first_out + g]);
    const int64_t P = segment.arrays.width[g], pieces = (P + kPiece - 1) / kPiece, size = SizeOf(type);
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < A * pieces; ++i) {
      const int64_t a = i / pieces, begin = i % pieces * kPiece, count = std::min(kPiece, P - begin);
      char *to = in.as<char>(first_out + g) + (a * P + begin) * size;
      if (active[a] == K)
        std::memset(to, 0, count * size);
      else
        Narrowed(segment.arrays.tensors[g].w + active[a] * P + begin, to, type, count);
    }
  }
  return 0;
}
}
