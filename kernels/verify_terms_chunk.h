// The inner loops of verify_terms, for one set of instructions. verify_terms.cpp includes this file once for each,
// inside a namespace, with STCLI_TARGET (an attribute of functions) defined: no include guard on purpose.

// Whether one of `count` ascending terms is in [low, high).
STCLI_TARGET inline bool any_inside(const int32_t* terms, int64_t count, int32_t low, int32_t high) {
  if (count > kScanTerms) {
    const int32_t* first = std::lower_bound(terms, terms + count, low);
    return first != terms + count && *first < high;
  }
  // As unsigned numbers, term - low < high - low compares with both ends at once.
  const uint32_t base = static_cast<uint32_t>(low), size = static_cast<uint32_t>(high) - base;
#if STCLI_MASKED_VECTORS
  for (int64_t i = 0; i < count; i += 16) {
    const __mmask16 valid = static_cast<__mmask16>(count - i < 16 ? (1u << (count - i)) - 1 : 0xFFFFu);
    const __m512i place = _mm512_sub_epi32(_mm512_maskz_loadu_epi32(valid, terms + i), _mm512_set1_epi32(low));
    if (_mm512_mask_cmplt_epu32_mask(valid, place, _mm512_set1_epi32(static_cast<int32_t>(size)))) return true;
  }
  return false;
#else
  uint32_t found = 0;
  for (int64_t i = 0; i < count; ++i) found |= static_cast<uint32_t>(terms[i]) - base < size;
  return found != 0;
#endif
}

// Whether a term is in one of the intervals of a leaf; each entry of the shorter list is looked up in the longer one.
STCLI_TARGET inline bool leaf_holds(const int32_t* terms, int64_t count, const TermPrograms& programs, int64_t leaf) {
  const int64_t first = programs.leaf_offsets[leaf], end = programs.leaf_offsets[leaf + 1];
  if (end - first <= kFewIntervals || end - first <= count) {
    for (int64_t i = first; i < end; ++i) {
      if (any_inside(terms, count, programs.lows[i], programs.highs[i])) return true;
    }
    return false;
  }
  for (int64_t i = 0; i < count; ++i) {
    const int64_t after = std::upper_bound(programs.lows + first, programs.lows + end, terms[i]) - programs.lows;
    if (after > first && terms[i] < programs.highs[after - 1]) return true;
  }
  return false;
}

// Candidates first … end-1, counted over all lines of `rows`.
STCLI_TARGET void verify_chunk(const Terms& terms, const TermPrograms& programs, const int64_t* rows,
                               const int64_t* filter_of_query, int64_t num_slots, int64_t first, int64_t end,
                               uint8_t* stack, uint8_t* verified) {
  int64_t query = first / num_slots, left = num_slots - first % num_slots;
  for (int64_t i = first; i < end; ++i, --left) {
    if (left == 0) {
      ++query;
      left = num_slots;
    }
    // Rows lie anywhere in memory: their offsets are fetched first, then their terms, well before they are needed.
    if (i + 2 * kAhead < end && rows[i + 2 * kAhead] >= 0) __builtin_prefetch(terms.offsets + rows[i + 2 * kAhead]);
    if (i + kAhead < end && rows[i + kAhead] >= 0) {
      const int32_t* ahead = terms.values + terms.offsets[rows[i + kAhead]];
      __builtin_prefetch(ahead);
      __builtin_prefetch(ahead + 16);
    }
    const int64_t row = rows[i], filter = filter_of_query[query];
    if (row < 0 || filter < 0) {
      verified[i] = row >= 0;
      continue;
    }
    const int64_t begin = terms.offsets[row], past = terms.offsets[row + 1];
    const bool whole = begin >= 0 && begin <= past && past <= terms.num_values;  // offsets come from a file
    const int32_t* values = terms.values + (whole ? begin : 0);
    const int64_t count = whole ? past - begin : 0;
    uint8_t* next = stack;  // the first free place
    for (int64_t j = programs.op_offsets[filter]; j < programs.op_offsets[filter + 1]; ++j) {
      const int32_t op = programs.ops[j];
      if (op >= 0) {
        *next++ = leaf_holds(values, count, programs, op);
      } else if (op == kOpNot) {
        next[-1] ^= 1;
      } else {
        --next;
        next[-1] = op == kOpAnd ? next[-1] & next[0] : next[-1] | next[0];
      }
    }
    verified[i] = *stack;
  }
}
