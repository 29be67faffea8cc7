#include "float_loops.h"

namespace dsv3 {

const FloatKernels float_avx512 = {round_row, product};

}  // namespace dsv3
