// What op_host/ uses of CANN's header of this name: shapes, contexts and operator definitions. The host sources compile unchanged,
// with g++, against this header and platform_ascendc.h; host.cpp fills the contexts and calls what the operators registered. As in
// kernel_operator.h this is our reading of the documents: that CANN compiles and calls the host side, only CANN can show.
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <map>
#include <memory>
#include <string>
#include <type_traits>
#include <vector>
#include "tiling/platform/platform_ascendc.h"

namespace ge {
using graphStatus = uint32_t;
constexpr graphStatus GRAPH_SUCCESS = 0, GRAPH_FAILED = 0xFFFFFFFF;

enum DataType { DT_FLOAT = 0, DT_FLOAT16 = 1, DT_INT32 = 3, DT_BF16 = 27 };
enum Format { FORMAT_ND = 2 };

inline int GetSizeByDataType(DataType type) {
  return type == DT_FLOAT || type == DT_INT32 ? 4 : 2;
}
}  // namespace ge

namespace gert {
class Shape {
 public:
  size_t GetDimNum() const { return dims.size(); }
  int64_t GetDim(size_t i) const { return i < dims.size() ? dims[i] : INT64_MIN; }
  void SetDimNum(size_t number) { dims.resize(number); }
  void SetDim(size_t i, int64_t size) { dims.at(i) = size; }

  std::vector<int64_t> dims;
};

struct StorageShape {
  const Shape &GetStorageShape() const { return shape; }
  Shape shape;
};

struct CompileTimeTensorDesc {
  ge::DataType GetDataType() const { return type; }
  ge::DataType type;
};

// An input that is not there has no shape: nullptr.
struct TilingContext {
  const StorageShape *GetInputShape(size_t i) const { return i < shapes.size() ? shapes[i].get() : nullptr; }
  const StorageShape *GetOptionalInputShape(size_t i) const { return GetInputShape(i); }
  const CompileTimeTensorDesc *GetInputDesc(size_t i) const { return i < types.size() ? &types[i] : nullptr; }
  fe::PlatFormInfos *GetPlatformInfo() { return &platform; }
  ge::graphStatus SetBlockDim(uint32_t number) {
    blocks = number;
    return ge::GRAPH_SUCCESS;
  }
  size_t *GetWorkspaceSizes(size_t number) {
    workspaces.assign(number, ~size_t{0});  // whoever asks for them has to set them
    return workspaces.data();
  }
  template <typename T>
  T *GetTilingData() {
    static_assert(std::is_trivially_copyable<T>::value, "the tiling is copied to the device byte by byte");
    tiling.assign(sizeof(T), 0xA5);
    return reinterpret_cast<T *>(tiling.data());
  }

  std::vector<std::unique_ptr<StorageShape>> shapes;
  std::vector<CompileTimeTensorDesc> types;
  fe::PlatFormInfos platform;
  uint32_t blocks{0};
  std::vector<size_t> workspaces;
  std::vector<uint8_t> tiling;
};

struct InferShapeContext {
  const Shape *GetInputShape(size_t i) const { return i < inputs.size() ? &inputs[i] : nullptr; }
  Shape *GetOutputShape(size_t i) { return i == 0 ? &output : nullptr; }
  std::vector<Shape> inputs;
  Shape output;
};

struct InferDataTypeContext {
  ge::DataType GetInputDataType(size_t i) const { return inputs.at(i); }
  ge::graphStatus SetOutputDataType(size_t i, ge::DataType type) {
    if (i != 0) return ge::GRAPH_FAILED;
    output = type;
    return ge::GRAPH_SUCCESS;
  }
  std::vector<ge::DataType> inputs;
  ge::DataType output;
};
}  // namespace gert

namespace ops {
enum Option { OPTIONAL = 1, REQUIRED = 2 };

struct OpParamDef {
  OpParamDef &ParamType(Option option) { return param = option, *this; }
  OpParamDef &DataType(std::vector<ge::DataType> list) { return types = std::move(list), *this; }
  OpParamDef &Format(std::vector<ge::Format> list) { return formats = std::move(list), *this; }
  OpParamDef &AutoContiguous() { return contiguous = true, *this; }
  std::string name;
  bool output;
  Option param{};
  std::vector<ge::DataType> types;
  std::vector<ge::Format> formats;
  bool contiguous{false};
};

struct Arguments {
  OpParamDef &Input(const char *name) { return Declare(name, false); }
  OpParamDef &Output(const char *name) { return Declare(name, true); }
  std::vector<std::unique_ptr<OpParamDef>> declared;

 private:
  OpParamDef &Declare(const char *name, bool output) {
    declared.push_back(std::make_unique<OpParamDef>());
    declared.back()->name = name;
    declared.back()->output = output;
    return *declared.back();
  }
};

struct OpAICoreConfig : Arguments {
  OpAICoreConfig &DynamicCompileStaticFlag(bool flag) { return compileStatic = flag, *this; }
  OpAICoreConfig &DynamicRankSupportFlag(bool flag) { return rank = flag, *this; }
  OpAICoreConfig &DynamicShapeSupportFlag(bool flag) { return shape = flag, *this; }
  bool compileStatic{false}, rank{false}, shape{false};
};

struct OpAICoreDef {
  OpAICoreDef &SetTiling(ge::graphStatus (*function)(gert::TilingContext *)) { return tile = function, *this; }
  OpAICoreDef &AddConfig(const char *chip) {  // without a list of its own a chip has all three flags
    OpAICoreConfig config;
    return AddConfig(chip, config.DynamicCompileStaticFlag(true).DynamicRankSupportFlag(true).DynamicShapeSupportFlag(true));
  }
  OpAICoreDef &AddConfig(const char *chip, OpAICoreConfig &config) { return chips[chip] = std::move(config), *this; }
  ge::graphStatus (*tile)(gert::TilingContext *){nullptr};
  std::map<std::string, OpAICoreConfig> chips;
};

struct OpDef : Arguments {
  explicit OpDef(const char *) {}
  OpDef &SetInferShape(ge::graphStatus (*function)(gert::InferShapeContext *)) { return inferShape = function, *this; }
  OpDef &SetInferDataType(ge::graphStatus (*function)(gert::InferDataTypeContext *)) { return inferType = function, *this; }
  OpAICoreDef &AICore() { return aicore; }
  ge::graphStatus (*inferShape)(gert::InferShapeContext *){nullptr};
  ge::graphStatus (*inferType)(gert::InferDataTypeContext *){nullptr};
  OpAICoreDef aicore;
};
}  // namespace ops

namespace emulation {
inline std::map<std::string, ops::OpDef> &Operators() {
  static std::map<std::string, ops::OpDef> all;
  return all;
}
}  // namespace emulation

#define OP_ADD(Type) static const bool added##Type = emulation::Operators().emplace(#Type, Type(#Type)).second
