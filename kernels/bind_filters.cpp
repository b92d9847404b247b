// bind_filters: a template and the values of B queries to the programs of their filters, each distinct one once. The
// definition is in Python (stcli/filters/binder.py), which writes the same, and says what the paper's form cannot express.
//   in   ops i64 [M]: the template in postfix order; >= 0 takes a source, else an operation
//        sources i64: one after another, a clause or pieces that are written already, see `bind_clause` and `copy_source`
//        own_row i32 [V]
//   out  see `stcli_take_bound`
//   limits: leaves, terms and operations below 2^31 each
//   cost 0.6 us a query with two lists and a number, all different (CPU time, AMD EPYC Zen 4)
#include <cstdint>
#include <memory>
#include <new>

#include "distinct.h"
#include "filter_writer.h"

namespace stcli {
namespace {

// Operations of many pieces or filters; those >= 0 push that leaf.
struct Ops {
  std::vector<int32_t> ops;
  std::vector<int64_t> ends{0};

  // How many masks the last filter needs at once.
  int64_t depth() const {
    int64_t level = 0, most = 0;
    for (size_t i = ends[ends.size() - 2]; i < ops.size(); ++i) {
      level += ops[i] >= 0 ? 1 : ops[i] == NOT_OP ? 0 : -1;
      most = std::max(most, level);
    }
    return most;
  }
};

// What a source of the template gives; as `Pieces` in stcli/filters/pieces.py.
struct Source {
  Ops rows, terms;
  std::vector<int64_t> leaves, spans, span_counts;
  std::vector<uint8_t> exact;
  std::vector<int64_t> codes;  // the piece of each query, -1 for none; empty: piece 0 for all
  int64_t unknown = 0;         // values that no item has, over all queries
};

// The numbers and addresses that describe sources, one after another.
struct Arguments {
  const int64_t* at;

  int64_t number() { return *at++; }

  template <class T>
  const T* array() {
    return reinterpret_cast<const T*>(*at++);
  }

