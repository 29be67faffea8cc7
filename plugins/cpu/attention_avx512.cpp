#include "attention_loops.h"

namespace dsv3 {

const AttentionKernels attention_avx512 = {attend, product, exp_one};

}  // namespace dsv3
