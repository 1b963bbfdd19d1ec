// The operators as plugins of TensorRT 10 and newer. The library is loaded by the registry's loadLibrary (`trtexec
// --dynamicPlugins`), and needs no symbol of libnvinfer.
#include <atomic>
#include <deque>
#include <utility>
#include <vector>

#include "nvinfer.hpp"

namespace edge4d {
namespace {

std::atomic<nvinfer1::ILoggerFinder*> logger_finder{nullptr};

// An engine holds a plugin as fields: this one, then all attributes.
constexpr const char* FORMAT_FIELD = "format";
constexpr int32_t FORMAT = 1;

Shapes largest_shapes(const Node& node, const nvinfer1::DynamicPluginTensorDesc* inputs) {
  Shapes result;
  for (size_t input = 0; input < node.inputs().size(); ++input) result.set(input, inputs[input].max);
  return result;
}

class Plugin final : public nvinfer1::IPluginV3,
                     public nvinfer1::IPluginV3OneCore,
                     public nvinfer1::IPluginV3OneBuild,
                     public nvinfer1::IPluginV3OneRuntime {
 public:
  explicit Plugin(Node node) : node_(std::move(node)) {}

  nvinfer1::IPluginCapability* getCapabilityInterface(nvinfer1::PluginCapabilityType type) noexcept override {
    if (type == nvinfer1::PluginCapabilityType::kCORE) return static_cast<nvinfer1::IPluginV3OneCore*>(this);
    if (type == nvinfer1::PluginCapabilityType::kBUILD) return static_cast<nvinfer1::IPluginV3OneBuild*>(this);
    return static_cast<nvinfer1::IPluginV3OneRuntime*>(this);
  }

  nvinfer1::IPluginV3* clone() noexcept override {
    nvinfer1::IPluginV3* copy = nullptr;
    logged([&] { copy = new Plugin(node_); });
    return copy;
  }

  // ---- core

  const char* getPluginName() const noexcept override { return node_.of().name; }
  const char* getPluginVersion() const noexcept override { return PLUGIN_VERSION; }
  const char* getPluginNamespace() const noexcept override { return PLUGIN_NAMESPACE; }

  // ---- build

  int32_t getNbOutputs() const noexcept override { return int32_t(node_.outputs().size()); }

  int32_t configurePlugin(const nvinfer1::DynamicPluginTensorDesc*, int32_t inputs,
                          const nvinfer1::DynamicPluginTensorDesc*, int32_t outputs) noexcept override {
    return logged([&] { check_counts(node_, inputs, outputs); });
  }

  int32_t getOutputDataTypes(nvinfer1::DataType* types, int32_t outputs, const nvinfer1::DataType* input_types,
                             int32_t inputs) const noexcept override {
    return logged([&] {
      check_counts(node_, inputs, outputs);
      for (size_t i = 0; i < node_.outputs().size(); ++i) types[i] = data_type(node_.outputs()[i].type, input_types[0]);
    });
  }

  int32_t getOutputShapes(const nvinfer1::DimsExprs* inputs, int32_t input_count, const nvinfer1::DimsExprs*, int32_t,
                          nvinfer1::DimsExprs* outputs, int32_t output_count,
                          nvinfer1::IExprBuilder& builder) noexcept override {
    return logged([&] {
      check_counts(node_, input_count, output_count);
      for (size_t i = 0; i < node_.outputs().size(); ++i) outputs[i] = dims_of(node_, i, inputs, builder);
    });
  }

  bool supportsFormatCombination(int32_t position, const nvinfer1::DynamicPluginTensorDesc* descs, int32_t,
                                 int32_t) noexcept override {
    return supports(node_, position, descs[position].desc, descs[0].desc);
  }

  size_t getWorkspaceSize(const nvinfer1::DynamicPluginTensorDesc* inputs, int32_t,
                          const nvinfer1::DynamicPluginTensorDesc*, int32_t) const noexcept override {
    size_t bytes = 0;
    logged([&] {
      bytes = node_.workspace_bytes(largest_shapes(node_, inputs).shapes, stored_type(inputs[0].desc.type));
    });
    return bytes;
  }

  // ---- runtime

  int32_t onShapeChange(const nvinfer1::PluginTensorDesc* inputs, int32_t input_count,
                        const nvinfer1::PluginTensorDesc*, int32_t output_count) noexcept override {
    return logged([&] {
      check_counts(node_, input_count, output_count);
      node_.check_shapes(shapes_of(node_, inputs).shapes);
    });
  }

  int32_t enqueue(const nvinfer1::PluginTensorDesc* descs, const nvinfer1::PluginTensorDesc*,
                  const void* const* inputs, void* const* outputs, void* workspace,
                  cudaStream_t stream) noexcept override {
    return edge4d::enqueue(node_, descs, inputs, outputs, workspace, stream);
  }

  nvinfer1::IPluginV3* attachToContext(nvinfer1::IPluginResourceContext*) noexcept override { return clone(); }

  const nvinfer1::PluginFieldCollection* getFieldsToSerialize() noexcept override {
    const int32_t status = logged([&] {
      fields_.assign(1, {FORMAT_FIELD, &FORMAT, nvinfer1::PluginFieldType::kINT32, 1});
      for (const Attribute& attribute : node_.of().attributes) fields_.push_back(field(attribute));
      collection_ = collection_of(fields_);
    });
    return status ? nullptr : &collection_;
  }

 private:
  nvinfer1::PluginField field(const Attribute& attribute) const {
    if (attribute.kind != Kind::DTYPE) return {attribute.name, node_.address(attribute), field_type(attribute.kind), 1};
    const std::string_view word = node_.word(attribute);
    return {attribute.name, word.data(), field_type(attribute.kind), int32_t(word.size())};
  }

  Node node_;
  std::vector<nvinfer1::PluginField> fields_;
  nvinfer1::PluginFieldCollection collection_ = {};
};

void check_format(const Operator& of, const std::vector<Given>& given) {
  for (const Given& one : given)
    if (one.name == FORMAT_FIELD && one.value == Value(FORMAT)) return;
  refuse(std::string(of.name) + ": the serialized plugin is not of format " + std::to_string(FORMAT) +
         ". Build the engine again.");
}

class Creator final : public nvinfer1::IPluginCreatorV3One {
 public:
  explicit Creator(const Operator& of) : of_(of), fields_(fields_of(of)), collection_(collection_of(fields_)) {}
  Creator(const Creator&) = delete;  // the collection points into the fields

