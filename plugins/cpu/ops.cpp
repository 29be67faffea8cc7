#include "ops.h"

namespace dsv3 {

std::vector<const abi::CustomOp*> all_ops() {
  return {
      linear_op(),
      linear_fp8_block_op(),
      linear_int_op(),
      mla_attention_op(),
      moe_experts_fp8_block_op(),
      moe_experts_int_op(),
      moe_experts_op(),
      moe_route_op(),
  };
}

}  // namespace dsv3
