// The inner loops of mol_score, for one set of instructions. mol_score.cpp includes this file once for each, inside a
// namespace, with these defined: STCLI_TARGET, an attribute of functions; WIDE and NARROW, floats of a vector (NARROW
// for products with few columns); SUMS, vectors that fit in registers as sums; fused, larger, smaller and widen_halves,
// functions of vectors. No include guard on purpose.

typedef Vectors<WIDE>::Float Wide;

// x - 0 is x for every x, so that this is one broadcast.
template <class Float>
STCLI_TARGET STCLI_INLINE Float spread(float x) {
  return x - Float{};
}
template <class Float>
STCLI_TARGET STCLI_INLINE Float load(const float* from) {
  return *reinterpret_cast<const Float*>(from);
}
template <class Float>
STCLI_TARGET STCLI_INLINE void store(float* to, Float value) {
  *reinterpret_cast<Float*>(to) = value;
}

// e^x to within 3e-7 of itself for x in -87 … 88, and as at the nearer end beyond: x = n log 2 + r, e^x = 2^n e^r, and
// e^r is a polynomial of degree 5, fitted to the smallest relative error (9.2e-8).
STCLI_TARGET STCLI_INLINE Wide exponential(Wide x) {
  constexpr float ROUND = 0x1.8p23f;  // adding it leaves no bits for a fraction
  x = smaller(larger(x, spread<Wide>(-87.0f)), spread<Wide>(88.0f));
  const Wide shifted = fused(x, spread<Wide>(0x1.715476p+0f), spread<Wide>(ROUND));
  const Wide n = shifted - ROUND;
  // log 2 in two parts; the first has so few bits that n times it is exact.
  Wide r = fused(n, spread<Wide>(-0x1.63p-1f), x);
  r = fused(n, spread<Wide>(0x1.bd0106p-13f), r);
  Wide power = spread<Wide>(0x1.0fa77cp-7f);
  power = fused(power, r, spread<Wide>(0x1.573b4cp-5f));
  power = fused(power, r, spread<Wide>(0x1.555a7p-3f));
  power = fused(power, r, spread<Wide>(0x1.fffdc2p-2f));
  power = fused(power, r, spread<Wide>(0x1.fffff6p-1f));
  power = fused(power, r, spread<Wide>(1.0f));
  typedef Vectors<WIDE>::Int Int;
  return (Wide)((Int)power + ((Int)shifted << 23));  // the low bits of `shifted` are those of n
}

STCLI_TARGET STCLI_INLINE Wide silu(Wide x) { return x / (1.0f + exponential(-x)); }

// The sum of the lanes, in halves.
STCLI_TARGET STCLI_INLINE float fold(Wide value) {
  alignas(64) float lanes[WIDE];
  store(lanes, value);
#if WIDE == 16
  store(lanes, load<Float8>(lanes) + load<Float8>(lanes + 8));
#endif
#if WIDE >= 8
  store(lanes, load<Float4>(lanes) + load<Float4>(lanes + 4));
#endif
  return (lanes[0] + lanes[2]) + (lanes[1] + lanes[3]);
}

STCLI_TARGET inline float largest_of(Wide value) {
  float lanes[WIDE], largest = 0;
  store(lanes, value);
  for (float lane : lanes) largest = lane > largest ? lane : largest;
  return largest;
}

// out[i][j] = start[j] + sum over k of left[i][k] * right[k][j], for ROWS lines i and COLUMNS vectors j.
template <class Float, int ROWS, int COLUMNS>
STCLI_TARGET STCLI_INLINE void block(const float* left, int64_t left_step, const float* right, int64_t right_step,
                                     int64_t inner, const float* start, float* out, int64_t out_step) {
  constexpr int LANES = sizeof(Float) / 4;
  Float sums[ROWS][COLUMNS];
#pragma GCC unroll 24
  for (int i = 0; i < ROWS; ++i)
#pragma GCC unroll 4
    for (int j = 0; j < COLUMNS; ++j) sums[i][j] = start ? load<Float>(start + j * LANES) : Float{};
  for (int64_t k = 0; k < inner; ++k) {
    Float line[COLUMNS];
#pragma GCC unroll 4
    for (int j = 0; j < COLUMNS; ++j) line[j] = load<Float>(right + k * right_step + j * LANES);
#pragma GCC unroll 24
    for (int i = 0; i < ROWS; ++i) {
      const Float value = spread<Float>(left[i * left_step + k]);
#pragma GCC unroll 4
      for (int j = 0; j < COLUMNS; ++j) sums[i][j] = fused(value, line[j], sums[i][j]);
    }
  }
#pragma GCC unroll 24
  for (int i = 0; i < ROWS; ++i)
#pragma GCC unroll 4
    for (int j = 0; j < COLUMNS; ++j) store(out + i * out_step + j * LANES, sums[i][j]);
}

// The same for any columns from `column` on that fill COLUMNS vectors; `lines` is a multiple of kTile.
template <class Float, int COLUMNS>
STCLI_TARGET STCLI_INLINE void columns(int64_t& column, int64_t lines, int64_t width, const float* left,
                                       int64_t left_step, const float* right, int64_t inner, const float* start,
                                       float* out) {
  constexpr int LANES = sizeof(Float) / 4, ROWS = SUMS / COLUMNS < 12 ? SUMS / COLUMNS : 12;
  static_assert(kTile % ROWS == 0, "no lines may be left over");
  for (; column + COLUMNS * LANES <= width; column += COLUMNS * LANES)
    for (int64_t i = 0; i < lines; i += ROWS)
      block<Float, ROWS, COLUMNS>(left + i * left_step, left_step, right + column, width, inner,
                                  start ? start + column : nullptr, out + i * width + column, width);
}

