// A table of int32 in GM, read by the scalar unit through a tile in the UB.
#ifndef ASCEND_OPS_INDEX_TILE_H
#define ASCEND_OPS_INDEX_TILE_H
#include "chip.h"

namespace ascend_ops {
class IndexTile {
 public:
  __aicore__ inline void Init(GM_ADDR table, uint32_t begin, uint32_t count, uint32_t tile, TPipe *pipe) {
    gm.SetGlobalBuffer(reinterpret_cast<__gm__ int32_t *>(table) + begin, count);
    pipe->InitBuffer(buffer, tile * sizeof(int32_t));
  }

  // Loads n entries from entry `first` on.
  __aicore__ inline void Load(uint32_t first, uint32_t n) {
    // 910A: the last entries, less than a block, stay in GM and are read there by the scalar unit: nobody writes the table
    start = first;
    loaded = ASCEND_OPS_WHOLE_BLOCKS ? n / Lane<int32_t>() * Lane<int32_t>() : n;
    if (loaded == 0) return;
    Sync<HardEvent::S_MTE2>();  // the scalar unit may still be reading the entries that are overwritten now
    LoadPieces(buffer.template Get<int32_t>(), gm, first, 1, loaded);
    Sync<HardEvent::MTE2_S>();
  }

  // Entry `first` + i of the table.
  __aicore__ inline int32_t At(uint32_t i) {
    return i < loaded ? buffer.template Get<int32_t>().GetValue(i) : gm.GetValue(static_cast<uint64_t>(start) + i);
  }

 private:
  GlobalTensor<int32_t> gm;
  TBuf<TPosition::VECCALC> buffer;  // a queue would order MTE2 and V, but it is the scalar unit that reads
  uint32_t start{0};
  uint32_t loaded{0};
};
}  // namespace ascend_ops
#endif
