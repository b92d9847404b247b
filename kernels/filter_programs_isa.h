// The inner loops of filter_programs.h, for one set of instructions: it includes this file once for each, inside a
// namespace, with STCLI_TARGET (an attribute of functions) and STCLI_VECTOR_WORDS defined: no include guard on purpose.

typedef uint64_t Vector __attribute__((vector_size(STCLI_VECTOR_WORDS * 8), aligned(8), may_alias));

// Rows of each term on the `width` Bloom rows of a block, as places in a tile: rows[i * num_terms + term].
STCLI_TARGET inline void hash_terms(const uint64_t* terms, int64_t num_terms, uint64_t block, int64_t width,
                             int64_t num_hashes, uint32_t* rows) {
  uint64_t states[kHashBatch];
  for (int64_t first = 0; first < num_terms; first += kHashBatch) {
    const int64_t count = num_terms - first < kHashBatch ? num_terms - first : kHashBatch;
    for (int64_t j = 0; j < count; ++j) states[j] = BloomHash(terms[first + j], block).state;
    for (int64_t i = 0; i < num_hashes; ++i) {
      uint32_t* row = rows + i * num_terms + first;
      for (int64_t j = 0; j < count; ++j) {
        row[j] = static_cast<uint32_t>(next_bloom_row(states[j], width) * kTileWords);
      }
    }
  }
}

// Cuts rows of kBlockWords words into tiles of kTileWords words, each tile contiguous.
STCLI_TARGET inline void cut_tiles(const uint64_t* bloom, int64_t width, uint64_t* tiles) {
  for (int64_t row = 0; row < width; ++row) {
    for (int64_t word = 0; word < kBlockWords; word += STCLI_VECTOR_WORDS) {
      uint64_t* to = tiles + (word / kTileWords * width + row) * kTileWords + word % kTileWords;
      *reinterpret_cast<Vector*>(to) = *reinterpret_cast<const Vector*>(bloom + row * kBlockWords + word);
    }
  }
}

// The AND of the rows of each term in one tile, to masks + leaf * kBlockWords.
STCLI_TARGET inline void and_rows(const uint64_t* tile, const uint32_t* rows, const int64_t* leaves, int64_t num_terms,
                           int64_t num_hashes, uint64_t* masks) {
  constexpr int kVectors = kTileWords / STCLI_VECTOR_WORDS;
  for (int64_t term = 0; term < num_terms; ++term) {
    Vector all[kVectors];
    const Vector* row = reinterpret_cast<const Vector*>(tile + rows[term]);
    for (int v = 0; v < kVectors; ++v) all[v] = row[v];
    for (int64_t i = 1; i < num_hashes; ++i) {
      row = reinterpret_cast<const Vector*>(tile + rows[i * num_terms + term]);
      for (int v = 0; v < kVectors; ++v) all[v] &= row[v];
    }
    Vector* mask = reinterpret_cast<Vector*>(masks + leaves[term] * kBlockWords);
    for (int v = 0; v < kVectors; ++v) mask[v] = all[v];
  }
}

// The same on rows of kBlockWords words, not cut into tiles.
STCLI_TARGET inline void and_whole_rows(const uint64_t* bloom, const uint32_t* rows, const int64_t* leaves, int64_t num_terms,
                                 int64_t num_hashes, uint64_t* masks) {
  for (int64_t term = 0; term < num_terms; ++term) {
    uint64_t* mask = masks + leaves[term] * kBlockWords;
    for (int64_t i = 0; i < num_hashes; ++i) {
      const uint64_t* row = bloom + rows[i * num_terms + term] / kTileWords * kBlockWords;
      for (int64_t word = 0; word < kBlockWords; word += STCLI_VECTOR_WORDS) {
        Vector* to = reinterpret_cast<Vector*>(mask + word);
        const Vector from = *reinterpret_cast<const Vector*>(row + word);
        *to = i ? *to & from : from;
      }
    }
  }
}

// Items whose rank code is < bound and == bound: less where the codes first differ at a one of the bound, read from the
// highest bit on; equal while they agree. Bit b of the codes lies at rows + b * stride.
STCLI_TARGET inline void compare_codes(const uint64_t* rows, int64_t stride, int64_t bits, int64_t bound, int64_t words,
                                uint64_t* __restrict less, uint64_t* __restrict equal) {
  for (int64_t w = 0; w < words; ++w) {
    less[w] = 0;
    equal[w] = ~uint64_t{0};
  }
  for (int64_t bit = bits; bit-- > 0;) {
    const uint64_t* row = rows + bit * stride;
    if (bound >> bit & 1) {
      for (int64_t w = 0; w < words; ++w) {
        less[w] |= equal[w] & ~row[w];
        equal[w] &= row[w];
      }
    } else {
      for (int64_t w = 0; w < words; ++w) equal[w] &= ~row[w];
    }
  }
}

// Runs one program over masks that lie `stride` words apart, a part of kVectors vectors at a time, so that the top of the
// stack stays in registers. Writes `words` words, rounded up to whole parts.
template <int kVectors>
STCLI_TARGET STCLI_INLINE void run_steps(const Step* begin, const Step* end, const uint64_t* masks, int64_t stride,
                                         int64_t words, uint64_t* stack, uint64_t* result) {
  for (int64_t word = 0; word < words; word += kVectors * STCLI_VECTOR_WORDS) {
    Vector top[kVectors] = {};
    Vector* below = reinterpret_cast<Vector*>(stack);
    for (const Step* step = begin; step != end; ++step) {
      const Vector* mask = reinterpret_cast<const Vector*>(masks + step->leaf * stride + word);
      switch (step->kind) {
        case kPush:
          for (int v = 0; v < kVectors; ++v) below[v] = top[v];
          below += kVectors;
          [[fallthrough]];
        case kLoad:
          for (int v = 0; v < kVectors; ++v) top[v] = mask[v];
          break;
        case kAnd:
          for (int v = 0; v < kVectors; ++v) top[v] &= mask[v];
          break;
        case kAndNot:
          for (int v = 0; v < kVectors; ++v) top[v] &= ~mask[v];
          break;
        case kOr:
          for (int v = 0; v < kVectors; ++v) top[v] |= mask[v];
          break;
        case kOrNot:
          for (int v = 0; v < kVectors; ++v) top[v] |= ~mask[v];
          break;
        case kNot:
          for (int v = 0; v < kVectors; ++v) top[v] = ~top[v];
          break;
        case kPopAnd:
          below -= kVectors;
          for (int v = 0; v < kVectors; ++v) top[v] &= below[v];
          break;
        case kPopOr:
          below -= kVectors;
          for (int v = 0; v < kVectors; ++v) top[v] |= below[v];
          break;
      }
    }
    for (int v = 0; v < kVectors; ++v) reinterpret_cast<Vector*>(result + word)[v] = top[v];
  }
}

// Over the masks of a whole block, in eight registers: all of the 16 that a block fills with AVX2 left none for the masks
// (even / heavy corpus, with the prefetch of own rows: 0.042 -> 0.037 and 0.049 -> 0.044 ms a filter on two Zen 3 cores,
// interleaved).
STCLI_TARGET inline void run_program(const Step* begin, const Step* end, const uint64_t* masks, uint64_t* stack,
                              uint64_t* result) {
  run_steps<8>(begin, end, masks, kBlockWords, kBlockWords, stack, result);
}

// Over a few words.
STCLI_TARGET inline void run_piece(const Step* begin, const Step* end, const uint64_t* masks, int64_t stride, int64_t words,
                            uint64_t* stack, uint64_t* result) {
  run_steps<1>(begin, end, masks, stride, words, stack, result);
}
