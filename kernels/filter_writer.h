// Programs of filters in postfix order, written while their texts are read: one over rows of the bit matrix, one over
// exact terms.
#pragma once
#include <cstdint>
#include <vector>

#include "filter_values.h"

namespace stcli {

enum Op : int8_t { PUSH = 0, AND_OP = -1, OR_OP = -2, NOT_OP = -3 };

// One of the two programs, of all filters one after another. A part of it that is every item or none is not written but
// known, so that it vanishes or takes the rest of its AND or OR with it.
struct Code {
  struct Part {
    size_t ops, data, pushes;  // where it starts
    int constant;              // 1: every item, 0: none, -1: what is written
  };

  std::vector<int8_t> ops;
  std::vector<int64_t> data;  // a row leaf's four numbers, or a term leaf's intervals, two numbers each
  std::vector<int64_t> counts;  // intervals of each term leaf

  Part begin(int constant = -1) const { return {ops.size(), data.size(), counts.size(), constant}; }

  void cut(const Part& part) {
    ops.resize(part.ops);
    data.resize(part.data);
    counts.resize(part.pushes);
  }

  void negate(Part& part) {
    if (part.constant >= 0)
      part.constant ^= 1;
    else if (ops.back() == NOT_OP)
      ops.pop_back();
    else
      ops.push_back(NOT_OP);
  }

  // Joins `right`, which was written last, to `left` before it.
  void join(Part& left, const Part& right, Op op) {
    const int absorbing = op == OR_OP;
    if (left.constant < 0 && right.constant < 0) {
      ops.push_back(op);
    } else if (left.constant == absorbing || right.constant == absorbing) {
      cut(left);
      left.constant = absorbing;
    } else if (left.constant >= 0) {
      left.constant = right.constant;
    }
  }
};

// What the bit matrix looks like, see stcli/filters/layout.py.
struct FilterMatrix {
  const int32_t* own_row;  // of each term, or -1: on Bloom rows
  bool paper;              // the paper's form: NOT complements Bloom rows, false positives and all
};

class FilterWriter {
 public:
  // A filter or a part of one; `exact`: both programs hold for the same items.
  struct Part {
    Code::Part rows, terms;
    bool exact;
  };

  Code rows, terms;

  explicit FilterWriter(const FilterMatrix& matrix) : matrix_(matrix) {}

  Part constant(bool every) const { return {rows.begin(every), terms.begin(every), true}; }

  void negate(Part& part) {
    rows.negate(part.rows);
    terms.negate(part.terms);
  }

  void join(Part& left, const Part& right, Op op) {
    rows.join(left.rows, right.rows, op);
    terms.join(left.terms, right.terms, op);
    left.exact = (left.exact && right.exact) || (left.rows.constant >= 0 && left.rows.constant == left.terms.constant);
  }

  // The intervals, ascending by their start, made disjoint and apart.
  static void merge(std::vector<Interval>& found) {
    size_t kept = 0;
    for (const Interval& ranks : found) {
      if (ranks.low >= ranks.high) continue;
      if (kept && ranks.low <= found[kept - 1].high)
        found[kept - 1].high = std::max(found[kept - 1].high, ranks.high);
      else
        found[kept++] = ranks;
    }
    found.resize(kept);
  }

  // "Has a value in one of some intervals of ranks", ascending by their start. `upper`: the rows hold for every eligible
  // item, else for eligible items only. False where the paper's form cannot express it.
  bool leaf(const FilterFeature& feature, std::vector<Interval>& found, bool upper, Part& part) {
    merge(found);
    part = constant(false);
    if (found.empty()) return true;
    part.terms.constant = part.rows.constant = -1;
    terms.ops.push_back(PUSH);
    terms.counts.push_back(static_cast<int64_t>(found.size()));
    for (Interval& ranks : found) {
      ranks = {feature.first_term + ranks.low, feature.first_term + ranks.high};
      terms.data.insert(terms.data.end(), {ranks.low, ranks.high});
    }
    const Interval& first = found.front();
    if (feature.presence_row >= 0 && first.high - first.low == feature.num_terms) {
      push(LEAF_OWN, feature.presence_row);
      return true;
    }
    return write_rows(feature, found, upper || matrix_.paper, part);
  }

  // A row leaf that no item has.
  void push_none() { push(LEAF_NONE, 0); }

 private:
  // As in stcli/types.py and stcli/filters/bounds.py.
  enum { LEAF_NONE = 1, LEAF_OWN = 2, LEAF_BLOOM = 3, LEAF_LESS = 4, LEAF_EQUAL = 5 };
  static constexpr int64_t MAX_BLOOM_TERMS = 256;

  void push(int64_t kind, int64_t a, int64_t b = 0, int64_t c = 0) {
    rows.ops.push_back(PUSH);
    rows.data.insert(rows.data.end(), {kind, a, b, c});
  }

  bool write_rows(const FilterFeature& feature, const std::vector<Interval>& found, bool upper, Part& part) {
    int64_t num_bloom = 0;
    size_t parts = 0;
    const auto next = [&] {  // after each part: OR it to those before
      if (parts++) rows.ops.push_back(OR_OP);
    };
    for (const auto [low, high] : found) {
      const bool single = high == low + 1;
      if (feature.bits && !(single && (feature.multi || matrix_.own_row[low] >= 0))) {
        const int64_t begin = low - feature.first_term + 1, end = high - feature.first_term + 1;
        if (!feature.multi || end > feature.num_terms || begin == 1) {
          codes_in(feature, feature.smallest_row, feature.largest_row, begin, end);
          next();
          continue;
        }
        part.exact = false;
        codes_in(feature, feature.smallest_row, upper ? feature.largest_row : feature.smallest_row, begin, end);
        next();
        if (upper) continue;
        codes_in(feature, feature.largest_row, feature.largest_row, begin, end);
        next();
        continue;
      }
      for (int64_t term = low; term < high; ++term) {
        const int64_t row = matrix_.own_row[term];
        if (row < 0 && (++num_bloom > MAX_BLOOM_TERMS || !upper)) {
          if (num_bloom > MAX_BLOOM_TERMS && upper) break;
          continue;
        }
        push(row < 0 ? LEAF_BLOOM : LEAF_OWN, row < 0 ? term : row);
        next();
      }
    }
    part.exact &= !num_bloom;
    if (num_bloom > MAX_BLOOM_TERMS && upper) {
      if (feature.presence_row < 0) return false;
      rows.cut(part.rows);
      push(LEAF_OWN, feature.presence_row);
    } else if (!parts) {
      part.rows.constant = 0;
    }
    return true;
  }

  // Items whose code in the slices from row `small` on is below `end`, and from `large` on not below `begin`.
  void codes_in(const FilterFeature& feature, int64_t small, int64_t large, int64_t begin, int64_t end) {
    if (small == large && end == begin + 1) return push(LEAF_EQUAL, small, feature.bits, begin);
    const bool bounded = end <= feature.num_terms;
    if (bounded) push(LEAF_LESS, small, feature.bits, end);
    push(LEAF_LESS, large, feature.bits, begin);
    rows.ops.push_back(NOT_OP);
    if (bounded) rows.ops.push_back(AND_OP);
  }

  const FilterMatrix matrix_;
};

}  // namespace stcli
