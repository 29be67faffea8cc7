#include "attention.h"
#include "query_group.h"

namespace dsv3 {
namespace {

// Keys go in parts, a task each; what tasks found is put together in order. Parts begin where they begin whatever the
// threads and the sequence's length: the first ones are short, so that short sequences are shared out too.
constexpr size_t kKeysOfPart = 256, kShortParts = kKeysOfPart / kKeys;

size_t part_begin(size_t part) {
  return part < kShortParts ? part * kKeys : (part - kShortParts + 1) * kKeysOfPart;
}

// Parts that `rows` keys have.
size_t parts_of(size_t rows) {
  if (rows <= kKeysOfPart) return (rows + kKeys - 1) / kKeys;
  return kShortParts + (rows - 1) / kKeysOfPart;
}

struct Sizes {
  size_t heads, width, latent;
};

// What the queries of one group found in each part of their keys.
struct Parts {
  size_t slot, first;  // the sequence; the group's first query, of its S * H
  size_t count, parts;
  float* q;            // [Dc + Dr][16]
  float* found;        // [parts][seen_numbers(Dc)]
};

// One group over one part of its keys.
void attend_part(const AttentionKernels& kernels, const HeadSizes& heads, const Sizes& sizes, const Step& step,
                 const Parts& group, size_t part) {
  Scratch scratch;
  QueryGroup mine = group_of(group.q, sizes.width, sizes.latent, step.scale, group.count,
                             group.found + part * seen_numbers(sizes.latent));
  const auto start = static_cast<size_t>(step.start[group.slot]);
  put_seen(mine, [&](size_t query) { return start + (group.first + query) / sizes.heads + 1; });
  const LatentRows cached(step, heads, scratch);
  const size_t end = std::min(part_begin(part + 1), mine.last());
  for (size_t begin = part_begin(part); begin < end; begin += kKeys) {
    const size_t count = std::min(kKeys, end - begin);
    const float* latents = cached.get(group.slot, begin, count);
    attend(kernels, mine, begin, {latents, sizes.width, latents, sizes.width, count, nullptr});
  }
}

// mixed[query][Dc] of a group from its parts, in their order; what the first one found is used up.
void combine(const AttentionKernels& kernels, const Sizes& sizes, const Parts& group, float* mixed) {
  const size_t numbers = seen_numbers(sizes.latent);
  float largest[kQueries], share[kQueries], sum[kQueries] = {};
  std::copy_n(group.found, kQueries, largest);
  for (size_t part = 1; part < group.parts; ++part) {
    const float* found = group.found + part * numbers;
    for (size_t query = 0; query < kQueries; ++query) largest[query] = std::max(largest[query], found[query]);
  }
  float* total = group.found + 2 * kQueries;
  for (size_t part = 0; part < group.parts; ++part) {
    const float* found = group.found + part * numbers;
    for (size_t query = 0; query < kQueries; ++query) {
      share[query] = kernels.exp(found[query] - largest[query]);
      sum[query] += share[query] * found[kQueries + query];
    }
    const float* row = found + 2 * kQueries;
    for (size_t at = 0; at < sizes.latent * kQueries; at += kQueries) {
      for (size_t query = 0; query < kQueries; ++query) {
        const float product = share[query] * row[at + query];
        total[at + query] = part == 0 ? product : total[at + query] + product;
      }
    }
  }
  for (size_t query = 0; query < group.count; ++query) {
    float* row = mixed + (group.first + query) * sizes.latent;
    for (size_t k = 0; k < sizes.latent; ++k) row[k] = total[k * kQueries + query] / sum[query];
  }
}

}  // namespace

void attend_absorbed(const Parallel& parallel, const UpProjections& up, const HeadSizes& heads, const Step& step,
                     size_t first, size_t slots) {
  const AttentionKernels& kernels = attention_kernels();
  const Sizes sizes{heads.heads, heads.latent + heads.rope, heads.latent};
  const size_t H = heads.heads, rows = slots * step.tokens, of_slot = step.tokens * H, token = first * step.tokens;
  Scratch scratch;
  float* queries = scratch.take<float>(rows * H * sizes.width);
  float* mixed = scratch.take<float>(rows * H * sizes.latent);
  parallel.run(H, [&](size_t head) {
    float* mine = queries + head * sizes.width;
    up.absorb(head, step.q_nope + (token * H + head) * heads.nope, H * heads.nope, rows, mine, H * sizes.width);
    for (size_t row = 0; row < rows; ++row) {
      const float* pe = step.q_pe + ((token + row) * H + head) * heads.rope;
      std::memcpy(mine + row * H * sizes.width + sizes.latent, pe, heads.rope * sizeof(float));
    }
  });

  const size_t groups_of_slot = (of_slot + kQueries - 1) / kQueries, groups = slots * groups_of_slot;
  Parts* all = scratch.take<Parts>(groups);
  size_t* ends = scratch.take<size_t>(groups);  // tasks of this group and those before it
  size_t tasks = 0;
  for (size_t index = 0; index < groups; ++index) {
    const size_t slot = first + index / groups_of_slot, begin = index % groups_of_slot * kQueries;
    const size_t count = std::min(kQueries, of_slot - begin);
    const size_t seen = static_cast<size_t>(step.start[slot]) + (begin + count - 1) / H + 1;
    const size_t parts = parts_of(seen);
    all[index] = {slot, begin, count, parts, scratch.take<float>(sizes.width * kQueries),
                  scratch.take<float>(parts * seen_numbers(sizes.latent))};
    ends[index] = tasks += parts;
  }
  parallel.run(groups, [&](size_t index) {
    const Parts& group = all[index];
    std::fill_n(group.q, sizes.width * kQueries, 0.0f);
    const float* rows = queries + ((group.slot - first) * of_slot + group.first) * sizes.width;
    put_queries(group.q, group.count, rows, sizes.width, sizes.width);
  });
  parallel.run(tasks, [&](size_t task) {
    const auto index = static_cast<size_t>(std::upper_bound(ends, ends + groups, task) - ends);
    const Parts& group = all[index];
    attend_part(kernels, heads, sizes, step, group, task - (ends[index] - group.parts));
  });
  parallel.run(groups, [&](size_t index) {
    combine(kernels, sizes, all[index], mixed + (all[index].slot - first) * of_slot * sizes.latent);
  });
  parallel.run(H, [&](size_t head) {
    float* out = step.out + (token * H + head) * heads.value;
    up.expand(head, mixed + head * sizes.latent, H * sizes.latent, rows, out, H * heads.value);
  });
}

}  // namespace dsv3
