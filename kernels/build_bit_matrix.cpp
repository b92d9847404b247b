// build_bit_matrix: the terms of all items as rows of bits, in two calls.
//   in   values i32 [X]  offsets i64 [N+1]  own_row i32 [V]  on_bloom u8 [V]  slices i64 [S,5]  presence i64 [G,3]
//   out  stcli_matrix_widths: widths i64 [blocks], Bloom rows of each block of 4096 items
//        stcli_matrix_fill: own i64 [num_own,W], bloom i64 [sum of widths,64], all words written
//   map  blocks are spread over the threads; a block is filled 512 items at a time
//   limits  the caller has checked values, rows and intervals (build_bit_matrix.py)
//   cost 1 M items of 19 terms, 11 of them on Bloom rows with 10 hashes, 100 own rows: 0.36 s on one Zen 4 core
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <new>
#include <utility>
#include <vector>

#include "bloom_hash.h"
#include "parallel.h"

namespace stcli {
namespace {

constexpr int64_t kBlockItems = 4096;
constexpr int64_t kBlockWords = kBlockItems / 64;
// Items are set bit by bit on a tile of 8 words a row: 172 Bloom rows are 11 KiB and stay in the first-level cache.
constexpr int64_t kTileWords = 8;
constexpr int64_t kTileItems = kTileWords * 64;
constexpr double kFixedPoint = static_cast<double>(int64_t{1} << 40);

struct Items {
  const int32_t* values;
  const int64_t* offsets;
  int64_t count;
  int64_t num_blocks() const { return (count + kBlockItems - 1) / kBlockItems; }
  int64_t longest() const {
    int64_t most = 0;
    for (int64_t i = 0; i < count; ++i) most = std::max(most, offsets[i + 1] - offsets[i]);
    return most;
  }
};

struct LengthCount {
  int64_t length, items;
};

// The factors of `bloom_rates` in bloom_hash.py, where the formula is.
std::vector<double> rate_factors(int64_t width, int64_t num_hashes) {
  const auto rows = static_cast<double>(width);
  std::vector<double> different(static_cast<size_t>(num_hashes) + 1, 0.0);
  different[0] = 1.0;
  for (int64_t hash = 0; hash < num_hashes; ++hash)
    for (int64_t d = hash + 1; d >= 0; --d) {
      const double one_less = d ? std::max(1.0 - static_cast<double>(d - 1) / rows, 0.0) * different[d - 1] : 0.0;
      different[d] = static_cast<double>(d) / rows * different[d] + one_less;
    }
  const int64_t most = std::min(num_hashes, width);
  std::vector<double> factors(static_cast<size_t>(most) + 1, 0.0);
  for (int64_t d = 0; d <= most; ++d) {
    double choices = 1.0;  // d over i, with its sign
    for (int64_t i = 0; i <= d; ++i) {
      factors[i] += choices * different[d];
      choices *= -static_cast<double>(d - i) / static_cast<double>(i + 1);
    }
  }
  return factors;
}

// The mean false-positive rate, as in build_bit_matrix.py: summed in multiples of 2^-40, so that order cannot matter.
bool fits(const std::vector<LengthCount>& lengths, int64_t width, int64_t num_items, int64_t num_hashes,
          double bloom_fpr) {
  const std::vector<double> factors = rate_factors(width, num_hashes);
  int64_t sum = 0;
  for (const LengthCount& line : lengths) {
    const auto throws = static_cast<double>(num_hashes * line.length);
    double rate = 0.0;
    for (size_t i = 0; i < factors.size(); ++i)
      rate += factors[i] * std::pow(1.0 - static_cast<double>(i) / static_cast<double>(width), throws);
    sum += line.items * static_cast<int64_t>(std::nearbyint(std::clamp(rate, 0.0, 1.0) * kFixedPoint));
  }
  return static_cast<double>(sum) <= (bloom_fpr * kFixedPoint + 1.0) * static_cast<double>(num_items);
}

int64_t block_width(const std::vector<LengthCount>& lengths, int64_t num_items, int64_t num_hashes, double bloom_fpr) {
  if (lengths.empty() || lengths.back().length == 0) return 0;
  int64_t low = num_hashes, high = int64_t{1} << 31;
  while (low < high) {
    const int64_t middle = (low + high) / 2;
    if (fits(lengths, middle, num_items, num_hashes, bloom_fpr)) {
      high = middle;
    } else {
      low = middle + 1;
    }
  }
  return low;
}

// Intervals of terms that some row asks about, cut at all their ends: within a segment every term means the same to all
// of them. So a sorted item is read once, and each run of terms in one segment is shown to the few that ask about it.
struct Slice {
  int64_t first_row, num_bits, first_term, end_term, side;
};
struct Presence {
  int64_t row, first_term, end_term;
};
struct Segment {
  std::vector<int32_t> slices;
  std::vector<int32_t> rows;
};
struct Term {
  int32_t own_row;
  int32_t segment : 31;
  uint32_t on_bloom : 1;
};

struct Layout {
  std::vector<Term> terms;
  std::vector<Segment> segments;
  std::vector<Slice> slices;
  int64_t num_own, num_hashes;

