// Transfers that hide what differs between the chips, and flags.
//
// 910B and 910_93 have DataCopyPad, which moves any number of bytes. 910A moves whole 32 B blocks only, and a block that reaches
// past the end of a row belongs to another row, perhaps of another core. So on 910A the last block of a piece is moved shifted
// back, to end where the piece ends: its first bytes are moved twice, with the same value, and no other byte is touched. GM
// addresses need no alignment; in the UB the shifted block has a place of its own, so that a piece takes the same room on every
// chip.
#ifndef ASCEND_OPS_CHIP_H
#define ASCEND_OPS_CHIP_H
#include "kernel_operator.h"

// __NPU_ARCH__ is the newer of the two macros; a CANN may define one or both. 910B and 910_93 are one architecture. A chip that is
// neither must not be taken for one that has DataCopyPad.
#if (defined(__NPU_ARCH__) && __NPU_ARCH__ == 1001) || (defined(__CCE_AICORE__) && __CCE_AICORE__ == 100)
#define ASCEND_OPS_WHOLE_BLOCKS 1
#elif (defined(__NPU_ARCH__) && __NPU_ARCH__ == 2201) || (defined(__CCE_AICORE__) && __CCE_AICORE__ == 220)
#define ASCEND_OPS_WHOLE_BLOCKS 0
#else
#error "neither 910A (__NPU_ARCH__ 1001, __CCE_AICORE__ 100) nor 910B or 910_93 (2201, 220): no other chip is supported"
#endif

namespace ascend_ops {
using namespace AscendC;

// Elements of a 32 B block.
template <typename T>
__aicore__ inline constexpr uint32_t Lane() {
  return 32 / sizeof(T);
}

// Elements of the UB that a piece of n elements takes.
template <typename T>
__aicore__ inline uint32_t Slot(uint32_t n) {
  return (n + Lane<T>() - 1) / Lane<T>() * Lane<T>();
}

__aicore__ inline uint32_t Least(uint32_t a, uint32_t b) {
  return a < b ? a : b;
}

// First element and number of elements of this core; the last core takes what is left over.
__aicore__ inline uint32_t CoreBegin(uint32_t perCore) {
  return static_cast<uint32_t>(GetBlockIdx()) * perCore;
}
__aicore__ inline uint32_t CoreCount(uint32_t total, uint32_t perCore, uint32_t cores) {
  const uint32_t begin = CoreBegin(perCore);
  return static_cast<uint32_t>(GetBlockIdx()) + 1 == cores ? total - begin : perCore;
}

// `pieces` pieces of n elements that follow each other in GM from element `at`, to one slot each.
// 910A: n is a multiple of a block, or the n elements before gm[at + n] that make one block belong to the same row.
template <typename T>
__aicore__ inline void LoadPieces(const LocalTensor<T> &to, const GlobalTensor<T> &gm, uint64_t at, uint32_t pieces, uint32_t n) {
  if (n % Lane<T>() == 0) {
    n *= pieces;
    pieces = 1;
  }
#if ASCEND_OPS_WHOLE_BLOCKS
  const uint32_t whole = n / Lane<T>() * Lane<T>();
  for (uint32_t i = 0; i < pieces; ++i, at += n) {
    if (whole > 0) DataCopy(to[i * Slot<T>(n)], gm[at], whole);
    if (whole < n) DataCopy(to[i * Slot<T>(n) + whole], gm[at + n - Lane<T>()], Lane<T>());
  }
#else
  const DataCopyExtParams params{static_cast<uint16_t>(pieces), static_cast<uint32_t>(n * sizeof(T)), 0, 0, 0};
  const DataCopyPadExtParams<T> noPadding{false, 0, 0, static_cast<T>(0)};
  DataCopyPad(to, gm[at], params, noPadding);
#endif
}

// Stores pieces of n elements from slots in the UB to GM, under the same conditions as LoadPieces.
template <typename T>
__aicore__ inline void StorePieces(const GlobalTensor<T> &gm, uint64_t at, const LocalTensor<T> &from, uint32_t pieces,
                                   uint32_t n) {
  if (n % Lane<T>() == 0) {
    n *= pieces;
    pieces = 1;
  }
#if ASCEND_OPS_WHOLE_BLOCKS
  const uint32_t whole = n / Lane<T>() * Lane<T>();
  for (uint32_t i = 0; i < pieces; ++i, at += n) {
    if (whole > 0) DataCopy(gm[at], from[i * Slot<T>(n)], whole);
    if (whole < n) DataCopy(gm[at + n - Lane<T>()], from[i * Slot<T>(n) + whole], Lane<T>());
  }
#else
  const DataCopyExtParams params{static_cast<uint16_t>(pieces), static_cast<uint32_t>(n * sizeof(T)), 0, 0, 0};
  DataCopyPad(gm[at], from, params);
#endif
}

// The second pipe of the event waits until the first pipe has finished all instructions that it has been given so far.
template <HardEvent event>
__aicore__ inline void Sync() {
  const event_t id = static_cast<event_t>(GetTPipePtr()->FetchEventID(event));
  SetFlag<event>(id);
  WaitFlag<event>(id);
}
}  // namespace ascend_ops
#endif
