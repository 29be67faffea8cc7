#include "float_loops.h"

namespace dsv3 {

const FloatKernels float_avx2 = {round_row, product};

}  // namespace dsv3
