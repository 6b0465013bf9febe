// Host side of RoutingPlan: prototype, shape and dtype inference, tiling. The semantics are told in op_kernel/routing_plan.cpp.
#include "operator.h"

namespace optiling {
static ge::graphStatus TileRoutingPlan(gert::TilingContext *context) {
  const gert::Shape experts = context->GetInputShape(0)->GetStorageShape();
  const int64_t *stored = context->GetAttrs()->GetInt(0);
  if (experts.GetDimNum() != 1 || experts.GetDim(0) > INT32_MAX) return ge::GRAPH_FAILED;
  if (stored == nullptr || *stored < 1 || *stored > ascend_ops_host::MOST_EXPERTS) return ge::GRAPH_FAILED;
  auto *tiling = context->GetTilingData<PlanTilingData>();
  if (tiling == nullptr) return ge::GRAPH_FAILED;
  ascend_ops_host::TilePlan(ascend_ops_host::ReadChip(context), static_cast<uint32_t>(experts.GetDim(0)),
                            static_cast<uint32_t>(*stored), tiling);
  return ascend_ops_host::Launch(context, tiling->cores);
}
}  // namespace optiling

namespace ge {
static graphStatus InferRoutingPlanShape(gert::InferShapeContext *context) {
  const gert::Shape *experts = context->GetInputShape(0);
  const int64_t *stored = context->GetAttrs()->GetInt(0);
  if (experts == nullptr || stored == nullptr) return GRAPH_FAILED;
  *context->GetOutputShape(0) = *experts;
  *context->GetOutputShape(1) = *experts;
  gert::Shape *offsets = context->GetOutputShape(2);
  offsets->SetDimNum(1);
  offsets->SetDim(0, *stored + 1);
  return GRAPH_SUCCESS;
}

static graphStatus InferRoutingPlanDataType(gert::InferDataTypeContext *context) {
  for (size_t i = 0; i < 3; ++i) context->SetOutputDataType(i, DT_INT32);
  return GRAPH_SUCCESS;
}
}  // namespace ge

namespace ops {
class RoutingPlan : public OpDef {
 public:
  explicit RoutingPlan(const char *name) : OpDef(name) {
    this->Input("experts").ParamType(REQUIRED).DataType({ge::DT_INT32}).Format({ge::FORMAT_ND}).AutoContiguous();
    this->Output("order").ParamType(REQUIRED).DataType({ge::DT_INT32}).Format({ge::FORMAT_ND});
    this->Output("inverse").ParamType(REQUIRED).DataType({ge::DT_INT32}).Format({ge::FORMAT_ND});
    this->Output("offsets").ParamType(REQUIRED).DataType({ge::DT_INT32}).Format({ge::FORMAT_ND});
    this->Attr("stored").AttrType(REQUIRED).Int();  // K, experts stored: ids are below it
    this->SetInferShape(ge::InferRoutingPlanShape).SetInferDataType(ge::InferRoutingPlanDataType);
    this->AICore().SetTiling(optiling::TileRoutingPlan);
    this->AICore().AddConfig("ascend910").AddConfig("ascend910b").AddConfig("ascend910_93");
  }
};
OP_ADD(RoutingPlan);
}  // namespace ops
