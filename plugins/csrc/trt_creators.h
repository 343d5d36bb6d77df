// Creators of TensorRT plugins that have a file of their own.
#pragma once

#include <NvInferRuntime.h>

#include <vector>

namespace fastwan::trt {

std::vector<nvinfer1::IPluginCreatorInterface*> const& glue_creators();

}  // namespace fastwan::trt
