// Integer products of many rows by AMX.
//
// A panel's weights are made signed numbers first, in a buffer that stays in the caches for all rows; 4 bits lose their
// zero point there. Rows are arranged tile by tile: a tile whose 16 rows lie apart is slow to load from the
// second-level cache. A tile of sums, up to 16 rows x 16 columns, goes through memory into vector registers, where
// scales are applied, while the next ones are computed: those of two groups, or four parts of a long one.
#include <immintrin.h>

#include <cstring>

#include "int_kernels.h"
#include "int_scales.h"

namespace dsv3::amx {
namespace {

constexpr size_t kTileRows = 16;
// Fewer rows are faster by vectors.
constexpr size_t kFewRows = 8;


// Signed panels at once where rows are many, so that rows of y are written piece by piece. Where they are few, reading
// of weights and computing alternate with each panel.
constexpr size_t kBytesOfStrip = 128 << 10;
constexpr size_t kManyBlocks = 8;
constexpr size_t kGroupsAtOnce = 2;
constexpr size_t kParts = 4;
constexpr size_t kSumsOfTile = kTileRows * kPanel;

// Tiles: 0 to 3 sums, 4 and 5 rows, 6 and 7 weights.
struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t bytes[16] = {};
  uint8_t rows[16] = {};
};

// `chunk`: of K, that one tile holds.
void configure(size_t rows, size_t chunk) {
  TileConfig config;
  for (int tile = 0; tile < 8; ++tile) {
    config.rows[tile] = static_cast<uint8_t>(tile < 6 ? rows : chunk / 4);
    config.bytes[tile] = static_cast<uint16_t>(tile == 4 || tile == 5 ? chunk : 64);
  }
  _tile_loadconfig(&config);
}

// Signed weights of a panel [groups][depth / 4][16 n][4 k]. With 4 bits the zero points are taken off.
void make_signed(const IntMatrix& matrix, size_t panel, int8_t* to) {
  const size_t groups = matrix.groups(), depth = matrix.depth();
  const uint8_t* zeros = matrix.panel_zeros(panel);
  const __m512i low = _mm512_set1_epi8(15), sign = _mm512_set1_epi8(static_cast<char>(128));
  for (size_t g = 0; g < groups; ++g) {
    const uint8_t* w = matrix.panel(panel) + matrix.numbers_at(g);
    if (matrix.bits == 8) {
      for (size_t quad = 0; quad < depth / 4; ++quad, w += 64, to += 64) {
        _mm512_store_si512(to, _mm512_xor_si512(_mm512_loadu_si512(w), sign));
      }
      continue;
    }
    __m512i zero = _mm512_set1_epi8(8);
    if (zeros != nullptr) {
      const auto* these = reinterpret_cast<const __m128i*>(zeros + g * kPanel);
      zero = _mm512_mullo_epi32(_mm512_cvtepu8_epi32(_mm_loadu_si128(these)), _mm512_set1_epi32(0x01010101));
    }
    for (size_t pair = 0; pair < depth / 8; ++pair, w += 64, to += 128) {
      const __m512i both = _mm512_loadu_si512(w);
      const __m512i high = _mm512_and_si512(_mm512_srli_epi16(both, 4), low);
      _mm512_store_si512(to, _mm512_sub_epi8(_mm512_and_si512(both, low), zero));
      _mm512_store_si512(to + 64, _mm512_sub_epi8(high, zero));
    }
  }
}

// A panel that is to be read next, some lines at a time.
struct Ahead {
  const uint8_t* at;
  const uint8_t* end;
  size_t lines;

