// Lets test_tensorrt_plugins.py do with the plugins what TensorRT does, where there is neither TensorRT nor a GPU:
// linked with the plugins' own sources, with launchers that only remember what they were called with.
#include <NvInfer.h>

#include <cstring>
#include <deque>
#include <string>

#include "edge4d.h"

#define PROBE extern "C" __attribute__((visibility("default")))

using namespace nvinfer1;

extern "C" void setLoggerFinder(ILoggerFinder* finder);

namespace {

// ---- launchers ------------------------------------------------------------------------------------------------------

struct Launch {
  char call[512];
  void* workspace;
  uint64_t workspace_bytes;
  void* stream;
} last = {};

template <class Call>
int32_t remember(const Call* call, void* workspace, uint64_t bytes, void* stream) {
  static_assert(sizeof *call <= sizeof last.call);
  last = {{}, workspace, bytes, stream};
  std::memcpy(last.call, call, sizeof *call);
  return EDGE4D_OK;
}

// ---- TensorRT's side ------------------------------------------------------------------------------------------------

class Log : public ILogger, public ILoggerFinder {
 public:
  void log(Severity severity, const char* message) noexcept override {
    if (severity <= Severity::kERROR) text += std::string(message) + "\n";
  }
  ILogger* findLogger() override { return this; }

  std::string text;
} logger;

#if NV_TENSORRT_MAJOR >= 10
using Number = int64_t;
#else
using Number = int32_t;
#endif

class Constant : public IDimensionExpr, private apiv::VDimensionExpr {
 public:
  explicit Constant(Number value) : value_(value) { mImpl = this; }
  ~Constant() noexcept override = default;
  bool isConstant() const noexcept override { return true; }
  Number getConstantValue() const noexcept override { return value_; }
#if NV_TENSORRT_MAJOR >= 10
  bool isSizeTensor() const noexcept override { return false; }
#endif

 private:
  Number value_;
};

class Builder : public IExprBuilder, private apiv::VExprBuilder {
 public:
  Builder() { mImpl = this; }
  ~Builder() noexcept override = default;
  const IDimensionExpr* constant(Number value) noexcept override { return &constants_.emplace_back(value); }
  const IDimensionExpr* operation(DimensionOperation, const IDimensionExpr&, const IDimensionExpr&) noexcept override {
    return nullptr;
  }
#if NV_TENSORRT_MAJOR >= 10
  const IDimensionExpr* declareSizeTensor(int32_t, const IDimensionExpr&, const IDimensionExpr&) noexcept override {
    return nullptr;
  }
#endif

 private:
  std::deque<Constant> constants_;
};

// ---- the test's side ------------------------------------------------------------------------------------------------

constexpr int MOST = 16;  // tensors

struct Tensor {
  int32_t type, format, rank;
  int64_t sizes[8];
};

PluginTensorDesc desc_of(const Tensor& tensor) {
  PluginTensorDesc desc = {};
  desc.type = DataType(tensor.type);
  desc.format = TensorFormat(tensor.format);
  desc.dims.nbDims = tensor.rank;
  for (int i = 0; i < tensor.rank; ++i) desc.dims.d[i] = Number(tensor.sizes[i]);
  return desc;
}

struct Descs {
  PluginTensorDesc all[MOST] = {};
  explicit Descs(const Tensor* tensors, int count) {
    for (int i = 0; i < count; ++i) all[i] = desc_of(tensors[i]);
  }
};

struct Exprs {
  Builder builder;
  DimsExprs all[MOST] = {};
  Exprs(const Tensor* tensors, int count) {
    for (int i = 0; i < count; ++i) {
      all[i].nbDims = tensors[i].rank;
      for (int axis = 0; axis < tensors[i].rank; ++axis)
        all[i].d[axis] = builder.constant(Number(tensors[i].sizes[axis]));
    }
  }
};

int32_t sizes_of(const DimsExprs& dims, int64_t* sizes) {
  for (int i = 0; i < dims.nbDims; ++i) sizes[i] = dims.d[i]->getConstantValue();
  return dims.nbDims;
}

template <class Creator>
Creator* named(const char* name, Creator* const* creators, int32_t count) {
  for (int32_t i = 0; i < count; ++i)
    if (!std::strcmp(creators[i]->getPluginName(), name)) return creators[i];
  return nullptr;
}

}  // namespace

// Workspaces have bytes from which the test sees whose sizes they are.
#define LAUNCHER(name, bytes_of)                                                                         \
  int32_t edge4d_cuda_##name(const edge4d_##name* call, void* workspace, uint64_t bytes, void* stream) { \
    return remember(call, workspace, bytes, stream);                                                     \
  }                                                                                                      \
  uint64_t edge4d_cuda_##name##_workspace(const edge4d_##name* call) { return bytes_of; }

