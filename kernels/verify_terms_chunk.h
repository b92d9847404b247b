// The inner part of verify_terms, for one instruction set. verify_terms.cpp includes this file once for each, inside a
// namespace, with STCLI_TARGET (function attribute) defined. No include guard on purpose.

// Whether one of `count` ascending terms is in [low, high).
STCLI_TARGET static inline bool any_inside(const int32_t* terms, int64_t count, int32_t low, int32_t high) {
  if (count > kScanTerms) {
    const int32_t* first = std::lower_bound(terms, terms + count, low);
    return first != terms + count && *first < high;
  }
  // An unsigned difference checks both ends at once.
  const uint32_t base = static_cast<uint32_t>(low), size = static_cast<uint32_t>(high) - base;
#if defined(STCLI_MASKED)
  for (int64_t i = 0; i < count; i += 16) {
    const __mmask16 valid = static_cast<__mmask16>(count - i < 16 ? (1u << (count - i)) - 1 : 0xFFFFu);
    const __m512i offset = _mm512_sub_epi32(_mm512_maskz_loadu_epi32(valid, terms + i), _mm512_set1_epi32(low));
    if (_mm512_mask_cmplt_epu32_mask(valid, offset, _mm512_set1_epi32(static_cast<int32_t>(size)))) return true;
  }
  return false;
#else
  uint32_t found = 0;
  for (int64_t i = 0; i < count; ++i) found |= static_cast<uint32_t>(terms[i]) - base < size;
  return found;
#endif
}

// Whether a term is in one of the intervals of a leaf; looks up the shorter list in the longer one.
STCLI_TARGET static inline bool leaf_holds(const int32_t* terms, int64_t count, const TermPrograms& p, int64_t leaf) {
  const int64_t first = p.leaf_offsets[leaf], end = p.leaf_offsets[leaf + 1];
  if (end - first <= std::max<int64_t>(count, kFewIntervals)) {
    for (int64_t i = first; i < end; ++i) {
      if (any_inside(terms, count, p.lows[i], p.highs[i])) return true;
    }
    return false;
  }
  for (int64_t i = 0; i < count; ++i) {
    const int64_t after = std::upper_bound(p.lows + first, p.lows + end, terms[i]) - p.lows;
    if (after > first && terms[i] < p.highs[after - 1]) return true;
  }
  return false;
}

STCLI_TARGET static void verify_chunk(const Terms& terms, const TermPrograms& p, const int64_t* rows,
                                      const int64_t* filter_of_query, int64_t num_slots, int64_t first, int64_t end,
                                      uint8_t* stack, uint8_t* verified) {
  int64_t query = first / num_slots, left = num_slots - first % num_slots;
  for (int64_t i = first; i < end; ++i, --left) {
    if (left == 0) ++query, left = num_slots;
    // The row of a candidate is somewhere in memory: fetch its place, and later its terms, well before they are needed.
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
    const int32_t* values = terms.values + terms.offsets[row];
    const int64_t count = terms.offsets[row + 1] - terms.offsets[row];
    uint8_t* top = stack - 1;
    for (int64_t j = p.op_offsets[filter]; j < p.op_offsets[filter + 1]; ++j) {
      const int32_t op = p.ops[j];
      if (op >= 0) {
        *++top = leaf_holds(values, count, p, op);
      } else if (op == kOpNot) {
        *top ^= 1;
      } else {
        --top;
        *top = op == kOpAnd ? top[0] & top[1] : top[0] | top[1];
      }
    }
    verified[i] = *top;
  }
}
