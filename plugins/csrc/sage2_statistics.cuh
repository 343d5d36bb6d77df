// First and second launch of SageAttention2++: what all tokens have to say of k and v.
//
// `statistics` takes the RMS norms of q and k of each token, and of 32 tokens each the sum of k and the
// largest magnitude of v, by channel; `reduce` makes of them the mean of k and the scale of v. q and k
// are normalised and turned anew where they are needed: that is cheaper than to write and read them.
// The torch definition is plugins/sage2_reference.py; every rounding and the order of every sum in
// these launches is one of it.
#pragma once

#include "prologue.cuh"
#include "sage2_layout.h"

namespace fastwan::sage2 {

constexpr float kValueRange = 2.25f;  // largest value: 64 products with 448 stay inside fp16
constexpr int kSegments = kWarps;     // of the spans that are added up apart

struct PrologueArguments {
  Buffers buffers;
  int batch;
  int length;
  int num_tokens;
  int padded_tokens;
  int num_heads;
  float eps;
  int spans;
  bool per_thread;  // granularity
  bool wide;        // v as fp16
  int value_blocks;
  int row_blocks;  // of q, and as many of k
};

inline PrologueArguments prologue_arguments(fastwan_sage2_desc const& desc,
                                            fastwan_sage2_layout const& layout,
                                            Buffers const& buffers, bool wide) {
  int const padded = static_cast<int>(layout.padded_tokens);
  int const heads = desc.batch * desc.num_heads;
  return {buffers,
          desc.batch,
          desc.length,
          desc.num_tokens,
          padded,
          desc.num_heads,
          desc.eps,
          static_cast<int>(spans(desc)),
          per_thread(desc),
          wide,
          heads * (padded / kKeyTile),
          heads * (padded / kQueryTile)};
}

inline int statistics_blocks(PrologueArguments const& p) { return p.batch * p.spans; }

inline int reduce_blocks(PrologueArguments const& p) {
  return p.batch * p.num_heads * (kHeadDim / kWarp);
}

inline int quantise_blocks(PrologueArguments const& p) {
  int const behind = p.batch * (p.length - p.num_tokens);
  return p.value_blocks + 2 * p.row_blocks + (behind + kWarps - 1) / kWarps;
}

__device__ __forceinline__ int lane_of_thread() { return static_cast<int>(threadIdx.x) % kWarp; }
__device__ __forceinline__ int warp_of_thread() { return static_cast<int>(threadIdx.x) / kWarp; }

// Where a lane's four channels of q (part 0), k (1) or v (2) of a token lie in qkv.
__device__ __forceinline__ uint16_t const* channels_of(PrologueArguments const& p, int batch,
                                                       int token, int part, int channel) {
  int64_t const row = int64_t{batch} * p.length + token;
  return p.buffers.qkv + (row * 3 + part) * p.num_heads * kHeadDim + channel;
}

// Factor of a token's row of qkv.
template <bool kRowScaled>
__device__ __forceinline__ float row_factor(PrologueArguments const& p, int batch, int token) {
  return kRowScaled ? p.buffers.row_scale[int64_t{batch} * p.length + token] : 1.0f;
}

// Four channels of a row of qkv: bf16(product of the GEMM * factor of the row).
template <bool kRowScaled>
__device__ __forceinline__ Four load_scaled(uint16_t const* from, float factor) {
  Four x = load_four(from);
  if constexpr (kRowScaled) {
    for (int i = 0; i < kLaneChannels; ++i) x.x[i] = __fmul_rn(x.x[i], factor);
    x = round_bf16(x);
  }
  return x;
}

// rsqrt(mean(x^2) + eps) of a token's q or k, in every lane.
template <bool kRowScaled>
__device__ __forceinline__ float inverse_norm(PrologueArguments const& p, int batch, int token,
                                              int part, int lane) {
  int const first = lane * kLaneChannels;
  uint16_t const* x = channels_of(p, batch, token, part, first);
  uint16_t const* bias = p.buffers.qkv_bias + part * p.num_heads * kHeadDim + first;
  float const scale = p.buffers.qkv_scale[part];
  float const factor = row_factor<kRowScaled>(p, batch, token);
  float sum[kLaneChannels] = {0.0f, 0.0f, 0.0f, 0.0f};
#pragma unroll 6
  for (int head = 0; head < p.num_heads; ++head) {
    Four const value = scale_and_bias(load_scaled<kRowScaled>(x + head * kHeadDim, factor), scale,
                                      load_four(bias + head * kHeadDim));
    for (int i = 0; i < kLaneChannels; ++i) {
      sum[i] = __fadd_rn(sum[i], __fmul_rn(value.x[i], value.x[i]));
    }
  }
  float total = __fadd_rn(__fadd_rn(sum[0], sum[1]), __fadd_rn(sum[2], sum[3]));
  for (int distance = kWarp / 2; distance > 0; distance /= 2) {
    total = __fadd_rn(total, __shfl_xor_sync(0xFFFFFFFFu, total, distance));
  }
  float const mean = __fdiv_rn(total, static_cast<float>(p.num_heads * kHeadDim));
  return __frsqrt_rn(__fadd_rn(mean, p.eps));
}

// What the four channels of a lane need besides the token: scale, bias and weight of the norm.
struct Channel {
  float scale;
  Four bias, gain;
};

__device__ __forceinline__ Channel channel_of(PrologueArguments const& p, int part, int channel) {
  uint16_t const* bias = p.buffers.qkv_bias + part * p.num_heads * kHeadDim + channel;
  uint16_t const* weight = part == 0 ? p.buffers.q_norm : p.buffers.k_norm;
  return {p.buffers.qkv_scale[part], load_four(bias), load_four(weight + channel)};
}

// q or k of a token: scales, bias, RMS norm and RoPE, each rounded to bf16.
template <bool kRowScaled>
__device__ __forceinline__ Four prepared(PrologueArguments const& p, int batch, int token, int part,
                                         int channel, Channel const& about, float inverse,
                                         int lane) {
  int64_t const turn = int64_t{token} * (kHeadDim / 4) + lane;
  float2 const cosine = reinterpret_cast<float2 const*>(p.buffers.rope_cos)[turn];
  float2 const sine = reinterpret_cast<float2 const*>(p.buffers.rope_sin)[turn];
  float const factor = row_factor<kRowScaled>(p, batch, token);
  Four value = scale_and_bias(
      load_scaled<kRowScaled>(channels_of(p, batch, token, part, channel), factor), about.scale,
      about.bias);
  for (int i = 0; i < kLaneChannels; ++i) value.x[i] = __fmul_rn(value.x[i], inverse);
  value = round_bf16(value);
  for (int i = 0; i < kLaneChannels; ++i) value.x[i] = __fmul_rn(value.x[i], about.gain.x[i]);
  value = round_bf16(value);
  return round_bf16(
      Four{{__fsub_rn(__fmul_rn(value.x[0], cosine.x), __fmul_rn(value.x[1], sine.x)),
            __fadd_rn(__fmul_rn(value.x[0], sine.x), __fmul_rn(value.x[1], cosine.x)),
            __fsub_rn(__fmul_rn(value.x[2], cosine.y), __fmul_rn(value.x[3], sine.y)),
            __fadd_rn(__fmul_rn(value.x[2], sine.y), __fmul_rn(value.x[3], cosine.y))}});
}

// v of a token: scales and bias.
template <bool kRowScaled>
__device__ __forceinline__ Four value_of(PrologueArguments const& p, int batch, int token,
                                         int channel, float scale, Four const& bias) {
  float const factor = row_factor<kRowScaled>(p, batch, token);
  return scale_and_bias(load_scaled<kRowScaled>(channels_of(p, batch, token, 2, channel), factor),
                        scale, bias);
}

// Norms, sums of k and maxima of v of 32 tokens. `inverse` is shared: one for each token, of k.
template <bool kRowScaled>
__device__ __forceinline__ void statistics_block(PrologueArguments const& p, float* inverse) {
  Buffers const& b = p.buffers;
  int const lane = lane_of_thread(), warp = warp_of_thread();
  int const block = static_cast<int>(blockIdx.x);
  int const span = block % p.spans, batch = block / p.spans;
  int const first = span * kSpan;
  int const count = p.num_tokens - first < kSpan ? p.num_tokens - first : kSpan;
  for (int i = warp; i < count; i += kWarps) {
    int64_t const at = int64_t{batch} * p.padded_tokens + first + i;
    float const q = inverse_norm<kRowScaled>(p, batch, first + i, 0, lane);
    float const k = inverse_norm<kRowScaled>(p, batch, first + i, 1, lane);
    if (lane == 0) {
      b.inverse_norm[at] = q;
      b.inverse_norm[int64_t{p.batch} * p.padded_tokens + at] = k;
      inverse[i] = k;
    }
  }
  __syncthreads();
  // The rows were read a moment ago: they come from the caches.
  int64_t const partial = (int64_t{batch} * p.spans + span) * p.num_heads * kHeadDim;
  for (int item = warp; item < 2 * p.num_heads; item += kWarps) {
    int const channel = item / 2 * kHeadDim + lane * kLaneChannels;
    float result[kLaneChannels] = {0.0f, 0.0f, 0.0f, 0.0f};
    if (item % 2 == 0) {
      Channel const about = channel_of(p, 1, channel);
#pragma unroll 4
      for (int i = 0; i < count; ++i) {
        Four const k =
            prepared<kRowScaled>(p, batch, first + i, 1, channel, about, inverse[i], lane);
        for (int j = 0; j < kLaneChannels; ++j) result[j] = __fadd_rn(result[j], k.x[j]);
      }
    } else {
      float const scale = b.qkv_scale[2];
      Four const bias = load_four(b.qkv_bias + 2 * p.num_heads * kHeadDim + channel);
#pragma unroll 4
      for (int i = 0; i < count; ++i) {
        Four const v = value_of<kRowScaled>(p, batch, first + i, channel, scale, bias);
        for (int j = 0; j < kLaneChannels; ++j) result[j] = fmaxf(result[j], fabsf(v.x[j]));
      }
    }
    float* out = (item % 2 == 0 ? b.k_sum : b.v_max) + partial + channel;
    for (int j = 0; j < kLaneChannels; ++j) out[j] = result[j];
  }
}

// Mean of k and scale of v of 32 channels: eight segments of the spans, then the segments.
__device__ __forceinline__ void reduce_block(PrologueArguments const& p, float* shared) {
  Buffers const& b = p.buffers;
  int const lane = lane_of_thread(), warp = warp_of_thread();
  int const channels = p.num_heads * kHeadDim;
  int const index = static_cast<int>(blockIdx.x) * kWarp + lane;  // of batch and channel
  int64_t const first = int64_t{index / channels} * p.spans * channels + index % channels;
  int const length = (p.spans + kSegments - 1) / kSegments;
  int const begin = warp * length;
  int const end = begin + length < p.spans ? begin + length : p.spans;
  float sum = 0.0f, largest = 0.0f;
#pragma unroll 8
  for (int span = begin; span < end; ++span) {
    int64_t const at = first + int64_t{span} * channels;
    sum = __fadd_rn(sum, b.k_sum[at]);
    largest = fmaxf(largest, b.v_max[at]);
  }
  shared[warp * kWarp + lane] = sum;
  shared[(kSegments + warp) * kWarp + lane] = largest;
  __syncthreads();
  if (warp != 0) return;
  for (int segment = 1; segment < kSegments; ++segment) {
    sum = __fadd_rn(sum, shared[segment * kWarp + lane]);
    largest = fmaxf(largest, shared[(kSegments + segment) * kWarp + lane]);
  }
  float const mean = __fdiv_rn(sum, static_cast<float>(p.num_tokens));
  b.k_mean[index] = round_bf16(mean, mean).x;
  b.v_factor[index] = largest > 0.0f ? __fdiv_rn(kValueRange, largest) : 0.0f;
  b.v_scale[index] = __fdiv_rn(largest, kValueRange);
}

template <bool kRowScaled>
__global__ void __launch_bounds__(kThreads) statistics_kernel(PrologueArguments const p) {
  __shared__ float inverse[kSpan];
  statistics_block<kRowScaled>(p, inverse);
}

__global__ void __launch_bounds__(kThreads) reduce_kernel(PrologueArguments const p) {
  __shared__ float shared[2 * kSegments * kWarp];
  reduce_block(p, shared);
}

}  // namespace fastwan::sage2
