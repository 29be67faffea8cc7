#include "attention_kernels.h"

#include "isa.h"

namespace dsv3 {

const AttentionKernels& attention_kernels([[maybe_unused]] bool rounded) {
#if defined(__x86_64__)
  if (isa() == Isa::amx) return rounded ? attention_amx_of_rounded : attention_amx;
  if (isa() == Isa::avx512) return attention_avx512;
  if (isa() == Isa::avx2) return attention_avx2;
#endif
  return attention_generic;
}

}  // namespace dsv3
