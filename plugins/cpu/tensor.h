// Tensors as kernels see them: a shape and a pointer to rows that lie one behind the other.
#pragma once

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <string>

#include "abi.h"
#include "error.h"

namespace dsv3 {

using abi::Element;

inline constexpr size_t kMaxRank = 8;

struct Shape {
  int64_t dims[kMaxRank] = {};
  size_t rank = 0;

  Shape() = default;
  Shape(std::initializer_list<int64_t> sizes);

  int64_t operator[](size_t axis) const { return dims[axis]; }
  int64_t last() const { return dims[rank - 1]; }
  int64_t count() const;
  int64_t rows() const;  // product of all dimensions but the last
  bool operator==(const Shape& other) const;
  std::string text() const;  // "[2, 3]"
};

// The element's name as ONNX writes it, for messages.
const char* element_name(Element element);

struct Tensor {
  Element element = Element::any;
  Shape shape;
  const void* data = nullptr;

  // The elements. Throws an Error for another type than `T` stands for: bfloat16 and float16 are uint16_t, float8 uint8_t.
  template <typename T>
  const T* as(Element expected) const {
    require(element == expected, "expected ", element_name(expected), ", got ", element_name(element));
    return static_cast<const T*>(data);
  }
  const float* f32() const { return as<float>(Element::f32); }
  const uint8_t* u8() const { return as<uint8_t>(Element::u8); }
  const int8_t* i8() const { return as<int8_t>(Element::i8); }
  const int64_t* i64() const { return as<int64_t>(Element::i64); }
};

// Throws an Error unless `tensor` has the shape; a negative size stands for any.
void require_shape(const Tensor& tensor, const char* name, const Shape& expected);

// The tensor that a value of ONNX Runtime holds.
Tensor tensor_of(const OrtApi* api, const OrtValue* value);

}  // namespace dsv3
