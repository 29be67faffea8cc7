#include "expert_slots.h"

#include <algorithm>

#include "error.h"

namespace dsv3 {

ExpertSlots sort_slots(const int64_t* ids, size_t slots, size_t experts, Scratch& scratch) {
  size_t* next = scratch.take<size_t>(experts);
  std::fill_n(next, experts, size_t{0});
  for (size_t slot = 0; slot < slots; ++slot) {
    require(ids[slot] >= 0 && static_cast<size_t>(ids[slot]) < experts, "ids: expected numbers from 0 to ", experts - 1,
            ", got ", ids[slot]);
    ++next[ids[slot]];
  }
  ExpertSlots sorted{scratch.take<ExpertSlots::Group>(std::min(experts, slots)), 0, scratch.take<size_t>(slots),
                     scratch.take<size_t>(slots)};
  size_t first = 0;
  for (size_t expert = 0; expert < experts; ++expert) {
    const size_t count = next[expert];
    if (count > 0) sorted.groups[sorted.group_count++] = {expert, first, count};
    next[expert] = first;
    first += count;
  }
  for (size_t slot = 0; slot < slots; ++slot) {
    const size_t place = next[ids[slot]]++;
    sorted.slot_at[place] = slot;
    sorted.place_of[slot] = place;
  }
  return sorted;
}

}  // namespace dsv3
