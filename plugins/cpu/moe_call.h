// What the ops of routed experts share: the inputs x, ids and weights, and the output y.
#pragma once

#include "experts.h"
#include "op.h"

namespace dsv3 {

// Runs the experts on inputs 0 to 2: x f32 [T, D], ids i64 [T, k], weights f32 [T, k]; writes output 0, f32 [T, D].
void run_experts_op(const ExpertBank& bank, Call& call);

}  // namespace dsv3
