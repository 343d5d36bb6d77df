// Residual, layer norm, modulation and quantiser between two GEMMs, or some of them.
//
// A warp owns a row and keeps it in registers, so the residual is read once and written once. A lane
// holds 4 neighbouring channels of each 128; four lanes share a scale. The torch definition is
// plugins/glue_reference.py; the order of the sums is part of it.
#pragma once

#include "quantize.cuh"

namespace fastwan {

constexpr int kPart = 128;                  // channels that a warp holds in one go
constexpr int kLaneChannels = kPart / kWarp;
constexpr int kWarps = kThreads / kWarp;
constexpr int kMaxParts = 40;

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

__device__ __forceinline__ Four load_bf16(uint16_t const* from) {
  return unpack_four(*reinterpret_cast<uint2 const*>(from));
}

__device__ __forceinline__ Four load_fp32(float const* from) {
  auto const* bits = reinterpret_cast<uint4 const*>(from);
  uint4 const word = *bits;
  return {{__uint_as_float(word.x), __uint_as_float(word.y), __uint_as_float(word.z),
           __uint_as_float(word.w)}};
}

// bf16(hidden + bf16(bf16(y + bias) * gate)), without a gate bf16(hidden + bf16(y + bias)); y is
// bf16(product * factor).
__device__ __forceinline__ uint2 residual(uint2 product, float factor, uint2 hidden,
                                          Four const& bias, float const* gate) {
  Four value = unpack_four(product);
  for (int i = 0; i < kLaneChannels; ++i) value.x[i] = __fmul_rn(value.x[i], factor);
  value = unpack_four(pack_four(value));
  for (int i = 0; i < kLaneChannels; ++i) value.x[i] = __fadd_rn(value.x[i], bias.x[i]);
  value = unpack_four(pack_four(value));
  if (gate != nullptr) {
    Four const factor = load_fp32(gate);
    for (int i = 0; i < kLaneChannels; ++i) value.x[i] = __fmul_rn(value.x[i], factor.x[i]);
    value = unpack_four(pack_four(value));
  }
  Four const old = unpack_four(hidden);
  for (int i = 0; i < kLaneChannels; ++i) value.x[i] = __fadd_rn(old.x[i], value.x[i]);
  return pack_four(value);
}

// Sum of a warp: a lane's four sums in pairs, then lanes over distances 16, 8, 4, 2, 1.
__device__ __forceinline__ float warp_sum(float const (&sum)[kLaneChannels]) {
  float total = __fadd_rn(__fadd_rn(sum[0], sum[1]), __fadd_rn(sum[2], sum[3]));
  for (int distance = kWarp / 2; distance > 0; distance /= 2) {
    total = __fadd_rn(total, __shfl_xor_sync(0xFFFFFFFFu, total, distance));
  }
  return total;
}

// Four channels of a row, quantised with the three lanes beside this one. `at` is the first of them
// in the whole tensor.
__device__ __forceinline__ void store_quantized(Four const& value, int64_t at, int lane,
                                                uint8_t* codes, uint8_t* scales) {
  float amax = fmaxf(fmaxf(fabsf(value.x[0]), fabsf(value.x[1])),
                     fmaxf(fabsf(value.x[2]), fabsf(value.x[3])));
  amax = fmaxf(amax, __shfl_xor_sync(0xFFFFFFFFu, amax, 1));
  amax = fmaxf(amax, __shfl_xor_sync(0xFFFFFFFFu, amax, 2));
  BlockScale const scale = divisor(amax);
  uint32_t const packed = four_codes(value.x[0], value.x[1], value.x[2], value.x[3], scale);
  *reinterpret_cast<uint16_t*>(codes + at / 2) = static_cast<uint16_t>(packed);
  if (lane % 4 == 0) scales[at / kGroup] = static_cast<uint8_t>(scale.code);
}

template <int kParts>
__global__ void __launch_bounds__(kThreads) residual_norm_kernel(NormArguments const p) {
  int const lane = static_cast<int>(threadIdx.x) % kWarp;
  int64_t const row = int64_t{blockIdx.x} * kWarps + static_cast<int>(threadIdx.x) / kWarp;
  if (row >= p.rows) return;
  int const first = lane * kLaneChannels;
  int64_t const begin = row * p.parts * kPart + first;
  float const factor = factor_or_one(p.factor);
  // All loads are under way before the first store, which the compiler cannot tell from them.
  uint2 held[kParts], old[kParts];
#pragma unroll
  for (int part = 0; part < kParts; ++part) {
    if (part < p.parts) {
      held[part] = *reinterpret_cast<uint2 const*>(p.y + begin + part * kPart);
      if (p.hidden != nullptr) {
        old[part] = *reinterpret_cast<uint2 const*>(p.hidden + begin + part * kPart);
      }
    }
  }
  float sum[kLaneChannels] = {0.0f, 0.0f, 0.0f, 0.0f};
#pragma unroll
  for (int part = 0; part < kParts; ++part) {
    if (part < p.parts) {
      int const channel = part * kPart + first;
      if (p.hidden != nullptr) {
        float const* gate = p.gate == nullptr ? nullptr : p.gate + channel;
        held[part] = residual(held[part], factor, old[part], load_bf16(p.bias + channel), gate);
      }
      if (p.hidden_out != nullptr) {
        *reinterpret_cast<uint2*>(p.hidden_out + begin + part * kPart) = held[part];
      }
      Four const value = unpack_four(held[part]);
      for (int i = 0; i < kLaneChannels; ++i) sum[i] = __fadd_rn(sum[i], value.x[i]);
    }
  }
  float const channels = static_cast<float>(p.parts * kPart);
  float const mean = __fdiv_rn(warp_sum(sum), channels);
  float square[kLaneChannels] = {0.0f, 0.0f, 0.0f, 0.0f};
#pragma unroll
  for (int part = 0; part < kParts; ++part) {
    if (part < p.parts) {
      Four const value = unpack_four(held[part]);
      for (int i = 0; i < kLaneChannels; ++i) {
        float const centred = __fsub_rn(value.x[i], mean);
        square[i] = __fadd_rn(square[i], __fmul_rn(centred, centred));
      }
    }
  }
  float const variance = __fdiv_rn(warp_sum(square), channels);
  float const inverse = __frsqrt_rn(__fadd_rn(variance, p.eps));
#pragma unroll
  for (int part = 0; part < kParts; ++part) {
    if (part < p.parts) {
      int const channel = part * kPart + first;
      Four value = unpack_four(held[part]);
      Four const scale = load_fp32(p.scale + channel), shift = load_fp32(p.shift + channel);
      for (int i = 0; i < kLaneChannels; ++i) {
        float const factor = p.add_one ? __fadd_rn(1.0f, scale.x[i]) : scale.x[i];
        float const normed = __fmul_rn(__fsub_rn(value.x[i], mean), inverse);
        value.x[i] = __fadd_rn(__fmul_rn(normed, factor), shift.x[i]);
      }
      uint2 const packed = pack_four(value);
      if (p.normed != nullptr) {
        *reinterpret_cast<uint2*>(p.normed + begin + part * kPart) = packed;
      } else {
        store_quantized(unpack_four(packed), begin + part * kPart, lane, p.codes, p.scales);
      }
    }
  }
}

}  // namespace fastwan
