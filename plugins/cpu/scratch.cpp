#include "scratch.h"

#include <algorithm>
#include <cstdint>
#include <memory>
#include <new>
#include <vector>

namespace dsv3 {
namespace {

constexpr size_t kLine = 64;
[[maybe_unused]] constexpr size_t kLeast = size_t{256} << 10;
// A thread keeps no more than this between calls: a long prompt's values are not kept for the steps that follow.
constexpr size_t kMostKept = size_t{8} << 20;

struct Free {
  void operator()(uint8_t* memory) const { ::operator delete[](memory, std::align_val_t{kLine}); }
};

struct Block {
  std::unique_ptr<uint8_t[], Free> memory;
  size_t size;
};

struct Stack {
  std::vector<Block> blocks;
  size_t block = 0;  // the one in use; those behind it are free
  size_t used = 0;   // of it
};

Stack& stack() {
  thread_local Stack own;
  return own;
}

void add_block(Stack& own, size_t bytes) {
  auto* memory = static_cast<uint8_t*>(::operator new[](bytes, std::align_val_t{kLine}));
  own.blocks.push_back({std::unique_ptr<uint8_t[], Free>(memory), bytes});
}

// With nothing in use: several blocks become one that has room for all, or none if that is much.
void tidy(Stack& own) {
  size_t size = 0;
  for (const Block& block : own.blocks) size += block.size;
  if (own.blocks.size() < 2 && size <= kMostKept) return;
  own.blocks.clear();
  if (size <= kMostKept) add_block(own, size);
}

}  // namespace

Scratch::Scratch() : block_(stack().block), used_(stack().used) {}

Scratch::~Scratch() {
  Stack& own = stack();
  own.block = block_;
  own.used = used_;
  if (block_ != 0 || used_ != 0) return;
  try {
    tidy(own);
  } catch (const std::bad_alloc&) {
    // the next call asks again
  }
}

#if defined(DSV3_SANITIZED)

// A heap block each, so that the sanitizer sees what is read or written beside it.
void* Scratch::take_bytes(size_t bytes) {
  Stack& own = stack();
  own.blocks.erase(own.blocks.begin() + static_cast<std::ptrdiff_t>(own.block), own.blocks.end());
  add_block(own, std::max(bytes, size_t{1}));
  return own.blocks[own.block++].memory.get();
}

#else

void* Scratch::take_bytes(size_t bytes) {
  Stack& own = stack();
  const size_t wanted = (std::max(bytes, size_t{1}) + kLine - 1) / kLine * kLine;
  while (own.block < own.blocks.size() && own.used + wanted > own.blocks[own.block].size) {
    ++own.block;
    own.used = 0;
  }
  if (own.block == own.blocks.size()) add_block(own, std::max(wanted, kLeast));
  void* start = own.blocks[own.block].memory.get() + own.used;
  own.used += wanted;
  return start;
}

#endif

}  // namespace dsv3
