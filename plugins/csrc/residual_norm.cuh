// Residual, layer norm, modulation and quantiser between two GEMMs, or some of them.
//
// A warp owns a row and keeps it in registers, so the residual is read once and written once. A
// lane holds 4 neighbouring channels of each 128; four lanes share a scale, and find those of four
// such parts at a time, one each. The torch definition is
// plugins/glue_reference.py; the order of the sums is part of it.
#pragma once

#include "quad.cuh"
#include "quantize.cuh"

namespace fastwan {

constexpr int kPart = 128;                  // channels that a warp holds in one go
constexpr int kLaneChannels = kPart / kWarp;
constexpr int kWarps = kThreads / kWarp;
constexpr int kMaxParts = 40;
constexpr int kUsualParts = 12;  // of the 1.3 B model

struct NormArguments {
  uint16_t const* y;       // [rows, 128 parts] bf16; what is normed where `hidden` is null
  uint16_t const* bias;    // [128 parts] bf16, null where `hidden` is
  uint16_t const* hidden;  // [rows, 128 parts] bf16, or null: no residual
  float const* gate;       // [128 parts], or null
  float const* scale;      // [128 parts]
  float const* shift;      // [128 parts]
  uint16_t* hidden_out;  // or null: not written
  uint16_t* normed;      // [rows, 128 parts] bf16, or null: codes and scales are written
  uint8_t* codes;
  uint8_t* scales;
  int rows;
  int parts;
  float eps;
  bool add_one;
  float const* factor;  // of y, [1], or null
};

inline int64_t norm_blocks(NormArguments const& p) {
  return (int64_t{p.rows} + kWarps - 1) / kWarps;
}

struct Four {
  float x[kLaneChannels];
};

__device__ __forceinline__ Four unpack_four(uint2 packed) {
  return {{bf16_to_float(packed.x & 0xFFFFu), __uint_as_float(packed.x & 0xFFFF0000u),
           bf16_to_float(packed.y & 0xFFFFu), __uint_as_float(packed.y & 0xFFFF0000u)}};
}

__device__ __forceinline__ uint2 pack_four(Four const& value) {
  return make_uint2(pack_bf16(value.x[0], value.x[1]), pack_bf16(value.x[2], value.x[3]));
}

__device__ __forceinline__ uint2 add_four(uint2 a, uint2 b) {
  return make_uint2(fma_pair(a.x, kOnes, b.x), fma_pair(a.y, kOnes, b.y));
}

__device__ __forceinline__ Four load_fp32(float const* from) {
  auto const* bits = reinterpret_cast<uint4 const*>(from);
  uint4 const word = *bits;
  return {{__uint_as_float(word.x), __uint_as_float(word.y), __uint_as_float(word.z),
           __uint_as_float(word.w)}};
}

// bf16(hidden + bf16(bf16(y + bias) * gate)) of four channels, y being bf16(product * factor);
// without a gate, which is null, of a gate of ones. A sum in bf16 is that of fp32, rounded: fp32 has
// more than twice the digits.
__device__ __forceinline__ uint2 residual(uint2 product, float factor, uint2 hidden, uint2 bias,
                                          float const* gate) {
  uint2 const y = make_uint2(scale_pair(product.x, factor), scale_pair(product.y, factor));
  Four value = unpack_four(add_four(y, bias));
  Four gates{{1.0f, 1.0f, 1.0f, 1.0f}};
  if (gate != nullptr) gates = load_fp32(gate);
  for (int i = 0; i < kLaneChannels; ++i) value.x[i] = __fmul_rn(value.x[i], gates.x[i]);
  return add_four(hidden, pack_four(value));
}

// Sum of a warp: a lane's four sums in pairs, then lanes over distances 16, 8, 4, 2, 1.
__device__ __forceinline__ float warp_sum(float const (&sum)[kLaneChannels]) {
  float total = __fadd_rn(__fadd_rn(sum[0], sum[1]), __fadd_rn(sum[2], sum[3]));
  for (int distance = kWarp / 2; distance > 0; distance /= 2) {
    total = __fadd_rn(total, __shfl_xor_sync(0xFFFFFFFFu, total, distance));
  }
  return total;
}

// bf16 of the modulated norm of four channels.
__device__ __forceinline__ uint2 modulated(uint2 held, float mean, float inverse,
                                           float const* scale_from,
                                           float const* shift_from, float one) {
  Four value = unpack_four(held);
  Four const scale = load_fp32(scale_from), shift = load_fp32(shift_from);
  for (int i = 0; i < kLaneChannels; ++i) {
    float const factor = __fadd_rn(one, scale.x[i]);
    float const normed = __fmul_rn(__fsub_rn(value.x[i], mean), inverse);
    value.x[i] = __fadd_rn(__fmul_rn(normed, factor), shift.x[i]);
  }
  return pack_four(value);
}

// What a kernel of this file writes: codes and scales, with or without the sum with a residual in
// front, or that sum's norm.
enum class NormKind { kNormQuantize, kResidualNormQuantize, kResidualNorm };

// Blocks at a time on a multiprocessor. With a residual more loads are on their way for a row,
// which takes registers and needs fewer warps.
constexpr int norm_blocks_at_once(int parts, NormKind kind) {
  if (parts == kMaxParts) return 1;
  return kind == NormKind::kNormQuantize ? 3 : 2;
}

template <int kParts, NormKind kKind>
__global__ void __launch_bounds__(kThreads, norm_blocks_at_once(kParts, kKind))
    residual_norm_kernel(NormArguments const p) {
  constexpr bool kResidual = kKind != NormKind::kNormQuantize;
  constexpr bool kQuantize = kKind != NormKind::kResidualNorm;
  // With any other number of parts each needs a branch, behind which its loads wait.
  int const parts = kParts == kMaxParts ? p.parts : kParts;
  int const lane = static_cast<int>(threadIdx.x) % kWarp;
  int64_t const row = int64_t{blockIdx.x} * kWarps + static_cast<int>(threadIdx.x) / kWarp;
  if (row >= p.rows) return;
  float const factor = kResidual ? factor_or_one(p.factor) : 1.0f;
  int const first = lane * kLaneChannels;
  int64_t const begin = row * parts * kPart + first;
  // All loads are under way before the first store, which the compiler cannot tell from them.
  uint2 held[kParts], old[kResidual ? kParts : 1];
#pragma unroll
  for (int part = 0; part < kParts; ++part) {
    if (part < parts) {
      held[part] = *reinterpret_cast<uint2 const*>(p.y + begin + part * kPart);
      if (kResidual) old[part] = *reinterpret_cast<uint2 const*>(p.hidden + begin + part * kPart);
    }
  }
  float sum[kLaneChannels] = {0.0f, 0.0f, 0.0f, 0.0f};
#pragma unroll
  for (int part = 0; part < kParts; ++part) {
    if (part < parts) {
      int const channel = part * kPart + first;
      if (kResidual) {
        float const* gate = p.gate == nullptr ? nullptr : p.gate + channel;
        held[part] = residual(held[part], factor, old[part],
                              *reinterpret_cast<uint2 const*>(p.bias + channel), gate);
        if (kQuantize) *reinterpret_cast<uint2*>(p.hidden_out + begin + part * kPart) = held[part];
      }
      Four const value = unpack_four(held[part]);
      for (int i = 0; i < kLaneChannels; ++i) sum[i] = __fadd_rn(sum[i], value.x[i]);
    }
  }
  float const channels = static_cast<float>(parts * kPart);
  float const mean = __fdiv_rn(warp_sum(sum), channels);
  float square[kLaneChannels] = {0.0f, 0.0f, 0.0f, 0.0f};
#pragma unroll
  for (int part = 0; part < kParts; ++part) {
    if (part < parts) {
      Four const value = unpack_four(held[part]);
      for (int i = 0; i < kLaneChannels; ++i) {
        float const centred = __fsub_rn(value.x[i], mean);
        square[i] = __fadd_rn(square[i], __fmul_rn(centred, centred));
      }
    }
  }
  float const variance = __fdiv_rn(warp_sum(square), channels);
  float const inverse = __frsqrt_rn(__fadd_rn(variance, p.eps));
  float const one = p.add_one ? 1.0f : -0.0f;  // -0 leaves every scale as it is
#pragma unroll
  for (int four = 0; four < kParts; four += kQuad) {
    uint32_t pairs[kQuad][2] = {};
#pragma unroll
    for (int i = 0; i < kQuad; ++i) {
      int const part = four + i;
      if (part < parts) {
        int const channel = part * kPart + first;
        uint2 const packed =
            modulated(held[part], mean, inverse, p.scale + channel, p.shift + channel, one);
        if (kQuantize) {
          pairs[i][0] = packed.x;
          pairs[i][1] = packed.y;
        } else {
          *reinterpret_cast<uint2*>(p.normed + begin + part * kPart) = packed;
        }
      }
    }
    if (kQuantize && four < parts) {
      QuadGroup const group = quantize_quad(pairs, lane);
      int const part = four + lane % kQuad;
      if (part < parts) {
        int64_t const at = (row * parts + part) * (kPart / kGroup) + lane / kQuad;
        reinterpret_cast<uint2*>(p.codes)[at] = group.codes;
        p.scales[at] = static_cast<uint8_t>(group.scale);
      }
    }
  }
}

}  // namespace fastwan
