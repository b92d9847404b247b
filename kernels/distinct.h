// Distinct lines of numbers.
#pragma once
#include <algorithm>
#include <cstdint>
#include <vector>

namespace stcli {

// Numbers the distinct ones among lines of numbers from 0 on, in order of first appearance. 16 bytes a line, the numbers
// themselves, and at most 64 bytes a line of table.
class Distinct {
 public:
  int64_t find(const int64_t* line, size_t length) {
    if (2 * hashes_.size() >= slots_.size()) grow();
    uint64_t hash = length;
    for (size_t i = 0; i < length; ++i) {
      hash = (hash ^ static_cast<uint64_t>(line[i])) * 0x9e3779b97f4a7c15;
      hash ^= hash >> 32;
    }
    size_t slot = hash & (slots_.size() - 1);
    for (; slots_[slot] >= 0; slot = (slot + 1) & (slots_.size() - 1)) {
      const int64_t number = slots_[slot];
      const size_t begin = ends_[number], end = ends_[number + 1];
      if (hashes_[number] == hash && std::equal(numbers.begin() + begin, numbers.begin() + end, line, line + length))
        return number;
    }
    slots_[slot] = static_cast<int64_t>(hashes_.size());
    hashes_.push_back(hash);
    numbers.insert(numbers.end(), line, line + length);
    ends_.push_back(numbers.size());
    return slots_[slot];
  }

  std::vector<int64_t> numbers;  // of the distinct lines

 private:
  void grow() {
    slots_.assign(std::max<size_t>(64, 4 * slots_.size()), -1);
    for (size_t number = 0; number < hashes_.size(); ++number) {
      size_t slot = hashes_[number] & (slots_.size() - 1);
      while (slots_[slot] >= 0) slot = (slot + 1) & (slots_.size() - 1);
      slots_[slot] = static_cast<int64_t>(number);
    }
  }

  std::vector<int64_t> slots_;
  std::vector<uint64_t> hashes_;
  std::vector<size_t> ends_{0};
};

}  // namespace stcli
