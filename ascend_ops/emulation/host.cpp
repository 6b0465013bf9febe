// The host sides of the operators, unchanged, behind C functions: see op_host.py.
#include "../op_host/expert_combine.cpp"
#include "../op_host/expert_dispatch.cpp"

namespace {
constexpr int INPUTS = 3, AXES = 2;
using Shapes =
    const int64_t (*)[1 + AXES];  // of each input its number of axes and their sizes; -1 axes: an input that is not there

gert::Shape ShapeOf(const int64_t *from) {
  gert::Shape shape;
  shape.dims.assign(from + 1, from + 1 + std::min<int64_t>(from[0], AXES));
  shape.dims.resize(from[0], 1);
  return shape;
}

// Rows of dtype `type`, the index int32.
gert::TilingContext ContextOf(const char *soc, uint32_t cores, Shapes shapes, int type) {
  gert::TilingContext context;
  context.platform = {soc, cores};
  for (int i = 0; i < INPUTS; ++i) {
    context.types.push_back({i == 1 ? ge::DT_INT32 : static_cast<ge::DataType>(type)});
    context.shapes.push_back(shapes[i][0] < 0 ? nullptr : std::make_unique<gert::StorageShape>());
    if (shapes[i][0] >= 0) context.shapes.back()->shape = ShapeOf(shapes[i]);
  }
  return context;
}

std::string Describe(const ops::OpParamDef &argument) {
  std::string text = argument.output ? "out " : "in ";
  text += argument.name + (argument.param == ops::REQUIRED ? " required" : " optional");
  text += argument.contiguous ? " contiguous" : " strided";
  for (size_t i = 0; i < std::max(argument.types.size(), argument.formats.size()); ++i) {
    text += " " + std::to_string(i < argument.types.size() ? argument.types[i] : -1);
    text += ":" + std::to_string(i < argument.formats.size() ? argument.formats[i] : -1);
  }
  return text;
}
}  // namespace

// What every operator declares for every chip, an argument a line; what a chip's own list says of it replaces all of the common
// one.
extern "C" const char *definitions() {
  static std::string all;
  all.clear();
  for (auto &[name, definition] : emulation::Operators()) {
    for (auto &[chip, config] : definition.aicore.chips) {
      for (const auto &common : definition.declared) {
        const ops::OpParamDef *argument = common.get();
        for (const auto &own : config.declared) {
          if (own->name == common->name && own->output == common->output) argument = own.get();
        }
        const bool dynamic = config.compileStatic && config.rank && config.shape;
        all += name + " " + chip + (dynamic ? " dynamic " : " static ") + Describe(*argument) + "\n";
      }
    }
  }
  return all.c_str();
}

// The functions that an operator lacks, and CANN needs.
extern "C" const char *missing(const char *op) {
  static std::string all;
  const ops::OpDef &definition = emulation::Operators().at(op);
  all = definition.inferShape ? "" : " InferShape";
  all += definition.inferType ? "" : " InferDataType";
  all += definition.aicore.tile ? "" : " Tiling";
  return all.c_str();
}

// Bytes of tiling data written to `tiling`, or -1 where the operator refuses.
extern "C" int64_t tile(const char *op, const char *soc, uint32_t cores, Shapes shapes, int type, uint8_t *tiling, int64_t *blocks,
                        int64_t *workspace) {
  gert::TilingContext context = ContextOf(soc, cores, shapes, type);
  if (emulation::Operators().at(op).aicore.tile(&context) != ge::GRAPH_SUCCESS) return -1;
  std::memcpy(tiling, context.tiling.data(), context.tiling.size());
  *blocks = context.blocks;
  *workspace = 0;
  for (size_t bytes : context.workspaces) *workspace += static_cast<int64_t>(bytes);
  return static_cast<int64_t>(context.tiling.size());
}

// Shape and dtype of the output, as inferred: number of axes, two sizes, dtype. 0, or -1 where the operator refuses.
extern "C" int infer(const char *op, Shapes shapes, int type, int64_t *out) {
  gert::InferShapeContext shape;
  gert::InferDataTypeContext dtype;
  for (int i = 0; i < INPUTS && shapes[i][0] >= 0; ++i) {
    shape.inputs.push_back(ShapeOf(shapes[i]));
    dtype.inputs.push_back(i == 1 ? ge::DT_INT32 : static_cast<ge::DataType>(type));
  }
  const ops::OpDef &definition = emulation::Operators().at(op);
  if (definition.inferShape(&shape) != ge::GRAPH_SUCCESS || definition.inferType(&dtype) != ge::GRAPH_SUCCESS) return -1;
  out[0] = static_cast<int64_t>(shape.output.GetDimNum());
  for (int i = 0; i < AXES; ++i) out[1 + i] = shape.output.GetDim(i);
  out[1 + AXES] = dtype.output;
  return 0;
}

// Bytes moved and the fewest possible, by the arithmetic of the tiling; `read` rows have an index that is not negative.
extern "C" void traffic(const char *op, const char *soc, uint32_t cores, Shapes shapes, int type, int64_t read, int64_t *moved,
                        int64_t *minimum) {
  gert::TilingContext context = ContextOf(soc, cores, shapes, type);
  emulation::Operators().at(op).aicore.tile(&context);
  const auto &tiling = *reinterpret_cast<const RowsTilingData *>(context.tiling.data());
  const int bytes = ge::GetSizeByDataType(static_cast<ge::DataType>(type));
  const auto found = ascend_ops_host::RowsTraffic(ascend_ops_host::ReadChip(&context), tiling, bytes, read);
  *moved = static_cast<int64_t>(found.moved);
  *minimum = static_cast<int64_t>(found.minimum);
}