  const char* getPluginName() const noexcept override { return of_.name; }
  const char* getPluginVersion() const noexcept override { return PLUGIN_VERSION; }
  const char* getPluginNamespace() const noexcept override { return PLUGIN_NAMESPACE; }
  const nvinfer1::PluginFieldCollection* getFieldNames() noexcept override { return &collection_; }

  nvinfer1::IPluginV3* createPlugin(const char*, const nvinfer1::PluginFieldCollection* fields,
                                    nvinfer1::TensorRTPhase phase) noexcept override {
    nvinfer1::IPluginV3* plugin = nullptr;
    logged([&] {
      const bool serialized = phase == nvinfer1::TensorRTPhase::kRUNTIME;
      const std::vector<Given> given = given_in(fields);
      if (serialized) check_format(of_, given);
      plugin = new Plugin(Node(of_, given, serialized));
    });
    return plugin;
  }

 private:
  const Operator& of_;
  const std::vector<nvinfer1::PluginField> fields_;
  const nvinfer1::PluginFieldCollection collection_;
};

struct Creators {
  std::deque<Creator> creators;  // which stay where they are
  std::vector<nvinfer1::IPluginCreatorInterface*> all;

  Creators() {
    for (const Operator& of : operators()) all.push_back(&creators.emplace_back(of));
  }
};

}  // namespace

void log_error(const char* message) noexcept {
  nvinfer1::ILoggerFinder* const finder = logger_finder;
  log_to(finder ? finder->findLogger() : nullptr, message);
}

}  // namespace edge4d

extern "C" EDGE4D_API nvinfer1::IPluginCreatorInterface* const* getCreators(int32_t& count) {
  static const edge4d::Creators creators;
  count = int32_t(creators.all.size());
  return creators.all.data();
}

extern "C" EDGE4D_API void setLoggerFinder(nvinfer1::ILoggerFinder* finder) { edge4d::logger_finder = finder; }
