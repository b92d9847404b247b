// The one place with threads: a parallel loop over chunks, taken from a shared counter.
// Results must not depend on which thread takes which chunk.
#pragma once
#include <algorithm>
#include <atomic>
#include <cstdint>
#include <exception>
#include <system_error>
#include <thread>
#include <vector>

namespace stcli {

// Calls body(chunk, thread) for chunk = 0 … chunks-1; thread is 0 … num_threads-1. What a thread throws, most likely that
// memory ran out, ends the loop and is thrown again here.
template <class Body>
void parallel_for(int64_t chunks, int num_threads, const Body& body) {
  const int threads = static_cast<int>(std::min<int64_t>(std::max(num_threads, 1), chunks));
  std::atomic<int64_t> next{0};
  std::vector<std::exception_ptr> thrown(threads);
  auto work = [&](int thread) noexcept {
    try {
      for (int64_t chunk; (chunk = next.fetch_add(1, std::memory_order_relaxed)) < chunks;) body(chunk, thread);
    } catch (...) {
      thrown[thread] = std::current_exception();
      next.store(chunks, std::memory_order_relaxed);
    }
  };
  std::vector<std::thread> others;
  others.reserve(threads);
  try {
    for (int thread = 1; thread < threads; ++thread) others.emplace_back(work, thread);
  } catch (const std::system_error&) {  // no more threads to be had: those that run do it all
  }
  if (threads > 0) work(0);
  for (auto& other : others) other.join();
  for (const std::exception_ptr& error : thrown)
    if (error) std::rethrow_exception(error);
}

}  // namespace stcli
