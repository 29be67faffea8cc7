// The kernels of each instruction set, one translation unit each.
#pragma once

#include "int_matmul.h"

namespace dsv3 {

extern const IntKernels int_generic;

#if defined(__x86_64__)

namespace avx2 {
void quantise_row(const IntShape& shape, const float* x, int8_t* q, float* scale, int32_t* sum);
void int_panel(const IntMatrix& matrix, size_t first, size_t count, const QuantisedRows& rows, float* y, size_t ldy);
void float_panel(const IntMatrix& matrix, size_t first, size_t count, const float* x, size_t ldx, size_t rows, float* y,
                 size_t ldy);
}  // namespace avx2

namespace avx512 {
void quantise_row(const IntShape& shape, const float* x, int8_t* q, float* scale, int32_t* sum);
void int_panel(const IntMatrix& matrix, size_t first, size_t count, const QuantisedRows& rows, float* y, size_t ldy);
void float_panel(const IntMatrix& matrix, size_t first, size_t count, const float* x, size_t ldx, size_t rows, float* y,
                 size_t ldy);
}  // namespace avx512

namespace amx {
void int_panel(const IntMatrix& matrix, size_t first, size_t count, const QuantisedRows& rows, float* y, size_t ldy);
}  // namespace amx

#endif

}  // namespace dsv3
