// What TensorRT plugins of every family share: messages and the fields of a node.
//
// Needs the headers of TensorRT 10.8 or later, the first with FP4, and no library of it: the
// registry that loads the plugins passes everything in.
#pragma once

#include <NvInferRuntime.h>

#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

namespace fastwan::trt {

using namespace nvinfer1;

constexpr char const* kVersion = "1";
constexpr char const* kNamespace = "fastwan";

inline ILoggerFinder* logger_finder = nullptr;

inline void report(char const* node, char const* message) {
  ILogger* const logger = logger_finder != nullptr ? logger_finder->findLogger() : nullptr;
  if (logger != nullptr) {
    logger->log(ILogger::Severity::kERROR, message);
  } else {
    std::fprintf(stderr, "%s::%s: %s\n", kNamespace, node, message);
  }
}

// ONNX integers are 64 bits wide; parsers hand them over as either width.
inline bool read_integer(PluginField const& field, int32_t* value) {
  if (field.data == nullptr || field.length != 1) return false;
  if (field.type == PluginFieldType::kINT32) {
    std::memcpy(value, field.data, sizeof *value);
    return true;
  }
  int64_t wide = 0;
  if (field.type != PluginFieldType::kINT64) return false;
  std::memcpy(&wide, field.data, sizeof wide);
  *value = static_cast<int32_t>(wide);
  return *value == wide;
}

inline bool read_float(PluginField const& field, float* value) {
  if (field.data == nullptr || field.length != 1) return false;
  if (field.type != PluginFieldType::kFLOAT32) return false;
  std::memcpy(value, field.data, sizeof *value);
  return true;
}

// An attribute of a node and where its value is kept: one of the pointers is null.
struct Attribute {
  char const* name;
  int32_t* integer;
  float* real;
};

// Fields over the values of `attributes`, which must outlive them.
inline std::vector<PluginField> fields_of(std::vector<Attribute> const& attributes) {
  std::vector<PluginField> fields;
  for (Attribute const& a : attributes) {
    if (a.integer != nullptr) {
      fields.emplace_back(a.name, a.integer, PluginFieldType::kINT32, 1);
    } else {
      fields.emplace_back(a.name, a.real, PluginFieldType::kFLOAT32, 1);
    }
  }
  return fields;
}

// Empty when every field of `collection` is an attribute, otherwise what is wrong with it.
inline std::string read_fields(PluginFieldCollection const* collection,
                               std::vector<Attribute> const& attributes) {
  if (collection == nullptr) return "no fields given";
  for (int32_t i = 0; i < collection->nbFields; ++i) {
    PluginField const& field = collection->fields[i];
    std::string const name = field.name == nullptr ? "" : field.name;
    bool known = false, read = false;
    for (Attribute const& a : attributes) {
      if (name != a.name) continue;
      known = true;
      read = a.integer != nullptr ? read_integer(field, a.integer) : read_float(field, a.real);
    }
    if (!known) return "unknown field '" + name + "'";
    if (!read) return "field '" + name + "' has the wrong type or length";
  }
  return "";
}

}  // namespace fastwan::trt
