// Host side of ExpertCombine: prototype, shape and dtype inference, tiling. The semantics are told in op_kernel/expert_combine.cpp.
#include "operator.h"

namespace optiling {
static ge::graphStatus TileExpertCombine(gert::TilingContext *context) {
  return ascend_ops_host::TileRowOperator(context, context->GetOptionalInputShape(2));
}
}  // namespace optiling

namespace ops {
using namespace ascend_ops_host;

class ExpertCombine : public OpDef {
 public:
  explicit ExpertCombine(const char *name) : OpDef(name) {
    this->Input("rows").ParamType(REQUIRED).DataType(RowTypes(true)).Format(Formats(true));
    this->Input("inverse").ParamType(REQUIRED).DataType(IndexTypes(true)).Format(Formats(true));
    this->Input("residual").ParamType(OPTIONAL).DataType(RowTypes(true)).Format(Formats(true));
    this->Output("out").ParamType(REQUIRED).DataType(RowTypes(true)).Format(Formats(true));
    this->SetInferShape(InferRowShape).SetInferDataType(InferRowDataType);
    this->AICore().SetTiling(optiling::TileExpertCombine);
    this->AICore().AddConfig("ascend910b").AddConfig("ascend910_93");

    OpAICoreConfig ascend910;
    ascend910.DynamicCompileStaticFlag(true).DynamicRankSupportFlag(true).DynamicShapeSupportFlag(true);
    ascend910.Input("rows").ParamType(REQUIRED).DataType(RowTypes(false)).Format(Formats(false));
    ascend910.Input("inverse").ParamType(REQUIRED).DataType(IndexTypes(false)).Format(Formats(false));
    ascend910.Input("residual").ParamType(OPTIONAL).DataType(RowTypes(false)).Format(Formats(false));
    ascend910.Output("out").ParamType(REQUIRED).DataType(RowTypes(false)).Format(Formats(false));
    this->AICore().AddConfig("ascend910", ascend910);
  }
};
OP_ADD(ExpertCombine);
}  // namespace ops
