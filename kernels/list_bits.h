// Rows from the bits of filter words.
#pragma once
#include <cstdint>

#include "isa.h"

namespace stcli {

// Word `number` with the bits outside of begin … end - 1 cleared.
STCLI_INLINE uint64_t cut_word(const uint64_t* words, int64_t number, int64_t begin, int64_t end) {
  uint64_t bits = words[number];
  if (number * 64 < begin) bits &= ~uint64_t{0} << (begin % 64);
  if (number * 64 + 64 > end) bits &= ~uint64_t{0} >> (64 - end % 64);
  return bits;
}

STCLI_INLINE int64_t count_bits_body(const uint64_t* words, int64_t begin, int64_t end) {
  if (begin >= end) return 0;
  const int64_t first = begin / 64, last = (end - 1) / 64;
  int64_t count = __builtin_popcountll(cut_word(words, first, begin, end));
  if (last > first) count += __builtin_popcountll(cut_word(words, last, begin, end));
  for (int64_t word = first + 1; word < last; ++word) count += __builtin_popcountll(words[word]);
  return count;
}

STCLI_INLINE uint32_t* list_word(uint64_t bits, int64_t word, uint32_t* rows) {
  for (; bits; bits &= bits - 1) *rows++ = static_cast<uint32_t>(word * 64 + __builtin_ctzll(bits));
  return rows;
}

#if STCLI_X86
STCLI_AVX2 inline int64_t count_bits_avx2(const uint64_t* words, int64_t begin, int64_t end) {
  return count_bits_body(words, begin, end);
}

STCLI_AVX512 STCLI_INLINE uint32_t* list_word_avx512(uint64_t bits, int64_t word, uint32_t* rows) {
  if (__builtin_popcountll(bits) < 5) return list_word(bits, word, rows);
  const __m512i lanes = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
  for (int i = 0; i < 64; i += 16) {
    const __mmask16 part = static_cast<__mmask16>(bits >> i);
    const __m512i row = _mm512_add_epi32(lanes, _mm512_set1_epi32(static_cast<int>(word * 64 + i)));
    _mm512_storeu_si512(rows, _mm512_maskz_compress_epi32(part, row));
    rows += __builtin_popcount(part);
  }
  return rows;
}

STCLI_AVX512 inline void list_bits_avx512(const uint64_t* words, int64_t begin, int64_t end, uint32_t* rows) {
  const int64_t first = begin / 64, last = (end - 1) / 64;
  rows = list_word_avx512(cut_word(words, first, begin, end), first, rows);
  for (int64_t word = first + 1; word < last; word += 8) {
    // One look at eight words: few of them have bits in a selective filter.
    const __mmask8 inside = last - word < 8 ? (1 << (last - word)) - 1 : 0xff;
    const __m512i eight = _mm512_maskz_loadu_epi64(inside, words + word);
    for (unsigned filled = _mm512_test_epi64_mask(eight, eight); filled; filled &= filled - 1) {
      const int64_t number = word + __builtin_ctz(filled);
      rows = list_word_avx512(words[number], number, rows);
    }
  }
  if (last > first) list_word_avx512(cut_word(words, last, begin, end), last, rows);
}
#endif

// Number of bits in begin … end - 1.
inline int64_t count_bits(Isa isa, const uint64_t* words, int64_t begin, int64_t end) {
#if STCLI_X86
  if (isa >= AVX2) return count_bits_avx2(words, begin, end);
#endif
  return count_bits_body(words, begin, end);
}

// Lists the bits in begin … end - 1, of which there is at least one; may write 16 entries past the last.
inline void list_bits(Isa isa, const uint64_t* words, int64_t begin, int64_t end, uint32_t* rows) {
#if STCLI_X86
  if (isa == AVX512) return list_bits_avx512(words, begin, end, rows);
#endif
  for (int64_t word = begin / 64; word * 64 < end; ++word)
    rows = list_word(cut_word(words, word, begin, end), word, rows);
}

}  // namespace stcli
