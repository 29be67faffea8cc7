// Up to sixteen queries of one sequence, side by side, and what they have seen.
#pragma once

#include <algorithm>
#include <cstring>

#include "attention_kernels.h"
#include "scratch.h"

namespace dsv3 {

struct QueryGroup {
  Queries queries;
  float* q;             // queries.q
  size_t count;         // of the sixteen
  size_t seen[kQueries];  // rows of the sequence that each may see; of those beyond `count` as the last

  // The rows that some query sees.
  size_t last() const { return seen[kQueries - 1]; }
};

// What a group has seen: the largest score, the sum, `columns` of values.
inline size_t seen_numbers(size_t columns) { return (2 + columns) * kQueries; }

// Queries that lie in `q` already, [width][16]; nothing seen yet, which is kept in `numbers`.
inline QueryGroup group_of(float* q, size_t width, size_t columns, float scale, size_t count, float* numbers) {
  QueryGroup group{};
  group.count = count;
  group.q = q;
  group.queries = {q, width, scale, numbers, numbers + kQueries, numbers + 2 * kQueries, columns};
  // finite, so that a part of the keys of which a query sees none counts e^(this - largest) = 0
  std::fill_n(group.queries.largest, kQueries, -1e30f);
  std::fill_n(numbers + kQueries, (1 + columns) * kQueries, 0.0f);
  return group;
}

// The same with memory of its own; q is zero.
inline QueryGroup new_group(size_t width, size_t columns, float scale, size_t count, Scratch& scratch) {
  float* q = scratch.take<float>(width * kQueries);
  std::fill_n(q, width * kQueries, 0.0f);
  return group_of(q, width, columns, scale, count, scratch.take<float>(seen_numbers(columns)));
}

// q[k][query] for `count` queries, from rows that are `stride` numbers apart.
inline void put_queries(float* q, size_t count, const float* rows, size_t stride, size_t width) {
  for (size_t query = 0; query < count; ++query) {
    for (size_t k = 0; k < width; ++k) q[k * kQueries + query] = rows[query * stride + k];
  }
}

// Fills up what query i sees for those beyond `count`.
template <typename Seen>
void put_seen(QueryGroup& group, const Seen& seen) {
  for (size_t query = 0; query < kQueries; ++query) group.seen[query] = seen(std::min(query, group.count - 1));
}

inline void attend(const AttentionKernels& kernels, const QueryGroup& group, size_t begin, KeyBlock block) {
  size_t visible[kQueries];
  for (size_t query = 0; query < kQueries; ++query) {
    visible[query] = group.seen[query] < begin ? 0 : std::min(group.seen[query] - begin, block.count);
  }
  block.visible = visible;
  kernels.attend(group.queries, block);
}

}  // namespace dsv3
