// ExpertCombine: rows [M, H], inverse [T] int32, optional residual [T, H] -> out [T, H]; out[t] = rows[inverse[t]] + residual[t],
// a dropped token (inverse[t] < 0) contributes zero. Gradients: drows = ExpertDispatch(dout, order), dresidual = dout.
#include "add_rows.h"
#include "move_rows.h"
#include "tiny_rows.h"

extern "C" __global__ __aicore__ void expert_combine(GM_ADDR rows, GM_ADDR inverse, GM_ADDR residual, GM_ADDR out,
                                                     GM_ADDR workspace, GM_ADDR tiling) {
  REGISTER_TILING_DEFAULT(RowsTilingData);
  GET_TILING_DATA(t, tiling);
  if (t.rows == 0 || t.cols == 0) return;
  AscendC::TPipe pipe;
#if ASCEND_OPS_WHOLE_BLOCKS
  if (t.cols < ascend_ops::Lane<DTYPE_ROWS>()) {
    ascend_ops::TinyRows<DTYPE_ROWS> op;
    op.Init(rows, inverse, residual, out, t, &pipe);
    op.Process();
    return;
  }
#endif
  if (t.hasResidual) {
    ascend_ops::AddRows<DTYPE_ROWS> op;
    op.Init(rows, inverse, residual, out, t, &pipe);
    op.Process();
  } else {
    ascend_ops::MoveRows<DTYPE_ROWS> op;
    op.Init(rows, inverse, out, t, &pipe);
    op.Process();
  }
}
