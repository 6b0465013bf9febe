// The machine behind the host emulation: chips, one core's pipes and unified buffer (UB), global memory (GM), and the rules.
// A broken rule throws emulation::Error, whose text begins with the rule in brackets:
//   capacity      UB size, at most 64 buffers a pipe, at most 8 (910A: 4) queue buffers a position
//   alignment     UB addresses are multiples of 32 B
//   length        DataCopy moves whole 32 B blocks; parameter ranges of DataCopyPad
//   range         outside a tensor, the UB or every GM buffer
//   uninitialised reading UB bytes nobody has written
//   queue         Alloc -> EnQue -> DeQue -> Free, nothing left over at the end of the kernel
//   sync          two pipes meet on UB bytes without a flag between them (vector clocks over S, V, MTE2, MTE3)
//   barrier       two vector instructions depend on each other without PipeBarrier<PIPE_V>
//   cores         two cores touch the same GM byte and one of them writes
//   flags         SetFlag and WaitFlag do not pair
// What a chip lacks (DataCopyPad and bfloat16 on 910A, bfloat16 Add everywhere) does not compile.
// Not modelled: time, bank conflicts, the cube unit, caches, rounding modes other than to nearest even.
#pragma once
#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include <sys/mman.h>

enum pipe_t { PIPE_S = 0, PIPE_V = 1, PIPE_MTE2 = 2, PIPE_MTE3 = 3, PIPE_ALL = 4 };

