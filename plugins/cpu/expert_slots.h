// The pairs of a token and one of its experts, ordered by expert.
#pragma once

#include <cstddef>
#include <cstdint>

#include "scratch.h"

namespace dsv3 {

// Slot t * k + j is choice j of token t. A slot's place is where it stands among all, sorted by expert, stably.
struct ExpertSlots {
  struct Group {
    size_t expert, first, count;  // its slots stand at places [first, first + count)
  };
  Group* groups;  // of the experts that have slots, ascending
  size_t group_count;
  size_t* slot_at;   // place -> slot
  size_t* place_of;  // slot -> place
};

// Throws an Error if an id is not in [0, experts). The memory is of `scratch`.
ExpertSlots sort_slots(const int64_t* ids, size_t slots, size_t experts, Scratch& scratch);

}  // namespace dsv3
