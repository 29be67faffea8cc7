// The library's two entry points: ONNX Runtime calls RegisterCustomOps, the Python package dsv3_cpu_describe.
#include <string>
#include <vector>

#include "arena.h"
#include "error.h"
#include "isa.h"
#include "op.h"
#include "ops.h"

namespace dsv3 {
namespace {

constexpr const char* kDomain = "dsv3.cpu";

OrtCustomOpDomain* make_domain(const OrtApi* api) {
  OrtCustomOpDomain* domain = nullptr;
  check(api, abi::create_custom_op_domain(api, kDomain, &domain));
  for (const abi::CustomOp* op : all_ops()) check(api, abi::custom_op_domain_add(api, domain, op));
  return domain;
}

std::string compiler() {
#if defined(__clang__)
  return std::string("clang ") + __clang_version__;
#elif defined(__GNUC__)
  return std::string("gcc ") + __VERSION__;
#else
  return "unknown";
#endif
}

// JSON; no value has characters that need escaping.
std::string describe() {
  std::string ops;
  for (const abi::CustomOp* op : all_ops()) ops += (ops.empty() ? "\"" : ", \"") + std::string(op->get_name(op)) + '"';
  const std::string bytes = std::to_string(allocated_weight_bytes());
  return std::string("{\"isa\": \"") + isa_name(isa()) + "\", \"machine_isa\": \"" + isa_name(machine_isa()) +
         "\", \"compiler\": \"" + compiler() + "\", \"weight_bytes\": " + bytes + ", \"ops\": [" + ops + "]}";
}

}  // namespace
}  // namespace dsv3

#define DSV3_EXPORTED extern "C" __attribute__((visibility("default")))

DSV3_EXPORTED OrtStatus* RegisterCustomOps(OrtSessionOptions* options, const OrtApiBase* base) {
  const OrtApi* api = base->get_api(dsv3::abi::kVersion);
  // no status without an API: ONNX Runtime has said on stderr that it is too old, and the first node says it again
  if (api == nullptr) return nullptr;
  return dsv3::guarded(api, "dsv3.cpu", [&] {
    // one for the process: sessions refer to it as long as they live
    static OrtCustomOpDomain* const domain = dsv3::make_domain(api);
    dsv3::check(api, dsv3::abi::add_custom_op_domain(api, options, domain));
  });
}

// Writes a line of JSON, or a line that says what is wrong with the environment, and returns whether it is the former.
DSV3_EXPORTED int dsv3_cpu_describe(char* out, size_t size) {
  std::string text;
  bool fine = true;
  try {
    text = dsv3::describe();
  } catch (const std::exception& error) {
    text = error.what();
    fine = false;
  }
  if (size == 0) return 0;
  out[text.copy(out, size - 1)] = '\0';
  return fine ? 1 : 0;
}