namespace emulation {
constexpr int PIPES = 4;

struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

struct ChipLimits {
  uint32_t ubBytes;  // what a kernel may use: 256 B (910B) and 8 KB of API temporaries are not ours
  int queueBuffers;  // event ids, and so queue buffers, of one position
};
#if (defined(__NPU_ARCH__) && __NPU_ARCH__ == 1001) || (defined(__CCE_AICORE__) && __CCE_AICORE__ == 100)
constexpr bool IS_910A = true;
#else
constexpr bool IS_910A = false;
#endif
constexpr ChipLimits CHIP = IS_910A ? ChipLimits{262144 - 8192, 4} : ChipLimits{196608 - 256 - 8192, 8};

using Clock = std::array<uint32_t, PIPES>;  // number of the latest instruction of every pipe that is known to be complete

struct QueueSlot {
  uint8_t *memory;
  int state{0};  // 0 free, 1 allocated, 2 queued, 3 taken out
  bool freedBefore{false};
  Clock ready{}, freed{};
};

// Address space whose pages exist once they are touched: a tensor may be larger than the memory of this machine.
class Pages {
 public:
  explicit Pages(size_t bytes) : bytes(bytes) {
    void *found = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (found == MAP_FAILED) throw Error("[memory] this system gives no " + std::to_string(bytes) + " B of address space");
    memory = static_cast<uint8_t *>(found);
  }
  Pages(const Pages &) = delete;
  Pages &operator=(const Pages &) = delete;
  ~Pages() { munmap(memory, bytes); }
  uint8_t *memory;
  size_t bytes;
};

// A tensor in GM as the kernel's caller sees it. An allocation is always whole 32 B blocks (aclrtMalloc documents it, also for
// pools): 910A may access a tensor smaller than one block as that block, and any other not one byte past its end.
// Before byte `watched`, transfers are held to the bounds of the tensor and move nothing.
struct GmBuffer {
  GmBuffer(size_t size, size_t watched)
      : pages(std::max<size_t>((size + 31) / 32 * 32, 32)),
        size(size),
        watched(watched),
        writer(pages.bytes - watched),
        reader(pages.bytes - watched) {
    std::memset(pages.memory + watched, 0xA5, pages.bytes - watched);
  }
  Pages pages;
  size_t size, watched;
  std::vector<uint16_t> writer, reader;  // of the bytes that are watched: 1 + the block that touched it, 0: nobody
};

struct Transfer {
  bool write;
  bool scalar;
  int64_t bytes;
};

struct Core {
  std::vector<uint8_t> ub;
  std::vector<int8_t> writerPipe;  // of every UB byte, -1: never written
  std::vector<uint32_t> writerSeq;
  std::array<std::vector<uint32_t>, PIPES> readSeq;
  uint32_t dirty{0};  // UB bytes handed out in this block
  std::array<uint32_t, PIPES> seq{};
  std::array<Clock, PIPES> known{};
  std::map<std::pair<int, int>, Clock> flags;  // (event, id) -> what the setting pipe had done
  std::vector<std::shared_ptr<std::vector<QueueSlot>>> queues;
};

struct World {
  Core core;
  int64_t block{0}, blocks{1};
  std::map<const uint8_t *, std::shared_ptr<GmBuffer>> gm;
  std::vector<Transfer> transfers;
};

inline World &TheWorld() {
  static World world;
  return world;
}

[[noreturn]] inline void Fail(const std::string &rule, const std::string &what) {
  throw Error("[" + rule + "] block " + std::to_string(TheWorld().block) + ": " + what);
}

inline void Check(bool ok, const char *rule, const char *what) {
  if (!ok) Fail(rule, what);
}

inline uint8_t *GmAllocate(size_t size, size_t watched = 0) {
  auto buffer = std::make_shared<GmBuffer>(size, watched);
  TheWorld().gm[buffer->pages.memory] = buffer;
  return buffer->pages.memory;
}

// False where nobody watches: the transfer is in bounds, and is not made.
inline bool TouchGm(const void *address, size_t bytes, bool write, bool scalar, const char *what) {
  World &world = TheWorld();
  const auto *first = static_cast<const uint8_t *>(address);
  auto found = world.gm.upper_bound(first);
  if (found == world.gm.begin()) Fail("range", std::string(what) + " before every GM buffer");
  GmBuffer &buffer = *(--found)->second;
  const size_t offset = first - buffer.pages.memory;
  const size_t end = IS_910A && buffer.size < 32 && !scalar ? 32 : buffer.size;
  if (offset + bytes > end) {
    Fail("range", std::string(what) + " of " + std::to_string(bytes) + " B at byte " + std::to_string(offset) +
                      " of a GM buffer of " + std::to_string(buffer.size) + " B");
  }
  if (offset + bytes <= buffer.watched) return false;
  const auto me = static_cast<uint16_t>(world.block + 1);
  int64_t crossed = 0;  // what the scalar unit has read once is in its data cache
  for (size_t i = std::max(offset, buffer.watched) - buffer.watched; i < offset + bytes - buffer.watched; ++i) {
    const uint16_t writer = buffer.writer[i], reader = buffer.reader[i];
    if (writer && writer != me) Fail("cores", std::string(what) + ": byte also written by block " + std::to_string(writer - 1));
    if (write && reader && reader != me)
      Fail("cores", std::string(what) + ": byte also read by block " + std::to_string(reader - 1));
    if (!write && writer == me) Fail("sync", std::string(what) + " reads GM that this block has written");
    if (!scalar || reader != me) ++crossed;
    (write ? buffer.writer : buffer.reader)[i] = me;
  }
  world.transfers.push_back({write, scalar, crossed});
  return true;
}

// A new instruction of a pipe. Every engine but the vector unit finishes one instruction before the next touches memory.
inline uint32_t Issue(int pipe) {
  Core &core = TheWorld().core;
  const uint32_t seq = ++core.seq[pipe];
  if (pipe != PIPE_V) core.known[pipe][pipe] = seq - 1;
  return seq;
}

inline size_t UbOffset(const void *address) {
  return static_cast<const uint8_t *>(address) - TheWorld().core.ub.data();
}

inline void TouchUb(int pipe, uint32_t seq, const void *address, size_t bytes, bool write) {
  static const char *names[] = {"S", "V", "MTE2", "MTE3"};
  Core &core = TheWorld().core;
  const size_t first = UbOffset(address);
  Check(first + bytes <= core.dirty, "range", "UB access outside the buffers");
  const Clock &known = core.known[pipe];
  for (size_t i = first; i < first + bytes; ++i) {
    const int writer = core.writerPipe[i];
    if (writer < 0) {
      if (!write) Fail("uninitialised", std::string(names[pipe]) + " reads UB that nobody has written");
    } else if (core.writerSeq[i] > known[writer] && !(writer == pipe && core.writerSeq[i] == seq)) {
      Fail(writer == pipe ? "barrier" : "sync",
           std::string(names[pipe]) + (write ? " writes" : " reads") + " what " + names[writer] + " may still be writing");
    }
    if (write) {
      for (int other = 0; other < PIPES; ++other) {
        const uint32_t read = core.readSeq[other][i];
        if (read > known[other] && !(other == pipe && read == seq)) {
          Fail(other == pipe ? "barrier" : "sync",
               std::string(names[pipe]) + " writes what " + names[other] + " may still be reading");
        }
      }
      core.writerPipe[i] = static_cast<int8_t>(pipe);
      core.writerSeq[i] = seq;
    } else {
      core.readSeq[pipe][i] = seq;
    }
  }
}

// What a pipe has done, for those who wait for it.
inline Clock Snapshot(int pipe) {
  Clock clock = TheWorld().core.known[pipe];
  clock[pipe] = TheWorld().core.seq[pipe];
  return clock;
}

// A pipe has waited. The scalar unit hands out all instructions, so what it has waited for is over for every pipe.
inline void Merge(int pipe, const Clock &clock) {
  for (int each = 0; each < PIPES; ++each) {
    if (each != pipe && pipe != PIPE_S) continue;
    Clock &known = TheWorld().core.known[each];
    for (int i = 0; i < PIPES; ++i) known[i] = std::max(known[i], clock[i]);
  }
}

inline void StartBlock() {
  Core &core = TheWorld().core;
  const size_t reset = core.ub.empty() ? CHIP.ubBytes : core.dirty;
  core.ub.resize(CHIP.ubBytes);
  core.writerPipe.resize(CHIP.ubBytes);
  core.writerSeq.resize(CHIP.ubBytes);
  std::fill_n(core.ub.begin(), reset, 0xCD);
  std::fill_n(core.writerPipe.begin(), reset, -1);
  for (auto &reads : core.readSeq) {
    reads.resize(CHIP.ubBytes);
    std::fill_n(reads.begin(), reset, 0);
  }
  core.dirty = 0;
  core.seq = {};
  core.known = {};
  core.flags.clear();
  core.queues.clear();
}

inline void EndBlock() {
  const Core &core = TheWorld().core;
  Check(core.flags.empty(), "flags", "the kernel ended with a flag nobody waited for");
  for (const auto &queue : core.queues) {
    for (const QueueSlot &slot : *queue) Check(slot.state == 0, "queue", "the kernel ended with a tensor that was not freed");
  }
}

// Runs the kernel once for every block from `first` on, in ascending or descending order: a correct kernel does not see a
// difference.
inline void Launch(uint32_t blocks, bool reversed, const std::function<void()> &kernel, uint32_t first = 0) {
  World &world = TheWorld();
  world.blocks = blocks;
  for (uint32_t i = first; i < blocks; ++i) {
    world.block = reversed ? blocks - 1 - (i - first) : i;
    StartBlock();
    kernel();
    EndBlock();
  }
}
}  // namespace emulation
