// The values that a filter names, and where they stand among those of a feature.
#pragma once
#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <string>
#include <string_view>

#include "filter_tokens.h"

namespace stcli {

// A feature as stcli/filters/texts.py passes it, twelve int64 numbers.
struct FilterFeature {
  enum Type : int64_t { STRING, INTEGER, FLOAT, BOOLEAN, DATE, TIMESTAMP };
  Type type;
  int64_t first_term, num_terms, multi;
  int64_t presence_row;                    // or -1
  int64_t smallest_row, largest_row, bits;  // of its rank slices; bits 0: it has none
  const void* values;                      // uint8, int64 or float64
  const int64_t* offsets;                  // of strings: [num_terms + 1]
  int64_t num_bytes;                       // of strings
  int64_t name_bytes;                      // names of all features stand one after another
};

struct Interval {
  int64_t low, high;
  bool operator<(const Interval& other) const { return low != other.low ? low < other.low : high < other.high; }
};

// The content of a token with doubled quotes made single; `spare` holds it if there were any.
inline std::string_view unquoted(std::string_view text, char quote, std::string& spare) {
  if (text.find(quote) == text.npos) return text;
  spare.clear();
  for (size_t i = 0; i < text.size(); ++i) {
    spare += text[i];
    i += text[i] == quote;
  }
  return spare;
}

// The number that `count` digits at a place of a text make, or -1.
inline int64_t digits_at(std::string_view text, size_t place, size_t count) {
  int64_t number = 0;
  if (text.size() < place + count) return -1;
  for (size_t i = place; i < place + count; ++i) {
    if (text[i] < '0' || text[i] > '9') return -1;
    number = 10 * number + (text[i] - '0');
  }
  return number;
}

// Days since 1970 of YYYY-MM-DD at the start of a text (by the civil calendar, counted from 1 March).
inline bool read_days(std::string_view text, int64_t& days) {
  const int64_t year = digits_at(text, 0, 4), month = digits_at(text, 5, 2), day = digits_at(text, 8, 2);
  if (year < 1 || month < 1 || month > 12 || day < 1 || text[4] != '-' || text[7] != '-') return false;
  const bool leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
  if (day > (month == 2 ? 28 + leap : 30 + (month + (month > 7)) % 2)) return false;
  const int64_t years = year - (month < 3), months = (month + 9) % 12;
  days = 365 * years + years / 4 - years / 100 + years / 400 + (153 * months + 2) / 5 + day - 1 - 719468;
  return true;
}

inline bool read_date(std::string_view text, int64_t& days) { return text.size() == 10 && read_days(text, days); }

// Microseconds of YYYY-MM-DD[ HH:MM:SS[.ffffff]]; other forms are left to Python.
inline bool read_timestamp(std::string_view text, int64_t& micros) {
  int64_t seconds = 0, fraction = 0;
  if (!read_days(text, micros)) return false;
  if (text.size() != 10) {
    const int64_t hour = digits_at(text, 11, 2), minute = digits_at(text, 14, 2), second = digits_at(text, 17, 2);
    if ((text[10] != ' ' && text[10] != 'T') || text.size() < 19 || text[13] != ':' || text[16] != ':') return false;
    if (hour < 0 || hour > 23 || minute < 0 || minute > 59 || second < 0 || second > 59) return false;
    seconds = 3600 * hour + 60 * minute + second;
    if (text.size() > 19) {
      const size_t digits = text.size() - 20;
      if (text[19] != '.' || digits < 1 || digits > 6 || (fraction = digits_at(text, 20, digits)) < 0) return false;
      for (size_t i = digits; i < 6; ++i) fraction *= 10;
    }
  }
  micros = (86400 * micros + seconds) * 1000000 + fraction;
  return true;
}

class ValueReader {
 public:
  // Where the value of tokens[at] stands: the ranks equal to it, at most one, and where it would stand if none; `at`
  // goes to the next token. False: another type, or left to Python.
  bool read(const FilterFeature& feature, const std::vector<Token>& tokens, size_t& at, Interval& ranks) {
    using Type = FilterFeature::Type;
    const Token* token = &tokens[at++];
    // DATE '…' or TIMESTAMP '…'
    bool date = false, timestamp = false;
    if (token->kind == Kind::WORD && tokens[at].kind == Kind::STRING) {
      date = is_word(token->text, "date");
      timestamp = is_word(token->text, "timestamp");
      if (!date && !timestamp) return false;
      token = &tokens[at++];
    }
    int64_t whole;
    switch (feature.type) {
      case Type::STRING:
        if (token->kind != Kind::STRING || date || timestamp) return false;
        ranks = string_ranks(feature, unquoted(token->text, '\'', spare_));
        return true;
      case Type::BOOLEAN:
        if (token->kind != Kind::IS_TRUE && token->kind != Kind::IS_FALSE) return false;
        ranks = number_ranks<int64_t>(feature, token->kind == Kind::IS_TRUE);
        return true;
      case Type::DATE:
        if (token->kind != Kind::STRING || timestamp || !read_date(token->text, whole)) return false;
        ranks = number_ranks(feature, whole);
        return true;
      case Type::TIMESTAMP:
        if (token->kind != Kind::STRING || (date && token->text.size() != 10)) return false;
        if (!read_timestamp(token->text, whole)) return false;
        ranks = number_ranks(feature, whole);
        return true;
      default:
        return number(feature, *token, ranks);
    }
  }

