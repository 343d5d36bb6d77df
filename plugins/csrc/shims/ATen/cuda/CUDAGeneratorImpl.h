// Stands in for PyTorch's header, which the attention's params.h includes for this one struct.
#pragma once

namespace at {
struct PhiloxCudaState {};
}  // namespace at
