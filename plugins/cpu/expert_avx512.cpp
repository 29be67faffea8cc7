#include "expert_loops.h"

namespace dsv3 {

const ExpertKernels experts_avx512 = {swiglu, swiglu_pairs, add_weighted};

}  // namespace dsv3
