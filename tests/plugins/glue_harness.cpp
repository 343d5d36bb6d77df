// Drives the TensorRT plugins between two GEMMs as a builder and a runtime would, without TensorRT
// and without a GPU. Prints one `node name value` a line; the test reads them.
#include <dlfcn.h>

#include <cstring>
#include <string>

#include "plugin_harness.h"

namespace {

auto const bf16 = DataType::kBF16;
auto const fp32 = DataType::kFLOAT;

struct Case {
  char const* name;
  std::vector<DynamicPluginTensorDesc> inputs, outputs;
  int64_t scaled = 0;
};

std::vector<Case> cases() {
  auto const row = tensor(bf16, {1, 40, 256});
  auto const bias = tensor(bf16, {256});
  auto const vector = tensor(fp32, {256});
  auto const codes = tensor(DataType::kFP4, {1, 40, 256});
  auto const scales = tensor(DataType::kFP8, {1, 40, 16});
  auto const keys = tensor(bf16, {1, 128, 256});
  auto const values = tensor(bf16, {1, 2, 128, 128});
  auto const key_bias = tensor(fp32, {128});
  auto const key_tiles = tensor(DataType::kINT32, {1});
  auto const factor = tensor(fp32, {});
  return {{"GeluQuantize", {row, bias}, {codes, scales}},
          {"Quantize", {row}, {codes, scales}},
          {"ResidualNormQuantize", {row, bias, row, vector, vector}, {row, codes, scales}},
          {"ResidualNormQuantize", {row, bias, row, vector, vector, vector}, {row, codes, scales}},
          {"NormQuantize", {row, vector, vector}, {codes, scales}},
          {"ResidualNorm", {row, bias, row, vector, vector, vector}, {row}},
          {"CrossAttention",
           {row, bias, bias, keys, values, key_bias, key_tiles},
           {codes, scales}},
          // With a factor of the product.
          {"GeluQuantize", {row, bias, factor}, {codes, scales}, 1},
          {"ResidualNormQuantize", {row, bias, row, vector, vector, factor}, {row, codes, scales},
           1},
          {"ResidualNorm", {row, bias, row, vector, vector, vector, factor}, {row}, 1},
          {"CrossAttention",
           {row, bias, bias, keys, values, key_bias, key_tiles, factor},
           {codes, scales},
           1}};
}

IPluginV3* made_by(IPluginCreatorV3One* creator, int64_t const& scaled) {
  static int64_t const heads = 2, one = 1;
  static float const eps = 1e-6f, scale = 0.0883883461f;
  std::vector<PluginField> fields;
  PluginFieldCollection const* const names = creator->getFieldNames();
  for (int32_t i = 0; i < names->nbFields; ++i) {
    std::string const name = names->fields[i].name;
    bool const real = name == "eps" || name == "scale";
    void const* const data = name == "eps"       ? static_cast<void const*>(&eps)
                             : name == "scale"   ? static_cast<void const*>(&scale)
                             : name == "add_one" ? static_cast<void const*>(&one)
                             : name == "scaled"  ? static_cast<void const*>(&scaled)
                                                 : static_cast<void const*>(&heads);
    fields.emplace_back(names->fields[i].name, data,
                        real ? PluginFieldType::kFLOAT32 : PluginFieldType::kINT64, 1);
  }
  PluginFieldCollection const collection{static_cast<int32_t>(fields.size()), fields.data()};
  return creator->createPlugin("a", &collection, TensorRTPhase::kBUILD);
}

void drive(Case const& each, IPluginCreatorV3One* creator) {
  auto const say = [&](char const* name, long long value) {
    std::printf("%s/%zu%s %s %lld\n", each.name, each.inputs.size(),
                each.scaled != 0 ? "/scaled" : "", name, value);
  };
  std::unique_ptr<IPluginV3> first(made_by(creator, each.scaled));
  std::unique_ptr<IPluginV3> plugin(first->clone());
  first.reset();  // the clone must stand alone
  auto* const build = static_cast<IPluginV3OneBuild*>(
      plugin->getCapabilityInterface(PluginCapabilityType::kBUILD));
  auto* const runtime = static_cast<IPluginV3OneRuntime*>(
      plugin->getCapabilityInterface(PluginCapabilityType::kRUNTIME));
  auto const inputs = static_cast<int32_t>(each.inputs.size());
  auto const outputs = static_cast<int32_t>(each.outputs.size());
  say("outputs", build->getNbOutputs() - outputs);

  std::vector<DynamicPluginTensorDesc> all(each.inputs);
  all.insert(all.end(), each.outputs.begin(), each.outputs.end());
  int accepted = 0, refused = 0;
  for (int32_t i = 0; i < inputs + outputs; ++i) {
    accepted += build->supportsFormatCombination(i, all.data(), inputs, outputs);
    auto wrong = all;
    wrong[i].desc.type = DataType::kHALF;
    refused += !build->supportsFormatCombination(i, wrong.data(), inputs, outputs);
  }
  say("accepted", accepted - inputs - outputs);
  say("refused", refused - inputs - outputs);

  std::vector<DataType> types(inputs, bf16), found(outputs, bf16);
  say("types", build->getOutputDataTypes(found.data(), outputs, types.data(), inputs));
  Builder builder;
  std::vector<std::unique_ptr<Expression>> sizes;
  std::vector<DimsExprs> shapes, out(outputs);
  for (auto const& described : each.inputs) {
    DimsExprs shape{};
    shape.nbDims = described.desc.dims.nbDims;
    for (int32_t d = 0; d < shape.nbDims; ++d) {
      sizes.push_back(std::make_unique<Expression>(described.desc.dims.d[d]));
      shape.d[d] = sizes.back().get();
    }
    shapes.push_back(shape);
  }
  say("shapes", build->getOutputShapes(shapes.data(), inputs, nullptr, 0, out.data(), outputs,
                                       builder));
  int other = 0;
  for (int32_t i = 0; i < outputs; ++i) {
    other += found[i] != each.outputs[i].desc.type;
    for (int32_t d = 0; d < 3; ++d) {
      other += out[i].d[d]->getConstantValue() != each.outputs[i].desc.dims.d[d];
    }
  }
  say("unlike", other);
  say("configure", build->configurePlugin(all.data(), inputs, &all[inputs], outputs));
  say("workspace", build->getWorkspaceSize(all.data(), inputs, &all[inputs], outputs));
  std::vector<PluginTensorDesc> in;
  for (auto const& described : each.inputs) in.push_back(described.desc);
  say("change", runtime->onShapeChange(in.data(), inputs, nullptr, outputs));
  size_t const changed = each.scaled != 0 ? in.size() - 1 : inputs > 1 ? 1 : 0;
  in[changed].dims.nbDims = 4;
  say("wrong", runtime->onShapeChange(in.data(), inputs, nullptr, outputs));
  say("fewer", runtime->onShapeChange(in.data(), 0, nullptr, outputs));

  // What is serialised must make the same plugin again.
  std::unique_ptr<IPluginV3> again(
      creator->createPlugin("b", runtime->getFieldsToSerialize(), TensorRTPhase::kRUNTIME));
  auto* const rebuilt = static_cast<IPluginV3OneBuild*>(
      again->getCapabilityInterface(PluginCapabilityType::kBUILD));
  say("rebuilt", std::strcmp(rebuilt->getMetadataString(), build->getMetadataString()));
  std::unique_ptr<IPluginV3> attached(runtime->attachToContext(nullptr));
  say("attached", attached != nullptr);
}

}  // namespace

int main(int, char** arguments) {
  void* const library = dlopen(arguments[1], RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) return std::printf("dlopen %s\n", dlerror()), 1;
  using GetCreators = IPluginCreatorInterface* const* (*)(int32_t&);
  using SetLoggerFinder = void (*)(ILoggerFinder*);
  Finder finder;
  reinterpret_cast<SetLoggerFinder>(dlsym(library, "setLoggerFinder"))(&finder);
  int32_t count = 0;
  auto* const* creators = reinterpret_cast<GetCreators>(dlsym(library, "getCreators"))(count);
  for (Case const& each : cases()) {
    for (int32_t i = 0; i < count; ++i) {
      auto* const creator = static_cast<IPluginCreatorV3One*>(creators[i]);
      if (std::strcmp(creator->getPluginName(), each.name) == 0) drive(each, creator);
    }
  }
  return 0;
}