  DSV3_ALWAYS_INLINE void step() {
    for (size_t i = 0; i < lines && at < end; ++i, at += 64) {
      _mm_prefetch(reinterpret_cast<const char*>(at), _MM_HINT_T1);
    }
  }
};

// Rows as tiles want them, one behind the other: q [chunks of K][rows][chunk], scale and sum [groups][16].
struct Block {
  int8_t* q;
  float* scale;
  int32_t* sum;
};

struct Job {
  const int8_t* weights;  // signed
  const IntMatrix* matrix;
  const uint8_t* panel;   // its scales are used
  const uint8_t* zeros;   // where they are still to be taken off
  size_t depth, chunk, groups;
  bool long_groups;
  size_t tile_bytes;  // of rows
  Block block;
  float* y;
  size_t ldy;
  __mmask16 columns;
};

// Rows [m, m + height) to `block`.
void arrange(const QuantisedRows& rows, size_t m, size_t height, const Job& job, const Block& block) {
  for (size_t row = 0; row < height; ++row) {
    const int8_t* from = rows.q + (m + row) * rows.stride;
    int8_t* to = block.q + row * job.chunk;
    for (size_t k = 0; k < job.groups * job.depth; k += job.chunk, to += job.tile_bytes) {
      std::memcpy(to, from + k, 32);
      if (job.chunk == 64) std::memcpy(to + 32, from + k + 32, 32);
    }
    for (size_t g = 0; g < job.groups; ++g) {
      block.scale[g * kTileRows + row] = rows.scale[(m + row) * job.groups + g];
      block.sum[g * kTileRows + row] = rows.sum[(m + row) * job.groups + g];
    }
  }
}

DSV3_ALWAYS_INLINE const int8_t* rows_of(const Job& job, size_t g) {
  return job.block.q + g * (job.depth / job.chunk) * job.tile_bytes;
}
DSV3_ALWAYS_INLINE const int8_t* weights_of(const Job& job, size_t g) { return job.weights + g * job.depth * kPanel; }

// Tile numbers are part of the instructions, so each product is written out.
#define DSV3_MULTIPLY_TILE(sums, rows, weights, q, w) \
  _tile_loadd(rows, q, job.chunk);                    \
  _tile_loadd(weights, w, 64);                        \
  _tile_dpbssd(sums, rows, weights)

DSV3_ALWAYS_INLINE void two_groups(const Job& job, size_t g, int32_t* sums) {
  const int8_t* q = rows_of(job, g);
  const int8_t* w = weights_of(job, g);
  const size_t group_q = job.depth / job.chunk * job.tile_bytes, group_w = job.depth * kPanel;
  _tile_zero(0);
  _tile_zero(1);
  for (size_t k = 0; k < job.depth; k += job.chunk, q += job.tile_bytes, w += job.chunk * kPanel) {
    DSV3_MULTIPLY_TILE(0, 4, 6, q, w);
    DSV3_MULTIPLY_TILE(1, 5, 7, q + group_q, w + group_w);
  }
  _tile_stored(0, sums, 64);
  _tile_stored(1, sums + kSumsOfTile, 64);
}

DSV3_ALWAYS_INLINE void one_group(const Job& job, size_t g, int32_t* sums) {
  const int8_t* q = rows_of(job, g);
  const int8_t* w = weights_of(job, g);
  _tile_zero(0);
  for (size_t k = 0; k < job.depth; k += job.chunk, q += job.tile_bytes, w += job.chunk * kPanel) {
    DSV3_MULTIPLY_TILE(0, 4, 6, q, w);
  }
  _tile_stored(0, sums, 64);
}

// A group as four sums, each of every fourth chunk.
DSV3_ALWAYS_INLINE void long_group(const Job& job, size_t g, int32_t* sums) {
  const int8_t* q = rows_of(job, g);
  const int8_t* w = weights_of(job, g);
  const size_t bytes = job.chunk * kPanel, tile = job.tile_bytes;
  size_t chunks = job.depth / job.chunk;
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (; chunks >= 4; chunks -= 4, q += 4 * tile, w += 4 * bytes) {
    DSV3_MULTIPLY_TILE(0, 4, 6, q, w);
    DSV3_MULTIPLY_TILE(1, 5, 7, q + tile, w + bytes);
    DSV3_MULTIPLY_TILE(2, 4, 6, q + 2 * tile, w + 2 * bytes);
    DSV3_MULTIPLY_TILE(3, 5, 7, q + 3 * tile, w + 3 * bytes);
  }
  for (; chunks > 0; --chunks, q += tile, w += bytes) {
    DSV3_MULTIPLY_TILE(0, 4, 6, q, w);
  }
  _tile_stored(0, sums, 64);
  _tile_stored(1, sums + kSumsOfTile, 64);
  _tile_stored(2, sums + 2 * kSumsOfTile, 64);
  _tile_stored(3, sums + 3 * kSumsOfTile, 64);
}

DSV3_ALWAYS_INLINE void fill(const Job& job, size_t g, int32_t* sums) {
  if (job.long_groups) return long_group(job, g, sums);
  if (g + kGroupsAtOnce <= job.groups) return two_groups(job, g, sums);
  for (size_t i = 0; g + i < job.groups; ++i) one_group(job, g + i, sums + i * kSumsOfTile);
}

// What is still to be taken off for a zero point of 8 bits, for each unit of a row's sum.
template <bool Zeros>
DSV3_ALWAYS_INLINE __m512i zero_of(const Job& job, size_t g) {
  if constexpr (!Zeros) return _mm512_setzero_si512();
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(job.zeros + g * kPanel));
  return _mm512_sub_epi32(_mm512_cvtepu8_epi32(bytes), _mm512_set1_epi32(128));
}

