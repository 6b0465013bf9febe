// What the host sides of the operators share: the chip as the tiling sees it, shape inference by dimensions, and the dtypes of a
// chip.
#ifndef ASCEND_OPS_OPERATOR_H
#define ASCEND_OPS_OPERATOR_H
#include <string>
#include <vector>
#include "register/op_def_registry.h"
#include "tiling/platform/platform_ascendc.h"
#include "tiling.h"

namespace ascend_ops_host {
inline Chip ReadChip(gert::TilingContext *context) {
  auto platform = platform_ascendc::PlatformAscendC(context->GetPlatformInfo());
  Chip chip{};
  platform.GetCoreMemSize(platform_ascendc::CoreMemType::UB, chip.ubBytes);
  chip.hasPad = platform.GetSocVersion() != platform_ascendc::SocVersion::ASCEND910;
  chip.cores = chip.hasPad ? platform.GetCoreNumAiv() : platform.GetCoreNum();  // vector cores of a split chip, AI cores of 910A
  return chip;
}

inline ge::graphStatus Launch(gert::TilingContext *context, uint32_t cores) {
  context->SetBlockDim(cores);
  context->GetWorkspaceSizes(1)[0] = 0;
  return ge::GRAPH_SUCCESS;
}

// Rows of a [rows, cols] source picked by an index [n]: checks the shapes and fills the tiling.
// residual: nullptr, or the shape [n, cols] of what is added.
inline ge::graphStatus TileRowOperator(gert::TilingContext *context, const gert::StorageShape *residual) {
  const gert::Shape source = context->GetInputShape(0)->GetStorageShape();
  const gert::Shape index = context->GetInputShape(1)->GetStorageShape();
  if (source.GetDimNum() != 2 || index.GetDimNum() != 1) return ge::GRAPH_FAILED;
  const int64_t most = INT32_MAX, rows = index.GetDim(0), cols = source.GetDim(1);
  if (source.GetDim(0) > most || rows > most || cols > most) return ge::GRAPH_FAILED;
  if (residual != nullptr) {
    const gert::Shape shape = residual->GetStorageShape();
    if (shape.GetDimNum() != 2 || shape.GetDim(0) != rows || shape.GetDim(1) != cols) return ge::GRAPH_FAILED;
  }
  const ge::DataType dtype = context->GetInputDesc(0)->GetDataType();
  auto *tiling = context->GetTilingData<RowsTilingData>();
  if (tiling == nullptr) return ge::GRAPH_FAILED;
  TileRows(ReadChip(context), static_cast<uint32_t>(source.GetDim(0)), static_cast<uint32_t>(rows), static_cast<uint32_t>(cols),
           static_cast<uint32_t>(ge::GetSizeByDataType(dtype)), residual != nullptr, dtype == ge::DT_BF16, tiling);
  return Launch(context, tiling->cores);
}

// Output [n, cols] from source [rows, cols] and index [n]; a dimension that is not known yet (-1) stays so.
inline ge::graphStatus InferRowShape(gert::InferShapeContext *context) {
  const gert::Shape *source = context->GetInputShape(0);
  const gert::Shape *index = context->GetInputShape(1);
  gert::Shape *out = context->GetOutputShape(0);
  if (source == nullptr || index == nullptr || out == nullptr) return ge::GRAPH_FAILED;
  const int64_t unknown = -1;
  out->SetDimNum(2);
  out->SetDim(0, index->GetDimNum() == 1 && index->GetDim(0) >= 0 ? index->GetDim(0) : unknown);
  out->SetDim(1, source->GetDimNum() == 2 ? source->GetDim(1) : unknown);
  return ge::GRAPH_SUCCESS;
}

inline ge::graphStatus InferRowDataType(gert::InferDataTypeContext *context) {
  return context->SetOutputDataType(0, context->GetInputDataType(0));
}

// What operators declare of their arguments, they declare twice, in a function Declare: for the chips with bfloat16, and for 910A,
// whose list replaces all that the first says of an argument. AutoContiguous has a strided view copied before the launch: a kernel
// sees addresses and no strides, and would read the view's memory as if its rows followed each other.
//
// One column a dtype the kernel is compiled for; 910A has no bfloat16.
inline std::vector<ge::DataType> RowTypes(bool bfloat16) {
  std::vector<ge::DataType> types{ge::DT_FLOAT, ge::DT_FLOAT16};
  if (bfloat16) types.push_back(ge::DT_BF16);
  return types;
}

inline std::vector<ge::DataType> IndexTypes(bool bfloat16) {
  return std::vector<ge::DataType>(RowTypes(bfloat16).size(), ge::DT_INT32);
}

inline std::vector<ge::Format> Formats(bool bfloat16) {
  return std::vector<ge::Format>(RowTypes(bfloat16).size(), ge::FORMAT_ND);
}
}  // namespace ascend_ops_host
#endif
