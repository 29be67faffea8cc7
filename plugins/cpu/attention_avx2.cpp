#include "attention_loops.h"

namespace dsv3 {

const AttentionKernels attention_avx2 = {attend, product, as_it_is, product, exp_one};

}  // namespace dsv3
