// LocalTensor, GlobalTensor, flags, queues and buffers of the emulated subset.
#pragma once
#include "machine.h"

enum event_t : int { EVENT_ID0 = 0 };

struct bfloat16_t {
  uint16_t bits{0};
  bfloat16_t() = default;
  bfloat16_t(float value) {
    uint32_t word;
    std::memcpy(&word, &value, 4);
    const bool nan = value != value;
    bits = static_cast<uint16_t>(nan ? (word >> 16) | 0x40 : (word + 0x7fff + ((word >> 16) & 1)) >> 16);
  }
  operator float() const {
    const uint32_t word = static_cast<uint32_t>(bits) << 16;
    float value;
    std::memcpy(&value, &word, 4);
    return value;
  }
};

namespace AscendC {
enum class TPosition { GM, VECIN, VECOUT, VECCALC };
enum class HardEvent { MTE2_V, V_MTE2, MTE3_V, V_MTE3, MTE2_S, S_MTE2, V_S, S_V, MTE3_S, S_MTE3, MTE2_MTE3, MTE3_MTE2 };

inline int64_t GetBlockIdx() {
  return emulation::TheWorld().block;
}
inline int64_t GetBlockNum() {
  return emulation::TheWorld().blocks;
}

constexpr int EVENT_PIPES[][2] = {{2, 1}, {1, 2}, {3, 1}, {1, 3}, {2, 0}, {0, 2}, {1, 0}, {0, 1}, {3, 0}, {0, 3}, {2, 3}, {3, 2}};

template <HardEvent event>
inline void SetFlag(event_t id) {
  const auto key = std::make_pair(static_cast<int>(event), static_cast<int>(id));
  const auto clock = emulation::Snapshot(EVENT_PIPES[static_cast<int>(event)][0]);
  emulation::Check(emulation::TheWorld().core.flags.emplace(key, clock).second, "flags", "SetFlag twice without WaitFlag");
}

template <HardEvent event>
inline void WaitFlag(event_t id) {
  auto &flags = emulation::TheWorld().core.flags;
  const auto found = flags.find({static_cast<int>(event), static_cast<int>(id)});
  emulation::Check(found != flags.end(), "flags", "WaitFlag without SetFlag: the core would hang");
  emulation::Merge(EVENT_PIPES[static_cast<int>(event)][1], found->second);
  flags.erase(found);
}

template <pipe_t pipe>
inline void PipeBarrier() {
  auto &core = emulation::TheWorld().core;
  if (pipe == PIPE_ALL) {
    for (auto &known : core.known) known = core.seq;
  } else {
    core.known[pipe][pipe] = core.seq[pipe];
  }
}

template <typename T>
constexpr bool EXISTS = !(emulation::IS_910A && std::is_same_v<T, bfloat16_t>);

template <typename T>
class LocalTensor {
  static_assert(EXISTS<T>, "910A has no bfloat16");

 public:
  LocalTensor() = default;
  LocalTensor(T *data, uint32_t count, const void *owner = nullptr, int slot = -1)
      : data(data), count(count), owner(owner), slot(slot) {}
  LocalTensor operator[](uint32_t offset) const {
    emulation::Check(offset <= count, "range", "offset outside a LocalTensor");
    return LocalTensor(data + offset, count - offset, owner, slot);
  }
  T GetValue(uint32_t i) const {
    emulation::Check(i < count, "range", "GetValue outside a LocalTensor");
    emulation::TouchUb(PIPE_S, emulation::Issue(PIPE_S), data + i, sizeof(T), false);
    return data[i];
  }
  void SetValue(uint32_t i, T value) const {
    emulation::Check(i < count, "range", "SetValue outside a LocalTensor");
    emulation::TouchUb(PIPE_S, emulation::Issue(PIPE_S), data + i, sizeof(T), true);
    data[i] = value;
  }
  uint32_t GetSize() const { return count; }

  T *data{nullptr};
  uint32_t count{0};
  const void *owner{nullptr};
  int slot{-1};
};

template <typename T>
class GlobalTensor {
  static_assert(EXISTS<T>, "910A has no bfloat16");

 public:
  void SetGlobalBuffer(T *address, uint64_t size) {
    data = address;
    count = size;
  }
  GlobalTensor operator[](uint64_t offset) const {
    emulation::Check(offset <= count, "range", "offset outside a GlobalTensor");
    GlobalTensor tensor;
    tensor.SetGlobalBuffer(data + offset, count - offset);
    return tensor;
  }
  T GetValue(uint64_t i) const {
    emulation::Check(i < count, "range", "GetValue outside a GlobalTensor");
    emulation::Issue(PIPE_S);
    emulation::TouchGm(data + i, sizeof(T), false, true, "GlobalTensor::GetValue");
    return data[i];
  }

