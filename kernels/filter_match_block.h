// The inner part of filter_match, for one instruction set. filter_match.cpp includes this file once for each, inside a
// namespace, with STCLI_TARGET (function attribute) and STCLI_VECTOR_BYTES defined. No include guard on purpose.

typedef uint64_t Vector __attribute__((vector_size(STCLI_VECTOR_BYTES), aligned(8), may_alias));
constexpr int kVectorWords = STCLI_VECTOR_BYTES / 8;

// Rows of each term on the `width` Bloom rows of a block, times kTileWords: rows[i * num_terms + term].
STCLI_TARGET static void hash_terms(const uint64_t* terms, int64_t num_terms, uint64_t block, int64_t width,
                                    int num_hashes, uint32_t* rows) {
  uint32_t low[kHashBatch], high[kHashBatch];
  for (int64_t first = 0; first < num_terms; first += kHashBatch) {
    const int count = static_cast<int>(num_terms - first < kHashBatch ? num_terms - first : kHashBatch);
    for (int j = 0; j < count; ++j) {
      const BloomHash hash(terms[first + j], block);
      low[j] = hash.low, high[j] = hash.high;
    }
    for (int i = 0; i < num_hashes; ++i) {
      uint32_t* row = rows + i * num_terms + first;
      for (int j = 0; j < count; ++j) row[j] = static_cast<uint32_t>(bloom_row(low[j], high[j], i, width)) * kTileWords;
    }
  }
}

// Cuts rows of kBlockWords words into tiles of kTileWords words: tiles[t * width + row].
STCLI_TARGET static void cut_tiles(const uint64_t* bloom, int64_t width, uint64_t* tiles) {
  for (int64_t row = 0; row < width; ++row) {
    for (int tile = 0; tile < kBlockWords / kTileWords; ++tile) {
      const uint64_t* from = bloom + row * kBlockWords + tile * kTileWords;
      uint64_t* to = tiles + (tile * width + row) * kTileWords;
      for (int w = 0; w < kTileWords; w += kVectorWords) *reinterpret_cast<Vector*>(to + w) = *reinterpret_cast<const Vector*>(from + w);
    }
  }
}

// For each term the AND of its rows in one tile, to masks + leaves[term] * kBlockWords.
STCLI_TARGET static void and_rows(const uint64_t* tile, const uint32_t* rows, const int32_t* leaves, int64_t num_terms,
                                  int num_hashes, uint64_t* masks) {
  constexpr int kVectors = kTileWords / kVectorWords;
  for (int64_t term = 0; term < num_terms; ++term) {
    Vector all[kVectors];
    const Vector* row = reinterpret_cast<const Vector*>(tile + rows[term]);
    for (int v = 0; v < kVectors; ++v) all[v] = row[v];
    for (int i = 1; i < num_hashes; ++i) {
      row = reinterpret_cast<const Vector*>(tile + rows[i * num_terms + term]);
      for (int v = 0; v < kVectors; ++v) all[v] &= row[v];
    }
    Vector* mask = reinterpret_cast<Vector*>(masks + int64_t{leaves[term]} * kBlockWords);
    for (int v = 0; v < kVectors; ++v) mask[v] = all[v];
  }
}

// Items whose rank code is < bound (`less`) and == bound (`equal`), one word of each for 64 items.
STCLI_TARGET static void compare_codes(const uint64_t* rows, int64_t stride, int64_t bits, int64_t bound, int64_t words,
                                       uint64_t* less, uint64_t* equal) {
  for (int64_t w = 0; w < words; ++w) less[w] = 0, equal[w] = ~uint64_t{0};
  for (int64_t bit = bits; bit-- > 0;) {
    const uint64_t* row = rows + bit * stride;
    if (bound >> bit & 1) {
      for (int64_t w = 0; w < words; ++w) less[w] |= equal[w] & ~row[w], equal[w] &= row[w];
    } else {
      for (int64_t w = 0; w < words; ++w) equal[w] &= ~row[w];
    }
  }
}

// Runs one program over a block; the top of the stack stays in registers. `stack` has room for the masks below it.
STCLI_TARGET static void run_program(const Step* step, const Step* end, const uint64_t* masks, uint64_t* stack,
                                     uint64_t* result) {
  constexpr int kVectors = kBlockWords / kVectorWords;
  Vector top[kVectors];
  for (; step != end; ++step) {
    const Vector* mask = reinterpret_cast<const Vector*>(masks + int64_t{step->leaf} * kBlockWords);
    switch (step->kind) {
      case kPush:
        for (int v = 0; v < kVectors; ++v) reinterpret_cast<Vector*>(stack)[v] = top[v];
        stack += kBlockWords;
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
        stack -= kBlockWords;
        for (int v = 0; v < kVectors; ++v) top[v] &= reinterpret_cast<Vector*>(stack)[v];
        break;
      case kPopOr:
        stack -= kBlockWords;
        for (int v = 0; v < kVectors; ++v) top[v] |= reinterpret_cast<Vector*>(stack)[v];
        break;
    }
  }
  for (int v = 0; v < kVectors; ++v) reinterpret_cast<Vector*>(result)[v] = top[v];
}
