// Parallel loops. Kernels know this only: in ONNX Runtime the loops run on the session's own threads.
#pragma once

#include <atomic>
#include <cstddef>
#include <exception>

#include "abi.h"

namespace dsv3 {

// Runs tasks 0..count-1 on several threads, each once, in any order, and returns when all are done.
//
// A thread takes the next task when it is done with one, so tasks may differ in length; some 4 to 8 a thread balance
// well. `threads` is for choosing sizes: results must not depend on it.
class Parallel {
 public:
  using Task = void (*)(void* body, size_t index);
  using Loop = void (*)(void* pool, Task task, size_t tasks, void* body);

  Parallel(size_t threads, Loop loop, void* pool) : threads(threads < 1 ? 1 : threads), loop_(loop), pool_(pool) {}

  // What `body(size_t index)` throws is thrown here, once, after the other tasks.
  template <typename Body>
  void run(size_t tasks, const Body& body) const {
    if (threads == 1 || tasks < 2) {
      for (size_t index = 0; index < tasks; ++index) body(index);
      return;
    }
    Shared<Body> shared{body};
    loop_(pool_, &Shared<Body>::call, tasks, &shared);
    if (shared.thrown) std::rethrow_exception(shared.thrown);
  }

  const size_t threads;

 private:
  template <typename Body>
  struct Shared {
    const Body& body;
    std::atomic_flag failed = ATOMIC_FLAG_INIT;
    std::exception_ptr thrown = nullptr;

    explicit Shared(const Body& body) : body(body) {}

    static void call(void* self, size_t index) noexcept {
      auto& shared = *static_cast<Shared*>(self);
      try {
        shared.body(index);
      } catch (...) {
        if (!shared.failed.test_and_set()) shared.thrown = std::current_exception();
      }
    }
  };

  Loop loop_;
  void* pool_;
};

// On the calling thread alone.
Parallel sequential();

// On as many new threads, which end with each loop: for packing weights, where ONNX Runtime lends no threads yet.
Parallel short_lived_threads(size_t threads);

// On ONNX Runtime's threads. `call` must outlive the Parallel.
struct ComputeCall {
  const OrtApi* api;
  OrtKernelContext* context;
};
Parallel session_threads(ComputeCall& call, size_t threads);

}  // namespace dsv3