template <int Rows, bool Zeros, bool Long>
DSV3_ALWAYS_INLINE void add_group(const Job& job, size_t g, const int32_t* sums, __m512 (&total)[Rows]) {
  const __m512 column = load_scales(job.panel + job.matrix->scales_at(g), job.matrix->narrow_scales);
  const __m512i zero = zero_of<Zeros>(job, g);
#pragma GCC unroll 16
  for (int m = 0; m < Rows; ++m) {
    __m512i exact = _mm512_load_si512(sums + m * kPanel);
    if constexpr (Long) {
#pragma GCC unroll 3
      for (size_t i = 1; i < kParts; ++i) {
        exact = _mm512_add_epi32(exact, _mm512_load_si512(sums + i * kSumsOfTile + m * kPanel));
      }
    }
    const size_t at = g * kTileRows + m;
    if constexpr (Zeros) {
      exact = _mm512_sub_epi32(exact, _mm512_mullo_epi32(zero, _mm512_set1_epi32(job.block.sum[at])));
    }
    const __m512 both = _mm512_mul_ps(_mm512_set1_ps(job.block.scale[at]), column);
    total[m] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(exact), both, total[m]);
  }
}

template <int Rows, bool Zeros, bool Long>
void multiply(const Job& job, Ahead& ahead) {
  alignas(64) int32_t sums[2][kParts * kSumsOfTile];
  __m512 total[Rows];
#pragma GCC unroll 16
  for (int m = 0; m < Rows; ++m) total[m] = _mm512_setzero_ps();
  // What is written is not in the caches; it comes while sums are computed.
#pragma GCC unroll 16
  for (int m = 0; m < Rows; ++m) __builtin_prefetch(job.y + m * job.ldy, 1);
  constexpr size_t kStep = Long ? 1 : kGroupsAtOnce;
  fill(job, 0, sums[0]);
  for (size_t g = 0, turn = 0; g < job.groups; g += kStep, turn ^= 1) {
    if (g + kStep < job.groups) fill(job, g + kStep, sums[turn ^ 1]);
    const size_t end = g + kStep < job.groups ? g + kStep : job.groups;
    const int32_t* from = sums[turn];
    for (size_t one = g; one < end; ++one, from += kSumsOfTile) add_group<Rows, Zeros, Long>(job, one, from, total);
    ahead.step();
  }
#pragma GCC unroll 16
  for (int m = 0; m < Rows; ++m) _mm512_mask_storeu_ps(job.y + m * job.ldy, job.columns, total[m]);
}

using Multiply = void (*)(const Job&, Ahead&);

// Nine rows and more.
template <bool Zeros, bool Long>
constexpr Multiply kByRows[kTileRows - kFewRows] = {
    multiply<9, Zeros, Long>,  multiply<10, Zeros, Long>, multiply<11, Zeros, Long>, multiply<12, Zeros, Long>,
    multiply<13, Zeros, Long>, multiply<14, Zeros, Long>, multiply<15, Zeros, Long>, multiply<16, Zeros, Long>};