  T *data{nullptr};
  uint64_t count{0};
};

template <TPosition position>
class TBuf {
 public:
  template <typename T>
  LocalTensor<T> Get() const {
    emulation::Check(bytes > 0, "capacity", "TBuf without InitBuffer");
    return LocalTensor<T>(reinterpret_cast<T *>(memory), bytes / sizeof(T));
  }
  uint8_t *memory{nullptr};
  uint32_t bytes{0};
};

template <TPosition source, TPosition destination, int depth>
class TQueBind {
 public:
  static constexpr bool IN = source == TPosition::VECIN;
  static constexpr int PRODUCER = IN ? PIPE_MTE2 : PIPE_V;
  static constexpr int CONSUMER = destination == TPosition::VECOUT ? PIPE_MTE3 : PIPE_V;

  template <typename T>
  LocalTensor<T> AllocTensor() {
    for (size_t i = 0; i < slots->size(); ++i) {
      auto &slot = (*slots)[i];
      if (slot.state != 0) continue;
      slot.state = 1;
      if (slot.freedBefore) emulation::Merge(PRODUCER, slot.freed);
      return Tensor<T>(i);
    }
    emulation::Fail("queue", "AllocTensor without a free buffer: the core would hang");
  }
  template <typename T>
  bool EnQue(const LocalTensor<T> &tensor) {
    auto &slot = Slot(tensor);
    emulation::Check(slot.state == 1, "queue", "EnQue of a tensor that was not just allocated");
    emulation::Check(static_cast<int>(queued.size()) < depth, "queue", "EnQue beyond the depth of the queue");
    slot.state = 2;
    slot.ready = emulation::Snapshot(PRODUCER);
    queued.push_back(tensor.slot);
    return true;
  }
  template <typename T>
  LocalTensor<T> DeQue() {
    emulation::Check(!queued.empty(), "queue", "DeQue of an empty queue: the core would hang");
    const int i = queued.front();
    queued.erase(queued.begin());
    (*slots)[i].state = 3;
    emulation::Merge(CONSUMER, (*slots)[i].ready);
    return Tensor<T>(i);
  }
  template <typename T>
  void FreeTensor(LocalTensor<T> &tensor) {
    auto &slot = Slot(tensor);
    emulation::Check(slot.state == 3, "queue", "FreeTensor of a tensor that was not taken out of the queue");
    slot.freed = emulation::Snapshot(CONSUMER);
    slot.freedBefore = true;
    slot.state = 0;
  }

  std::shared_ptr<std::vector<emulation::QueueSlot>> slots = std::make_shared<std::vector<emulation::QueueSlot>>();
  std::vector<int> queued;
  uint32_t bytes{0};

 private:
  template <typename T>
  LocalTensor<T> Tensor(size_t i) const {
    return LocalTensor<T>(reinterpret_cast<T *>((*slots)[i].memory), bytes / sizeof(T), this, static_cast<int>(i));
  }
  template <typename T>
  emulation::QueueSlot &Slot(const LocalTensor<T> &tensor) {
    emulation::Check(tensor.owner == this && tensor.slot >= 0, "queue", "the tensor belongs to another queue");
    return (*slots)[tensor.slot];
  }
};

template <TPosition position, int depth>
class TQue : public TQueBind<position == TPosition::VECIN ? TPosition::VECIN : TPosition::VECCALC,
                             position == TPosition::VECIN ? TPosition::VECCALC : TPosition::VECOUT, depth> {};

class TPipe {
 public:
  TPipe() { Current() = this; }
  ~TPipe() { Current() = nullptr; }
  template <typename Queue, typename = decltype(Queue::PRODUCER)>
  bool InitBuffer(Queue &queue, uint8_t number, uint32_t bytes) {
    queue.bytes = (bytes + 31) / 32 * 32;
    int &used = queueBuffers[Queue::IN ? 0 : 1];
    used += number;
    emulation::Check(used <= emulation::CHIP.queueBuffers, "capacity", "more queue buffers of one position than event ids");
    for (int i = 0; i < number; ++i) {
      emulation::QueueSlot slot;
      slot.memory = Take(queue.bytes);
      queue.slots->push_back(slot);
    }
    emulation::TheWorld().core.queues.push_back(queue.slots);
    return true;
  }
  template <TPosition position>
  bool InitBuffer(TBuf<position> &buffer, uint32_t bytes) {
    buffer.bytes = (bytes + 31) / 32 * 32;
    buffer.memory = Take(buffer.bytes);
    return true;
  }
  int FetchEventID(HardEvent) { return 0; }
  static TPipe *&Current() {
    static TPipe *current = nullptr;
    return current;
  }

 private:
  uint8_t *Take(uint32_t bytes) {
    auto &core = emulation::TheWorld().core;
    emulation::Check(bytes > 0, "capacity", "a buffer of no bytes");
    emulation::Check(++buffers <= 64, "capacity", "more than 64 buffers");
    if (core.dirty + bytes > emulation::CHIP.ubBytes) {
      emulation::Fail("capacity", "the UB has " + std::to_string(emulation::CHIP.ubBytes) + " B, the buffers need " +
                                      std::to_string(core.dirty + bytes));
    }
    uint8_t *memory = core.ub.data() + core.dirty;
    core.dirty += bytes;
    return memory;
  }
  int buffers{0};
  int queueBuffers[2] = {0, 0};
};

inline TPipe *GetTPipePtr() {
  return TPipe::Current();
}
}  // namespace AscendC
