// Uninitialised memory, aligned to a cache line and in huge pages where the system grants them.
#pragma once
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>
#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace stcli {

class Buffer {
 public:
  explicit Buffer(int64_t bytes) {
    const bool huge = bytes >= 2 * HUGE;
    const int64_t unit = huge ? HUGE : 64;
    memory_.reset(std::aligned_alloc(unit, (bytes + unit) / unit * unit));
    if (!memory_) throw std::bad_alloc();
#if defined(__linux__)
    if (huge) madvise(memory_.get(), bytes, MADV_HUGEPAGE);
#endif
  }

  template <class Entry>
  Entry* as() const {
    return static_cast<Entry*>(memory_.get());
  }

 private:
  static constexpr int64_t HUGE = int64_t{2} << 20;
  struct Free {
    void operator()(void* memory) const { std::free(memory); }
  };
  std::unique_ptr<void, Free> memory_;
};

}  // namespace stcli
