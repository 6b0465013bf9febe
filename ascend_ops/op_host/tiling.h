// Tiling arithmetic: how rows are divided over cores and UB buffers. No CANN header, so that host tests run exactly what is
// shipped.
#ifndef ASCEND_OPS_TILING_H
#define ASCEND_OPS_TILING_H
#include <algorithm>
#include <cstdint>
#include "../op_kernel/tiling_data.h"

namespace ascend_ops_host {
struct Chip {
  uint32_t cores;    // blocks at most: AIV cores of 910B and 910_93 (40 or 48), AI cores of 910A (30 or 32)
  uint64_t ubBytes;  // 910A 262144, 910B 196608
  bool hasPad;       // DataCopyPad: not on 910A
};

constexpr uint32_t BLOCK_BYTES = 32;
constexpr uint64_t RESERVED_BYTES = 8 * 1024 + 256;  // API temporaries, and the end of the UB that 910B keeps
constexpr uint64_t GROUP_BYTES = 32 * 1024;          // rows are grouped up to this: from 16 KB on transfers run at full bandwidth
constexpr uint64_t MOST_BYTES = 64 * 1024;           // a single row is cut from here on, so that all buffers are at work
constexpr uint32_t MOST_GROUP_ROWS = 256;
constexpr uint32_t MOST_INDICES = 2048;
constexpr uint32_t ZERO_BYTES = 16 * 1024;
constexpr uint32_t CAST_ELEMENTS = 2048;

inline uint64_t CeilDiv(uint64_t a, uint64_t b) {
  return (a + b - 1) / b;
}
inline uint64_t AlignUp(uint64_t a, uint64_t b) {
  return CeilDiv(a, b) * b;
}
inline uint64_t AlignDown(uint64_t a, uint64_t b) {
  return a / b * b;
}

// Columns of one UB buffer and rows of one group.
// buffers: of `capacity` bytes each, at most. tiny: 910A rows shorter than a block, which are flat there (tiny_rows.h).
inline void FitBuffer(uint64_t capacity, uint32_t elementBytes, uint32_t mostRows, bool tiny, RowsTilingData *t) {
  const uint32_t lane = BLOCK_BYTES / elementBytes;
  const uint64_t slotBytes = AlignUp(t->cols, lane) * elementBytes;
  t->groupRows = 1;
  if (tiny) {
    t->colTile = static_cast<uint32_t>(ZERO_BYTES / elementBytes);
  } else if (slotBytes <= capacity) {
    const uint64_t rows = std::min(GROUP_BYTES, capacity) / slotBytes;
    t->groupRows = static_cast<uint32_t>(std::clamp<uint64_t>(rows, 1, std::min(mostRows, MOST_GROUP_ROWS)));
    t->colTile = static_cast<uint32_t>(AlignUp(t->cols, lane));
  } else {
    t->colTile = static_cast<uint32_t>(AlignUp(CeilDiv(t->cols, CeilDiv(slotBytes, capacity)), lane));
  }
}

// ExpertDispatch (hasResidual false) and ExpertCombine. isBfloat16 is only asked for with a residual.
inline void TileRows(const Chip &chip, uint32_t sourceRows, uint32_t rows, uint32_t cols, uint32_t elementBytes, bool hasResidual,
                     bool isBfloat16, RowsTilingData *t) {
  const uint32_t lane = BLOCK_BYTES / elementBytes;
  *t = RowsTilingData{};
  t->sourceRows = sourceRows;
  t->rows = rows;
  t->cols = cols;
  t->hasResidual = hasResidual ? 1 : 0;
  t->cores = 1;
  if (rows == 0 || cols == 0) return;

  // 910A: a core starts on a 32 B boundary and owns at least one block, see chip.h and tiny_rows.h
  const uint32_t unit = !chip.hasPad && cols % lane != 0 ? lane : 1;
  t->rowsPerCore = static_cast<uint32_t>(AlignUp(CeilDiv(rows, chip.cores), unit));
  t->cores = static_cast<uint32_t>(CeilDiv(rows, t->rowsPerCore));
  const uint64_t last = static_cast<uint64_t>(rows - (t->cores - 1) * t->rowsPerCore) * cols;
  if (!chip.hasPad && t->cores > 1 && last < lane) --t->cores;

  const uint32_t mostRows = t->cores == 1 ? rows : t->rowsPerCore;
  t->castTile = hasResidual && isBfloat16 ? CAST_ELEMENTS : 0;
  t->zeroTile =
      hasResidual ? 0
                  : static_cast<uint32_t>(std::min<uint64_t>(ZERO_BYTES / elementBytes, AlignUp(uint64_t(mostRows) * cols, lane)));
  const uint64_t fixedBytes = RESERVED_BYTES + MOST_INDICES * 4 + t->zeroTile * uint64_t(elementBytes) + t->castTile * uint64_t(8);
  const auto capacity = [&](uint32_t buffers) {
    return std::min(MOST_BYTES, AlignDown((chip.ubBytes - fixedBytes) / buffers, BLOCK_BYTES));
  };
  // Rows that are only moved pass through one queue. With two buffers a load that is late keeps the store waiting; with four there
  // are groups in reserve. Both chips hold four groups (4 * 32 KB of 192 or 256 KB), and four is all that 910A has events for; a row
  // that a quarter does not hold has two buffers. A sum has three queues, and those of source and residual share the four events.
  t->buffers = !hasResidual && AlignUp(cols, lane) * elementBytes <= capacity(4) ? 4 : 2;
  FitBuffer(capacity(hasResidual ? 3 * t->buffers : t->buffers), elementBytes, mostRows, !chip.hasPad && cols < lane, t);
  t->indexTile = static_cast<uint32_t>(AlignDown(MOST_INDICES, 8 * t->groupRows));
}

// Bytes that cross the GM bus, and the fewest possible: every row read once and written once, every index read once.
struct Traffic {
  uint64_t moved;
  uint64_t minimum;
};

// rowsRead: rows whose index is not negative.
inline Traffic RowsTraffic(const Chip &chip, const RowsTilingData &t, uint32_t elementBytes, uint64_t rowsRead) {
  const uint32_t lane = BLOCK_BYTES / elementBytes;
  const uint64_t rowBytes = uint64_t(t.cols) * elementBytes;
  uint64_t rowMoved = rowBytes;
  if (!chip.hasPad && t.cols >= lane) rowMoved = AlignUp(rowBytes, BLOCK_BYTES);  // the shifted block overlaps
  const uint64_t zeroRows = t.hasResidual ? 0 : t.rows - rowsRead;
  const uint64_t written = (t.rows - zeroRows) * rowMoved + zeroRows * rowBytes;
  const uint64_t residual = t.hasResidual * uint64_t(t.rows);
  return {rowsRead * rowMoved + residual * rowMoved + written + t.rows * uint64_t(4),
          (rowsRead + residual + t.rows) * rowBytes + t.rows * uint64_t(4)};
}
}  // namespace ascend_ops_host
#endif
