// RoutingPlan: experts [T] int32 in 0 ... K - 1 -> order [T], inverse [T], offsets [K + 1]: a stable counting sort.
// Row i of the sorted tokens is token order[i], token t is row inverse[t], expert k owns rows offsets[k] ... offsets[k + 1] - 1.
//
// Every core reads all ids (4 B a token) and counts them; after that it knows where every token goes, and keeps only what it owns:
// its window of `order` and its chunk of `inverse`. No atomics, no workspace, nothing to wait for between cores; the UB holds
// tiles, so T is not bounded. A window longer than its tile costs one more pass over the ids. Core 0 also writes `offsets`.
#include "index_tile.h"
#include "tiling_data.h"

namespace ascend_ops {
class RoutingPlan {
 public:
  __aicore__ inline void Init(GM_ADDR experts, GM_ADDR order, GM_ADDR inverse, GM_ADDR offsets, const PlanTilingData &tiling,
                              TPipe *pipe) {
    t = tiling;
    begin = CoreBegin(t.tokensPerCore);
    end = begin + CoreCount(t.tokens, t.tokensPerCore, t.cores);
    ids.Init(experts, 0, t.tokens, t.idTile + 8, pipe);
    orderGm.SetGlobalBuffer(reinterpret_cast<__gm__ int32_t *>(order), t.tokens);
    inverseGm.SetGlobalBuffer(reinterpret_cast<__gm__ int32_t *>(inverse), t.tokens);
    offsetsGm.SetGlobalBuffer(reinterpret_cast<__gm__ int32_t *>(offsets), t.experts + 1);
    pipe->InitBuffer(startBuffer, (t.experts + 8) * sizeof(int32_t));
    pipe->InitBuffer(cursorBuffer, (t.experts + 8) * sizeof(int32_t));
    pipe->InitBuffer(orderBuffer, (t.windowTile + 8) * sizeof(int32_t));
    pipe->InitBuffer(inverseBuffer, (t.idTile + 8) * sizeof(int32_t));
    pipe->InitBuffer(tailBuffer, 32);
    start = startBuffer.template Get<int32_t>();
    cursor = cursorBuffer.template Get<int32_t>();
    window = orderBuffer.template Get<int32_t>();
    chunk = inverseBuffer.template Get<int32_t>();
    tail = tailBuffer.template Get<int32_t>();
  }

  __aicore__ inline void Process() {
    CountTokens();
    if (GetBlockIdx() == 0) Store(offsetsGm, 0, start, t.experts + 1);
    for (uint32_t first = begin; first < end;) {
      const uint32_t n = Take(end - first, t.windowTile);
      SortWindow(first, n, first == begin);
      Store(orderGm, first, window, n);
      first += n;
    }
  }

 private:
  // Tiles of `tile`, but the last one is not shorter than 8, which is a 32 B block: it takes what would be less along.
  __aicore__ inline uint32_t Take(uint32_t left, uint32_t tile) { return left < tile + 8 ? left : tile; }

  // start[k] = tokens of the experts before k.
  __aicore__ inline void CountTokens() {
    Duplicate(start, 0, static_cast<int32_t>(Slot<int32_t>(t.experts + 1)));
    Sync<HardEvent::V_S>();
    for (uint32_t first = 0; first < t.tokens;) {
      const uint32_t n = Take(t.tokens - first, t.idTile);
      ids.Load(first, n);
      for (uint32_t i = 0; i < n; ++i) {
        const uint32_t next = static_cast<uint32_t>(ids.At(i)) + 1;
        start.SetValue(next, start.GetValue(next) + 1);
      }
      first += n;
    }
    int32_t sum = 0;
    for (uint32_t k = 1; k <= t.experts; ++k) {
      sum += start.GetValue(k);
      start.SetValue(k, sum);
    }
  }

  // Entries [windowBegin, windowBegin + windowSize) of `order`; with `withInverse` also this core's chunk of `inverse`.
  __aicore__ inline void SortWindow(uint32_t windowBegin, uint32_t windowSize, bool withInverse) {
    for (uint32_t k = 0; k < t.experts; ++k) cursor.SetValue(k, start.GetValue(k));
    for (uint32_t first = 0; first < t.tokens;) {
      const uint32_t n = Take(t.tokens - first, t.idTile);
      ids.Load(first, n);
      // tokens of this tile that are in this core's chunk
      const uint32_t from = first > begin ? first : begin;
      const uint32_t to = Least(first + n, end);
      for (uint32_t i = 0; i < n; ++i) {
        const uint32_t token = first + i;
        const uint32_t expert = static_cast<uint32_t>(ids.At(i));
        const uint32_t row = static_cast<uint32_t>(cursor.GetValue(expert));
        cursor.SetValue(expert, static_cast<int32_t>(row + 1));
        if (row >= windowBegin && row < windowBegin + windowSize) window.SetValue(row - windowBegin, static_cast<int32_t>(token));
        if (withInverse && token >= from && token < to) chunk.SetValue(token - from, static_cast<int32_t>(row));
      }
      if (withInverse && from < to) Store(inverseGm, from, chunk, to - from);
      first += n;
    }
  }

  // n entries that the scalar unit has written. 910A: as in chip.h, but the shifted block is made here; fewer than 8 are a whole
  // tensor (see Take and the tiling), whose allocation is one block.
  __aicore__ inline void Store(const GlobalTensor<int32_t> &gm, uint32_t at, const LocalTensor<int32_t> &from, uint32_t n) {
#if ASCEND_OPS_WHOLE_BLOCKS
    const uint32_t whole = n / 8 * 8;
    for (uint32_t i = 0; whole < n && i < 8; ++i)
      tail.SetValue(i, n >= 8 ? from.GetValue(n - 8 + i) : i < n ? from.GetValue(i) : 0);
    Sync<HardEvent::S_MTE3>();
    if (whole > 0) DataCopy(gm[at], from, whole);
    if (whole < n) DataCopy(gm[n >= 8 ? at + n - 8 : at], tail, 8);
#else
    Sync<HardEvent::S_MTE3>();
    StorePieces(gm, at, from, 1, n);
#endif
    Sync<HardEvent::MTE3_S>();  // the scalar unit goes on writing there
  }

  PlanTilingData t;
  uint32_t begin{0};
  uint32_t end{0};
  IndexTile ids;
  TBuf<TPosition::VECCALC> startBuffer;
  TBuf<TPosition::VECCALC> cursorBuffer;
  TBuf<TPosition::VECCALC> orderBuffer;
  TBuf<TPosition::VECCALC> inverseBuffer;
  TBuf<TPosition::VECCALC> tailBuffer;
  LocalTensor<int32_t> start;
  LocalTensor<int32_t> cursor;
  LocalTensor<int32_t> window;
  LocalTensor<int32_t> chunk;
  LocalTensor<int32_t> tail;
  GlobalTensor<int32_t> orderGm;
  GlobalTensor<int32_t> inverseGm;
  GlobalTensor<int32_t> offsetsGm;
};
}  // namespace ascend_ops

extern "C" __global__ __aicore__ void routing_plan(GM_ADDR experts, GM_ADDR order, GM_ADDR inverse, GM_ADDR offsets,
                                                   GM_ADDR workspace, GM_ADDR tiling) {
  REGISTER_TILING_DEFAULT(PlanTilingData);
  GET_TILING_DATA(t, tiling);
  AscendC::TPipe pipe;
  ascend_ops::RoutingPlan op;
  op.Init(experts, order, inverse, offsets, t, &pipe);
  op.Process();
}
