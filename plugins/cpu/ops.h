// All ops of the library. An op file defines a function that returns its op, is declared here, and listed in ops.cpp.
#pragma once

#include <vector>

#include "abi.h"

namespace dsv3 {

const abi::CustomOp* linear_op();
const abi::CustomOp* linear_fp8_block_op();
const abi::CustomOp* linear_int_op();
const abi::CustomOp* mla_attention_op();
const abi::CustomOp* moe_experts_fp8_block_op();
const abi::CustomOp* moe_experts_int_op();
const abi::CustomOp* moe_experts_op();
const abi::CustomOp* moe_route_op();

std::vector<const abi::CustomOp*> all_ops();

}  // namespace dsv3