  template <class To, class From>
  void copy(std::vector<To>& to) {
    const int64_t count = number();
    const From* from = array<From>();
    to.assign(from, from + count);
  }
};

// Of each array its length and address; `codes` i64 may have length 0.
//   row_ops i32, lengths i64   leaves i64 [., 4]   term_ops i32, lengths i64   spans i32 [., 2]   span_counts i64   exact u8
void copy_source(Arguments in, Source& source) {
  in.copy<int64_t, int64_t>(source.codes);
  for (Ops* part : {&source.rows, &source.terms}) {
    in.copy<int32_t, int32_t>(part->ops);
    std::vector<int64_t> lengths;
    in.copy<int64_t, int64_t>(lengths);
    for (const int64_t length : lengths) part->ends.push_back(part->ends.back() + length);
  }
  in.copy<int64_t, int64_t>(source.leaves);
  in.copy<int64_t, int32_t>(source.spans);
  in.copy<int64_t, int64_t>(source.span_counts);
  in.copy<uint8_t, uint8_t>(source.exact);
}

enum Comparison : int64_t { EQUAL, LESS, LESS_EQUAL, GREATER, GREATER_EQUAL, BETWEEN, IN };

// How it compares; whether under an even number of NOTs; seven numbers of its `FilterFeature`, from the first term on;
// dropped u8 [B]; how many operands, and of each: how many values, their queries (ascending), and how many terms of the
// feature are smaller, and smaller or equal, i64. False where the paper's form cannot express it.
bool bind_clause(Arguments in, int64_t num_queries, const FilterMatrix& matrix, Source& source) {
  const int64_t comparison = in.number(), upper = in.number();
  FilterFeature feature{};
  for (int64_t* field : {&feature.first_term, &feature.num_terms, &feature.multi, &feature.presence_row,
                         &feature.smallest_row, &feature.largest_row, &feature.bits})
    *field = in.number();
  const uint8_t* dropped = in.array<uint8_t>();
  struct Operand {
    int64_t left;
    const int64_t *owner, *before, *after;
  };
  std::vector<Operand> operands(static_cast<size_t>(in.number()));
  for (Operand& operand : operands) {
    operand.left = in.number();
    for (const int64_t** array : {&operand.owner, &operand.before, &operand.after}) *array = in.array<int64_t>();
  }

  FilterWriter writer(matrix);
  Distinct sets;
  std::vector<Interval> found;
  source.codes.assign(static_cast<size_t>(num_queries), -1);
  for (int64_t query = 0; query < num_queries; ++query) {
    found.clear();
    for (Operand& operand : operands)
      for (; operand.left && *operand.owner == query; --operand.left, ++operand.owner)
        found.push_back({*operand.before++, *operand.after++});
    if (dropped[query]) continue;
    if (comparison == IN || comparison == EQUAL)
      for (const Interval& ranks : found) source.unknown += ranks.low == ranks.high;
    if (comparison == IN) {
      std::sort(found.begin(), found.end());
    } else {
      Interval ranks{found.front().low, found.back().high};
      switch (comparison) {
        case LESS: ranks = {0, ranks.low}; break;
        case LESS_EQUAL: ranks = {0, ranks.high}; break;
        case GREATER: ranks = {ranks.high, feature.num_terms}; break;
        case GREATER_EQUAL: ranks = {ranks.low, feature.num_terms}; break;
      }
      found.assign(1, ranks);
    }
    FilterWriter::merge(found);
    static_assert(sizeof(Interval) == 2 * sizeof(int64_t));
    const int64_t code = sets.find(reinterpret_cast<const int64_t*>(found.data()), 2 * found.size());
    source.codes[query] = code;
    if (code < static_cast<int64_t>(source.exact.size())) continue;

    FilterWriter::Part part = writer.constant(false);
    if (!writer.leaf(feature, found, upper, part)) return false;
    if (part.rows.constant == 0) writer.push_none();
    if (part.terms.constant == 0) writer.terms.counts.push_back(0);
    source.rows.ends.push_back(static_cast<int64_t>(writer.rows.ops.size()));
    source.terms.ops.push_back(static_cast<int32_t>(code));
    source.terms.ends.push_back(code + 1);
    source.exact.push_back(part.exact && !matrix.paper);
  }
  int32_t leaf = 0;
  for (const int8_t op : writer.rows.ops) source.rows.ops.push_back(op == PUSH ? leaf++ : op);
  source.leaves = std::move(writer.rows.data);
  source.spans = std::move(writer.terms.data);
  source.span_counts = std::move(writer.terms.counts);
  return true;
}

// The filters of all queries.
struct Bound {
  std::vector<int64_t> filter_of_query;
  Ops rows, terms;
  int64_t row_depth = 0, term_depth = 0;
  Distinct leaves;
  std::vector<uint8_t> exact;
  std::vector<int64_t> spans, span_counts;
};

// Puts them together: for each distinct line of codes the template, with what the codes stand for in its place.
class Joiner {
 public:
  Joiner(const int64_t* ops, int64_t num_ops, const std::vector<Source>& sources, Bound& bound)
      : template_(ops, ops + num_ops), sources_(sources), bound_(bound) {
    for (const Source& source : sources) {
      row_leaves_.emplace_back(source.leaves.size() / 4, -1);
      first_terms_.push_back(static_cast<int32_t>(bound.span_counts.size()));
      bound.spans.insert(bound.spans.end(), source.spans.begin(), source.spans.end());
      bound.span_counts.insert(bound.span_counts.end(), source.span_counts.begin(), source.span_counts.end());
    }
  }

  void join(int64_t num_queries) {
    Distinct lines;
    std::vector<int64_t> line(sources_.size()), filter_of_line;
    for (int64_t query = 0; query < num_queries; ++query) {
      for (size_t i = 0; i < line.size(); ++i) line[i] = sources_[i].codes.empty() ? 0 : sources_[i].codes[query];
      const int64_t number = lines.find(line.data(), line.size());
      if (number == static_cast<int64_t>(filter_of_line.size())) filter_of_line.push_back(write(line));
      bound_.filter_of_query.push_back(filter_of_line[number]);
    }
  }

 private:
  // The number of the filter, or -1 if all its clauses are dropped. What is nothing takes its operation with it.
  int64_t write(const std::vector<int64_t>& line) {
    Ops &rows = bound_.rows, &terms = bound_.terms;
    bool exact = true;
    stack_.clear();
    for (const int64_t op : template_) {
      if (op >= 0) {
        stack_.push_back(line[op] >= 0);
        if (line[op] < 0) continue;
        take(static_cast<size_t>(op), line[op]);
        exact &= sources_[op].exact[line[op]] != 0;
        continue;
      }
      bool wanted = stack_.back();
      if (op != NOT_OP) {
        stack_.pop_back();
        const bool left = stack_.back();
        stack_.back() = left || wanted;
        wanted = left && wanted;
      }
      if (!wanted) continue;
      rows.ops.push_back(static_cast<int32_t>(op));
      terms.ops.push_back(static_cast<int32_t>(op));
    }
    if (rows.ops.size() == static_cast<size_t>(rows.ends.back())) return -1;
    rows.ends.push_back(static_cast<int64_t>(rows.ops.size()));
    terms.ends.push_back(static_cast<int64_t>(terms.ops.size()));
    bound_.row_depth = std::max(bound_.row_depth, rows.depth());
    bound_.term_depth = std::max(bound_.term_depth, terms.depth());
    bound_.exact.push_back(exact);
    return static_cast<int64_t>(bound_.exact.size()) - 1;
  }

