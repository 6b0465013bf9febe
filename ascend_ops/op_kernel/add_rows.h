// out[i] = source[index[i]] + residual[i], source counting as zeros where index[i] < 0. One rounding: bfloat16 is added in float.
// Output rows are divided as in move_rows.h.
#ifndef ASCEND_OPS_ADD_ROWS_H
#define ASCEND_OPS_ADD_ROWS_H
#include "index_tile.h"
#include "tiling_data.h"

namespace ascend_ops {
template <typename T>
class AddRows {
 public:
  __aicore__ inline void Init(GM_ADDR source, GM_ADDR index, GM_ADDR residual, GM_ADDR out, const RowsTilingData &tiling,
                              TPipe *pipe) {
    t = tiling;
    const uint32_t begin = CoreBegin(t.rowsPerCore);
    rows = CoreCount(t.rows, t.rowsPerCore, t.cores);
    const uint64_t offset = static_cast<uint64_t>(begin) * t.cols, count = static_cast<uint64_t>(rows) * t.cols;
    sourceGm.SetGlobalBuffer(reinterpret_cast<__gm__ T *>(source), static_cast<uint64_t>(t.sourceRows) * t.cols);
    residualGm.SetGlobalBuffer(reinterpret_cast<__gm__ T *>(residual) + offset, count);
    outGm.SetGlobalBuffer(reinterpret_cast<__gm__ T *>(out) + offset, count);
    indices.Init(index, begin, rows, t.indexTile, pipe);
    const uint32_t bytes = t.groupRows * t.colTile * sizeof(T);
    pipe->InitBuffer(sourceQueue, t.buffers, bytes);
    pipe->InitBuffer(residualQueue, t.buffers, bytes);
    pipe->InitBuffer(outQueue, t.buffers, bytes);
    if constexpr (CAST) {
      pipe->InitBuffer(floatA, t.castTile * sizeof(float));
      pipe->InitBuffer(floatB, t.castTile * sizeof(float));
    }
  }

  __aicore__ inline void Process() {
    for (uint32_t first = 0; first < rows; first += t.indexTile) {
      const uint32_t n = Least(rows - first, t.indexTile);
      indices.Load(first, n);
      for (uint32_t i = 0; i < n; i += t.groupRows) {
        AddGroup(static_cast<uint64_t>(first + i) * t.cols, i, Least(n - i, t.groupRows));
      }
    }
  }

 private:
  __aicore__ inline void AddGroup(uint64_t at, uint32_t i, uint32_t run) {
    for (uint32_t c = 0; c < t.cols; c += t.colTile) {
      const uint32_t n = Least(t.cols - c, t.colTile);
      LoadSource(i, run, c, n);
      LocalTensor<T> residual = residualQueue.template AllocTensor<T>();
      LoadPieces(residual, residualGm, at + c, run, n);
      residualQueue.EnQue(residual);

      LocalTensor<T> source = sourceQueue.template DeQue<T>();
      residual = residualQueue.template DeQue<T>();
      ClearDropped(source, i, run, n);
      LocalTensor<T> sum = outQueue.template AllocTensor<T>();
      AddTile(sum, source, residual, run * Slot<T>(n));
      sourceQueue.FreeTensor(source);
      residualQueue.FreeTensor(residual);
      outQueue.EnQue(sum);

      sum = outQueue.template DeQue<T>();
      StorePieces(outGm, at + c, sum, run, n);
      outQueue.FreeTensor(sum);
    }
  }

  __aicore__ inline void LoadSource(uint32_t i, uint32_t run, uint32_t c, uint32_t n) {
    LocalTensor<T> source = sourceQueue.template AllocTensor<T>();
    for (uint32_t r = 0; r < run; ++r) {
      const int32_t row = indices.At(i + r);
      if (row >= 0) LoadPieces(source[r * Slot<T>(n)], sourceGm, static_cast<uint64_t>(row) * t.cols + c, 1, n);
    }
    sourceQueue.EnQue(source);
  }

  // Nothing was loaded for dropped tokens: their slots hold an earlier group.
  __aicore__ inline void ClearDropped(const LocalTensor<T> &source, uint32_t i, uint32_t run, uint32_t n) {
    for (uint32_t r = 0; r < run; ++r) {
      if (indices.At(i + r) < 0) Duplicate(source[r * Slot<T>(n)], static_cast<T>(0), static_cast<int32_t>(Slot<T>(n)));
    }
    PipeBarrier<PIPE_V>();  // the sum reads what was cleared
  }

  __aicore__ inline void AddTile(const LocalTensor<T> &sum, const LocalTensor<T> &a, const LocalTensor<T> &b, uint32_t count) {
    if constexpr (CAST) {
      LocalTensor<float> fa = floatA.template Get<float>();
      LocalTensor<float> fb = floatB.template Get<float>();
      for (uint32_t k = 0; k < count; k += t.castTile) {
        const uint32_t n = Least(count - k, t.castTile);
        Cast(fa, a[k], RoundMode::CAST_NONE, n);
        Cast(fb, b[k], RoundMode::CAST_NONE, n);
        PipeBarrier<PIPE_V>();
        Add(fa, fa, fb, static_cast<int32_t>(n));
        PipeBarrier<PIPE_V>();
        Cast(sum[k], fa, RoundMode::CAST_RINT, n);
        PipeBarrier<PIPE_V>();  // the next turn overwrites fa
      }
    } else {
      Add(sum, a, b, static_cast<int32_t>(count));
    }
  }

#if ASCEND_OPS_WHOLE_BLOCKS
  static constexpr bool CAST = false;  // 910A has no bfloat16
#else
  static constexpr bool CAST = std::is_same<T, bfloat16_t>::value;
#endif
  RowsTilingData t;
  uint32_t rows{0};
  IndexTile indices;
  TQue<TPosition::VECIN, 1> sourceQueue;
  TQue<TPosition::VECIN, 1> residualQueue;
  TQue<TPosition::VECOUT, 1> outQueue;
  TBuf<TPosition::VECCALC> floatA;
  TBuf<TPosition::VECCALC> floatB;
  GlobalTensor<T> sourceGm;
  GlobalTensor<T> residualGm;
  GlobalTensor<T> outGm;
};
}  // namespace ascend_ops
#endif
