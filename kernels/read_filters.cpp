// read_filters: filter texts to the programs of their plans; what is in doubt is left to Python, which has the
// definition (stcli/filters/parse.py, bounds.py) and the messages.
//   in   texts u8, offsets i64 [T + 1]   features i64 [F, 12], names u8   own_row i32 [V]   limits
//   out  see `stcli_take_filters`
//   cost 0.2 us a short condition, 0.7 us where IN lists and ranges are many (CPU time, AMD EPYC Zen 4)
#include <cstdint>
#include <memory>
#include <new>

#include "filter_writer.h"

namespace stcli {
namespace {

struct Limits {
  int64_t bytes, depth, terms;
};

// A recursive descent over the tokens of one text; every function returns false where Python must look.
class Reader {
 public:
  Reader(const FilterFeature* features, int64_t num_features, const char* names, const FilterMatrix& matrix,
         const Limits& limits)
      : writer(matrix), features_(features), num_features_(num_features), names_(names), limits_(limits) {}

  FilterWriter writer;
  int64_t unknown = 0;  // values of the last text that no item has

  bool read(std::string_view text, FilterWriter::Part& part) {
    at_ = 0;
    unknown = terms_ = 0;
    return static_cast<int64_t>(text.size()) <= limits_.bytes && tokenizer_.cut(text, tokens_) &&
           disjunction(0, true, part) && kind() == Kind::END && terms_ <= limits_.terms;
  }

 private:
  Kind kind(size_t ahead = 0) const { return tokens_[std::min(at_ + ahead, tokens_.size() - 1)].kind; }

  bool take(Kind wanted) {
    if (kind() != wanted) return false;
    ++at_;
    return true;
  }

  // `upper`: below an even number of NOTs.
  bool disjunction(int64_t depth, bool upper, FilterWriter::Part& part) {
    if (!conjunction(depth, upper, part)) return false;
    while (take(Kind::OR)) {
      FilterWriter::Part right;
      if (!conjunction(depth, upper, right)) return false;
      writer.join(part, right, OR_OP);
    }
    return true;
  }

  bool conjunction(int64_t depth, bool upper, FilterWriter::Part& part) {
    if (!condition(depth, upper, part)) return false;
    while (take(Kind::AND)) {
      FilterWriter::Part right;
      if (!condition(depth, upper, right)) return false;
      writer.join(part, right, AND_OP);
    }
    return true;
  }

  bool condition(int64_t depth, bool upper, FilterWriter::Part& part) {
    switch (kind()) {
      case Kind::WORD:
      case Kind::QUOTED:
        return leaf(upper, part);
      case Kind::OPEN:
        ++at_;
        return depth < limits_.depth && disjunction(depth + 1, upper, part) && take(Kind::CLOSE);
      case Kind::NOT:
        ++at_;
        if (depth == limits_.depth || after_column() || !condition(depth + 1, !upper, part)) return false;
        writer.negate(part);
        return true;
      case Kind::IS_TRUE:
      case Kind::IS_FALSE:
        part = writer.constant(kind() == Kind::IS_TRUE);
        ++at_;
        return !after_column() && kind() != Kind::NOT;
      default:
        return false;
    }
  }

  // Whether the word of the language before may be the name of a column.
  bool after_column() const {
    switch (kind()) {
      case Kind::WORD:
      case Kind::QUOTED:
      case Kind::OPEN:
      case Kind::CLOSE:
      case Kind::NOT:
      case Kind::AND:
      case Kind::OR:
      case Kind::IS_TRUE:
      case Kind::IS_FALSE:
      case Kind::END:
        return false;
      default:
        return true;
    }
  }

  const FilterFeature* feature() {
    const Token& token = tokens_[at_++];
    const std::string_view name = token.kind == Kind::QUOTED ? unquoted(token.text, '"', spare_) : token.text;
    const char* known = names_;
    for (int64_t i = 0; i < num_features_; known += features_[i++].name_bytes)
      if (name == std::string_view(known, features_[i].name_bytes)) return features_ + i;
    return nullptr;
  }

  bool leaf(bool upper, FilterWriter::Part& part) {
    const FilterFeature* column = feature();
    if (!column) return false;
    ++terms_;
    found_.clear();
    bool negated = false;
    const Kind first = kind();
    if (first >= Kind::EQUAL && first <= Kind::GREATER_EQUAL) {
      ++at_;
      negated = first == Kind::UNEQUAL;
      if (!compared(*column, first)) return false;
    } else if (first == Kind::IS) {
      ++at_;
      negated = !take(Kind::NOT);
      if (!take(Kind::IS_NULL)) return false;
      found_.push_back({0, column->num_terms});
    } else if (first == Kind::NOT || first == Kind::IN || first == Kind::BETWEEN) {
      negated = take(Kind::NOT);
      if (take(Kind::IN) ? !listed(*column) : !take(Kind::BETWEEN) || !between(*column)) return false;
    } else {
      if (column->type != FilterFeature::BOOLEAN || after_column()) return false;
      const int64_t whole = column->num_terms;  // false stands before true
      found_.push_back({whole, whole});
      for (int64_t rank = 0; rank < whole; ++rank)
        if (static_cast<const int64_t*>(column->values)[rank]) found_[0] = {rank, rank + 1};
      unknown += found_[0].low == found_[0].high;
    }
    if (!writer.leaf(*column, found_, upper != negated, part)) return false;
    if (negated) writer.negate(part);
    return true;
  }

