// Up-projections in int8, a scale for each column: rows are rounded with a scale of their own.
#include <string>

#include "arena.h"
#include "int_matmul.h"
#include "up_projections.h"

namespace dsv3 {
namespace {

constexpr size_t kHeadsOfInput = 16;

struct HeadMatrices {
  std::shared_ptr<uint8_t> memory;
  IntShape shape;

  IntMatrix head(size_t index) const { return {shape, memory.get() + index * shape.bytes()}; }
};

// A matrix for each head, from inputs [K, heads*N] and scales [1, heads*N], 16 heads in each.
std::shared_ptr<const HeadMatrices> packed(const NodeInfo& node, size_t first, size_t heads, size_t K, size_t N) {
  const IntShape shape{8, K, N, K, false};
  const auto make = [&] {
    auto made = std::make_shared<HeadMatrices>(HeadMatrices{allocate_weights(heads * shape.bytes()), shape});
    short_lived_threads(node.threads()).run(heads, [&](size_t head) {
      const size_t group = head / kHeadsOfInput, inside = head % kHeadsOfInput;
      const size_t columns = std::min(kHeadsOfInput, heads - group * kHeadsOfInput) * N;
      const Tensor q = node.weight(first + 2 * group, "weight"), scale = node.weight(first + 2 * group + 1, "scale");
      require_shape(q, "weight", {static_cast<int64_t>(K), static_cast<int64_t>(columns)});
      require_shape(scale, "scale", {1, static_cast<int64_t>(columns)});
      const ColumnSource source{q.i8() + inside * N, columns, scale.f32() + inside * N};
      pack_columns(shape, source, 0, shape.panels(), made->memory.get() + head * shape.bytes());
    });
    for (size_t group = 0; group * kHeadsOfInput < heads; ++group) {
      const Tensor q = node.weight(first + 2 * group, "weight");
      release_file_pages(q.data, static_cast<size_t>(q.shape.count()));
    }
    return made;
  };
  const std::string layout = "int columns of " + std::to_string(heads) + " heads, " + std::to_string(K) + " x " +
                             std::to_string(N);
  return shared_weights<HeadMatrices>(node.weight(first, "weight").data, layout, make);
}

// Calls put(first n, columns, first k, quad, scale) for each quad of a panel: 64 bytes [16 n][4 k], unsigned around 128.
template <typename Put>
void each_quad(const IntMatrix& matrix, const Put& put) {
  for (size_t p = 0; p < matrix.panels(); ++p) {
    const float* scale = reinterpret_cast<const float*>(matrix.panel(p));
    const uint8_t* quads = matrix.panel(p) + matrix.numbers_at(0);
    const size_t columns = std::min(kPanel, matrix.N - p * kPanel);
    for (size_t k = 0; k < matrix.K; k += 4) put(p * kPanel, columns, k, quads + k * kPanel, scale);
  }
}

class IntUpProjections : public UpProjections {
 public:
  IntUpProjections(const NodeInfo& node, size_t first, const HeadSizes& sizes)
      : kernels_(int_kernels()),
        uk_(packed(node, first, sizes.heads, sizes.nope, sizes.latent)),
        uv_(packed(node, first + 2 * ((sizes.heads + kHeadsOfInput - 1) / kHeadsOfInput), sizes.heads, sizes.latent,
                   sizes.value)) {}

  void absorb(size_t head, const float* q, size_t ldq, size_t rows, float* y, size_t ldy) const override {
    multiply(uk_->head(head), q, ldq, rows, y, ldy);
  }
  void expand(size_t head, const float* mixed, size_t ldx, size_t rows, float* y, size_t ldy) const override {
    multiply(uv_->head(head), mixed, ldx, rows, y, ldy);
  }
  const float* keys(size_t head, Scratch& scratch) const override {
    const IntMatrix matrix = uk_->head(head);
    float* made = scratch.take<float>(matrix.N * matrix.K);
    each_quad(matrix, [&, K = matrix.K](size_t n, size_t columns, size_t k, const uint8_t* quad, const float* scale) {
      const size_t count = std::min<size_t>(4, K - k);
      for (size_t column = 0; column < columns; ++column) {
        float* row = made + (n + column) * K + k;
        for (size_t i = 0; i < count; ++i) row[i] = static_cast<float>(quad[column * 4 + i] - 128) * scale[column];
      }
    });
    return made;
  }
  const float* values(size_t head, Scratch& scratch) const override {
    const IntMatrix matrix = uv_->head(head);
    float* made = scratch.take<float>(matrix.N * matrix.K);
    each_quad(matrix, [&, N = matrix.N, K = matrix.K](size_t n, size_t columns, size_t k, const uint8_t* quad,
                                                     const float* scale) {
      const size_t count = std::min<size_t>(4, K - k);
      for (size_t i = 0; i < count; ++i) {
        float* row = made + (k + i) * N + n;
        for (size_t column = 0; column < columns; ++column) {
          row[column] = static_cast<float>(quad[column * 4 + i] - 128) * scale[column];
        }
      }
    });
    return made;
  }
  bool rounded() const override { return true; }

 private:
  void multiply(const IntMatrix& matrix, const float* x, size_t ldx, size_t rows, float* y, size_t ldy) const {
    Scratch scratch;
    const QuantisedRows q = quantise_rows(sequential(), kernels_, matrix, x, ldx, rows, scratch);
    kernels_.panel(matrix, 0, matrix.panels(), q, y, ldy);
  }

  const IntKernels& kernels_;
  std::shared_ptr<const HeadMatrices> uk_, uv_;
};

}  // namespace

std::unique_ptr<UpProjections> int_up_projections(const NodeInfo& node, size_t first, const HeadSizes& sizes) {
  return std::make_unique<IntUpProjections>(node, first, sizes);
}

}  // namespace dsv3
