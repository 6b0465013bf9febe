// out[i] = source[index[i]], a row of zeros where index[i] < 0. Pure transfers: nothing passes through the vector unit.
// A core owns consecutive output rows, so no two cores write the same byte and the result does not depend on their order.
#ifndef ASCEND_OPS_MOVE_ROWS_H
#define ASCEND_OPS_MOVE_ROWS_H
#include "index_tile.h"
#include "tiling_data.h"

namespace ascend_ops {
template <typename T>
class MoveRows {
 public:
  __aicore__ inline void Init(GM_ADDR source, GM_ADDR index, GM_ADDR out, const RowsTilingData &tiling, TPipe *pipe) {
    t = tiling;
    const uint32_t begin = CoreBegin(t.rowsPerCore);
    rows = CoreCount(t.rows, t.rowsPerCore, t.cores);
    sourceGm.SetGlobalBuffer(reinterpret_cast<__gm__ T *>(source), static_cast<uint64_t>(t.sourceRows) * t.cols);
    outGm.SetGlobalBuffer(reinterpret_cast<__gm__ T *>(out) + static_cast<uint64_t>(begin) * t.cols,
                          static_cast<uint64_t>(rows) * t.cols);
    indices.Init(index, begin, rows, t.indexTile, pipe);
    pipe->InitBuffer(queue, t.buffers, t.groupRows * t.colTile * sizeof(T));
    pipe->InitBuffer(zeroBuffer, t.zeroTile * sizeof(T));
  }

  __aicore__ inline void Process() {
    zeros = zeroBuffer.template Get<T>();
    Duplicate(zeros, static_cast<T>(0), static_cast<int32_t>(t.zeroTile));
    Sync<HardEvent::V_MTE3>();  // the vector unit writes the zeros, MTE3 stores them
    for (uint32_t first = 0; first < rows; first += t.indexTile) {
      const uint32_t n = Least(rows - first, t.indexTile);
      indices.Load(first, n);
      for (uint32_t i = 0; i < n;) {
        const bool padding = indices.At(i) < 0;
        uint32_t run = 1;
        while ((padding || run < t.groupRows) && i + run < n && (indices.At(i + run) < 0) == padding) ++run;
        const uint64_t at = static_cast<uint64_t>(first + i) * t.cols;
        if (padding) {
          StoreZeros(at, static_cast<uint64_t>(run) * t.cols);
        } else {
          MoveGroup(at, i, run);
        }
        i += run;
      }
    }
  }

 private:
  // Whole rows, or the column tiles of one row.
  __aicore__ inline void MoveGroup(uint64_t at, uint32_t i, uint32_t run) {
    for (uint32_t c = 0; c < t.cols; c += t.colTile) {
      const uint32_t n = Least(t.cols - c, t.colTile);
      LocalTensor<T> group = queue.template AllocTensor<T>();
      for (uint32_t r = 0; r < run; ++r) {
        const uint64_t from = static_cast<uint64_t>(indices.At(i + r)) * t.cols + c;
        LoadPieces(group[r * Slot<T>(n)], sourceGm, from, 1, n);
      }
      queue.EnQue(group);
      group = queue.template DeQue<T>();  // VECIN bound to VECOUT: MTE3 waits for MTE2
      StorePieces(outGm, at + c, group, run, n);
      queue.FreeTensor(group);
    }
  }

  // count elements, at least one row; cut at whole blocks.
  __aicore__ inline void StoreZeros(uint64_t at, uint64_t count) {
    while (count > 0) {
      uint32_t n = count < t.zeroTile ? static_cast<uint32_t>(count) : t.zeroTile;
      StorePieces(outGm, at, zeros, 1, n);
      at += n;
      count -= n;
    }
  }

  RowsTilingData t;
  uint32_t rows{0};
  IndexTile indices;
  TQueBind<TPosition::VECIN, TPosition::VECOUT, 1> queue;
  TBuf<TPosition::VECCALC> zeroBuffer;
  LocalTensor<T> zeros;
  GlobalTensor<T> sourceGm;
  GlobalTensor<T> outGm;
};
}  // namespace ascend_ops
#endif
