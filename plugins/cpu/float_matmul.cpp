#include "float_matmul.h"

#include "isa.h"

namespace dsv3 {

const FloatKernels& float_kernels() {
#if defined(__x86_64__)
  if (isa() >= Isa::avx512) return float_avx512;
  if (isa() == Isa::avx2) return float_avx2;
#endif
  return float_generic;
}

}  // namespace dsv3
