// LinearInt: y = x @ ((q - zero point) * scale)^T, weights of 8 or 4 bits in groups along K.
#include <algorithm>
#include <memory>
#include <string>

#include "arena.h"
#include "int_matmul.h"
#include "op.h"
#include "ops.h"

namespace dsv3 {
namespace {

struct PackedMatrix {
  std::shared_ptr<uint8_t> memory;
  IntMatrix matrix;
};

// The sum of 127 * 255 so many times fits 32 bits.
constexpr int64_t kLongestGroup = 1 << 16;

IntShape shape_of(const NodeInfo& node) {
  const int64_t bits = node.integer("bits"), group = node.integer("group"), columns = node.integer("N");
  const int64_t depth = node.integer("K");
  require(bits == 8 || bits == 4, "bits: expected 8 or 4, got ", bits);
  require(group > 0 && columns > 0 && depth > 0, "group, N and K: expected positive numbers, got ", group, ", ",
          columns, " and ", depth);
  require(group <= kLongestGroup, "group: expected at most ", kLongestGroup, ", got ", group);
  require(bits == 8 || group % 2 == 0, "group: expected an even number for 4 bits, got ", group);
  return {static_cast<int>(bits), static_cast<size_t>(group), static_cast<size_t>(columns), static_cast<size_t>(depth),
          node.constant(3).has_value()};
}

RowSource source_of(const NodeInfo& node, const IntShape& shape) {
  const Tensor blocks = node.weight(1, "blocks"), scale = node.weight(2, "scale");
  const auto columns = static_cast<int64_t>(shape.N), groups = static_cast<int64_t>(shape.groups());
  const auto group_bytes = static_cast<int64_t>(shape.group) * shape.bits / 8;
  require_shape(blocks, "blocks", {columns, groups, group_bytes});
  require_shape(scale, "scale", {columns, groups});
  const size_t row_bytes = shape.groups() * static_cast<size_t>(group_bytes);
  RowSource source{blocks.u8(), row_bytes, scale.f32(), shape.groups(), nullptr, 0};
  if (shape.zero_points) {
    const Tensor zero = node.weight(3, "zero_point");
    source.zero_stride = (shape.groups() * static_cast<size_t>(shape.bits) + 7) / 8;
    require_shape(zero, "zero_point", {columns, static_cast<int64_t>(source.zero_stride)});
    source.zero = zero.u8();
  }
  return source;
}

// A task packs these many panels, and gives the file's pages back.
constexpr size_t kPanelsOfTask = 32;

std::shared_ptr<PackedMatrix> packed(const IntShape& shape, const RowSource& source, size_t threads) {
  auto made = std::make_shared<PackedMatrix>();
  made->memory = allocate_weights(shape.bytes());
  made->matrix = IntMatrix{shape, made->memory.get()};
  const size_t panels = shape.panels();
  short_lived_threads(threads).run((panels + kPanelsOfTask - 1) / kPanelsOfTask, [&](size_t task) {
    const size_t first = task * kPanelsOfTask, count = std::min(kPanelsOfTask, panels - first);
    pack_rows(shape, source, first, count, made->memory.get());
    const size_t begin = first * kPanel, end = std::min(shape.N, begin + count * kPanel);
    release_file_pages(source.weight + begin * source.weight_stride, (end - begin) * source.weight_stride);
    release_file_pages(source.scale + begin * source.scale_stride, (end - begin) * source.scale_stride * sizeof(float));
  });
  return made;
}

struct LinearInt {
  static Schema schema() {
    return {"LinearInt",
            {{Element::f32}, {Element::u8}, {Element::f32}, {Element::u8, Presence::optional}},
            {{Element::f32}}};
  }

  explicit LinearInt(const NodeInfo& node) : kernels_(int_kernels()) {
    const std::string activations = node.text("activations", "int8");
    require(activations == "int8" || activations == "none", "activations: expected int8 or none, got ", activations);
    rounded_ = activations == "int8";
    IntShape shape = shape_of(node);
    const RowSource source = source_of(node, shape);
    shape.narrow_scales = are_narrow(source.scale, shape.N * shape.groups());
    const std::string layout = "int panels of rows, bits " + std::to_string(shape.bits) + ", group " +
                               std::to_string(shape.group) + ", " + std::to_string(shape.N) + " x " +
                               std::to_string(shape.K) + (shape.zero_points ? ", zero points" : "") +
                               (shape.narrow_scales ? ", narrow scales" : "");
    weight_ = shared_weights<PackedMatrix>(source.weight, layout,
                                           [&] { return packed(shape, source, node.threads()); });
  }

  void compute(Call& call) const {
    const IntMatrix& matrix = weight_->matrix;
    const Tensor x = call.input(0);
    require(x.shape.rank >= 1 && x.shape.last() == static_cast<int64_t>(matrix.K), "x: expected [..., ", matrix.K,
            "], got ", x.shape.text());
    Shape shape = x.shape;
    shape.dims[shape.rank - 1] = static_cast<int64_t>(matrix.N);
    const auto rows = static_cast<size_t>(x.shape.rows());
    float* y = call.output_f32(0, shape);
    if (rows == 0) return;
    if (!rounded_) {
      return int_matmul_float(call.parallel(), kernels_, matrix, x.f32(), matrix.K, rows, y, matrix.N);
    }
    Scratch scratch;
    const QuantisedRows q = quantise_rows(call.parallel(), kernels_, matrix, x.f32(), matrix.K, rows, scratch);
    int_matmul(call.parallel(), kernels_, matrix, q, y, matrix.N);
  }

 private:
  const IntKernels& kernels_;
  bool rounded_;
  std::shared_ptr<const PackedMatrix> weight_;
};

}  // namespace

const abi::CustomOp* linear_int_op() { return custom_op<LinearInt>(); }

}  // namespace dsv3