// The same for all columns, `width` of them, a multiple of the lanes.
template <class Float>
STCLI_TARGET inline void multiply(int64_t lines, int64_t width, const float* left, int64_t left_step,
                                  const float* right, int64_t inner, const float* start, float* out) {
  int64_t column = 0;
  columns<Float, 4>(column, lines, width, left, left_step, right, inner, start, out);
  columns<Float, 2>(column, lines, width, left, left_step, right, inner, start, out);
  columns<Float, 1>(column, lines, width, left, left_step, right, inner, start, out);
}

STCLI_TARGET inline void widen_items(const Arguments& a, const int64_t* rows, int64_t count, const Next& next,
                                     float* items) {
  const int64_t size = a.item_components * a.dim;
  for (int64_t i = 0; i < count; ++i, items += size) {
    next.fetch(a, i, 0);
    const int64_t first = rows[i] * size;
    if (a.kind == FLOAT32) std::memcpy(items, static_cast<const float*>(a.components) + first, size * 4);
    if (a.kind == FLOAT16) widen_halves(static_cast<const uint16_t*>(a.components) + first, size, items);
    if (a.kind != INT8) continue;
    const int8_t* codes = static_cast<const int8_t*>(a.components) + first;
    for (int64_t m = 0; m < a.item_components; ++m) {
      const float scale = a.scales ? a.scales[rows[i] * a.item_components + m] : 1;
      for (int64_t d = m * a.dim; d < (m + 1) * a.dim; ++d) items[d] = codes[d] * scale;
    }
  }
}

// logits[i][m * Pq + n], from the dots [i * Px + m][n] that are padded in n.
STCLI_TARGET inline void pack_logits(const Arguments& a, int64_t count, const float* dots, float* logits) {
  for (int64_t i = 0; i < count; ++i, logits += a.padded_logits)
    for (int64_t m = 0; m < a.item_components; ++m, dots += a.padded_queries)
      std::memcpy(logits + m * a.query_components, dots, a.query_components * 4);
}

// Gates of one candidate, in place: silu(query gate * item gate + gates); returns the largest of each lane and 0.
STCLI_TARGET STCLI_INLINE Wide close_gates(const Arguments& a, const float* user, const float* item, float* gates) {
  Wide top = {};
  for (int64_t l = 0; l < a.padded_logits; l += WIDE) {
    const Wide before = a.first ? load<Wide>(gates + l) : Wide{};
    const Wide gate = silu(fused(load<Wide>(user + l), load<Wide>(item + l), before));
    store(gates + l, gate);
    top = larger(gate, top);
  }
  return top;
}

STCLI_TARGET STCLI_INLINE float mix(const Arguments& a, const float* gates, const float* logits, float shift) {
  Wide weights = {}, sum = {};
  for (int64_t l = 0; l < a.padded_logits; l += WIDE) {
    const Wide weight = exponential(load<Wide>(gates + l) - shift) * load<Wide>(a.valid + l);
    weights += weight;
    sum = fused(weight, load<Wide>(logits + l), sum);
  }
  return fold(sum) / fold(weights);
}

// Scores of one query with `count` rows, at most kTile, none of them empty.
STCLI_TARGET void score_tile(const Arguments& a, int64_t query, const int64_t* rows, int64_t count,
                             const Next& next, const Scratch& scratch, float* scores) {
  widen_items(a, rows, count, next, scratch.items);
  // Lines of the product are (row, item component), columns the query components.
  multiply<Vectors<NARROW>::Float>(kTile * a.item_components, a.padded_queries, scratch.items, a.dim,
                                   a.queries + query * a.dim * a.padded_queries, a.dim, nullptr, scratch.dots);
  pack_logits(a, count, scratch.dots, scratch.logits);
  if (a.first) {
    multiply<Wide>(kTile, a.padded_hidden, scratch.logits, a.padded_logits, a.first, a.num_logits, a.first_bias,
                   scratch.hidden);
    for (int64_t i = 0; i < count * a.padded_hidden; i += WIDE)
      store(scratch.hidden + i, silu(load<Wide>(scratch.hidden + i)));
    multiply<Wide>(kTile, a.padded_logits, scratch.hidden, a.padded_hidden, a.second, a.hidden, a.second_bias,
                   scratch.gates);
  }
  Wide top = {};
  Wide tops[kTile];
  for (int64_t i = 0; i < count; ++i) {
    next.fetch(a, i, 1);
    const int64_t first = rows[i] * a.num_logits;
    if (a.gates && a.half_gates)
      widen_halves(static_cast<const uint16_t*>(a.gates) + first, a.num_logits, scratch.item_gates);
    else if (a.gates)
      std::memcpy(scratch.item_gates, static_cast<const float*>(a.gates) + first, a.num_logits * 4);
    tops[i] = close_gates(a, a.query_gates + query * a.padded_logits, scratch.item_gates,
                          scratch.gates + i * a.padded_logits);
    top = larger(tops[i], top);
  }
  // Only a gate above 40 must be subtracted from all to keep e^x in range: rare, so it is looked for once a tile.
  const bool shifted = largest_of(top) > 40;
  for (int64_t i = 0; i < count; ++i) {
    next.fetch(a, i, 2);
    const float largest = shifted ? largest_of(tops[i]) : 0;
    scores[i] = mix(a, scratch.gates + i * a.padded_logits, scratch.logits + i * a.padded_logits,
                    largest > 40 ? largest : 0);
  }
}
