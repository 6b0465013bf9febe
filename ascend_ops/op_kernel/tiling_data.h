// Tiling structures, written by op_host and read by op_kernel: plain fixed-size fields only (CANN's rule), every field set.
#ifndef ASCEND_OPS_TILING_DATA_H
#define ASCEND_OPS_TILING_DATA_H
#include <cstdint>

// ExpertDispatch and ExpertCombine: output row i is source row index[i].
struct RowsTilingData {
  uint32_t sourceRows;
  uint32_t rows;  // output rows, length of the index
  uint32_t cols;
  uint32_t hasResidual;  // ExpertCombine only: 1 when out = gathered + residual
  uint32_t cores;        // blocks launched; the last one also takes what the others leave over
  uint32_t rowsPerCore;
  uint32_t buffers;    // of each queue
  uint32_t groupRows;  // whole rows in one UB buffer; 1 when rows are cut into column tiles
  uint32_t colTile;    // elements of a row in one UB buffer, whole 32 B blocks; rows below 32 B on 910A: elements of a flat tile
  uint32_t indexTile;  // indices in the UB at a time, whole groups and whole 32 B blocks
  uint32_t zeroTile;   // elements of the buffer that zero rows are stored from
  uint32_t castTile;   // bfloat16 with residual: elements added in float at a time
};
#endif
