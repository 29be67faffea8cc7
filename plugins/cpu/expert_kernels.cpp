#include "expert_kernels.h"

#include "isa.h"

namespace dsv3 {

const ExpertKernels& expert_kernels() {
#if defined(__x86_64__)
  if (isa() >= Isa::avx512) return experts_avx512;
  if (isa() == Isa::avx2) return experts_avx2;
#endif
  return experts_generic;
}

}  // namespace dsv3