  void take(size_t number, int64_t code) {
    const Source& source = sources_[number];
    for (int64_t i = source.rows.ends[code]; i < source.rows.ends[code + 1]; ++i) {
      const int32_t op = source.rows.ops[i];
      if (op >= 0 && row_leaves_[number][op] < 0)
        row_leaves_[number][op] = static_cast<int32_t>(bound_.leaves.find(&source.leaves[4 * op], 4));
      bound_.rows.ops.push_back(op >= 0 ? row_leaves_[number][op] : op);
    }
    for (int64_t i = source.terms.ends[code]; i < source.terms.ends[code + 1]; ++i)
      bound_.terms.ops.push_back(source.terms.ops[i] + (source.terms.ops[i] >= 0 ? first_terms_[number] : 0));
  }

  const std::vector<int64_t> template_;
  const std::vector<Source>& sources_;
  Bound& bound_;
  std::vector<std::vector<int32_t>> row_leaves_;  // the number of each leaf of each source among all, -1: not seen yet
  std::vector<int32_t> first_terms_;
  std::vector<uint8_t> stack_;  // whether anything is left of each operand
};

}  // namespace
}  // namespace stcli

// Binds B queries. `starts` [S]: where each source begins in `sources`, ~start for pieces that are written already.
// `sizes` [8] gets the filters, row ops, leaves, term ops, term leaves and spans that `stcli_take_bound` will write, and
// the depths of the two programs; `unknown` the values that no item has; `handle` what `stcli_take_bound` needs, or 0 if
// this is left to Python.
extern "C" int stcli_bind_filters(const int64_t* ops, int64_t num_ops, const int64_t* sources, const int64_t* starts,
                                  int64_t num_sources, int64_t num_queries, const int32_t* own_row, int64_t paper,
                                  int64_t* sizes, int64_t* unknown, int64_t* handle) try {
  using namespace stcli;
  std::vector<Source> made(static_cast<size_t>(num_sources));
  *unknown = *handle = 0;
  for (int64_t i = 0; i < num_sources; ++i) {
    if (starts[i] < 0)
      copy_source({sources + ~starts[i]}, made[i]);
    else if (!bind_clause({sources + starts[i]}, num_queries, {own_row, paper != 0}, made[i]))
      return 0;
    *unknown += made[i].unknown;
  }
  auto bound = std::make_unique<Bound>();
  Joiner(ops, num_ops, made, *bound).join(num_queries);
  const size_t lengths[] = {bound->exact.size(),     bound->rows.ops.size(),    bound->leaves.numbers.size() / 4,
                            bound->terms.ops.size(), bound->span_counts.size(), bound->spans.size() / 2};
  std::copy(std::begin(lengths), std::end(lengths), sizes);
  sizes[6] = bound->row_depth;
  sizes[7] = bound->term_depth;
  *handle = reinterpret_cast<int64_t>(bound.release());
  return 0;
} catch (const std::bad_alloc&) {
  return 1;
}

// Writes what `stcli_bind_filters` made, as in `FilterBatch`, `Program` and `TermProgram`, and frees it.
//   filter_of_query i64 [B]   row_ops i32, row_offsets i64 [F + 1]   leaves i64 [L, 4]   exact u8 [F]
//   term_ops i32, term_offsets i64 [F + 1]   lows i32, highs i32   leaf_offsets i64 [term leaves + 1]
extern "C" int stcli_take_bound(int64_t handle, int64_t* filter_of_query, int32_t* row_ops, int64_t* row_offsets,
                                int64_t* leaves, uint8_t* exact, int32_t* term_ops, int64_t* term_offsets,
                                int32_t* lows, int32_t* highs, int64_t* leaf_offsets) {
  const std::unique_ptr<stcli::Bound> bound(reinterpret_cast<stcli::Bound*>(handle));
  const auto write = [](const auto& from, auto* to) { std::copy(from.begin(), from.end(), to); };
  write(bound->filter_of_query, filter_of_query);
  write(bound->rows.ops, row_ops);
  write(bound->rows.ends, row_offsets);
  write(bound->leaves.numbers, leaves);
  write(bound->exact, exact);
  write(bound->terms.ops, term_ops);
  write(bound->terms.ends, term_offsets);
  for (size_t i = 0; i < bound->spans.size(); i += 2) {
    *lows++ = static_cast<int32_t>(bound->spans[i]);
    *highs++ = static_cast<int32_t>(bound->spans[i + 1]);
  }
  *leaf_offsets = 0;
  for (const int64_t count : bound->span_counts) leaf_offsets[1] = leaf_offsets[0] + count, ++leaf_offsets;
  return 0;
}
