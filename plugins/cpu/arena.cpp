#include "arena.h"

#include <sys/mman.h>

#include <atomic>
#include <cinttypes>
#include <cstdio>
#include <map>
#include <mutex>
#include <new>
#include <utility>

namespace dsv3 {
namespace {

constexpr size_t kHugePage = size_t{2} << 20;
constexpr size_t kLine = 64;
// Address space; what nobody touches takes no memory. Weights of 2 GiB fill 64 of them.
constexpr size_t kMapping = size_t{32} << 20;

std::atomic<size_t> allocated{0};

size_t round_up(size_t bytes, size_t unit) { return (bytes + unit - 1) / unit * unit; }

// A mapping from which allocations are cut one after the other.
class Mapping {
 public:
  explicit Mapping(size_t bytes) : size_(round_up(bytes, kHugePage)) {
    void* found = mmap(nullptr, size_ + kHugePage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (found == MAP_FAILED) throw std::bad_alloc();
    const auto first = reinterpret_cast<uintptr_t>(found);
    const uintptr_t start = round_up(first, kHugePage);
    if (start > first) munmap(found, start - first);
    if (start + size_ < first + size_ + kHugePage) {
      munmap(reinterpret_cast<void*>(start + size_), first + kHugePage - start);
    }
    start_ = reinterpret_cast<uint8_t*>(start);
#if defined(MADV_HUGEPAGE)
    madvise(start_, size_, MADV_HUGEPAGE);  // advice: small pages do as well
#endif
  }
  Mapping(const Mapping&) = delete;
  ~Mapping() { munmap(start_, size_); }

  // Null if it does not fit any more.
  uint8_t* cut(size_t bytes) {
    const size_t start = round_up(used_, kLine);
    if (start + bytes > size_) return nullptr;
    used_ = start + bytes;
    return start_ + start;
  }

 private:
  size_t size_;
  size_t used_ = 0;
  uint8_t* start_ = nullptr;
};

[[maybe_unused]] std::mutex arena_mutex;
[[maybe_unused]] std::weak_ptr<Mapping> current;  // lives as long as an allocation in it

// The mapping that has room for `bytes`, and where; the caller holds the mutex.
[[maybe_unused]] std::pair<std::shared_ptr<Mapping>, uint8_t*> find_room(size_t bytes) {
  if (std::shared_ptr<Mapping> mapping = current.lock()) {
    if (uint8_t* start = mapping->cut(bytes)) return {mapping, start};
  }
  const bool alone = bytes > kMapping / 2;  // leaves the current one to those that follow
  auto mapping = std::make_shared<Mapping>(alone ? bytes : kMapping);
  uint8_t* start = mapping->cut(bytes);
  if (!alone) current = mapping;
  return {std::move(mapping), start};
}

struct Packs {
  std::mutex mutex;
  std::map<std::pair<const void*, std::string>, std::weak_ptr<const void>> known;
};

// Never destroyed: kernels may outlive the library's static objects.
Packs& packs() {
  static auto* all = new Packs;
  return *all;
}

}  // namespace

#if defined(DSV3_SANITIZED)

// A heap block each, so that the sanitizer sees what is read or written beside it.
std::shared_ptr<uint8_t> allocate_weights(size_t bytes) {
  constexpr std::align_val_t kAligned{kLine};
  allocated += bytes;
  return {new (kAligned) uint8_t[bytes](), [bytes](uint8_t* start) {
            allocated -= bytes;
            ::operator delete[](start, kAligned);
          }};
}

#else

std::shared_ptr<uint8_t> allocate_weights(size_t bytes) {
  const std::lock_guard<std::mutex> lock(arena_mutex);
  auto [mapping, start] = find_room(bytes);
  allocated += bytes;
  return {start, [mapping = std::move(mapping), bytes](uint8_t*) { allocated -= bytes; }};
}

#endif

size_t allocated_weight_bytes() { return allocated; }

namespace detail {

std::shared_ptr<const void> shared_pack(const void* source, const std::string& layout,
                                        const std::function<std::shared_ptr<const void>()>& pack) {
  // held while packing, so that two sessions that are opened at once do not pack the same twice
  const std::lock_guard<std::mutex> lock(packs().mutex);
  auto& known = packs().known;
  std::weak_ptr<const void>& entry = known[{source, layout}];
  if (std::shared_ptr<const void> found = entry.lock()) return found;
  std::shared_ptr<const void> made = pack();
  entry = made;
  for (auto one = known.begin(); one != known.end();) one = one->second.expired() ? known.erase(one) : ++one;
  return made;
}

}  // namespace detail

void release_file_pages(const void* start, size_t bytes) {
  constexpr uintptr_t kPage = 4096;
  const uintptr_t first = round_up(reinterpret_cast<uintptr_t>(start), kPage);
  const uintptr_t last = (reinterpret_cast<uintptr_t>(start) + bytes) / kPage * kPage;
  std::FILE* maps = last > first ? std::fopen("/proc/self/maps", "r") : nullptr;
  if (maps == nullptr) return;
  char line[512];
  while (std::fgets(line, sizeof line, maps) != nullptr) {
    uintptr_t low = 0, high = 0;
    char access[5] = "";
    unsigned long inode = 0;
    const int read = std::sscanf(line, "%" SCNxPTR "-%" SCNxPTR " %4s %*s %*s %lu", &low, &high, access, &inode);
    // shared and read-only: whatever is dropped is in the file
    if (read != 4 || first < low || last > high) continue;
    if (inode != 0 && access[1] == '-' && access[3] == 's') {
      madvise(reinterpret_cast<void*>(first), last - first, MADV_DONTNEED);
    }
    break;
  }
  std::fclose(maps);
}

}  // namespace dsv3
