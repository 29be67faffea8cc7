#include "moe_call.h"

namespace dsv3 {

void run_experts_op(const ExpertBank& bank, Call& call) {
  const Tensor x = call.input(0), ids = call.input(1), weights = call.input(2);
  require_shape(x, "x", {-1, static_cast<int64_t>(bank.model)});
  require_shape(ids, "ids", {x.shape[0], -1});
  require_shape(weights, "weights", ids.shape);
  const ExpertCall inputs{x.f32(),
                          ids.i64(),
                          weights.f32(),
                          static_cast<size_t>(x.shape[0]),
                          static_cast<size_t>(ids.shape[1]),
                          call.output_f32(0, x.shape)};
  run_experts(bank, inputs, call.parallel());
}

}  // namespace dsv3
