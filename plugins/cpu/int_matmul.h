// Products with 8- and 4-bit weights in groups along K.
//
// Numbers. With rows rounded to int8 (`QuantisedRows`),
//     y[m, n] = sum over g, in order, of  acc = fmaf(float(i[m, n, g]), row_scale[m, g] * scale[n, g], acc),
//     i[m, n, g] = sum over k of group g of  q[m, k] * (weight[n, k] - zero[n, g]),   exact in int32,
// by every instruction set, for every number of rows: a row's result does not depend on what else is computed.
#pragma once

#include <cstddef>
#include <cstdint>

#include "parallel.h"
#include "scratch.h"

// Also in files for other instruction sets, of which the linker must not keep a copy.
#define DSV3_ALWAYS_INLINE inline __attribute__((always_inline))

namespace dsv3 {

// Rows of N that lie side by side: one panel. A product writes its columns of y.
constexpr size_t kPanel = 16;
constexpr size_t kScaleLine = kPanel * sizeof(float);

// Sizes of a packed matrix. A panel is, group by group, one stream of memory:
//     float scale[16]; then for each four numbers along K (a quad) 64 bytes [16 n][4 k], unsigned.
// Where all scales are numbers that bfloat16 has, a line of 64 bytes has those of two groups, and both groups follow it.
// With 4 bits, 64 bytes hold two quads, that of the lower k in the low halves. Groups are filled up to a multiple of 32
// along K, ragged N to 16 rows, all with zero points, whose products are 0. Zero points, if not all 2^(bits-1), follow
// the panels: uint8 [panels][G][16].
struct IntShape {
  int bits;       // 8 or 4
  size_t group;   // neighbours along K that share a scale; K for one scale a row
  size_t N, K;
  bool zero_points;
  bool narrow_scales = false;  // kept as bfloat16

  DSV3_ALWAYS_INLINE size_t groups() const { return (K + group - 1) / group; }
  DSV3_ALWAYS_INLINE size_t depth() const { return (group + 31) / 32 * 32; }  // of a group, in memory
  DSV3_ALWAYS_INLINE size_t panels() const { return (N + kPanel - 1) / kPanel; }
  DSV3_ALWAYS_INLINE size_t numbers_bytes() const { return kPanel * depth() * bits / 8; }  // of a group
  // Where a group's scales and its numbers begin in a panel.
  DSV3_ALWAYS_INLINE size_t scales_at(size_t g) const {
    return narrow_scales ? g / 2 * (kScaleLine + 2 * numbers_bytes()) + g % 2 * kScaleLine / 2
                         : g * (kScaleLine + numbers_bytes());
  }
  DSV3_ALWAYS_INLINE size_t numbers_at(size_t g) const {
    return (narrow_scales ? g / 2 + 1 : g + 1) * kScaleLine + g * numbers_bytes();
  }
  DSV3_ALWAYS_INLINE size_t panel_bytes() const { return numbers_at(groups() - 1) + numbers_bytes(); }
  DSV3_ALWAYS_INLINE size_t zero_offset() const { return panels() * panel_bytes(); }
  DSV3_ALWAYS_INLINE size_t bytes() const { return zero_offset() + (zero_points ? panels() * groups() * kPanel : 0); }
};

// A packed matrix; the memory, `bytes()` at a multiple of 64, belongs to who packed it.
struct IntMatrix : IntShape {
  const uint8_t* data;

  DSV3_ALWAYS_INLINE const uint8_t* panel(size_t index) const { return data + index * panel_bytes(); }
  DSV3_ALWAYS_INLINE const uint8_t* panel_zeros(size_t index) const {
    return zero_points ? data + zero_offset() + index * groups() * kPanel : nullptr;
  }
};

// Weights as MatMulNBits and QMoE hold them: rows of K, each G groups of group * bits / 8 bytes, low halves first.
struct RowSource {
  const uint8_t* weight;
  size_t weight_stride;  // bytes from row to row
  const float* scale;
  size_t scale_stride;   // numbers from row to row
  const uint8_t* zero;   // packed like the weights, or null: 2^(bits-1)
  size_t zero_stride;    // bytes from row to row
};

// Signed numbers int8 [K, N], each column with one scale: 8 bits, group = K.
struct ColumnSource {
  const int8_t* weight;
  size_t weight_stride;  // bytes from one k to the next
  const float* scale;    // [N]
};

// Whether `count` scales are all numbers that bfloat16 has.
bool are_narrow(const float* scales, size_t count);

// Write panels [first, first + count) into `data`, the memory of the whole matrix.
void pack_rows(const IntShape& shape, const RowSource& source, size_t first, size_t count, uint8_t* data);
void pack_columns(const IntShape& shape, const ColumnSource& source, size_t first, size_t count, uint8_t* data);

// Rows rounded to int8 group by group: a view, so that chosen rows can be gathered into another.
struct QuantisedRows {
  size_t rows, groups;
  size_t stride;         // bytes from row to row of q, see row_stride
  const int8_t* q;       // [rows][stride]; group g at g * depth, filled with 0
  const float* scale;    // [rows][groups]
  const int32_t* sum;    // [rows][groups], of q
};

// Bytes of a rounded row. An odd number of cache lines, so that 16 rows under each other do not meet in one set.
inline size_t row_stride(const IntShape& shape) {
  size_t lines = (shape.groups() * shape.depth() + 63) / 64;
  return (lines | 1) * 64;
}

// Kernels of one instruction set. All give the same bits.
struct IntKernels {
  // One row of K floats -> q[groups * depth], scale[groups], sum[groups]: scale = amax / 127, q = round half to even of
  // x / scale. A group of zeros has scale 0; one with a NaN or infinity a scale that makes all its results NaN.
  void (*quantise_row)(const IntShape& shape, const float* x, int8_t* q, float* scale, int32_t* sum);

  // y[m * ldy + n - 16 * first] for all rows m and the columns n < N of panels [first, first + count).
  void (*panel)(const IntMatrix& matrix, size_t first, size_t count, const QuantisedRows& rows, float* y, size_t ldy);

  // The same with rows that stay float32, x[m * ldx + k]: per group four sums, of k = 0, 1, 2, 3 modulo 4, each by fmaf
  // in order; ((s0 + s1) + (s2 + s3)) times the scale by fmaf onto the groups before.
  void (*float_panel)(const IntMatrix& matrix, size_t first, size_t count, const float* x, size_t ldx, size_t rows,
                      float* y, size_t ldy);
};

// Of the instruction set that `isa()` names now.
const IntKernels& int_kernels();

// Rounds all rows of x[rows, K], ldx apart; what it returns lies in `scratch`.
QuantisedRows quantise_rows(const Parallel& parallel, const IntKernels& kernels, const IntShape& shape, const float* x,
                            size_t ldx, size_t rows, Scratch& scratch);

// y[rows, N], ldy apart, = rows x matrix^T. Tasks are ranges of panels, and of rows where these are many.
void int_matmul(const Parallel& parallel, const IntKernels& kernels, const IntMatrix& matrix,
                const QuantisedRows& rows, float* y, size_t ldy);

// The same for rows in float32, ldx apart.
void int_matmul_float(const Parallel& parallel, const IntKernels& kernels, const IntMatrix& matrix, const float* x,
                      size_t ldx, size_t rows, float* y, size_t ldy);

}  // namespace dsv3
