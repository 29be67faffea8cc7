// Memory for intermediate values, reused from call to call by each thread.
#pragma once

#include <cstddef>
#include <type_traits>

namespace dsv3 {

// What is taken from a Scratch is given back with it. Scratches of a thread are nested like its calls; the memory may be
// used by other threads meanwhile (a loop's tasks read what the caller took). Not initialised; addresses are multiples
// of 64.
class Scratch {
 public:
  Scratch();
  ~Scratch();
  Scratch(const Scratch&) = delete;

  template <typename T>
  T* take(size_t count) {
    static_assert(std::is_trivial_v<T>);
    return static_cast<T*>(take_bytes(count * sizeof(T)));
  }

 private:
  void* take_bytes(size_t bytes);

  size_t block_, used_;  // where the thread's stack stood
};

}  // namespace dsv3
