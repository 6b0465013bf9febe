// Host side of ExpertDispatch: prototype, shape and dtype inference, tiling. The semantics are told in
// op_kernel/expert_dispatch.cpp.
#include "operator.h"

namespace optiling {
static ge::graphStatus TileExpertDispatch(gert::TilingContext *context) {
  return ascend_ops_host::TileRowOperator(context, nullptr);
}
}  // namespace optiling

namespace ops {
using namespace ascend_ops_host;

class ExpertDispatch : public OpDef {
 public:
  explicit ExpertDispatch(const char *name) : OpDef(name) {
    this->Input("x").ParamType(REQUIRED).DataType(RowTypes(true)).Format(Formats(true));
    this->Input("order").ParamType(REQUIRED).DataType(IndexTypes(true)).Format(Formats(true));
    this->Output("rows").ParamType(REQUIRED).DataType(RowTypes(true)).Format(Formats(true));
    this->SetInferShape(InferRowShape).SetInferDataType(InferRowDataType);
    this->AICore().SetTiling(optiling::TileExpertDispatch);
    this->AICore().AddConfig("ascend910b").AddConfig("ascend910_93");

    OpAICoreConfig ascend910;
    ascend910.DynamicCompileStaticFlag(true).DynamicRankSupportFlag(true).DynamicShapeSupportFlag(true);
    ascend910.Input("x").ParamType(REQUIRED).DataType(RowTypes(false)).Format(Formats(false));
    ascend910.Input("order").ParamType(REQUIRED).DataType(IndexTypes(false)).Format(Formats(false));
    ascend910.Output("rows").ParamType(REQUIRED).DataType(RowTypes(false)).Format(Formats(false));
    this->AICore().AddConfig("ascend910", ascend910);
  }
};
OP_ADD(ExpertDispatch);
}  // namespace ops
