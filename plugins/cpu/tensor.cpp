#include "tensor.h"

namespace dsv3 {

Shape::Shape(std::initializer_list<int64_t> sizes) {
  require(sizes.size() <= kMaxRank, "a tensor of rank ", sizes.size());
  for (const int64_t size : sizes) dims[rank++] = size;
}

int64_t Shape::count() const {
  int64_t product = 1;
  for (size_t axis = 0; axis < rank; ++axis) product *= dims[axis];
  return product;
}

int64_t Shape::rows() const {
  int64_t product = 1;
  for (size_t axis = 0; axis + 1 < rank; ++axis) product *= dims[axis];
  return product;
}

bool Shape::operator==(const Shape& other) const {
  if (rank != other.rank) return false;
  for (size_t axis = 0; axis < rank; ++axis) {
    if (dims[axis] != other.dims[axis]) return false;
  }
  return true;
}

std::string Shape::text() const {
  std::ostringstream out;
  out << '[';
  for (size_t axis = 0; axis < rank; ++axis) {
    if (axis > 0) out << ", ";
    if (dims[axis] < 0) {
      out << '?';
    } else {
      out << dims[axis];
    }
  }
  out << ']';
  return out.str();
}

const char* element_name(Element element) {
  switch (element) {
    case Element::f32: return "float32";
    case Element::u8: return "uint8";
    case Element::i8: return "int8";
    case Element::i32: return "int32";
    case Element::i64: return "int64";
    case Element::f16: return "float16";
    case Element::bf16: return "bfloat16";
    case Element::f8e4m3: return "float8e4m3fn";
    case Element::any: break;
  }
  return "another type";
}

void require_shape(const Tensor& tensor, const char* name, const Shape& expected) {
  bool equal = tensor.shape.rank == expected.rank;
  for (size_t axis = 0; equal && axis < expected.rank; ++axis) {
    equal = expected[axis] < 0 || expected[axis] == tensor.shape[axis];
  }
  require(equal, name, ": expected shape ", expected.text(), ", got ", tensor.shape.text());
}

Tensor tensor_of(const OrtApi* api, const OrtValue* value) {
  OrtTensorTypeAndShapeInfo* info = nullptr;
  check(api, abi::get_tensor_type_and_shape(api, value, &info));
  Tensor tensor;
  int element = 0;
  size_t rank = 0;
  OrtStatus* status = abi::get_tensor_element_type(api, info, &element);
  if (status == nullptr) status = abi::get_dimensions_count(api, info, &rank);
  const bool fits = rank <= kMaxRank;
  if (status == nullptr && fits) status = abi::get_dimensions(api, info, tensor.shape.dims, rank);
  abi::release_tensor_type_and_shape_info(api, info);
  check(api, status);
  require(fits, "a tensor of rank ", rank);
  tensor.element = static_cast<Element>(element);
  tensor.shape.rank = rank;
  void* data = nullptr;
  check(api, abi::get_tensor_mutable_data(api, const_cast<OrtValue*>(value), &data));
  tensor.data = data;
  return tensor;
}

}  // namespace dsv3
