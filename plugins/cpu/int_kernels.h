// The kernels of each instruction set, one translation unit each.
#pragma once

#include "int_matmul.h"

namespace dsv3 {

extern const IntKernels int_generic;

}  // namespace dsv3
