// TensorRT plugins of the nodes between the qkv and the output GEMM of self-attention.
//
// The nodes have the same inputs and output, and attributes that differ in one flag; those of one may
// have scales of rows as well. A plugin is this template over a `Node` with
//   kName, kFlag                    names of the node and of its flag
//   kRowScales                      whether its rows may have scales
//   Desc                            its description in the C interface
//   describe(attributes, qkv)       the description for a shape of qkv
//   workspace_bytes, enqueue        its functions
#pragma once

#include <cmath>
#include <new>

#include "fastwan_plugins.h"
#include "trt_support.h"

namespace fastwan::trt {

constexpr int32_t kInputs = 7;  // without the scales of rows
constexpr char const* kRowScaled = "row_scaled";

// Attributes of the node; also what is serialised into an engine.
struct AttentionAttributes {
  int32_t num_heads = 0;
  int32_t num_tokens = 0;  // 0: every row is a token
  float eps = 1e-6f;
  float softmax_scale = 0.0f;
  int32_t flag = 0;
  int32_t row_scaled = 0;  // 1: the last input is the rows' scales, [B, L, 1]

  int32_t inputs() const { return kInputs + row_scaled; }

  int32_t tokens_of(Dims const& qkv) const {
    return num_tokens == 0 ? static_cast<int32_t>(qkv.d[1]) : num_tokens;
  }
};

template <typename Node>
std::vector<Attribute> attributes_of(AttentionAttributes& a) {
  std::vector<Attribute> attributes{{"num_heads", &a.num_heads, nullptr},
                                    {"num_tokens", &a.num_tokens, nullptr},
                                    {"eps", nullptr, &a.eps},
                                    {"softmax_scale", nullptr, &a.softmax_scale},
                                    {Node::kFlag, &a.flag, nullptr}};
  if (Node::kRowScales) attributes.push_back({kRowScaled, &a.row_scaled, nullptr});
  return attributes;
}

// Empty when `collection` gives a usable node, otherwise what is wrong with it.
template <typename Node>
std::string read_attributes(PluginFieldCollection const* collection, AttentionAttributes* a) {
  std::string const problem = read_fields(collection, attributes_of<Node>(*a));
  if (!problem.empty()) return problem;
  if (a->num_heads < 1 || a->num_heads > FASTWAN_MAX_HEADS) {
    return "num_heads " + std::to_string(a->num_heads) + " is not within 1 .. " +
           std::to_string(FASTWAN_MAX_HEADS);
  }
  if (a->num_tokens < 0) return "num_tokens " + std::to_string(a->num_tokens) + " is negative";
  if (!(a->eps >= 0.0f) || !std::isfinite(a->eps)) return "eps must be finite and not negative";
  if (!(a->softmax_scale > 0.0f) || !std::isfinite(a->softmax_scale)) {
    return "softmax_scale must be given, finite and positive";
  }
  if (a->flag != 0 && a->flag != 1) return std::string(Node::kFlag) + " must be 0 or 1";
  if (a->row_scaled != 0 && a->row_scaled != 1) {
    return std::string(kRowScaled) + " must be 0 or 1";
  }
  return "";
}

template <typename Node>
class AttentionPlugin final : public IPluginV3,
                              public IPluginV3OneCore,
                              public IPluginV3OneBuild,
                              public IPluginV3OneRuntime {
 public:
  explicit AttentionPlugin(AttentionAttributes const& attributes)
      : attributes_(attributes),
        fields_(fields_of(attributes_of<Node>(attributes_))),
        collection_{static_cast<int32_t>(fields_.size()), fields_.data()} {
    char text[160];
    std::snprintf(text, sizeof text, "num_heads=%d num_tokens=%d eps=%g softmax_scale=%g %s=%d%s",
                  attributes_.num_heads, attributes_.num_tokens,
                  static_cast<double>(attributes_.eps),
                  static_cast<double>(attributes_.softmax_scale), Node::kFlag, attributes_.flag,
                  attributes_.row_scaled != 0 ? " row_scaled=1" : "");
    description_ = text;
  }
  AttentionPlugin(AttentionPlugin const&) = delete;
  AttentionPlugin& operator=(AttentionPlugin const&) = delete;

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
  IPluginV3* clone() noexcept override {
    return new (std::nothrow) AttentionPlugin(attributes_);
  }

  char const* getPluginName() const noexcept override { return Node::kName; }
  char const* getPluginVersion() const noexcept override { return kVersion; }
  char const* getPluginNamespace() const noexcept override { return kNamespace; }

  int32_t getNbOutputs() const noexcept override { return 1; }

  int32_t getOutputDataTypes(DataType* types, int32_t outputs, DataType const*,
                             int32_t inputs) const noexcept override {
    if (outputs != 1 || inputs != attributes_.inputs()) return failed(needed());
    types[0] = DataType::kBF16;
    return 0;
  }

  int32_t getOutputShapes(DimsExprs const* inputs, int32_t nb_inputs, DimsExprs const*, int32_t,
                          DimsExprs* outputs, int32_t nb_outputs,
                          IExprBuilder& builder) noexcept override {
    if (nb_outputs != 1 || nb_inputs != attributes_.inputs()) return failed(needed());
    if (inputs[0].nbDims != 3) return failed("qkv must be [B, L, 3C]");
    outputs[0].nbDims = 3;
    outputs[0].d[0] = inputs[0].d[0];
    outputs[0].d[1] = inputs[0].d[1];
    outputs[0].d[2] = builder.constant(channels());
    return 0;
  }

  bool supportsFormatCombination(int32_t position, DynamicPluginTensorDesc const* tensors,
                                 int32_t inputs, int32_t outputs) noexcept override {
    if (inputs != attributes_.inputs() || outputs != 1) return false;
    // qkv, qkv_scale, qkv_bias, q_norm, k_norm, rope_cos, rope_sin, row_scale
    static constexpr DataType kTypes[kInputs + 1] = {
        DataType::kBF16, DataType::kFLOAT, DataType::kBF16,  DataType::kBF16,
        DataType::kBF16, DataType::kFLOAT, DataType::kFLOAT, DataType::kFLOAT};
    DataType const type = position == inputs ? DataType::kBF16 : kTypes[position];  // of the output
    PluginTensorDesc const& tensor = tensors[position].desc;
    return tensor.type == type && tensor.format == TensorFormat::kLINEAR;
  }

  int32_t configurePlugin(DynamicPluginTensorDesc const* in, int32_t, DynamicPluginTensorDesc const*,
                          int32_t) noexcept override {
    Dims const& largest = in[0].max;
    if (largest.nbDims != 3 || largest.d[2] != 3 * channels()) {
      return failed("qkv must be [B, L, " + std::to_string(3 * channels()) + "]");
    }
    return 0;
  }

  size_t getWorkspaceSize(DynamicPluginTensorDesc const* inputs, int32_t,
                          DynamicPluginTensorDesc const*, int32_t) const noexcept override {
    size_t bytes = 0;
    typename Node::Desc const desc = Node::describe(attributes_, inputs[0].max);
    if (Node::workspace_bytes(&desc, &bytes) != FASTWAN_OK) {
      report(Node::kName, fastwan_last_error());
    }
    return bytes;
  }

  char const* getTimingCacheID() noexcept override { return description_.c_str(); }
  char const* getMetadataString() noexcept override { return description_.c_str(); }

  int32_t onShapeChange(PluginTensorDesc const* in, int32_t inputs, PluginTensorDesc const*,
                        int32_t) noexcept override {
    if (inputs != attributes_.inputs()) return failed(needed());
    Dims const& qkv = in[0].dims;
    if (qkv.nbDims != 3 || qkv.d[2] != 3 * channels()) return failed("qkv must be [B, L, 3C]");
    int64_t const tokens = attributes_.tokens_of(qkv);
    if (qkv.d[1] < tokens) return failed("qkv has fewer rows than num_tokens");
    for (int32_t i = 5; i < kInputs; ++i) {
      if (in[i].dims.nbDims != 2 || in[i].dims.d[0] < tokens ||
          in[i].dims.d[1] != FASTWAN_HEAD_DIM / 2) {
        return failed("rope_cos and rope_sin must be [L, 64] with a row for each token");
      }
    }
    if (attributes_.row_scaled != 0) {
      Dims const& scales = in[kInputs].dims;
      if (scales.nbDims != 3 || scales.d[0] != qkv.d[0] || scales.d[1] != qkv.d[1] ||
          scales.d[2] != 1) {
        return failed("row_scale must be [B, L, 1]");
      }
    }
    return 0;
  }

  int32_t enqueue(PluginTensorDesc const* in, PluginTensorDesc const*, void const* const* inputs,
                  void* const* outputs, void* workspace, cudaStream_t stream) noexcept override {
    typename Node::Desc const desc = Node::describe(attributes_, in[0].dims);
    size_t bytes = 0;
    if (Node::workspace_bytes(&desc, &bytes) != FASTWAN_OK ||
        Node::enqueue(&desc, inputs, outputs, workspace, bytes, stream) != FASTWAN_OK) {
      return failed(fastwan_last_error());
    }
    return 0;
  }

  IPluginV3* attachToContext(IPluginResourceContext*) noexcept override { return clone(); }

  PluginFieldCollection const* getFieldsToSerialize() noexcept override { return &collection_; }

 private:
  int32_t channels() const { return attributes_.num_heads * FASTWAN_HEAD_DIM; }

  std::string needed() const {
    return "needs " + std::to_string(attributes_.inputs()) + " inputs and 1 output";
  }

  static int32_t failed(std::string const& message) {
    report(Node::kName, message.c_str());
    return 1;
  }

  AttentionAttributes attributes_;
  std::vector<PluginField> fields_;
  PluginFieldCollection collection_;
  std::string description_;
};

template <typename Node>
class AttentionCreator final : public IPluginCreatorV3One {
 public:
  IPluginV3* createPlugin(char const*, PluginFieldCollection const* collection,
                          TensorRTPhase) noexcept override {
    AttentionAttributes attributes;
    std::string const problem = read_attributes<Node>(collection, &attributes);
    if (!problem.empty()) {
      report(Node::kName, problem.c_str());
      return nullptr;
    }
    return new (std::nothrow) AttentionPlugin<Node>(attributes);
  }

  PluginFieldCollection const* getFieldNames() noexcept override {
    static std::vector<PluginField> fields = [] {
      AttentionAttributes unset;
      std::vector<PluginField> names = fields_of(attributes_of<Node>(unset));
      for (PluginField& field : names) field.data = nullptr;
      return names;
    }();
    static PluginFieldCollection const collection{static_cast<int32_t>(fields.size()),
                                                  fields.data()};
    return &collection;
  }

  char const* getPluginName() const noexcept override { return Node::kName; }
  char const* getPluginVersion() const noexcept override { return kVersion; }
  char const* getPluginNamespace() const noexcept override { return kNamespace; }
};

}  // namespace fastwan::trt
