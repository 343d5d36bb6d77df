// TensorRT plugins of self-attention over the regions of the same names, and what registries look for
// in a plugin library.
#include "sage2.h"
#include "trt_attention.h"
#include "trt_creators.h"

namespace fastwan::trt {
namespace {

struct SageAttention3 {
  static constexpr char const* kName = "SageAttention3";
  static constexpr char const* kFlag = "exact_max";
  static constexpr bool kRowScales = false;
  using Desc = fastwan_region_desc;

  static Desc describe(AttentionAttributes const& a, Dims const& qkv) {
    Desc desc{};
    desc.struct_bytes = sizeof desc;
    desc.kind = FASTWAN_REGION_SAGE_ATTENTION3;
    desc.batch = static_cast<int32_t>(qkv.d[0]);
    desc.length = static_cast<int32_t>(qkv.d[1]);
    desc.num_tokens = a.tokens_of(qkv);
    desc.num_heads = a.num_heads;
    desc.eps = a.eps;
    desc.softmax_scale = a.softmax_scale;
    desc.flags = a.flag != 0 ? FASTWAN_FLAG_EXACT_MAX : 0u;
    return desc;
  }
  static constexpr auto workspace_bytes = fastwan_region_workspace_bytes;
  static constexpr auto enqueue = fastwan_region_enqueue;
};

struct SageAttention2 {
  static constexpr char const* kName = "SageAttention2";
  static constexpr char const* kFlag = "per_warp";
  static constexpr bool kRowScales = true;
  using Desc = fastwan_sage2_desc;

  static Desc describe(AttentionAttributes const& a, Dims const& qkv) {
    Desc desc{};
    desc.struct_bytes = sizeof desc;
    desc.mode = a.flag != 0 ? FASTWAN_SAGE2_PER_WARP : FASTWAN_SAGE2_PER_THREAD;
    if (a.row_scaled != 0) desc.mode |= FASTWAN_SAGE2_ROW_SCALED;
    desc.batch = static_cast<int32_t>(qkv.d[0]);
    desc.length = static_cast<int32_t>(qkv.d[1]);
    desc.num_tokens = a.tokens_of(qkv);
    desc.num_heads = a.num_heads;
    desc.eps = a.eps;
    desc.softmax_scale = a.softmax_scale;
    return desc;
  }
  static constexpr auto workspace_bytes = fastwan_sage2_workspace_bytes;
  static constexpr auto enqueue = fastwan_sage2_enqueue;
};

AttentionCreator<SageAttention3> sage_attention3;
AttentionCreator<SageAttention2> sage_attention2;

}  // namespace
}  // namespace fastwan::trt

extern "C" FASTWAN_API nvinfer1::IPluginCreatorInterface* const* getCreators(int32_t& count) {
  using namespace fastwan::trt;
  static std::vector<nvinfer1::IPluginCreatorInterface*> const creators = [] {
    std::vector<nvinfer1::IPluginCreatorInterface*> all{&sage_attention3, &sage_attention2};
    all.insert(all.end(), glue_creators().begin(), glue_creators().end());
    return all;
  }();
  count = static_cast<int32_t>(creators.size());
  return creators.data();
}

extern "C" FASTWAN_API void setLoggerFinder(nvinfer1::ILoggerFinder* finder) {
  fastwan::trt::logger_finder = finder;
}
