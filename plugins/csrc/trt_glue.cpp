// TensorRT plugins of the nodes between two GEMMs whose operands are FP4, one class for all kinds.
//
// Tensors are those of glue.h: the first input is [1, L, C], and outputs are the hidden state or the
// norm in bf16, then codes as FP4 [1, L, C] and scales as FP8 [1, L, C/16].
#include <cmath>
#include <memory>
#include <new>

#include "glue.h"
#include "trt_creators.h"
#include "trt_support.h"

namespace fastwan::trt {
namespace {

constexpr int32_t kGroup = 16;  // neighbours that share a scale

// A kind of node. Its inputs are bf16 first, then fp32, then int32; behind them all may stand the
// factor of the first, fp32 of no axis.
struct Kind {
  char const* name;
  fastwan_glue_kind kind;
  int32_t bf16, fp32, int32;
  bool gate;       // one more fp32 input may be there
  bool product;    // the first input is a GEMM's product, which may have a factor
  bool norm;       // has eps
  bool modulated;  // has add_one
  bool writes_bf16, quantizes;

  bool has_heads() const { return kind == FASTWAN_GLUE_CROSS_ATTENTION; }
  int32_t outputs() const { return (writes_bf16 ? 1 : 0) + (quantizes ? 2 : 0); }
  // Counts of inputs here are without the factor.
  bool takes(int32_t inputs) const {
    int32_t const least = bf16 + fp32 + int32;
    return inputs == least || (gate && inputs == least + 1);
  }
  bool gated(int32_t inputs) const { return inputs > bf16 + fp32 + int32; }
  DataType input_type(int32_t position, int32_t inputs) const {
    if (position < bf16) return DataType::kBF16;
    return position < inputs - int32 ? DataType::kFLOAT : DataType::kINT32;
  }
  DataType output_type(int32_t position) const {
    if (writes_bf16 && position == 0) return DataType::kBF16;
    return position == outputs() - 2 ? DataType::kFP4 : DataType::kFP8;
  }
};

constexpr Kind kKinds[] = {
    {"GeluQuantize", FASTWAN_GLUE_GELU_QUANTIZE, 2, 0, 0, false, true, false, false, false, true},
    {"Quantize", FASTWAN_GLUE_QUANTIZE, 1, 0, 0, false, false, false, false, false, true},
    {"ResidualNormQuantize", FASTWAN_GLUE_RESIDUAL_NORM_QUANTIZE, 3, 2, 0, true, true, true, true,
     true, true},
    {"NormQuantize", FASTWAN_GLUE_NORM_QUANTIZE, 1, 2, 0, false, false, true, true, false, true},
    {"ResidualNorm", FASTWAN_GLUE_RESIDUAL_NORM, 3, 2, 0, true, true, true, true, true, false},
    {"CrossAttention", FASTWAN_GLUE_CROSS_ATTENTION, 5, 1, 1, false, true, true, false, false,
     true}};

// Attributes of a node; also what is serialised into an engine.
struct Values {
  int32_t num_heads = 0;
  int32_t add_one = -1;
  float eps = -1.0f;
  float scale = 0.0f;
  int32_t scaled = 0;
};

std::vector<Attribute> attributes_of(Kind const& kind, Values& values) {
  std::vector<Attribute> attributes;
  if (kind.has_heads()) attributes.push_back({"num_heads", &values.num_heads, nullptr});
  if (kind.norm) attributes.push_back({"eps", nullptr, &values.eps});
  if (kind.modulated) attributes.push_back({"add_one", &values.add_one, nullptr});
  if (kind.has_heads()) attributes.push_back({"scale", nullptr, &values.scale});
  if (kind.product) attributes.push_back({"scaled", &values.scaled, nullptr});
  return attributes;
}

// Empty when the values are those of a usable node, otherwise what is wrong with them.
std::string problem_of(Kind const& kind, Values const& values) {
  if (kind.has_heads() && (values.num_heads < 1 || values.num_heads > FASTWAN_MAX_HEADS)) {
    return "num_heads " + std::to_string(values.num_heads) + " is not within 1 .. " +
           std::to_string(FASTWAN_MAX_HEADS);
  }
  if (kind.norm && (!(values.eps >= 0.0f) || !std::isfinite(values.eps))) {
    return "eps must be given, finite and not negative";
  }
  if (kind.modulated && values.add_one != 0 && values.add_one != 1) return "add_one must be 0 or 1";
  if (kind.has_heads() && (!(values.scale > 0.0f) || !std::isfinite(values.scale))) {
    return "scale must be given, finite and positive";
  }
  if (values.scaled != 0 && values.scaled != 1) return "scaled must be 0 or 1";
  return "";
}

bool is(Dims const& dims, std::vector<int64_t> const& shape) {
  if (dims.nbDims != static_cast<int32_t>(shape.size())) return false;
  for (size_t i = 0; i < shape.size(); ++i) {
    if (dims.d[i] != shape[i]) return false;
  }
  return true;
}

class Plugin final : public IPluginV3,
                     public IPluginV3OneCore,
                     public IPluginV3OneBuild,
                     public IPluginV3OneRuntime {
 public:
  Plugin(Kind const& kind, Values const& values, bool gated = false)
      : kind_(kind),
        values_(values),
        gated_(gated),
        fields_(fields_of(attributes_of(kind_, values_))),
        collection_{static_cast<int32_t>(fields_.size()), fields_.data()} {
    char text[128];
    std::snprintf(text, sizeof text, "%s num_heads=%d eps=%g add_one=%d scale=%g scaled=%d",
                  kind_.name, values_.num_heads, static_cast<double>(values_.eps), values_.add_one,
                  static_cast<double>(values_.scale), values_.scaled);
    description_ = text;
  }
  Plugin(Plugin const&) = delete;
  Plugin& operator=(Plugin const&) = delete;

  IPluginCapability* getCapabilityInterface(PluginCapabilityType type) noexcept override {
    switch (type) {
      case PluginCapabilityType::kCORE:
        return static_cast<IPluginV3OneCore*>(this);
      case PluginCapabilityType::kBUILD:
        return static_cast<IPluginV3OneBuild*>(this);
      case PluginCapabilityType::kRUNTIME:
        return static_cast<IPluginV3OneRuntime*>(this);
    }
    return nullptr;
  }
  IPluginV3* clone() noexcept override { return new (std::nothrow) Plugin(kind_, values_, gated_); }

  char const* getPluginName() const noexcept override { return kind_.name; }
  char const* getPluginVersion() const noexcept override { return kVersion; }
  char const* getPluginNamespace() const noexcept override { return kNamespace; }

  int32_t getNbOutputs() const noexcept override { return kind_.outputs(); }

  int32_t getOutputDataTypes(DataType* types, int32_t outputs, DataType const*,
                             int32_t inputs) const noexcept override {
    if (!takes(inputs) || outputs != kind_.outputs()) return failed("wrong count of tensors");
    for (int32_t i = 0; i < outputs; ++i) types[i] = kind_.output_type(i);
    return 0;
  }

  int32_t getOutputShapes(DimsExprs const* inputs, int32_t nb_inputs, DimsExprs const*, int32_t,
                          DimsExprs* outputs, int32_t nb_outputs,
                          IExprBuilder& builder) noexcept override {
    if (!takes(nb_inputs) || nb_outputs != kind_.outputs()) {
      return failed("wrong count of tensors");
    }
    DimsExprs const& first = inputs[0];
    if (first.nbDims != 3 || !first.d[2]->isConstant()) return failed("needs [1, L, C], C constant");
    for (int32_t i = 0; i < nb_outputs; ++i) outputs[i] = first;
    if (kind_.quantizes) {
      outputs[nb_outputs - 1].d[2] = builder.constant(first.d[2]->getConstantValue() / kGroup);
    }
    return 0;
  }

  bool supportsFormatCombination(int32_t position, DynamicPluginTensorDesc const* tensors,
                                 int32_t inputs, int32_t outputs) noexcept override {
    if (!takes(inputs) || outputs != kind_.outputs()) return false;
    PluginTensorDesc const& tensor = tensors[position].desc;
    DataType const type = position < inputs ? input_type(position, inputs)
                                            : kind_.output_type(position - inputs);
    return tensor.type == type && tensor.format == TensorFormat::kLINEAR;
  }

  int32_t configurePlugin(DynamicPluginTensorDesc const* in, int32_t inputs,
                          DynamicPluginTensorDesc const*, int32_t) noexcept override {
    std::vector<Dims> largest;
    for (int32_t i = 0; i < inputs; ++i) largest.push_back(in[i].max);
    return take(largest);
  }

  size_t getWorkspaceSize(DynamicPluginTensorDesc const*, int32_t, DynamicPluginTensorDesc const*,
                          int32_t) const noexcept override {
    return 0;
  }

  char const* getTimingCacheID() noexcept override { return description_.c_str(); }
  char const* getMetadataString() noexcept override { return description_.c_str(); }

  int32_t onShapeChange(PluginTensorDesc const* in, int32_t inputs, PluginTensorDesc const*,
                        int32_t) noexcept override {
    std::vector<Dims> shapes;
    for (int32_t i = 0; i < inputs; ++i) shapes.push_back(in[i].dims);
    return take(shapes);
  }

  int32_t enqueue(PluginTensorDesc const* in, PluginTensorDesc const*, void const* const* inputs,
                  void* const* outputs, void*, cudaStream_t stream) noexcept override {
    fastwan_glue_desc const desc = describe(in[0].dims, kind_.has_heads() ? &in[3].dims : nullptr);
    if (fastwan_glue_enqueue(&desc, inputs, outputs, nullptr, 0, stream) != FASTWAN_OK) {
      return failed(fastwan_last_error());
    }
    return 0;
  }

  IPluginV3* attachToContext(IPluginResourceContext*) noexcept override { return clone(); }

  PluginFieldCollection const* getFieldsToSerialize() noexcept override { return &collection_; }

 private:
  bool takes(int32_t inputs) const { return kind_.takes(inputs - values_.scaled); }

  DataType input_type(int32_t position, int32_t inputs) const {
    int32_t const others = inputs - values_.scaled;
    return position < others ? kind_.input_type(position, others) : DataType::kFLOAT;
  }

  int32_t failed(std::string const& message) const {
    report(kind_.name, message.c_str());
    return 1;
  }

  // Keep whether there is a gate, which `enqueue` is not told, and check shapes of inputs.
  int32_t take(std::vector<Dims> const& shapes) {
    auto const inputs = static_cast<int32_t>(shapes.size());
    if (!takes(inputs)) return failed("wrong count of inputs");
    int32_t const others = inputs - values_.scaled;
    gated_ = kind_.gated(others);
    if (shapes[0].nbDims != 3 || shapes[0].d[0] != 1) return failed("the first must be [1, L, C]");
    int64_t const rows = shapes[0].d[1], columns = shapes[0].d[2];
    for (int32_t i = 1; i < inputs; ++i) {
      if (i < others ? !fits(i, shapes[i], rows, columns) : !is(shapes[i], {})) {
        return failed("input " + std::to_string(i) + " does not fit the first");
      }
    }
    if (kind_.has_heads() && !(is(shapes[4], {1, values_.num_heads, shapes[3].d[1], 128}) &&
                               is(shapes[5], {shapes[3].d[1]}))) {
      return failed("v must be [1, H, Lk, 128] and key_bias [Lk] for k [1, Lk, C]");
    }
    fastwan_glue_desc const desc = describe(shapes[0], kind_.has_heads() ? &shapes[3] : nullptr);
    size_t bytes = 0;
    return fastwan_glue_workspace_bytes(&desc, &bytes) == FASTWAN_OK ? 0
                                                                     : failed(fastwan_last_error());
  }

  bool fits(int32_t position, Dims const& dims, int64_t rows, int64_t columns) const {
    if (!kind_.has_heads()) {
      bool const hidden = kind_.bf16 == 3 && position == 2;
      return hidden ? is(dims, {1, rows, columns}) : is(dims, {columns});
    }
    if (position < 3) return is(dims, {columns});
    if (position == 3) return dims.nbDims == 3 && dims.d[0] == 1 && dims.d[2] == columns;
    return position < 6 || is(dims, {1});  // `take` holds v and key_bias to k
  }

  fastwan_glue_desc describe(Dims const& first, Dims const* keys) const {
    fastwan_glue_desc desc{};
    desc.struct_bytes = sizeof desc;
    desc.kind = kind_.kind;
    desc.rows = static_cast<int32_t>(first.d[1]);
    desc.columns = static_cast<int32_t>(first.d[2]);
    desc.keys = keys != nullptr ? static_cast<int32_t>(keys->d[1]) : 0;
    desc.eps = kind_.norm ? values_.eps : 0.0f;
    desc.softmax_scale = values_.scale;
    desc.flags = (values_.add_one == 1 ? FASTWAN_GLUE_ADD_ONE : 0u) |
                 (gated_ ? FASTWAN_GLUE_GATE : 0u) |
                 (values_.scaled == 1 ? FASTWAN_GLUE_SCALE : 0u);
    return desc;
  }

  Kind const& kind_;
  Values values_;
  bool gated_;
  std::vector<PluginField> fields_;
  PluginFieldCollection collection_;
  std::string description_;
};

class Creator final : public IPluginCreatorV3One {
 public:
  explicit Creator(Kind const& kind) : kind_(kind), names_(fields_of(attributes_of(kind, unset_))) {
    for (PluginField& field : names_) field.data = nullptr;
    collection_ = {static_cast<int32_t>(names_.size()), names_.data()};
  }

  IPluginV3* createPlugin(char const*, PluginFieldCollection const* collection,
                          TensorRTPhase) noexcept override {
    Values values;
    std::string problem = read_fields(collection, attributes_of(kind_, values));
    if (problem.empty()) problem = problem_of(kind_, values);
    if (problem.empty()) return new (std::nothrow) Plugin(kind_, values);
    report(kind_.name, problem.c_str());
    return nullptr;
  }

  PluginFieldCollection const* getFieldNames() noexcept override { return &collection_; }
  char const* getPluginName() const noexcept override { return kind_.name; }
  char const* getPluginVersion() const noexcept override { return kVersion; }
  char const* getPluginNamespace() const noexcept override { return kNamespace; }

 private:
  Kind const& kind_;
  Values unset_;
  std::vector<PluginField> names_;
  PluginFieldCollection collection_{};
};

}  // namespace

std::vector<IPluginCreatorInterface*> const& glue_creators() {
  static std::vector<IPluginCreatorInterface*> const creators = [] {
    std::vector<IPluginCreatorInterface*> made;
    for (Kind const& kind : kKinds) made.push_back(std::make_unique<Creator>(kind).release());
    return made;
  }();
  return creators;
}

}  // namespace fastwan::trt
