// Filter texts cut into tokens. The definition is the regular expression in stcli/filters/parse.py; a text with anything
// unusual in it is refused here and left to Python: letters beyond ASCII outside of quotes, placeholders, errors.
#pragma once
#include <cstdint>
#include <string_view>
#include <vector>

namespace stcli {

enum class Kind : uint8_t {
  WORD, QUOTED, STRING, INTEGER, FLOAT, EQUAL, UNEQUAL, LESS, LESS_EQUAL, GREATER, GREATER_EQUAL, OPEN, CLOSE, COMMA,
  AND, OR, NOT, IN, BETWEEN, IS, IS_NULL, IS_TRUE, IS_FALSE, END
};

struct Token {
  Kind kind;
  std::string_view text;  // of strings and quoted names without the quotes at both ends
};

class Tokenizer {
 public:
  // Cuts a text; false: it is left to Python. The last token is an END.
  bool cut(std::string_view text, std::vector<Token>& tokens) {
    tokens.clear();
    at_ = text.data();
    end_ = at_ + text.size();
    for (;;) {
      while (at_ < end_ && (*at_ == ' ' || (*at_ >= '\t' && *at_ <= '\r'))) ++at_;
      if (at_ == end_) break;
      const char* begin = at_;
      Kind kind;
      if (!next(kind)) return false;
      const bool quotes = kind == Kind::STRING || kind == Kind::QUOTED;
      tokens.push_back({kind, {begin + quotes, static_cast<size_t>(at_ - begin - 2 * quotes)}});
    }
    tokens.push_back({Kind::END, {}});
    return true;
  }

 private:
  static bool is_digit(char c) { return c >= '0' && c <= '9'; }
  static bool is_letter(char c) { return (c | 32) >= 'a' && (c | 32) <= 'z'; }
  static bool in_word(char c) { return is_letter(c) || is_digit(c) || c == '_'; }
  char peek(int64_t ahead = 0) const { return end_ - at_ > ahead ? at_[ahead] : '\0'; }

  bool next(Kind& kind) {
    const char first = *at_;
    if (in_word(first)) {
      if (is_digit(first) && number(kind)) return true;
      return word(kind);
    }
    if (first == '\'' || first == '"') {
      kind = first == '"' ? Kind::QUOTED : Kind::STRING;
      return quoted(first);
    }
    if (first == '+' || first == '-' || first == '.') return number(kind);
    ++at_;
    switch (first) {
      case '(': kind = Kind::OPEN; return true;
      case ')': kind = Kind::CLOSE; return true;
      case ',': kind = Kind::COMMA; return true;
      case '=': kind = Kind::EQUAL; return peek() != '=';
      case '!': kind = Kind::UNEQUAL; return followed_by('=');
      case '<': kind = followed_by('=') ? Kind::LESS_EQUAL : followed_by('>') ? Kind::UNEQUAL : Kind::LESS; return true;
      case '>': kind = followed_by('=') ? Kind::GREATER_EQUAL : Kind::GREATER; return true;
    }
    return false;
  }

  bool followed_by(char wanted) {
    if (peek() != wanted) return false;
    ++at_;
    return true;
  }

  // Letters, digits and `_`, and single `.` and `-` between them.
  bool word(Kind& kind) {
    const char* begin = at_;
    do {
      while (in_word(peek())) ++at_;
    } while ((peek() == '.' || peek() == '-') && in_word(peek(1)) && ++at_);
    kind = reserved({begin, static_cast<size_t>(at_ - begin)});
    return true;
  }

  static Kind reserved(std::string_view word) {
    static constexpr std::pair<std::string_view, Kind> WORDS[] = {
        {"and", Kind::AND}, {"or", Kind::OR},           {"not", Kind::NOT},      {"in", Kind::IN},
        {"is", Kind::IS},   {"between", Kind::BETWEEN}, {"null", Kind::IS_NULL}, {"true", Kind::IS_TRUE},
        {"false", Kind::IS_FALSE}};
    for (const auto& [name, kind] : WORDS) {
      if (name.size() != word.size()) continue;
      size_t i = 0;
      while (i < word.size() && is_letter(word[i]) && (word[i] | 32) == name[i]) ++i;
      if (i == word.size()) return kind;
    }
    return Kind::WORD;
  }

  // Nothing is read where what stands here, up to the end of a word, is no number.
  bool number(Kind& kind) {
    const char* begin = at_;
    if (*at_ == '+' || *at_ == '-') ++at_;
    const char* digits = at_;
    while (is_digit(peek())) ++at_;
    kind = Kind::INTEGER;
    bool whole = at_ > digits;
    if (peek() == '.') {
      kind = Kind::FLOAT;
      const char* fraction = ++at_;
      while (is_digit(peek())) ++at_;
      whole |= at_ > fraction;
    }
    if (whole && (peek() | 32) == 'e') {
      const bool sign = peek(1) == '+' || peek(1) == '-';
      if (is_digit(peek(1 + sign))) {
        kind = Kind::FLOAT;
        for (at_ += 1 + sign; is_digit(peek());) ++at_;
      }
    }
    if (whole && !in_word(peek()) && !((peek() == '.' || peek() == '-') && in_word(peek(1)))) return true;
    at_ = begin;
    return false;
  }

  // Up to the closing quote; doubled quotes stand for one.
  bool quoted(char quote) {
    for (++at_; at_ < end_; ++at_) {
      if (*at_ != quote) continue;
      ++at_;
      if (peek() != quote) return true;
    }
    return false;
  }

  const char *at_, *end_;
};

}  // namespace stcli
