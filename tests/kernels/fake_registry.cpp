// A stand-in for libnvinfer 8.6's plugin registry: remembers whom it was given.
#include <NvInfer.h>

#include <string>

using namespace nvinfer1;

namespace {

class Registry final : public IPluginRegistry {
 public:
  bool registerCreator(IPluginCreator& creator, const char* space) noexcept override {
    said += std::string(space) + "::" + creator.getPluginName() + " " + creator.getPluginVersion() + "\n";
    return true;
  }
  IPluginCreator* const* getPluginCreatorList(int32_t*) const noexcept override { return nullptr; }
  IPluginCreator* getPluginCreator(const char*, const char*, const char*) noexcept override { return nullptr; }
  void setErrorRecorder(IErrorRecorder*) noexcept override {}
  IErrorRecorder* getErrorRecorder() const noexcept override { return nullptr; }
  bool deregisterCreator(const IPluginCreator&) noexcept override { return true; }
  bool isParentSearchEnabled() const override { return false; }
  void setParentSearchEnabled(bool) override {}
  void* loadLibrary(const char*) noexcept override { return nullptr; }
  void deregisterLibrary(void*) noexcept override {}

  std::string said;
};

Registry& registry() {
  static Registry one;
  return one;
}

}  // namespace

extern "C" IPluginRegistry* getPluginRegistry() noexcept { return &registry(); }
extern "C" ILogger* getLogger() noexcept { return nullptr; }
extern "C" const char* fake_registered() { return registry().said.c_str(); }
