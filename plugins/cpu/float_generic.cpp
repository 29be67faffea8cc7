#include "float_loops.h"

namespace dsv3 {

const FloatKernels float_generic = {round_row, product};

}  // namespace dsv3
