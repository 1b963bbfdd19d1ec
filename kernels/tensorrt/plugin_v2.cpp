// The operators as plugins of TensorRT 8.6.
//
// They register themselves where libnvinfer's symbols can be seen when the library is loaded (`trtexec
// --staticPlugins`, dlopen after libnvinfer with RTLD_GLOBAL). Where they cannot, the registry's loadLibrary gets them
// from getPluginCreators; it refuses creators that it has already, so that gives none then.
#include <atomic>
#include <deque>
#include <utility>
#include <vector>

#include "nvinfer.hpp"

#pragma weak getPluginRegistry
#pragma weak getLogger

namespace edge4d {
namespace {

std::atomic<nvinfer1::ILoggerFinder*> logger_finder{nullptr};

class Plugin final : public nvinfer1::IPluginV2DynamicExt {
 public:
  explicit Plugin(Node node) : node_(std::move(node)) {}

  const char* getPluginType() const noexcept override { return node_.of().name; }
  const char* getPluginVersion() const noexcept override { return PLUGIN_VERSION; }
  const char* getPluginNamespace() const noexcept override { return PLUGIN_NAMESPACE; }
  void setPluginNamespace(const char*) noexcept override {}  // engines find the creator under ours
  int32_t getNbOutputs() const noexcept override { return int32_t(node_.outputs().size()); }
  int32_t initialize() noexcept override { return 0; }
  void terminate() noexcept override {}
  void destroy() noexcept override { delete this; }

  nvinfer1::IPluginV2DynamicExt* clone() const noexcept override {
    nvinfer1::IPluginV2DynamicExt* copy = nullptr;
    logged([&] { copy = new Plugin(node_); });
    return copy;
  }

  size_t getSerializationSize() const noexcept override { return node_.serialized_bytes(); }
  void serialize(void* buffer) const noexcept override { node_.serialize(buffer); }

  nvinfer1::DataType getOutputDataType(int32_t output, const nvinfer1::DataType* inputs,
                                       int32_t) const noexcept override {
    return data_type(node_.outputs()[size_t(output)].type, inputs[0]);
  }

  nvinfer1::DimsExprs getOutputDimensions(int32_t output, const nvinfer1::DimsExprs* inputs, int32_t input_count,
                                          nvinfer1::IExprBuilder& builder) noexcept override {
    nvinfer1::DimsExprs dims = {-1, {}};
    logged([&] {
      check_counts(node_, input_count, getNbOutputs());
      dims = dims_of(node_, size_t(output), inputs, builder);
    });
    return dims;
  }

  bool supportsFormatCombination(int32_t position, const nvinfer1::PluginTensorDesc* descs, int32_t,
                                 int32_t) noexcept override {
    return supports(node_, position, descs[position], descs[0]);
  }

  void configurePlugin(const nvinfer1::DynamicPluginTensorDesc*, int32_t, const nvinfer1::DynamicPluginTensorDesc*,
                       int32_t) noexcept override {}

  size_t getWorkspaceSize(const nvinfer1::PluginTensorDesc* inputs, int32_t, const nvinfer1::PluginTensorDesc*,
                          int32_t) const noexcept override {
    size_t bytes = 0;
    logged([&] { bytes = node_.workspace_bytes(shapes_of(node_, inputs).shapes, stored_type(inputs[0].type)); });
    return bytes;
  }

  int32_t enqueue(const nvinfer1::PluginTensorDesc* descs, const nvinfer1::PluginTensorDesc*,
                  const void* const* inputs, void* const* outputs, void* workspace,
                  cudaStream_t stream) noexcept override {
    return edge4d::enqueue(node_, descs, inputs, outputs, workspace, stream);
  }

 private:
  Node node_;
};

class Creator final : public nvinfer1::IPluginCreator {
 public:
  explicit Creator(const Operator& of) : of_(of), fields_(fields_of(of)), collection_(collection_of(fields_)) {}
  Creator(const Creator&) = delete;  // the collection points into the fields

  const char* getPluginName() const noexcept override { return of_.name; }
  const char* getPluginVersion() const noexcept override { return PLUGIN_VERSION; }
  const char* getPluginNamespace() const noexcept override { return PLUGIN_NAMESPACE; }
  void setPluginNamespace(const char*) noexcept override {}
  const nvinfer1::PluginFieldCollection* getFieldNames() noexcept override { return &collection_; }

  nvinfer1::IPluginV2DynamicExt* createPlugin(const char*,
                                              const nvinfer1::PluginFieldCollection* fields) noexcept override {
    return made([&] { return Node(of_, given_in(fields)); });
  }

  nvinfer1::IPluginV2DynamicExt* deserializePlugin(const char*, const void* data, size_t bytes) noexcept override {
    return made([&] { return Node(of_, data, bytes); });
  }

 private:
  template <class Make>
  static Plugin* made(const Make& make) noexcept {
    Plugin* plugin = nullptr;
    logged([&] { plugin = new Plugin(make()); });
    return plugin;
  }

  const Operator& of_;
  const std::vector<nvinfer1::PluginField> fields_;
  const nvinfer1::PluginFieldCollection collection_;
};

struct Creators {
  std::deque<Creator> creators;  // which stay where they are
  std::vector<nvinfer1::IPluginCreator*> all;
  bool registered = false;

  Creators() {
    for (const Operator& of : operators()) all.push_back(&creators.emplace_back(of));
    nvinfer1::IPluginRegistry* const registry = getPluginRegistry ? getPluginRegistry() : nullptr;
    if (!registry) return;
    registered = true;
    for (nvinfer1::IPluginCreator* creator : all) registry->registerCreator(*creator, PLUGIN_NAMESPACE);
  }
};

Creators creators;

}  // namespace

void log_error(const char* message) noexcept {
  nvinfer1::ILoggerFinder* const finder = logger_finder;
  log_to(finder ? finder->findLogger() : getLogger ? getLogger() : nullptr, message);
}

}  // namespace edge4d

extern "C" EDGE4D_API nvinfer1::IPluginCreator* const* getPluginCreators(int32_t& count) {
  count = edge4d::creators.registered ? 0 : int32_t(edge4d::creators.all.size());
  return edge4d::creators.all.data();
}

extern "C" EDGE4D_API void setLoggerFinder(nvinfer1::ILoggerFinder* finder) { edge4d::logger_finder = finder; }