Multiply by_rows(size_t rows, bool zeros, bool long_groups) {
  const size_t index = rows - kFewRows - 1;
  if (zeros) return long_groups ? kByRows<true, true>[index] : kByRows<true, false>[index];
  return long_groups ? kByRows<false, true>[index] : kByRows<false, false>[index];
}

}  // namespace

void int_panel(const IntMatrix& matrix, size_t first, size_t count, const QuantisedRows& rows, float* y, size_t ldy) {
  if (rows.rows <= kFewRows) return avx512::int_panel(matrix, first, count, rows, y, ldy);
  // Blocks of equal height, the last of which may share rows with the one before it: what they compute is the same.
  const size_t blocks = (rows.rows + kTileRows - 1) / kTileRows, height = (rows.rows + blocks - 1) / blocks;
  Job job{};
  job.depth = matrix.depth();
  job.chunk = job.depth % 64 == 0 ? 64 : 32;
  job.groups = matrix.groups();
  job.matrix = &matrix;
  job.long_groups = job.depth / job.chunk >= kParts;
  job.tile_bytes = height * job.chunk;
  job.ldy = ldy;
  const size_t block_bytes = job.groups * job.depth * height, block_groups = job.groups * kTileRows;
  const size_t panel_bytes = job.groups * job.depth * kPanel;
  const bool many = blocks >= kManyBlocks && panel_bytes < kBytesOfStrip;
  const size_t at_once = many ? kBytesOfStrip / panel_bytes : 1;
  const size_t strip = count < at_once ? count : at_once;
  Scratch scratch;
  int8_t* weights = scratch.take<int8_t>(strip * panel_bytes);
  const Block all = {scratch.take<int8_t>(blocks * block_bytes), scratch.take<float>(blocks * block_groups),
                     scratch.take<int32_t>(blocks * block_groups)};
  const auto block_at = [&](size_t i) {
    return Block{all.q + i * block_bytes, all.scale + i * block_groups, all.sum + i * block_groups};
  };
  const auto first_row = [&](size_t i) { return i + 1 < blocks ? i * height : rows.rows - height; };
  for (size_t i = 0; i < blocks; ++i) arrange(rows, first_row(i), height, job, block_at(i));
  const Multiply multiply = by_rows(height, matrix.bits == 8 && matrix.zero_points, job.long_groups);
  const size_t steps = job.long_groups ? job.groups : (job.groups + kGroupsAtOnce - 1) / kGroupsAtOnce;
  configure(height, job.chunk);
  const size_t end = first + count;
  for (size_t begin = first; begin < end; begin += strip) {
    const size_t panels = end - begin < strip ? end - begin : strip;
    for (size_t i = 0; i < panels; ++i) make_signed(matrix, begin + i, weights + i * panel_bytes);
    // The compiler does not know that tiles read memory.
    __asm__ volatile("" ::: "memory");
    const size_t left = end - begin - panels, next = left < strip ? left : strip;
    const size_t lines = next * matrix.panel_bytes() / 64, all_steps = panels * blocks * steps;
    const uint8_t* coming = matrix.panel(begin + panels);
    Ahead ahead{coming, coming + lines * 64, (lines + all_steps - 1) / all_steps};
    for (size_t block = 0; block < blocks; ++block) {
      job.block = block_at(block);
      for (size_t i = 0; i < panels; ++i) {
        const size_t p = begin + i, columns = matrix.N - p * kPanel;
        job.weights = weights + i * panel_bytes;
        job.panel = matrix.panel(p);
        job.zeros = matrix.panel_zeros(p);
        job.columns = static_cast<__mmask16>(columns < kPanel ? (1u << columns) - 1 : 0xffffu);
        job.y = y + (p - first) * kPanel + first_row(block) * ldy;
        multiply(job, ahead);
      }
    }
  }
  _tile_release();
}

}  // namespace dsv3::amx
