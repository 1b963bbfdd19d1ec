// What the plugins for every TensorRT share: its types in and out of the core's, and its log.
#pragma once

#include <NvInfer.h>

#include <cstdint>
#include <cstdio>
#include <string>
#include <vector>

#include "operators.hpp"
#include "status.hpp"

namespace edge4d {

// To TensorRT's log, where that can be reached, else to stderr.
void log_error(const char* message) noexcept;

// Runs something and turns what it throws into a status and a line in the log: no exception may reach TensorRT.
template <class Work>
int32_t logged(const Work& run) noexcept {
  const int32_t status = status_of(run);
  if (status) log_error(edge4d_last_error());
  return status;
}

inline void log_to(nvinfer1::ILogger* logger, const char* message) noexcept {
  if (logger) {
    logger->log(nvinfer1::ILogger::Severity::kERROR, message);
  } else {
    std::fprintf(stderr, "edge4d: %s\n", message);
  }
}

// ---- fields ---------------------------------------------------------------------------------------------------------

inline nvinfer1::PluginFieldType field_type(Kind kind) {
  if (kind == Kind::INT) return nvinfer1::PluginFieldType::kINT32;
  return kind == Kind::FLOAT ? nvinfer1::PluginFieldType::kFLOAT32 : nvinfer1::PluginFieldType::kCHAR;
}

// The names and types of an operator's attributes.
inline std::vector<nvinfer1::PluginField> fields_of(const Operator& of) {
  std::vector<nvinfer1::PluginField> fields;
  for (const Attribute& attribute : of.attributes)
    fields.emplace_back(attribute.name, nullptr, field_type(attribute.kind), 1);
  return fields;
}

inline nvinfer1::PluginFieldCollection collection_of(const std::vector<nvinfer1::PluginField>& fields) {
  return {int32_t(fields.size()), fields.data()};
}

inline Value value_of(const nvinfer1::PluginField& field) {
  using nvinfer1::PluginFieldType;
  const bool text = field.type == PluginFieldType::kCHAR;
  if (!field.data || (text ? field.length < 0 : field.length != 1))
    refuse(std::string(field.name) + " has " + std::to_string(field.length) + " values; expected 1.");
  if (field.type == PluginFieldType::kINT32) return *static_cast<const int32_t*>(field.data);
  if (field.type == PluginFieldType::kFLOAT32) return *static_cast<const float*>(field.data);
  if (!text) refuse(std::string(field.name) + " is no int32, float32 or string.");
  const std::string_view characters(static_cast<const char*>(field.data), size_t(field.length));
  return characters.substr(0, characters.find('\0'));  // parsers may count the zero at the end
}

// The fields that have a value and a name that the operator knows.
inline std::vector<Given> given_in(const nvinfer1::PluginFieldCollection* collection) {
  std::vector<Given> given;
  for (int32_t i = 0; collection && i < collection->nbFields; ++i) {
    const nvinfer1::PluginField& field = collection->fields[i];
    if (field.name && field.data) given.push_back({field.name, value_of(field)});
  }
  return given;
}

// ---- tensors --------------------------------------------------------------------------------------------------------

inline nvinfer1::DataType data_type(Type type, nvinfer1::DataType stored) {
  using nvinfer1::DataType;
  if (type == Type::STORED) return stored;
  if (type == Type::INT32) return DataType::kINT32;
  return type == Type::FLOAT16 ? DataType::kHALF : DataType::kFLOAT;
}

inline Type stored_type(nvinfer1::DataType type) {
  return type == nvinfer1::DataType::kHALF ? Type::FLOAT16 : Type::FLOAT32;
}

// Whether a tensor, inputs first, may be as `desc` says when the node's first is as `first` says.
inline bool supports(const Node& node, int32_t position, const nvinfer1::PluginTensorDesc& desc,
                     const nvinfer1::PluginTensorDesc& first) {
  using nvinfer1::DataType;
  if (desc.format != nvinfer1::TensorFormat::kLINEAR) return false;
  const size_t at = size_t(position), inputs = node.inputs().size();
  const Type type = at < inputs ? node.inputs()[at].type : node.outputs()[at - inputs].type;
  if (at == 0 && type == Type::STORED) return desc.type == DataType::kFLOAT || desc.type == DataType::kHALF;
  return desc.type == data_type(type, first.type);
}

inline void check_counts(const Node& node, int32_t inputs, int32_t outputs) {
  if (size_t(inputs) != node.inputs().size() || size_t(outputs) != node.outputs().size())
    refuse(std::string(node.of().name) + ": a node with " + std::to_string(inputs) + " inputs and " +
           std::to_string(outputs) + " outputs; expected " + std::to_string(node.inputs().size()) + " and " +
           std::to_string(node.outputs().size()) + ".");
}

inline nvinfer1::DimsExprs dims_of(const Node& node, size_t output, const nvinfer1::DimsExprs* inputs,
                                   nvinfer1::IExprBuilder& builder) {
  std::vector<int32_t> ranks;
  for (size_t input = 0; input < node.inputs().size(); ++input) ranks.push_back(inputs[input].nbDims);
  nvinfer1::DimsExprs dims = {};
  for (const Extent& extent : node.extents(output, ranks))
    dims.d[dims.nbDims++] = extent.input < 0 ? builder.constant(extent.value) : inputs[extent.input].d[extent.value];
  return dims;
}

constexpr size_t MAX_INPUTS = 8;

// The inputs' shapes, on the stack: `enqueue` allocates nothing.
struct Shapes {
  Shape shapes[MAX_INPUTS] = {};

  void set(size_t input, const nvinfer1::Dims& dims) {
    shapes[input].rank = dims.nbDims;
    for (int32_t axis = 0; axis < dims.nbDims; ++axis) shapes[input].sizes[axis] = dims.d[axis];
  }
};

inline Shapes shapes_of(const Node& node, const nvinfer1::PluginTensorDesc* inputs) {
  Shapes result;
  for (size_t input = 0; input < node.inputs().size(); ++input) result.set(input, inputs[input].dims);
  return result;
}

inline int32_t enqueue(const Node& node, const nvinfer1::PluginTensorDesc* descs, const void* const* inputs,
                       void* const* outputs, void* workspace, cudaStream_t stream) noexcept {
  return logged([&] {
    node.enqueue(shapes_of(node, descs).shapes, stored_type(descs[0].type), inputs, outputs, workspace, stream);
  });
}

}  // namespace edge4d