LAUNCHER(gaussian_rasterize, uint64_t(call->gaussians) * (call->dtype == EDGE4D_FLOAT16 ? 2 : 4))
LAUNCHER(knn_interpolate, uint64_t(call->point_count))
LAUNCHER(farthest_point_sample, uint64_t(call->point_count))
LAUNCHER(voxel_neighbours, uint64_t(call->voxel_count))
LAUNCHER(submanifold_convolution, uint64_t(call->voxel_count))
LAUNCHER(gather_mean, uint64_t(call->row_count))
LAUNCHER(window_attention, uint64_t(call->row_count))

PROBE const Launch* probe_last_launch() { return &last; }
PROBE const char* probe_log() { return logger.text.c_str(); }
PROBE void probe_start_log() {
  logger.text.clear();
  setLoggerFinder(&logger);
}

#if NV_TENSORRT_MAJOR >= 10

// ---- IPluginV3 ------------------------------------------------------------------------------------------------------

extern "C" IPluginCreatorInterface* const* getCreators(int32_t& count);

namespace {

IPluginCreatorV3One* creator_of(const char* name) {
  int32_t count = 0;
  IPluginCreatorInterface* const* const all = getCreators(count);
  IPluginCreatorV3One* creators[MOST] = {};
  for (int32_t i = 0; i < count; ++i) creators[i] = static_cast<IPluginCreatorV3One*>(all[i]);
  return named(name, creators, count);
}

IPluginV3OneCore* core(IPluginV3* plugin) {
  return static_cast<IPluginV3OneCore*>(plugin->getCapabilityInterface(PluginCapabilityType::kCORE));
}
IPluginV3OneBuild* build(IPluginV3* plugin) {
  return static_cast<IPluginV3OneBuild*>(plugin->getCapabilityInterface(PluginCapabilityType::kBUILD));
}
IPluginV3OneRuntime* runtime(IPluginV3* plugin) {
  return static_cast<IPluginV3OneRuntime*>(plugin->getCapabilityInterface(PluginCapabilityType::kRUNTIME));
}

// Sizes now are 1; the largest are those given.
struct DynamicDescs {
  DynamicPluginTensorDesc all[MOST] = {};
  DynamicDescs(const Tensor* tensors, int count) {
    for (int i = 0; i < count; ++i) {
      all[i].desc = desc_of(tensors[i]);
      all[i].max = all[i].desc.dims;
      for (int axis = 0; axis < tensors[i].rank; ++axis) all[i].desc.dims.d[axis] = all[i].min.d[axis] = 1;
    }
  }
};

}  // namespace

PROBE IPluginV3* probe_create(const char* name, const PluginField* fields, int32_t count) {
  const PluginFieldCollection collection = {count, fields};
  return creator_of(name)->createPlugin("node", &collection, TensorRTPhase::kBUILD);
}
PROBE IPluginV3* probe_restore(const char* name, const PluginField* fields, int32_t count) {
  const PluginFieldCollection collection = {count, fields};
  return creator_of(name)->createPlugin("node", &collection, TensorRTPhase::kRUNTIME);
}
PROBE const PluginFieldCollection* probe_serialized_fields(IPluginV3* plugin) {
  return runtime(plugin)->getFieldsToSerialize();
}
PROBE IPluginV3* probe_clone(IPluginV3* plugin) { return plugin->clone(); }
PROBE IPluginV3* probe_attach(IPluginV3* plugin) { return runtime(plugin)->attachToContext(nullptr); }
PROBE void probe_destroy(IPluginV3* plugin) { delete plugin; }
PROBE const char* probe_name(IPluginV3* plugin) { return core(plugin)->getPluginName(); }
PROBE const char* probe_version(IPluginV3* plugin) { return core(plugin)->getPluginVersion(); }
PROBE const char* probe_namespace(IPluginV3* plugin) { return core(plugin)->getPluginNamespace(); }
PROBE int32_t probe_output_count(IPluginV3* plugin) { return build(plugin)->getNbOutputs(); }

PROBE int32_t probe_output_sizes(IPluginV3* plugin, const Tensor* inputs, int32_t count, int32_t output,
                                 int64_t* sizes) {
  Exprs exprs(inputs, count);
  DimsExprs outputs[MOST] = {};
  if (build(plugin)->getOutputShapes(exprs.all, count, nullptr, 0, outputs, probe_output_count(plugin), exprs.builder))
    return -1;
  return sizes_of(outputs[output], sizes);
}

PROBE int32_t probe_output_type(IPluginV3* plugin, const Tensor* inputs, int32_t count, int32_t output) {
  DataType types[MOST] = {}, outputs[MOST] = {};
  for (int i = 0; i < count; ++i) types[i] = DataType(inputs[i].type);
  if (build(plugin)->getOutputDataTypes(outputs, probe_output_count(plugin), types, count)) return -1;
  return int32_t(outputs[output]);
}

