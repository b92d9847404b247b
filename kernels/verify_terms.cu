// verify_terms: whether candidates truly satisfy the filter of their query, by the exact terms of their rows.
//   in   term_values i32 [X]  term_offsets i64 [N+1]  lows, highs i32 [I]  leaf_offsets i64 [L+1]
//        ops i32 [T]  op_offsets i64 [F+1]  rows i64 [B,M], -1 in empty slots  filter_of_query i64 [B], -1 for none
//   out  verified u8 [B,M]
//   map  one warp a candidate, a lane a term of its row; the program is the same for all lanes and its stack is the
//        bits of one register. A block of 256 threads has 8 candidates, grid x is ceil(B M / 8)
//   limits  programs, rows and filters lead to what is there (dispatch.py); stacks of 64 at most; B M < 2^34.
//        A row whose offsets do not lie in 0 ... num_values counts as one without terms
//   cost each term of a row looks for its interval in each leaf that is reached: 4 bytes a term from memory once (the
//        first-level cache holds them for the next leaf), log2 of the intervals of the leaf in steps
#include "filter_program.cuh"
#include "types.cuh"

// Whether one of `count` terms lies in one of the half-open intervals, which ascend and are disjoint.
__device__ bool has_term(const i32* terms, i64 count, const i32* lows, const i32* highs, i64 begin, i64 end, u32 lane) {
  for (i64 first = 0; first < count; first += 32) {
    bool hit = false;
    if (first + lane < count) {
      const i32 term = terms[first + lane];
      i64 low = begin, high = end;  // the first interval that begins after the term
      while (low < high) {
        const i64 middle = low + (high - low) / 2;
        if (lows[middle] <= term) {
          low = middle + 1;
        } else {
          high = middle;
        }
      }
      hit = low > begin && highs[low - 1] > term;
    }
    if (__any_sync(~0u, hit)) return true;
  }
  return false;
}

extern "C" __global__ void __launch_bounds__(256)
    verify_terms(const i32* term_values, const i64* term_offsets, i64 num_values, const i32* lows, const i32* highs,
                 const i64* leaf_offsets, const i32* ops, const i64* op_offsets, const i64* rows,
                 const i64* filter_of_query, i64 num_queries, i64 num_slots, u8* verified) {
  const i64 slot = static_cast<i64>(blockIdx.x) * 8 + threadIdx.x / 32;
  const u32 lane = threadIdx.x % 32;
  if (slot >= num_queries * num_slots) return;
  const i64 row = rows[slot], filter = filter_of_query[slot / num_slots];
  bool holds = row >= 0;
  if (row >= 0 && filter >= 0) {
    const i64 begin = term_offsets[row], past = term_offsets[row + 1];
    const bool whole = begin >= 0 && begin <= past && past <= num_values;
    const i32* terms = term_values + (whole ? begin : 0);
    const i64 count = whole ? past - begin : 0;
    u64 stack = 0;  // the top is the lowest bit
    for (i64 place = op_offsets[filter]; place < op_offsets[filter + 1]; ++place) {
      const i32 op = ops[place];
      if (op >= 0) {
        stack = stack << 1 | has_term(terms, count, lows, highs, leaf_offsets[op], leaf_offsets[op + 1], lane);
      } else if (op == OP_NOT) {
        stack ^= 1;
      } else {
        const u64 top = stack & 1;
        stack = op == OP_AND ? stack >> 1 & (~u64{1} | top) : stack >> 1 | top;
      }
    }
    holds = stack & 1;
  }
  if (lane == 0) verified[slot] = holds;
}
