// filter_probes: words of each query's filter on the clusters that it probes.
//   in   own u64 [R,W]  bloom u64 [H,64]  bloom_offsets i64 [blocks+1]  leaves i64 [L,4]  ops i32 [T]
//        op_offsets i64 [F+1]  allowed u64 [W] or null  filter_of_query i64 [B], -1 for none  probes i64 [B,P]
//        offsets i64 [C+1]  ends i64 [B,P]  the word after those of each pair of a query and a cluster, ascending; a
//        pair without words ends where the one before it does
//   out  words u64 [room]  those of all pairs one after the other, bits >= num_items zero; what is behind them is left
//   map  a block of whole warps a query, grid x is B; a lane a word of any of the query's pairs, so that all lanes run
//        the same program and neighbours read neighbouring words. 256 * (max_depth - 1) bytes of shared memory a warp
//        hold what lies below the top of the stack
//   limits  programs, leaves and offsets lead to what is there (dispatch.py); B < 2^31; 256 * (max_depth - 1) <= shared
//        memory of a block
//   cost for each word 8 bytes written and 8 read for each leaf of the program on an own row, 8 a bit for ranges,
//        8 * num_hashes for Bloom terms; log2(P) steps to find its pair. Nothing is shared between filters, but a query
//        that probes a 64th of the clusters reads a 64th of what filter_match does
#include "filter_program.cuh"
#include "shared_memory.cuh"
#include "types.cuh"

struct Matrix {
  const u64* own;
  i64 num_words;
  const u64* bloom;
  const i64* bloom_offsets;
  i64 num_hashes;

  // AND of the Bloom rows of a term in the block of a word; nothing where the block has none.
  __device__ __forceinline__ u64 bloom_word(i64 term, i64 word) const {
    const i64 block = word / BLOCK_WORDS, first_row = bloom_offsets[block];
    const i64 width = bloom_offsets[block + 1] - first_row;
    if (width <= 0) return 0;
    BloomHash hash(static_cast<u64>(term), static_cast<u64>(block));
    u64 mask = ~u64{0};
    for (i64 i = 0; i < num_hashes; ++i) {
      mask &= bloom[(first_row + hash.next(width)) * BLOCK_WORDS + word % BLOCK_WORDS];
    }
    return mask;
  }

  // Items whose rank code, in rows first_row ... first_row + bits - 1 from the lowest bit on, is < bound or == bound.
  __device__ __forceinline__ u64 range_word(i64 first_row, i64 bits, i64 bound, bool want_less, i64 word) const {
    // No code of so many bits reaches the bound, or it is negative.
    if (bound < 0 || bound >> bits) return want_less && bound > 0 ? ~u64{0} : 0;
    u64 less = 0, equal = ~u64{0};
    for (i64 bit = bits; bit-- > 0;) {
      const u64 code = own[(first_row + bit) * num_words + word];
      if (bound >> bit & 1) {
        less |= equal & ~code;
        equal &= code;
      } else {
        equal &= ~code;
      }
    }
    return want_less ? less : equal;
  }

  __device__ __forceinline__ u64 leaf_word(const i64* leaf, i64 word) const {
    const i64 kind = leaf[0], first = leaf[1];
    if (kind == LEAF_OWN) return own[first * num_words + word];
    if (kind == LEAF_BLOOM) return bloom_word(first, word);
    if (kind == LEAF_LESS || kind == LEAF_EQUAL) return range_word(first, leaf[2], leaf[3], kind == LEAF_LESS, word);
    return kind == LEAF_ALL ? ~u64{0} : 0;
  }
};

extern "C" __global__ void __launch_bounds__(256)
    filter_probes(const u64* own, i64 num_words, const u64* bloom, const i64* bloom_offsets, i64 num_hashes,
                  i64 num_items, const i64* leaves, const i32* ops, const i64* op_offsets, const u64* allowed,
                  const i64* filter_of_query, const i64* probes, i64 num_probes, const i64* offsets, const i64* ends,
                  u64* words, i64 room) {
  const Matrix matrix{own, num_words, bloom, bloom_offsets, num_hashes};
  const i64 query = blockIdx.x, filter = filter_of_query[query];
  if (filter < 0) return;
  const i64 *line = ends + query * num_probes, *clusters = probes + query * num_probes;
  const i64 first = query ? line[-1] : 0, end = min(line[num_probes - 1], room);
  const i32 *begin = ops + op_offsets[filter], *last = ops + op_offsets[filter + 1];
  // A thread reads only what it has written itself, so the stack needs no barrier.
  u64* stack = reinterpret_cast<u64*>(shared_memory) + threadIdx.x;
  for (i64 place = first + threadIdx.x; place < end; place += blockDim.x) {
    i64 slot = 0, high = num_probes - 1;  // the first pair that ends after the place
    while (slot < high) {
      const i64 middle = slot + (high - slot) / 2;
      if (line[middle] <= place) {
        slot = middle + 1;
      } else {
        high = middle;
      }
    }
    const i64 word = offsets[clusters[slot]] / 64 + place - (slot ? line[slot - 1] : first);
    u64* below = stack;  // the words below the top
    u64 top = matrix.leaf_word(leaves + 4 * *begin, word);  // a program begins with a leaf
    for (const i32* op = begin + 1; op != last; ++op) {
      if (*op >= 0) {
        *below = top;
        below += blockDim.x;
        top = matrix.leaf_word(leaves + 4 * *op, word);
      } else if (*op == OP_NOT) {
        top = ~top;
      } else {
        below -= blockDim.x;
        top = *op == OP_AND ? top & *below : top | *below;
      }
    }
    if (word == num_items / 64) top &= (u64{1} << num_items % 64) - 1;  // the items end in it
    words[place] = allowed ? top & allowed[word] : top;
  }
}
