// The part of ONNX Runtime's C interface that custom ops need, declared here because no wheel ships the header.
//
// The interface only grows: a function keeps its place in the table and a struct its fields, so what is declared for
// version 24 holds in every later release. Function places and enum values are facts of that interface
// (include/onnxruntime/core/session/onnxruntime_c_api.h in microsoft/onnxruntime).
#pragma once

#include <cstddef>
#include <cstdint>

struct OrtStatus;
struct OrtSessionOptions;
struct OrtCustomOpDomain;
struct OrtValue;
struct OrtTensorTypeAndShapeInfo;
struct OrtKernelInfo;
struct OrtKernelContext;
struct OrtShapeInferContext;
struct OrtKeyValuePairs;

// Functions of all kinds, by place; `dsv3::abi::Entry` knows their types.
struct OrtApi {
  void (*entries[412])();
};

struct OrtApiBase {
  const OrtApi* (*get_api)(uint32_t version) noexcept;
  const char* (*get_version_string)() noexcept;
};

namespace dsv3::abi {

// The lowest version that has all that is used here: KernelInfo_GetConfigEntries came last.
inline constexpr uint32_t kVersion = 24;

enum ErrorCode : int { kFail = 1, kInvalidArgument = 2 };

// ONNX's element types, under the numbers of the C interface (those of TensorProto differ for some).
enum class Element : int {
  any = 0,  // as the type of an op's input: no constraint
  f32 = 1,
  u8 = 2,
  i8 = 3,
  i32 = 6,
  i64 = 7,
  f16 = 10,
  bf16 = 16,
  f8e4m3 = 17,
};

enum class Presence : int { required = 0, optional = 1, variadic = 2 };

// A function of the table: its place and its type.
template <size_t Place, typename Function>
struct Entry;

template <size_t Place, typename Result, typename... Arguments>
struct Entry<Place, Result(Arguments...)> {
  Result operator()(const OrtApi* api, Arguments... arguments) const {
    static_assert(Place < sizeof(OrtApi) / sizeof(void (*)()));
    return reinterpret_cast<Result (*)(Arguments...)>(api->entries[Place])(arguments...);
  }
};

struct CustomOp;

inline constexpr Entry<0, OrtStatus*(int, const char*)> create_status;
inline constexpr Entry<2, const char*(const OrtStatus*)> get_error_message;
inline constexpr Entry<26, OrtStatus*(const char*, OrtCustomOpDomain**)> create_custom_op_domain;
inline constexpr Entry<27, OrtStatus*(OrtCustomOpDomain*, const CustomOp*)> custom_op_domain_add;
inline constexpr Entry<28, OrtStatus*(OrtSessionOptions*, OrtCustomOpDomain*)> add_custom_op_domain;
inline constexpr Entry<51, OrtStatus*(OrtValue*, void**)> get_tensor_mutable_data;
inline constexpr Entry<60, OrtStatus*(const OrtTensorTypeAndShapeInfo*, int*)> get_tensor_element_type;
inline constexpr Entry<61, OrtStatus*(const OrtTensorTypeAndShapeInfo*, size_t*)> get_dimensions_count;
inline constexpr Entry<62, OrtStatus*(const OrtTensorTypeAndShapeInfo*, int64_t*, size_t)> get_dimensions;
inline constexpr Entry<65, OrtStatus*(const OrtValue*, OrtTensorTypeAndShapeInfo**)> get_tensor_type_and_shape;
inline constexpr Entry<85, OrtStatus*(const OrtKernelInfo*, const char*, float*)> kernel_info_get_float;
inline constexpr Entry<86, OrtStatus*(const OrtKernelInfo*, const char*, int64_t*)> kernel_info_get_int64;
inline constexpr Entry<87, OrtStatus*(const OrtKernelInfo*, const char*, char*, size_t*)> kernel_info_get_string;
inline constexpr Entry<88, OrtStatus*(const OrtKernelContext*, size_t*)> kernel_context_get_input_count;
inline constexpr Entry<90, OrtStatus*(const OrtKernelContext*, size_t, const OrtValue**)> kernel_context_get_input;
inline constexpr Entry<91, OrtStatus*(OrtKernelContext*, size_t, const int64_t*, size_t, OrtValue**)>
    kernel_context_get_output;
inline constexpr Entry<93, void(OrtStatus*)> release_status;
inline constexpr Entry<99, void(OrtTensorTypeAndShapeInfo*)> release_tensor_type_and_shape_info;
inline constexpr Entry<101, void(OrtCustomOpDomain*)> release_custom_op_domain;
inline constexpr Entry<230, OrtStatus*(const OrtKernelInfo*, size_t*)> kernel_info_get_input_count;
inline constexpr Entry<244, OrtStatus*(const OrtKernelInfo*, char*, size_t*)> kernel_info_get_node_name;
inline constexpr Entry<249, OrtStatus*(const OrtKernelInfo*, size_t, int*, const OrtValue**)>
    kernel_info_get_constant_input;
inline constexpr Entry<274, OrtStatus*(const OrtKernelContext*, void (*)(void*, size_t), size_t, size_t, void*)>
    kernel_context_parallel_for;
inline constexpr Entry<297, const char*(const OrtKeyValuePairs*, const char*)> get_key_value;
inline constexpr Entry<300, void(OrtKeyValuePairs*)> release_key_value_pairs;
inline constexpr Entry<391, OrtStatus*(const OrtKernelInfo*, OrtKeyValuePairs**)> kernel_info_get_config_entries;

// An op's schema and the functions of its kernels: OrtCustomOp, with all fields of version 24.
struct CustomOp {
  uint32_t version;
  void* (*create_kernel)(const CustomOp*, const OrtApi*, const OrtKernelInfo*);  // before version 16
  const char* (*get_name)(const CustomOp*);
  const char* (*get_execution_provider)(const CustomOp*);
  Element (*get_input_type)(const CustomOp*, size_t);
  size_t (*get_input_count)(const CustomOp*);
  Element (*get_output_type)(const CustomOp*, size_t);
  size_t (*get_output_count)(const CustomOp*);
  void (*compute_kernel)(void*, OrtKernelContext*);  // before version 16
  void (*destroy_kernel)(void*);
  Presence (*get_input_presence)(const CustomOp*, size_t);
  Presence (*get_output_presence)(const CustomOp*, size_t);
  int (*get_input_memory)(const CustomOp*, size_t);
  int (*get_variadic_input_least)(const CustomOp*);
  int (*get_variadic_input_homogeneity)(const CustomOp*);
  int (*get_variadic_output_least)(const CustomOp*);
  int (*get_variadic_output_homogeneity)(const CustomOp*);
  OrtStatus* (*create_kernel_or_fail)(const CustomOp*, const OrtApi*, const OrtKernelInfo*, void**);
  OrtStatus* (*compute_kernel_or_fail)(void*, OrtKernelContext*);
  OrtStatus* (*infer_output_shape)(const CustomOp*, OrtShapeInferContext*);
  int (*get_start_version)(const CustomOp*);
  int (*get_end_version)(const CustomOp*);
  size_t (*get_may_inplace)(int**, int**);
  void (*release_may_inplace)(int*, int*);
  size_t (*get_alias_map)(int**, int**);
  void (*release_alias_map)(int*, int*);
};

}  // namespace dsv3::abi