 private:
  static bool is_word(std::string_view text, std::string_view lower) {
    return text.size() == lower.size() && std::equal(text.begin(), text.end(), lower.begin(),
                                                     [](char a, char b) { return (a | 32) == b; });
  }

  static Interval string_ranks(const FilterFeature& feature, std::string_view wanted) {
    const char* data = static_cast<const char*>(feature.values);
    const auto value = [&](int64_t rank) {
      const int64_t begin = feature.offsets[rank], end = feature.offsets[rank + 1];
      const bool whole = begin >= 0 && begin <= end && end <= feature.num_bytes;  // offsets come from a file
      return whole ? std::string_view(data + begin, end - begin) : std::string_view();
    };
    int64_t low = 0;  // string_view compares bytes as unsigned, as Python does
    for (int64_t high = feature.num_terms; low < high;) {
      const int64_t middle = (low + high) / 2;
      if (value(middle) < wanted)
        low = middle + 1;
      else
        high = middle;
    }
    return {low, low + (low < feature.num_terms && value(low) == wanted)};
  }

  template <class Number>
  static Interval number_ranks(const FilterFeature& feature, Number wanted) {
    const Number* values = static_cast<const Number*>(feature.values);
    const int64_t low = std::lower_bound(values, values + feature.num_terms, wanted) - values;
    return {low, low + (low < feature.num_terms && values[low] == wanted)};
  }

  static bool number(const FilterFeature& feature, const Token& token, Interval& ranks) {
    char text[64];
    if (token.text.size() >= sizeof text || (token.kind != Kind::INTEGER && token.kind != Kind::FLOAT)) return false;
    *std::copy(token.text.begin(), token.text.end(), text) = '\0';
    char* end = text + token.text.size();
    char* read = nullptr;
    errno = 0;
    if (token.kind == Kind::INTEGER) {
      const int64_t whole = std::strtoll(text, &read, 10);
      if (errno || read != end) return false;
      if (feature.type == FilterFeature::INTEGER) {
        ranks = number_ranks(feature, whole);
        return true;
      }
      if (whole > int64_t{1} << 53 || whole < -(int64_t{1} << 53)) return false;  // as a float it would be rounded
      ranks = number_ranks(feature, static_cast<double>(whole));
      return true;
    }
    const double real = std::strtod(text, &read);
    if (errno || read != end) return false;  // too large or small, or a locale with a decimal comma
    if (feature.type == FilterFeature::FLOAT) {
      ranks = number_ranks(feature, real);
      return true;
    }
    const double above = std::ceil(real);  // no integer lies between the two
    const bool fits = above >= -0x1p63 && above < 0x1p63;
    ranks.low = ranks.high = above > 0 ? feature.num_terms : 0;
    if (fits) ranks = number_ranks(feature, static_cast<int64_t>(above));
    if (above != real) ranks.high = ranks.low;
    return true;
  }

  std::string spare_;
};

}  // namespace stcli
