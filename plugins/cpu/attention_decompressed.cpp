#include "attention.h"
#include "query_group.h"

namespace dsv3 {
namespace {

// The keys [kKeys, Dn + Dr] and values [kKeys, Dv] of one head, made from a block of latents.
struct HeadBlock {
  const AttentionKernels& kernels;
  const HeadSizes& sizes;
  const float *to_keys, *to_values;  // [Dc, Dn], [Dc, Dv], prepared
  float *keys, *values;

  KeyBlock make(const float* latents, size_t count) const {
    const size_t width = sizes.latent + sizes.rope, key_width = sizes.nope + sizes.rope;
    kernels.prepared_product(latents, width, count, to_keys, sizes.latent, sizes.nope, keys, key_width);
    kernels.prepared_product(latents, width, count, to_values, sizes.latent, sizes.value, values, sizes.value);
    for (size_t key = 0; key < count; ++key) {
      std::memcpy(keys + key * key_width + sizes.nope, latents + key * width + sizes.latent, sizes.rope * sizeof(float));
    }
    return {keys, key_width, values, sizes.value, count, nullptr};
  }
};

// The queries of one head and sequence, sixteen tokens in each group.
QueryGroup* query_groups(const HeadSizes& sizes, const Step& step, size_t slot, size_t head, size_t groups,
                         Scratch& scratch) {
  auto* all = scratch.take<QueryGroup>(groups);
  const size_t H = sizes.heads, start = static_cast<size_t>(step.start[slot]);
  for (size_t index = 0; index < groups; ++index) {
    const size_t begin = index * kQueries, row = (slot * step.tokens + begin) * H + head;
    QueryGroup group = new_group(sizes.nope + sizes.rope, sizes.value, step.scale,
                                 std::min(kQueries, step.tokens - begin), scratch);
    put_queries(group.q, group.count, step.q_nope + row * sizes.nope, H * sizes.nope, sizes.nope);
    float* rotary = group.q + sizes.nope * kQueries;
    put_queries(rotary, group.count, step.q_pe + row * sizes.rope, H * sizes.rope, sizes.rope);
    put_seen(group, [&](size_t query) { return start + begin + query + 1; });
    all[index] = group;
  }
  return all;
}

void attend_head(const UpProjections& up, const HeadSizes& sizes, const Step& step, size_t slot, size_t head) {
  const AttentionKernels& kernels = attention_kernels(up.rounded());
  Scratch scratch;
  const size_t groups = (step.tokens + kQueries - 1) / kQueries;
  const auto prepared = [&](const float* weight, size_t columns) {
    return kernels.prepare(weight, sizes.latent, columns, scratch.take<float>(prepared_numbers(sizes.latent, columns)));
  };
  const HeadBlock block{kernels,
                        sizes,
                        prepared(up.keys(head, scratch), sizes.nope),
                        prepared(up.values(head, scratch), sizes.value),
                        scratch.take<float>(kKeys * (sizes.nope + sizes.rope)),
                        scratch.take<float>(kKeys * sizes.value)};
  QueryGroup* all = query_groups(sizes, step, slot, head, groups, scratch);
  const LatentRows cached(step, sizes, scratch);
  const size_t end = all[groups - 1].last();
  for (size_t begin = 0; begin < end; begin += kKeys) {
    const size_t count = std::min(kKeys, end - begin);
    const KeyBlock made = block.make(cached.get(slot, begin, count), count);
    for (size_t index = 0; index < groups; ++index) {
      if (all[index].last() > begin) attend(kernels, all[index], begin, made);
    }
  }
  for (size_t token = 0; token < step.tokens; ++token) {
    const Queries& queries = all[token / kQueries].queries;
    const size_t query = token % kQueries;
    float* out = step.out + ((slot * step.tokens + token) * sizes.heads + head) * sizes.value;
    for (size_t k = 0; k < sizes.value; ++k) out[k] = queries.mixed[k * kQueries + query] / queries.sum[query];
  }
}

}  // namespace

bool decompressing_pays(const HeadSizes& sizes, size_t tokens, size_t rows) {
  const auto S = static_cast<int64_t>(tokens), T = static_cast<int64_t>(rows);
  const auto latent = static_cast<int64_t>(sizes.latent), made = static_cast<int64_t>(sizes.nope + sizes.value);
  return S * T * (2 * latent - made) + (S - T) * latent * made > 0;
}

void attend_decompressed(const Parallel& parallel, const UpProjections& up, const HeadSizes& sizes, const Step& step,
                         size_t first, size_t slots) {
  parallel.run(slots * sizes.heads, [&](size_t task) {
    attend_head(up, sizes, step, first + task / sizes.heads, task % sizes.heads);
  });
}

}  // namespace dsv3
