// What an op is made of: a schema, and a kernel class that is constructed once for each node and computes many times.
//
//   struct Kernel {
//     static Schema schema();                    // name, inputs, outputs
//     explicit Kernel(const NodeInfo& node);     // reads attributes, packs constant weights
//     void compute(Call& call) const;            // const: a session may be run by several threads at once
//   };
//   const abi::CustomOp* op = custom_op<Kernel>();   // one line in registration.cpp
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "abi.h"
#include "error.h"
#include "parallel.h"
#include "tensor.h"

namespace dsv3 {

using abi::Presence;

struct Parameter {
  Element element = Element::f32;  // `any`: the kernel looks for itself
  Presence presence = Presence::required;
};

// Optional inputs come last; a variadic one takes all the rest, of any types.
struct Schema {
  const char* name;
  std::vector<Parameter> inputs;
  std::vector<Parameter> outputs;
};

// A node while its kernel is created.
class NodeInfo {
 public:
  NodeInfo(const OrtApi* api, const OrtKernelInfo* info) : api_(api), info_(info) {}

  int64_t integer(const char* attribute) const;
  int64_t integer(const char* attribute, int64_t otherwise) const;
  float real(const char* attribute) const;
  float real(const char* attribute, float otherwise) const;
  std::string text(const char* attribute, const char* otherwise) const;

  size_t input_count() const;
  // An initializer, which lies at this address as long as the session does; none if it is absent or computed.
  std::optional<Tensor> constant(size_t input) const;
  // The same, but it has to be there: `name` is for the message.
  Tensor weight(size_t input, const char* name) const;

  // A config entry of the session, or `otherwise` where it has none of that name.
  std::string config(const char* entry, const char* otherwise) const;

  // The session's threads: its config entry "dsv3.cpu.threads", else the processor's.
  size_t threads() const;

 private:
  const OrtApi* api_;
  const OrtKernelInfo* info_;
};

// One run of a node.
class Call {
 public:
  Call(const OrtApi* api, OrtKernelContext* context, size_t threads)
      : call_{api, context}, parallel_(session_threads(call_, threads)) {}
  Call(const Call&) = delete;

  size_t input_count() const;
  bool has(size_t input) const;
  Tensor input(size_t input) const;  // throws an Error if it is absent
  // Makes an output; it is not initialised.
  float* output_f32(size_t output, const Shape& shape);
  void* output(size_t output, const Shape& shape);

  const Parallel& parallel() const { return parallel_; }

 private:
  const OrtValue* value(size_t input) const;

  ComputeCall call_;
  Parallel parallel_;
};

namespace detail {

// The fields that do not depend on the kernel's class.
struct OpWithSchema : abi::CustomOp {
  Schema schema;
  explicit OpWithSchema(Schema schema);
};

template <typename Kernel>
struct Instance {
  const OrtApi* api;
  size_t threads;
  Kernel kernel;

  Instance(const OrtApi* api, const NodeInfo& node) : api(api), threads(node.threads()), kernel(node) {}

  static OrtStatus* create(const abi::CustomOp* op, const OrtApi* api, const OrtKernelInfo* info, void** made) {
    return guarded(api, op->get_name(op), [&] { *made = new Instance(api, NodeInfo(api, info)); });
  }
  static OrtStatus* compute(void* self, OrtKernelContext* context) {
    const auto& instance = *static_cast<const Instance*>(self);
    return guarded(instance.api, instance.name(), [&] {
      Call call(instance.api, context, instance.threads);
      instance.kernel.compute(call);
    });
  }
  static void destroy(void* self) { delete static_cast<Instance*>(self); }
  static const char* name();
};

}  // namespace detail

// The op of a kernel class; the same at each call.
template <typename Kernel>
const abi::CustomOp* custom_op() {
  static const detail::OpWithSchema op = [] {
    detail::OpWithSchema made(Kernel::schema());
    made.create_kernel_or_fail = detail::Instance<Kernel>::create;
    made.compute_kernel_or_fail = detail::Instance<Kernel>::compute;
    made.destroy_kernel = detail::Instance<Kernel>::destroy;
    return made;
  }();
  return &op;
}

template <typename Kernel>
const char* detail::Instance<Kernel>::name() {
  const abi::CustomOp* op = custom_op<Kernel>();
  return op->get_name(op);
}

}  // namespace dsv3