  Layout(const int32_t* own_row, const uint8_t* on_bloom, int64_t num_terms, std::vector<Slice> slice_lines,
         const std::vector<Presence>& presence, int64_t num_own, int64_t num_hashes)
      : terms(static_cast<size_t>(num_terms)),
        slices(std::move(slice_lines)),
        num_own(num_own),
        num_hashes(num_hashes) {
    std::vector<int64_t> cuts{0};
    for (const Slice& s : slices) cuts.insert(cuts.end(), {s.first_term, s.end_term});
    for (const Presence& p : presence) cuts.insert(cuts.end(), {p.first_term, p.end_term});
    std::sort(cuts.begin(), cuts.end());
    cuts.erase(std::unique(cuts.begin(), cuts.end()), cuts.end());
    segments.resize(cuts.size());
    for (size_t segment = 0; segment < cuts.size(); ++segment) {
      const int64_t first = cuts[segment];
      const int64_t end = segment + 1 < cuts.size() ? cuts[segment + 1] : num_terms;
      for (size_t i = 0; i < slices.size(); ++i) {
        if (slices[i].first_term <= first && first < slices[i].end_term)
          segments[segment].slices.push_back(static_cast<int32_t>(i));
      }
      for (const Presence& p : presence) {
        if (p.first_term <= first && first < p.end_term) segments[segment].rows.push_back(static_cast<int32_t>(p.row));
      }
      for (int64_t t = first; t < end; ++t) terms[t] = {own_row[t], static_cast<int32_t>(segment), on_bloom[t]};
    }
  }
};

// What one thread needs to fill a block.
class Worker {
 public:
  Worker(const Items& items, const Layout& layout, int64_t max_width)
      : items_(items),
        layout_(layout),
        own_(layout.num_own * kTileWords),
        bloom_(max_width * kTileWords),
        codes_(layout.slices.size()) {}

  void fill(int64_t block, int64_t width, uint64_t* own, uint64_t* bloom) {
    const int64_t num_words = (items_.count + 63) / 64;
    for (int64_t word = 0; word < kBlockWords; word += kTileWords) {
      std::fill(own_.begin(), own_.end(), 0);
      std::fill_n(bloom_.begin(), width * kTileWords, 0);
      const int64_t first = block * kBlockItems + word * 64;
      for (int64_t i = first; i < std::min(first + kTileItems, items_.count); ++i) set_item(i, i - first, block, width);
      const int64_t first_word = first / 64, words = std::clamp<int64_t>(num_words - first_word, 0, kTileWords);
      for (int64_t row = 0; row < layout_.num_own; ++row) {
        std::copy_n(own_.data() + row * kTileWords, words, own + row * num_words + first_word);
      }
      for (int64_t row = 0; row < width; ++row) {
        std::copy_n(bloom_.data() + row * kTileWords, kTileWords, bloom + row * kBlockWords + word);
      }
    }
  }

 private:
  void set_item(int64_t item, int64_t place, int64_t block, int64_t width) {
    const uint64_t bit = uint64_t{1} << place % 64;
    uint64_t *own = own_.data() + place / 64, *bloom = bloom_.data() + place / 64;
    const int32_t *value = items_.values + items_.offsets[item], *end = items_.values + items_.offsets[item + 1];
    std::fill(codes_.begin(), codes_.end(), 0);
    int64_t num_bloom = 0;
    while (value != end) {
      const int32_t segment = layout_.terms[*value].segment;
      const int32_t* first = value;
      for (; value != end && layout_.terms[*value].segment == segment; ++value) {
        const Term term = layout_.terms[*value];
        if (term.own_row >= 0) own[term.own_row * kTileWords] |= bit;
        if (!term.on_bloom || width == 0) continue;
        BloomHash hash(static_cast<uint64_t>(*value), static_cast<uint64_t>(block));
        for (int64_t i = 0; i < layout_.num_hashes; ++i)
          bloom[next_bloom_row(hash.state, width) * kTileWords] |= bit;
        ++num_bloom;
      }
      for (const int32_t row : layout_.segments[segment].rows) own[row * kTileWords] |= bit;
      for (const int32_t s : layout_.segments[segment].slices) {
        const Slice& slice = layout_.slices[s];
        if (slice.side) {
          codes_[s] = value[-1] - slice.first_term + 1;
        } else if (codes_[s] == 0) {
          codes_[s] = *first - slice.first_term + 1;
        }
      }
    }
    for (size_t s = 0; s < codes_.size(); ++s) {
      const Slice& slice = layout_.slices[s];
      for (int64_t b = 0; b < slice.num_bits; ++b) {
        own[(slice.first_row + b) * kTileWords] |= codes_[s] >> b & 1 ? bit : 0;
      }
    }
    if (layout_.num_hashes * num_bloom > 4 * width) {
      for (int64_t row = 0; row < width; ++row) bloom[row * kTileWords] |= bit;
    }
  }

