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
    Declare(*this, true);
    this->SetInferShape(InferRowShape).SetInferDataType(InferRowDataType);
    this->AICore().SetTiling(optiling::TileExpertCombine);
    this->AICore().AddConfig("ascend910b").AddConfig("ascend910_93");

    OpAICoreConfig ascend910;
    ascend910.DynamicCompileStaticFlag(true).DynamicRankSupportFlag(true).DynamicShapeSupportFlag(true);
    Declare(ascend910, false);
    this->AICore().AddConfig("ascend910", ascend910);
  }

 private:
  template <typename Definition>
  static void Declare(Definition &definition, bool bfloat16) {
    definition.Input("rows").ParamType(REQUIRED).DataType(RowTypes(bfloat16)).Format(Formats(bfloat16)).AutoContiguous();
    definition.Input("inverse").ParamType(REQUIRED).DataType(IndexTypes(bfloat16)).Format(Formats(bfloat16)).AutoContiguous();
    definition.Input("residual").ParamType(OPTIONAL).DataType(RowTypes(bfloat16)).Format(Formats(bfloat16)).AutoContiguous();
    definition.Output("out").ParamType(REQUIRED).DataType(RowTypes(bfloat16)).Format(Formats(bfloat16));
  }
};
OP_ADD(ExpertCombine);
}  // namespace ops
