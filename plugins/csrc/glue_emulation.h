// What the glue needs of CUDA beyond host_emulation.h, on the host. For tests.
#pragma once

#include <cmath>

#include "host_emulation.h"

// The product of two fp32 numbers of which one has at most 24 bits is exact in double, unless it is
// too large for fp32.
inline float __fmul_rz(float a, float b) {
  double const exact = static_cast<double>(a) * static_cast<double>(b);
  float const nearest = static_cast<float>(exact);
  return std::fabs(static_cast<double>(nearest)) > std::fabs(exact) ? std::nextafterf(nearest, 0.0f)
                                                                    : nearest;
}
