// Projections with weights in floating point: what the ops for them share.
#pragma once

#include "float_matmul.h"
#include "op.h"

namespace dsv3 {

// The matrix in a tensor [N, K].
FloatMatrix matrix_of(const Tensor& weight, const float* scale);

// y = x @ matrix.T, x and y a call's first input and output. `rounded`: x is rounded to float8 first, in groups of 128.
void run_linear(const FloatKernels& kernels, const FloatMatrix& matrix, bool rounded, Call& call);

}  // namespace dsv3
