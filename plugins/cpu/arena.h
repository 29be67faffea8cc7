// Memory for packed weights: on huge pages, and one copy for all sessions of the process.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "parallel.h"

namespace dsv3 {

// Zeroed memory that many weights share: 2 MiB aligned mappings with huge pages where the system gives them, each freed
// with the last allocation in it. The address is a multiple of 64.
std::shared_ptr<uint8_t> allocate_weights(size_t bytes);

// Bytes that allocations in use have asked for, all together; for tests and `describe`.
size_t allocated_weight_bytes();

namespace detail {
std::shared_ptr<const void> shared_pack(const void* source, const std::string& layout,
                                        const std::function<std::shared_ptr<const void>()>& pack);
}

// What `pack()` makes from the initializer at `source` (a std::shared_ptr<Packed>), made once and shared by all kernels
// that ask for the same address and layout; freed with the last of them. `layout` names the type `Packed` and all that
// the bytes depend on.
//
// An address stands for its content, so the initializer has to stay where it is as long as its session lives.
template <typename Packed, typename Pack>
std::shared_ptr<const Packed> shared_weights(const void* source, const std::string& layout, const Pack& pack) {
  return std::static_pointer_cast<const Packed>(detail::shared_pack(
      source, layout, [&]() -> std::shared_ptr<const void> { return std::shared_ptr<const Packed>(pack()); }));
}

// Gives back the pages of a mapped file that have been read into packed weights: they come back on the next use. Other
// memory is left as it is.
void release_file_pages(const void* start, size_t bytes);

}  // namespace dsv3