  const Items& items_;
  const Layout& layout_;
  std::vector<uint64_t> own_, bloom_;
  std::vector<int64_t> codes_;
};

}  // namespace
}  // namespace stcli

// Both return 0, or 1 if memory ran out.
extern "C" int stcli_matrix_widths(const int32_t* values, const int64_t* offsets, int64_t num_items,
                                   const uint8_t* on_bloom, int64_t num_hashes, double bloom_fpr, int64_t* widths,
                                   int64_t num_threads) try {
  using namespace stcli;
  const Items items{values, offsets, num_items};
  struct Scratch {
    std::vector<int64_t> items_of_length;
    std::vector<LengthCount> lengths;
  };
  const size_t num_lengths = static_cast<size_t>(items.longest()) + 1;
  std::vector<Scratch> scratch(static_cast<size_t>(num_threads));
  for (Scratch& s : scratch)
    s.items_of_length.resize(num_lengths), s.lengths.reserve(std::min<size_t>(num_lengths, kBlockItems));
  parallel_for(items.num_blocks(), static_cast<int>(num_threads), [&](int64_t block, int thread) {
    auto& [items_of_length, lengths] = scratch[static_cast<size_t>(thread)];
    const int64_t first = block * kBlockItems, end = std::min(first + kBlockItems, num_items);
    int64_t longest = 0;
    for (int64_t i = first; i < end; ++i) {
      int64_t length = 0;
      for (int64_t j = offsets[i]; j < offsets[i + 1]; ++j) length += on_bloom[values[j]] != 0;
      ++items_of_length[static_cast<size_t>(length)];
      longest = std::max(longest, length);
    }
    lengths.clear();
    for (int64_t length = 0; length <= longest; ++length) {
      int64_t& count = items_of_length[static_cast<size_t>(length)];
      if (count) lengths.push_back({length, count});
      count = 0;
    }
    widths[block] = block_width(lengths, end - first, num_hashes, bloom_fpr);
  });
  return 0;
} catch (const std::bad_alloc&) {
  return 1;
}

extern "C" int stcli_matrix_fill(const int32_t* values, const int64_t* offsets, int64_t num_items,
                                 const int32_t* own_row, const uint8_t* on_bloom, int64_t num_terms,
                                 const int64_t* slices, int64_t num_slices, const int64_t* presence,
                                 int64_t num_presence, int64_t num_own, int64_t num_hashes,
                                 const int64_t* bloom_offsets, uint64_t* own, uint64_t* bloom,
                                 int64_t num_threads) try {
  using namespace stcli;
  const Items items{values, offsets, num_items};
  std::vector<Slice> slice_lines;
  for (const int64_t* s = slices; s != slices + 5 * num_slices; s += 5)
    slice_lines.push_back({s[0], s[1], s[2], s[3], s[4]});
  std::vector<Presence> presence_lines;
  for (const int64_t* p = presence; p != presence + 3 * num_presence; p += 3)
    presence_lines.push_back({p[0], p[1], p[2]});
  const Layout layout(own_row, on_bloom, num_terms, std::move(slice_lines), presence_lines, num_own, num_hashes);
  int64_t max_width = 0;
  for (int64_t b = 0; b < items.num_blocks(); ++b)
    max_width = std::max(max_width, bloom_offsets[b + 1] - bloom_offsets[b]);
  std::vector<Worker> workers;
  workers.reserve(static_cast<size_t>(num_threads));
  for (int64_t t = 0; t < num_threads; ++t) workers.emplace_back(items, layout, max_width);
  parallel_for(items.num_blocks(), static_cast<int>(num_threads), [&](int64_t block, int thread) {
    workers[static_cast<size_t>(thread)].fill(block, bloom_offsets[block + 1] - bloom_offsets[block], own,
                                              bloom + bloom_offsets[block] * kBlockWords);
  });
  return 0;
} catch (const std::bad_alloc&) {
  return 1;
}
