// What a builder hands to a plugin: shapes as expressions, described tensors and a logger.
#pragma once

#include <NvInferRuntime.h>

#include <cstdio>
#include <memory>
#include <vector>

using namespace nvinfer1;

class Value final : public apiv::VDimensionExpr {
 public:
  explicit Value(int64_t value) : value_(value) {}
  bool isConstant() const override { return value_ >= 0; }
  int64_t getConstantValue() const override { return value_; }
  bool isSizeTensor() const override { return false; }

 private:
  int64_t value_;
};

class Expression final : public IDimensionExpr {
 public:
  explicit Expression(int64_t value) : value_(value) { mImpl = &value_; }

 private:
  Value value_;
};

class Maker final : public apiv::VExprBuilder {
 public:
  IDimensionExpr const* constant(int64_t value) override {
    made_.push_back(std::make_unique<Expression>(value));
    return made_.back().get();
  }
  IDimensionExpr const* operation(DimensionOperation, IDimensionExpr const&,
                                  IDimensionExpr const&) override {
    return nullptr;
  }
  IDimensionExpr const* declareSizeTensor(int32_t, IDimensionExpr const&,
                                          IDimensionExpr const&) override {
    return nullptr;
  }

 private:
  std::vector<std::unique_ptr<Expression>> made_;
};

class Builder final : public IExprBuilder {
 public:
  Builder() { mImpl = &maker_; }

 private:
  Maker maker_;
};

class Logger final : public ILogger {
 public:
  void log(Severity, char const* message) noexcept override { std::printf("log %s\n", message); }
};

class Finder final : public ILoggerFinder {
 public:
  ILogger* findLogger() override { return &logger_; }

 private:
  Logger logger_;
};

inline DynamicPluginTensorDesc tensor(DataType type, std::vector<int64_t> const& shape) {
  DynamicPluginTensorDesc described{};
  Dims dims{};
  dims.nbDims = static_cast<int32_t>(shape.size());
  for (size_t i = 0; i < shape.size(); ++i) dims.d[i] = shape[i];
  described.desc.dims = described.min = described.opt = described.max = dims;
  described.desc.type = type;
  described.desc.format = TensorFormat::kLINEAR;
  return described;
}