  bool compared(const FilterFeature& column, Kind op) {
    Interval ranks;
    if (!values_.read(column, tokens_, at_, ranks)) return false;
    switch (op) {
      case Kind::LESS: ranks = {0, ranks.low}; break;
      case Kind::LESS_EQUAL: ranks = {0, ranks.high}; break;
      case Kind::GREATER: ranks = {ranks.high, column.num_terms}; break;
      case Kind::GREATER_EQUAL: ranks = {ranks.low, column.num_terms}; break;
      default: unknown += ranks.low == ranks.high;
    }
    found_.push_back(ranks);
    return true;
  }

  bool listed(const FilterFeature& column) {
    if (!take(Kind::OPEN)) return false;
    if (take(Kind::CLOSE)) return true;
    do {
      Interval ranks;
      if (!values_.read(column, tokens_, at_, ranks)) return false;
      unknown += ranks.low == ranks.high;
      found_.push_back(ranks);
    } while (take(Kind::COMMA));
    terms_ += static_cast<int64_t>(found_.size()) - 1;
    std::sort(found_.begin(), found_.end());
    return take(Kind::CLOSE);
  }

  bool between(const FilterFeature& column) {
    Interval low, high;
    if (!values_.read(column, tokens_, at_, low) || !take(Kind::AND)) return false;
    if (!values_.read(column, tokens_, at_, high)) return false;
    found_.push_back({low.low, high.high});
    return true;
  }

  const FilterFeature* features_;
  const int64_t num_features_;
  const char* names_;
  const Limits limits_;
  Tokenizer tokenizer_;
  ValueReader values_;
  std::vector<Token> tokens_;
  std::vector<Interval> found_;
  std::string spare_;
  size_t at_ = 0;
  int64_t terms_ = 0;
};

// All texts read; of each text where its part of every array ends, whether it is exact, and its unknown values.
struct Filters {
  Code rows, terms;
  std::vector<int64_t> lines;
};

}  // namespace
}  // namespace stcli

// Reads T texts. `sizes` [5] gets the lengths of what `stcli_take_filters` will write, and `*handle` what it needs.
extern "C" int stcli_read_filters(const char* texts, const int64_t* offsets, int64_t num_texts,
                                  const stcli::FilterFeature* features, int64_t num_features, const char* names,
                                  const int32_t* own_row, int64_t paper, int64_t max_bytes, int64_t max_depth,
                                  int64_t max_terms, int64_t* sizes, int64_t* handle) try {
  using namespace stcli;
  Reader reader(features, num_features, names, {own_row, paper != 0}, {max_bytes, max_depth, max_terms});
  auto filters = std::make_unique<Filters>();
  FilterWriter& writer = reader.writer;
  for (int64_t i = 0; i < num_texts; ++i) {
    FilterWriter::Part part = writer.constant(false);
    const FilterWriter::Part start = part;
    const bool fine = reader.read({texts + offsets[i], static_cast<size_t>(offsets[i + 1] - offsets[i])}, part);
    if (!fine) {
      writer.rows.cut(start.rows);
      writer.terms.cut(start.terms);
    } else {
      if (part.rows.constant >= 0) {  // LEAF_ALL is 0, LEAF_NONE is 1
        writer.rows.ops.push_back(PUSH);
        writer.rows.data.insert(writer.rows.data.end(), {1 - part.rows.constant, 0, 0, 0});
      }
      if (part.terms.constant >= 0) {  // a leaf without intervals
        writer.terms.ops.push_back(PUSH);
        writer.terms.counts.push_back(0);
        if (part.terms.constant) writer.terms.ops.push_back(NOT_OP);
      }
    }
    const Code::Part rows = writer.rows.begin(), terms = writer.terms.begin();
    for (const size_t end : {rows.ops, rows.data, terms.ops, terms.data, terms.pushes})
      filters->lines.push_back(static_cast<int64_t>(end));
    filters->lines.push_back(fine ? part.exact && !paper : -1);
    filters->lines.push_back(reader.unknown);
  }
  filters->rows = std::move(writer.rows);
  filters->terms = std::move(writer.terms);
  const Code::Part rows = filters->rows.begin(), terms = filters->terms.begin();
  const size_t lengths[] = {rows.ops, rows.data, terms.ops, terms.data, terms.pushes};
  for (int i = 0; i < 5; ++i) sizes[i] = static_cast<int64_t>(lengths[i]);
  *handle = reinterpret_cast<int64_t>(filters.release());
  return 0;
} catch (const std::bad_alloc&) {
  return 1;
}

// Writes the two programs of all texts, one after another, and frees what `stcli_read_filters` kept.
//   row_ops i8, leaves i64 [pushes, 4]   term_ops i8, spans i32 [intervals, 2], counts i64 [pushes]: as in a `Code`
//   lines i64 [T, 7]: where each of these five ends (leaves and spans in numbers); exact 0 or 1, -1: left to Python;
//   values that no item has
extern "C" int stcli_take_filters(int64_t handle, int8_t* row_ops, int64_t* leaves, int8_t* term_ops, int32_t* spans,
                                  int64_t* counts, int64_t* lines) {
  const std::unique_ptr<stcli::Filters> filters(reinterpret_cast<stcli::Filters*>(handle));
  std::copy(filters->rows.ops.begin(), filters->rows.ops.end(), row_ops);
  std::copy(filters->rows.data.begin(), filters->rows.data.end(), leaves);
  std::copy(filters->terms.ops.begin(), filters->terms.ops.end(), term_ops);
  std::transform(filters->terms.data.begin(), filters->terms.data.end(), spans,
                 [](int64_t term) { return static_cast<int32_t>(term); });
  std::copy(filters->terms.counts.begin(), filters->terms.counts.end(), counts);
  std::copy(filters->lines.begin(), filters->lines.end(), lines);
  return 0;
}
