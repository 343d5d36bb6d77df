// Drives the TensorRT plugin as a builder and a runtime would, without TensorRT and without a GPU.
// Prints one `name value` a line; the test reads them. Arguments: library, node, its flag and, where
// rows of qkv are to have scales, the name of that attribute.
#include <dlfcn.h>

#include <cstring>

#include "plugin_harness.h"

int main(int count_of_arguments, char** arguments) {
  bool const scaled = count_of_arguments > 4;
  int32_t const inputs = scaled ? 8 : 7;
  void* const library = dlopen(arguments[1], RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) return std::printf("dlopen %s\n", dlerror()), 1;
  using GetCreators = IPluginCreatorInterface* const* (*)(int32_t&);
  using SetLoggerFinder = void (*)(ILoggerFinder*);
  Finder finder;
  reinterpret_cast<SetLoggerFinder>(dlsym(library, "setLoggerFinder"))(&finder);
  int32_t count = 0;
  auto* const* creators = reinterpret_cast<GetCreators>(dlsym(library, "getCreators"))(count);
  IPluginCreatorV3One* creator = nullptr;
  for (int32_t i = 0; i < count; ++i) {
    auto* const each = static_cast<IPluginCreatorV3One*>(creators[i]);
    if (std::strcmp(each->getPluginName(), arguments[2]) == 0) creator = each;
  }
  if (creator == nullptr) return 1;
  std::printf("creators %d %s %s %s\n", count, creator->getPluginNamespace(),
              creator->getPluginName(), creator->getPluginVersion());

  int64_t const heads = 2, tokens = 200;
  int32_t const flag = 1;
  float const eps = 1e-6f, scale = 0.0883883461f;
  std::vector<PluginField> fields{{"num_heads", &heads, PluginFieldType::kINT64, 1},
                                  {"num_tokens", &tokens, PluginFieldType::kINT64, 1},
                                  {"eps", &eps, PluginFieldType::kFLOAT32, 1},
                                  {"softmax_scale", &scale, PluginFieldType::kFLOAT32, 1},
                                  {arguments[3], &flag, PluginFieldType::kINT32, 1}};
  if (scaled) fields.push_back({arguments[4], &flag, PluginFieldType::kINT32, 1});
  PluginFieldCollection collection{static_cast<int32_t>(fields.size()), fields.data()};
  std::unique_ptr<IPluginV3> first(creator->createPlugin("a", &collection, TensorRTPhase::kBUILD));
  if (first == nullptr) return 1;
  std::unique_ptr<IPluginV3> plugin(first->clone());
  first.reset();  // the clone must stand alone

  auto* const core = static_cast<IPluginV3OneCore*>(
      plugin->getCapabilityInterface(PluginCapabilityType::kCORE));
  auto* const build = static_cast<IPluginV3OneBuild*>(
      plugin->getCapabilityInterface(PluginCapabilityType::kBUILD));
  auto* const runtime = static_cast<IPluginV3OneRuntime*>(
      plugin->getCapabilityInterface(PluginCapabilityType::kRUNTIME));
  std::printf("core %s %s %s\n", core->getPluginNamespace(), core->getPluginName(),
              core->getPluginVersion());
  std::printf("metadata %s\n", build->getMetadataString());

  auto const bf16 = DataType::kBF16;
  auto const fp32 = DataType::kFLOAT;
  std::vector<DynamicPluginTensorDesc> all{
      tensor(bf16, {3, 256, 768}), tensor(fp32, {3}),       tensor(bf16, {768}),
      tensor(bf16, {256}),         tensor(bf16, {256}),     tensor(fp32, {256, 64}),
      tensor(fp32, {256, 64})};
  if (scaled) all.push_back(tensor(fp32, {3, 256, 1}));
  all.push_back(tensor(bf16, {3, 256, 256}));
  int accepted = 0, refused = 0;
  for (int i = 0; i <= inputs; ++i) {
    accepted += build->supportsFormatCombination(i, all.data(), inputs, 1);
    auto wrong = all;
    wrong[i].desc.type = DataType::kHALF;
    refused += !build->supportsFormatCombination(i, wrong.data(), inputs, 1);
    wrong = all;
    wrong[i].desc.format = TensorFormat::kHWC8;
    refused += !build->supportsFormatCombination(i, wrong.data(), inputs, 1);
  }
  std::printf("formats %d %d\n", accepted, refused);
  DataType type{};
  std::vector<DataType> types(inputs, bf16);
  std::printf("type %d", build->getOutputDataTypes(&type, 1, types.data(), inputs));
  std::printf(" %d\n", type == bf16);

  Builder builder;
  Expression const batch(3), length(-1), width(768);
  std::vector<DimsExprs> shapes(inputs);
  shapes[0].nbDims = 3;
  shapes[0].d[0] = &batch;
  shapes[0].d[1] = &length;  // dynamic
  shapes[0].d[2] = &width;
  DimsExprs out{};
  std::printf("shape %d",
              build->getOutputShapes(shapes.data(), inputs, nullptr, 0, &out, 1, builder));
  std::printf(" %d %d %d %lld\n", out.nbDims, out.d[0] == &batch, out.d[1] == &length,
              static_cast<long long>(out.d[2]->getConstantValue()));
  auto const* const end = &all[inputs];
  std::printf("configure %d\n", build->configurePlugin(all.data(), inputs, end, 1));
  std::printf("workspace %zu\n", build->getWorkspaceSize(all.data(), inputs, end, 1));
  auto narrow = all;
  narrow[0] = tensor(bf16, {3, 256, 384});
  std::printf("configure-narrow %d\n", build->configurePlugin(narrow.data(), inputs, end, 1));
  std::vector<PluginTensorDesc> in;
  for (auto const& described : all) in.push_back(described.desc);
  std::printf("shapes %d\n", runtime->onShapeChange(in.data(), inputs, &in[inputs], 1));
  in[inputs - 1].dims.d[1] = 2;
  std::printf("shapes-last %d\n", runtime->onShapeChange(in.data(), inputs, &in[inputs], 1));
  in[0].dims.d[1] = 199;
  std::printf("shapes-short %d\n", runtime->onShapeChange(in.data(), inputs, &in[inputs], 1));
  std::printf("one-more %d\n", runtime->onShapeChange(in.data(), inputs + 1, &in[inputs], 1));

  // What is serialised must make the same plugin again.
  PluginFieldCollection const* const serialised = runtime->getFieldsToSerialize();
  std::unique_ptr<IPluginV3> again(
      creator->createPlugin("b", serialised, TensorRTPhase::kRUNTIME));
  auto* const rebuilt = static_cast<IPluginV3OneBuild*>(
      again->getCapabilityInterface(PluginCapabilityType::kBUILD));
  std::printf("serialised %d %d\n", serialised->nbFields,
              std::strcmp(rebuilt->getMetadataString(), build->getMetadataString()));
  std::unique_ptr<IPluginV3> attached(runtime->attachToContext(nullptr));
  std::printf("attached %d\n", attached != nullptr);
  return 0;
}
