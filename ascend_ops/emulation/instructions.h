// Transfers between global memory and the unified buffer, and the vector instructions ("first count elements" forms).
#pragma once
#include "tensors.h"

namespace AscendC {
enum class RoundMode { CAST_NONE, CAST_RINT };

struct DataCopyExtParams {
  uint16_t blockCount{1};
  uint32_t blockLen{0}, srcStride{0}, dstStride{0}, rsv{0};
};

template <typename T>
struct DataCopyPadExtParams {
  bool isPad{false};
  uint8_t leftPadding{0}, rightPadding{0};
  T paddingValue{};
};

inline void CheckAligned(const void *address) {
  emulation::Check(emulation::UbOffset(address) % 32 == 0, "alignment", "UB address is not a multiple of 32 B");
}

template <typename T>
inline void DataCopy(const LocalTensor<T> &to, const GlobalTensor<T> &from, uint32_t count) {
  const size_t bytes = count * sizeof(T);
  emulation::Check(bytes % 32 == 0, "length", "DataCopy of part of a 32 B block: the hardware would drop the rest");
  emulation::Check(count <= to.count, "range", "DataCopy outside a LocalTensor");
  CheckAligned(to.data);
  const uint32_t seq = emulation::Issue(PIPE_MTE2);
  if (!emulation::TouchGm(from.data, bytes, false, false, "DataCopy from GM")) return;
  emulation::TouchUb(PIPE_MTE2, seq, to.data, bytes, true);
  std::memcpy(static_cast<void *>(to.data), from.data, bytes);
}

template <typename T>
inline void DataCopy(const GlobalTensor<T> &to, const LocalTensor<T> &from, uint32_t count) {
  const size_t bytes = count * sizeof(T);
  emulation::Check(bytes % 32 == 0, "length", "DataCopy of part of a 32 B block: the hardware would drop the rest");
  emulation::Check(count <= from.count, "range", "DataCopy outside a LocalTensor");
  CheckAligned(from.data);
  const uint32_t seq = emulation::Issue(PIPE_MTE3);
  if (!emulation::TouchGm(to.data, bytes, true, false, "DataCopy to GM")) return;
  emulation::TouchUb(PIPE_MTE3, seq, from.data, bytes, false);
  std::memcpy(static_cast<void *>(to.data), from.data, bytes);
}

// Blocks are packed in GM (plus strides in bytes) and start on 32 B boundaries in the UB.
template <typename T>
inline uint32_t CheckPadParameters(const DataCopyExtParams &p) {
  static_assert(!emulation::IS_910A || sizeof(T) == 0, "910A has no DataCopyPad");
  emulation::Check(p.blockCount <= 4095 && p.blockLen <= 2097151 && p.blockLen % sizeof(T) == 0, "length",
                   "DataCopyPad parameters");
  return (p.blockLen + 31) / 32 * 32;
}

template <typename T>
inline void DataCopyPad(const LocalTensor<T> &to, const GlobalTensor<T> &from, const DataCopyExtParams &p,
                        const DataCopyPadExtParams<T> &pad) {
  const uint32_t padded = CheckPadParameters<T>(p);
  emulation::Check(!pad.isPad, "length", "the emulation has no padding values");
  CheckAligned(to.data);
  const uint32_t seq = emulation::Issue(PIPE_MTE2);
  for (uint32_t b = 0; b < p.blockCount && p.blockLen; ++b) {
    const auto *source = reinterpret_cast<const uint8_t *>(from.data) + b * (static_cast<uint64_t>(p.blockLen) + p.srcStride);
    const uint64_t offset = b * (static_cast<uint64_t>(padded) + p.dstStride * 32);
    emulation::Check(offset + padded <= to.count * sizeof(T), "range", "DataCopyPad outside a LocalTensor");
    auto *destination = reinterpret_cast<uint8_t *>(to.data) + offset;
    if (!emulation::TouchGm(source, p.blockLen, false, false, "DataCopyPad from GM")) continue;
    emulation::TouchUb(PIPE_MTE2, seq, destination, padded, true);
    std::memset(destination, 0xCD, padded);  // what follows the block up to 32 B is garbage
    std::memcpy(destination, source, p.blockLen);
  }
}

template <typename T>
inline void DataCopyPad(const GlobalTensor<T> &to, const LocalTensor<T> &from, const DataCopyExtParams &p) {
  const uint32_t padded = CheckPadParameters<T>(p);
  CheckAligned(from.data);
  const uint32_t seq = emulation::Issue(PIPE_MTE3);
  auto &transfers = emulation::TheWorld().transfers;
  const size_t before = transfers.size();
  for (uint32_t b = 0; b < p.blockCount && p.blockLen; ++b) {
    const uint64_t offset = b * (static_cast<uint64_t>(padded) + p.srcStride * 32);
    emulation::Check(offset + p.blockLen <= from.count * sizeof(T), "range", "DataCopyPad outside a LocalTensor");
    const auto *source = reinterpret_cast<const uint8_t *>(from.data) + offset;
    auto *destination = reinterpret_cast<uint8_t *>(to.data) + b * (static_cast<uint64_t>(p.blockLen) + p.dstStride);
    if (!emulation::TouchGm(destination, p.blockLen, true, false, "DataCopyPad to GM")) continue;
    emulation::TouchUb(PIPE_MTE3, seq, source, p.blockLen, false);
    std::memcpy(destination, source, p.blockLen);
  }
  if (p.dstStride == 0 && transfers.size() > before) {  // one piece of GM, one transfer
    int64_t bytes = 0;
    for (size_t i = before; i < transfers.size(); ++i) bytes += transfers[i].bytes;
    transfers.resize(before);
    transfers.push_back({true, false, bytes});
  }
}

template <typename D, typename F, typename... S>
inline void Vector(const LocalTensor<D> &to, uint32_t count, F value, const LocalTensor<S> &...from) {
  emulation::Check(count <= to.count && (true && ... && (count <= from.count)), "range",
                   "vector instruction outside a LocalTensor");
  CheckAligned(to.data);
  (CheckAligned(from.data), ...);
  const uint32_t seq = emulation::Issue(PIPE_V);
  (emulation::TouchUb(PIPE_V, seq, from.data, count * sizeof(S), false), ...);
  emulation::TouchUb(PIPE_V, seq, to.data, count * sizeof(D), true);
  for (uint32_t i = 0; i < count; ++i) to.data[i] = value(i);
}

template <typename T>
inline void Duplicate(const LocalTensor<T> &to, const T &value, int32_t count) {
  Vector(to, count, [&](uint32_t) { return value; });
}

template <typename T>
inline void Add(const LocalTensor<T> &to, const LocalTensor<T> &a, const LocalTensor<T> &b, int32_t count) {
  static_assert(!std::is_same_v<T, bfloat16_t>, "no chip adds bfloat16: cast to float first");
  Vector(to, count, [&](uint32_t i) { return static_cast<T>(a.data[i] + b.data[i]); }, a, b);
}

// Integers and float to float types; CAST_NONE only where nothing can be lost.
template <typename D, typename S>
inline void Cast(const LocalTensor<D> &to, const LocalTensor<S> &from, RoundMode mode, uint32_t count) {
  emulation::Check(sizeof(D) >= sizeof(S) || mode == RoundMode::CAST_RINT, "length", "a Cast that rounds needs CAST_RINT");
  Vector(to, count, [&](uint32_t i) { return static_cast<D>(static_cast<float>(from.data[i])); }, from);
}
}  // namespace AscendC
