// 910A, rows shorter than one 32 B block (at most 15 half or 7 float). A block then covers several rows, so a core's output is
// treated as one flat array, cut into whole blocks that the scalar unit fills element by element. That is slow and exact; no real
// hidden size comes here. The tiling starts every core on a block boundary and gives every core at least one block, so the last,
// shifted block of a core never reaches into its neighbour. Only when the whole output is shorter than a block is the rest of the
// block written too: it is part of the allocation, which the runtime documents to be whole 32 B blocks (for pools as well), and
// holds nothing. Scalar stores to GM are not used: 910A has no documented way to flush the data cache.
#ifndef ASCEND_OPS_TINY_ROWS_H
#define ASCEND_OPS_TINY_ROWS_H
#include "chip.h"
#include "tiling_data.h"

#if ASCEND_OPS_WHOLE_BLOCKS
namespace ascend_ops {
template <typename T>
class TinyRows {
 public:
  __aicore__ inline void Init(GM_ADDR source, GM_ADDR index, GM_ADDR residual, GM_ADDR out, const RowsTilingData &tiling,
                              TPipe *pipe) {
    t = tiling;
    const uint32_t begin = CoreBegin(t.rowsPerCore);
    const uint32_t rows = CoreCount(t.rows, t.rowsPerCore, t.cores);
    const uint64_t offset = static_cast<uint64_t>(begin) * t.cols;
    count = static_cast<uint64_t>(rows) * t.cols;
    sourceGm.SetGlobalBuffer(reinterpret_cast<__gm__ T *>(source), static_cast<uint64_t>(t.sourceRows) * t.cols);
    indexGm.SetGlobalBuffer(reinterpret_cast<__gm__ int32_t *>(index) + begin, rows);
    outGm.SetGlobalBuffer(reinterpret_cast<__gm__ T *>(out) + offset, count);
    pipe->InitBuffer(buffer, t.colTile * sizeof(T));
    if (t.hasResidual) {
      residualGm.SetGlobalBuffer(reinterpret_cast<__gm__ T *>(residual) + offset, count);
      pipe->InitBuffer(residualBuffer, t.colTile * sizeof(T));
    }
  }

  __aicore__ inline void Process() {
    for (uint64_t at = 0; at < count;) {
      uint32_t n = count - at < t.colTile ? static_cast<uint32_t>(count - at) : t.colTile;
      n = n / Lane<T>() * Lane<T>();
      if (n == 0) {  // what is left is no whole block: one block that ends where the output ends
        n = Lane<T>();
        at = count < n ? 0 : count - n;
      }
      Tile(at, n);
      at += n;
    }
  }

 private:
  __aicore__ inline void Tile(uint64_t at, uint32_t n) {
    LocalTensor<T> tile = buffer.template Get<T>();
    for (uint32_t i = 0; i < n; ++i) tile.SetValue(i, Element(at + i));
    if (t.hasResidual) {
      LocalTensor<T> residual = residualBuffer.template Get<T>();
      for (uint32_t i = 0; i < n; ++i) residual.SetValue(i, at + i < count ? residualGm.GetValue(at + i) : static_cast<T>(0));
      Sync<HardEvent::S_V>();
      Add(tile, tile, residual, static_cast<int32_t>(n));  // the scalar unit does not add half
      Sync<HardEvent::V_MTE3>();
    } else {
      Sync<HardEvent::S_MTE3>();
    }
    DataCopy(outGm[at], tile, n);
    Sync<HardEvent::MTE3_S>();  // the next tile overwrites this one
  }

  __aicore__ inline T Element(uint64_t at) {
    if (at >= count) return static_cast<T>(0);
    const int32_t row = indexGm.GetValue(at / t.cols);
    return row < 0 ? static_cast<T>(0) : sourceGm.GetValue(static_cast<uint64_t>(row) * t.cols + at % t.cols);
  }

  RowsTilingData t;
  uint64_t count{0};
  TBuf<TPosition::VECCALC> buffer;
  TBuf<TPosition::VECCALC> residualBuffer;
  GlobalTensor<T> sourceGm;
  GlobalTensor<int32_t> indexGm;
  GlobalTensor<T> residualGm;
  GlobalTensor<T> outGm;
};
}  // namespace ascend_ops
#endif
#endif
