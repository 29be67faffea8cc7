#include "op.h"

#include <algorithm>
#include <cstdlib>
#include <thread>

namespace dsv3 {
namespace {

constexpr const char* kThreadsEntry = "dsv3.cpu.threads";

// Calls `get` and returns what it found, or nothing if ONNX Runtime refuses: it does for an attribute that is absent.
template <typename T, typename Get>
std::optional<T> attempt(const OrtApi* api, const Get& get) {
  T found{};
  OrtStatus* status = get(&found);
  if (status == nullptr) return found;
  abi::release_status(api, status);
  return std::nullopt;
}

const Schema& schema_of(const abi::CustomOp* op) { return static_cast<const detail::OpWithSchema*>(op)->schema; }

}  // namespace

int64_t NodeInfo::integer(const char* attribute) const {
  int64_t found = 0;
  check(api_, abi::kernel_info_get_int64(api_, info_, attribute, &found));
  return found;
}

int64_t NodeInfo::integer(const char* attribute, int64_t otherwise) const {
  const auto get = [&](int64_t* found) { return abi::kernel_info_get_int64(api_, info_, attribute, found); };
  return attempt<int64_t>(api_, get).value_or(otherwise);
}

float NodeInfo::real(const char* attribute) const {
  float found = 0;
  check(api_, abi::kernel_info_get_float(api_, info_, attribute, &found));
  return found;
}

float NodeInfo::real(const char* attribute, float otherwise) const {
  const auto get = [&](float* found) { return abi::kernel_info_get_float(api_, info_, attribute, found); };
  return attempt<float>(api_, get).value_or(otherwise);
}

std::string NodeInfo::text(const char* attribute, const char* otherwise) const {
  const auto measure = [&](size_t* size) {
    *size = 0;
    return abi::kernel_info_get_string(api_, info_, attribute, nullptr, size);
  };
  const size_t size = attempt<size_t>(api_, measure).value_or(0);  // with the closing zero
  if (size == 0) return otherwise;
  std::string found(size, '\0');
  size_t given = size;
  check(api_, abi::kernel_info_get_string(api_, info_, attribute, found.data(), &given));
  found.resize(size - 1);
  return found;
}

size_t NodeInfo::input_count() const {
  size_t count = 0;
  check(api_, abi::kernel_info_get_input_count(api_, info_, &count));
  return count;
}

std::optional<Tensor> NodeInfo::constant(size_t input) const {
  if (input >= input_count()) return std::nullopt;
  int is_constant = 0;
  const OrtValue* value = nullptr;
  check(api_, abi::kernel_info_get_constant_input(api_, info_, input, &is_constant, &value));
  if (is_constant == 0 || value == nullptr) return std::nullopt;
  return tensor_of(api_, value);
}

Tensor NodeInfo::weight(size_t input, const char* name) const {
  const std::optional<Tensor> found = constant(input);
  require(found.has_value(), name, ": expected an initializer, got none");
  return *found;
}

std::string NodeInfo::config(const char* entry, const char* otherwise) const {
  OrtKeyValuePairs* entries = nullptr;
  check(api_, abi::kernel_info_get_config_entries(api_, info_, &entries));
  const char* found = abi::get_key_value(api_, entries, entry);
  const std::string value = found == nullptr ? otherwise : found;
  abi::release_key_value_pairs(api_, entries);
  return value;
}

size_t NodeInfo::threads() const {
  const long threads = std::strtol(config(kThreadsEntry, "0").c_str(), nullptr, 10);
  return threads > 0 ? static_cast<size_t>(threads) : std::max(1u, std::thread::hardware_concurrency());
}

size_t Call::input_count() const {
  size_t count = 0;
  check(call_.api, abi::kernel_context_get_input_count(call_.api, call_.context, &count));
  return count;
}

const OrtValue* Call::value(size_t input) const {
  if (input >= input_count()) return nullptr;
  const OrtValue* found = nullptr;
  check(call_.api, abi::kernel_context_get_input(call_.api, call_.context, input, &found));
  return found;
}

bool Call::has(size_t input) const { return value(input) != nullptr; }

Tensor Call::input(size_t input) const {
  const OrtValue* found = value(input);
  require(found != nullptr, "input ", input, " is absent");
  return tensor_of(call_.api, found);
}

void* Call::output(size_t output, const Shape& shape) {
  OrtValue* made = nullptr;
  const OrtApi* api = call_.api;
  check(api, abi::kernel_context_get_output(api, call_.context, output, shape.dims, shape.rank, &made));
  require(made != nullptr, "output ", output, " is not wanted");
  void* data = nullptr;
  check(api, abi::get_tensor_mutable_data(api, made, &data));
  return data;
}

float* Call::output_f32(size_t output, const Shape& shape) { return static_cast<float*>(this->output(output, shape)); }

namespace detail {

OpWithSchema::OpWithSchema(Schema given) : abi::CustomOp{}, schema(std::move(given)) {
  version = abi::kVersion;
  get_name = [](const abi::CustomOp* op) { return schema_of(op).name; };
  get_execution_provider = [](const abi::CustomOp*) -> const char* { return nullptr; };  // the CPU's
  get_input_type = [](const abi::CustomOp* op, size_t index) { return schema_of(op).inputs[index].element; };
  get_input_count = [](const abi::CustomOp* op) { return schema_of(op).inputs.size(); };
  get_output_type = [](const abi::CustomOp* op, size_t index) { return schema_of(op).outputs[index].element; };
  get_output_count = [](const abi::CustomOp* op) { return schema_of(op).outputs.size(); };
  get_input_presence = [](const abi::CustomOp* op, size_t index) { return schema_of(op).inputs[index].presence; };
  get_output_presence = [](const abi::CustomOp* op, size_t index) { return schema_of(op).outputs[index].presence; };
  get_input_memory = [](const abi::CustomOp*, size_t) { return 0; };  // the provider's own
  get_variadic_input_least = [](const abi::CustomOp*) { return 1; };
  get_variadic_input_homogeneity = [](const abi::CustomOp*) { return 0; };  // of different types
  get_variadic_output_least = [](const abi::CustomOp*) { return 1; };
  get_variadic_output_homogeneity = [](const abi::CustomOp*) { return 1; };
  get_start_version = [](const abi::CustomOp*) { return 1; };
  get_end_version = [](const abi::CustomOp*) { return 1; };
}

}  // namespace detail
}  // namespace dsv3