PROBE bool probe_supports(IPluginV3* plugin, const Tensor* tensors, int32_t inputs, int32_t outputs, int32_t position) {
  const DynamicDescs descs(tensors, inputs + outputs);
  return build(plugin)->supportsFormatCombination(position, descs.all, inputs, outputs);
}

PROBE uint64_t probe_workspace(IPluginV3* plugin, const Tensor* inputs, int32_t count) {
  const DynamicDescs descs(inputs, count);
  const DynamicPluginTensorDesc outputs[MOST] = {};
  return build(plugin)->getWorkspaceSize(descs.all, count, outputs, probe_output_count(plugin));
}

PROBE int32_t probe_enqueue(IPluginV3* plugin, const Tensor* tensors, int32_t count, const void* const* inputs,
                            void* const* outputs, void* workspace, void* stream) {
  const Descs descs(tensors, count);
  const PluginTensorDesc made[MOST] = {};
  if (runtime(plugin)->onShapeChange(descs.all, count, made, probe_output_count(plugin))) return -1;
  return runtime(plugin)->enqueue(descs.all, made, inputs, outputs, workspace, static_cast<cudaStream_t>(stream));
}

#else

// ---- IPluginV2DynamicExt --------------------------------------------------------------------------------------------

extern "C" IPluginCreator* const* getPluginCreators(int32_t& count);

namespace {

IPluginCreator* creator_of(const char* name) {
  int32_t count = 0;
  IPluginCreator* const* const all = getPluginCreators(count);
  return named(name, all, count);
}

}  // namespace

PROBE IPluginV2DynamicExt* probe_create(const char* name, const PluginField* fields, int32_t count) {
  const PluginFieldCollection collection = {count, fields};
  return static_cast<IPluginV2DynamicExt*>(creator_of(name)->createPlugin("node", &collection));
}
PROBE IPluginV2DynamicExt* probe_deserialize(const char* name, const void* data, uint64_t bytes) {
  return static_cast<IPluginV2DynamicExt*>(creator_of(name)->deserializePlugin("node", data, bytes));
}
PROBE uint64_t probe_serialized_bytes(IPluginV2DynamicExt* plugin) { return plugin->getSerializationSize(); }
PROBE void probe_serialize(IPluginV2DynamicExt* plugin, void* to) { plugin->serialize(to); }
PROBE IPluginV2DynamicExt* probe_clone(IPluginV2DynamicExt* plugin) { return plugin->clone(); }
PROBE void probe_destroy(IPluginV2DynamicExt* plugin) { plugin->destroy(); }
PROBE const char* probe_name(IPluginV2DynamicExt* plugin) { return plugin->getPluginType(); }
PROBE const char* probe_version(IPluginV2DynamicExt* plugin) { return plugin->getPluginVersion(); }
PROBE const char* probe_namespace(IPluginV2DynamicExt* plugin) { return plugin->getPluginNamespace(); }
PROBE int32_t probe_output_count(IPluginV2DynamicExt* plugin) { return plugin->getNbOutputs(); }

PROBE int32_t probe_output_sizes(IPluginV2DynamicExt* plugin, const Tensor* inputs, int32_t count, int32_t output,
                                 int64_t* sizes) {
  Exprs exprs(inputs, count);
  return sizes_of(plugin->getOutputDimensions(output, exprs.all, count, exprs.builder), sizes);
}

PROBE int32_t probe_output_type(IPluginV2DynamicExt* plugin, const Tensor* inputs, int32_t count, int32_t output) {
  DataType types[MOST] = {};
  for (int i = 0; i < count; ++i) types[i] = DataType(inputs[i].type);
  return int32_t(plugin->getOutputDataType(output, types, count));
}

PROBE bool probe_supports(IPluginV2DynamicExt* plugin, const Tensor* tensors, int32_t inputs, int32_t outputs,
                          int32_t position) {
  const Descs descs(tensors, inputs + outputs);
  return plugin->supportsFormatCombination(position, descs.all, inputs, outputs);
}

PROBE uint64_t probe_workspace(IPluginV2DynamicExt* plugin, const Tensor* inputs, int32_t count) {
  const Descs descs(inputs, count);
  const PluginTensorDesc outputs[MOST] = {};
  return plugin->getWorkspaceSize(descs.all, count, outputs, probe_output_count(plugin));
}

PROBE int32_t probe_enqueue(IPluginV2DynamicExt* plugin, const Tensor* tensors, int32_t count,
                            const void* const* inputs, void* const* outputs, void* workspace, void* stream) {
  const Descs descs(tensors, count);
  const PluginTensorDesc made[MOST] = {};
  return plugin->enqueue(descs.all, made, inputs, outputs, workspace, static_cast<cudaStream_t>(stream));
}

#endif

PROBE const PluginFieldCollection* probe_field_names(const char* name) {
  auto* const creator = creator_of(name);
  return creator ? creator->getFieldNames() : nullptr;
}
