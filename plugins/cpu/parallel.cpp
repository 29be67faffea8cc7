#include "parallel.h"

#include <algorithm>
#include <system_error>
#include <thread>
#include <vector>

#include "error.h"

namespace dsv3 {
namespace {

void loop_here(void*, Parallel::Task task, size_t tasks, void* body) {
  for (size_t index = 0; index < tasks; ++index) task(body, index);
}

void loop_on_new_threads(void* pool, Parallel::Task task, size_t tasks, void* body) {
  std::atomic<size_t> next{0};
  const auto work = [&] {
    for (size_t index = next++; index < tasks; index = next++) task(body, index);
  };
  std::vector<std::thread> others;
  try {
    for (size_t other = std::min(reinterpret_cast<size_t>(pool), tasks); other > 1; --other) others.emplace_back(work);
  } catch (const std::system_error&) {
    // no more threads to be had: those that there are do it
  }
  work();
  for (std::thread& other : others) other.join();
}

void loop_in_session(void* pool, Parallel::Task task, size_t tasks, void* body) {
  const auto& call = *static_cast<const ComputeCall*>(pool);
  constexpr size_t kNoBatches = 0;  // a thread takes one task at a time
  check(call.api, abi::kernel_context_parallel_for(call.api, call.context, task, tasks, kNoBatches, body));
}

}  // namespace

Parallel sequential() { return {1, loop_here, nullptr}; }

Parallel short_lived_threads(size_t threads) {
  return {threads, loop_on_new_threads, reinterpret_cast<void*>(threads)};
}

Parallel session_threads(ComputeCall& call, size_t threads) { return {threads, loop_in_session, &call}; }

}  // namespace dsv3
