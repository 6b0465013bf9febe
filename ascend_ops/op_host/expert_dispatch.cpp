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
    Declare(*this, true);
    this->SetInferShape(InferRowShape).SetInferDataType(InferRowDataType);
    this->AICore().SetTiling(optiling::TileExpertDispatch);
    this->AICore().AddConfig("ascend910b").AddConfig("ascend910_93");

    OpAICoreConfig ascend910;
    ascend910.DynamicCompileStaticFlag(true).DynamicRankSupportFlag(true).DynamicShapeSupportFlag(true);
    Declare(ascend910, false);
    this->AICore().AddConfig("ascend910", ascend910);
  }

 private:
  template <typename Definition>
  static void Declare(Definition &definition, bool bfloat16) {
    definition.Input("x").ParamType(REQUIRED).DataType(RowTypes(bfloat16)).Format(Formats(bfloat16)).AutoContiguous();
    definition.Input("order").ParamType(REQUIRED).DataType(IndexTypes(bfloat16)).Format(Formats(bfloat16)).AutoContiguous();
    definition.Output("rows").ParamType(REQUIRED).DataType(RowTypes(bfloat16)).Format(Formats(bfloat16));
  }
};
OP_ADD(ExpertDispatch);
}  // namespace ops
