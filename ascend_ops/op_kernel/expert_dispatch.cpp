// ExpertDispatch: x [T, H], order [M] int32 -> rows [M, H]; rows[i] = x[order[i]], zeros where order[i] < 0 (capacity padding).
// Its gradient is the same kernel with the inverse as order: dx[t] = drows[inverse[t]], zeros for a dropped token.
#include "move_rows.h"
#include "tiny_rows.h"

extern "C" __global__ __aicore__ void expert_dispatch(GM_ADDR x, GM_ADDR order, GM_ADDR rows, GM_ADDR workspace, GM_ADDR tiling) {
  REGISTER_TILING_DEFAULT(RowsTilingData);
  GET_TILING_DATA(t, tiling);
  if (t.rows == 0 || t.cols == 0) return;
  AscendC::TPipe pipe;
#if ASCEND_OPS_WHOLE_BLOCKS
  if (t.cols < ascend_ops::Lane<DTYPE_X>()) {
    ascend_ops::TinyRows<DTYPE_X> op;
    op.Init(x, order, nullptr, rows, t, &pipe);
    op.Process();
    return;
  }
#endif
  ascend_ops::MoveRows<DTYPE_X> op;
  op.Init(x, order, rows, t, &pipe);
  op.Process();
}
