// filter_match: words of the admitted items of each filter, in two kernels for each group of words:
//   filter_leaves  masks of the leaves that are more than a row of the matrix: Bloom terms, ranges over ranks
//   filter_match   the programs over those masks and over own rows of the matrix
//   in   own u64 [R,W]  bloom u64 [H,64]  bloom_offsets i64 [blocks+1]  leaves i64 [L,4]  ops i32 [T]
//        op_offsets i64 [F+1]
//   out  out u64 [F,W], the words first_word ... first_word + num_group_words - 1 of each line, bits >= num_items zero
//   temp masks u64 [L,num_group_words]: the host chooses the group so that they stay in the second-level cache; lines
//        of leaves that are own rows, everything or nothing are never touched
//   map  a warp has the 64 words of one block of the matrix, lanes l and l + 32; grid x is num_group_words / 64.
//        filter_leaves: 256 threads, warps stride over the leaves, gridDim.y * 8 at a time.
//        filter_match: a multiple of 32 threads, warps stride over the filters; 512 * (max_depth - 1) bytes of shared
//        memory a warp hold what lies below the top of the stack
//   limits  programs, leaves and offsets lead to what is there (dispatch.py); first_word and num_group_words are
//        multiples of 64, the last group may reach beyond W; (max_depth - 1) * 512 <= shared memory of a block
//   cost from memory: own rows that are used and all Bloom rows once, 8 F W bytes written. From the second-level
//        cache: 8 bytes for each leaf of each program and word, num_hashes * 8 for each Bloom leaf and word (the rows
//        of a block are read by all leaves of one thread block, so mostly from its first-level cache). One operation a
//        word decides 64 items. 1,024 filters of 4 leaves over 1 M items: 128 MB written, 512 MB through the cache
#include "filter_program.cuh"
#include "shared_memory.cuh"
#include "types.cuh"

// The two words of a lane.
struct Words {
  u64 low, high;
};

__device__ __forceinline__ Words load_words(const u64* line, i64 word, i64 num_words) {
  return {word < num_words ? line[word] : 0, word + 32 < num_words ? line[word + 32] : 0};
}

// Items whose rank code is < bound (or == bound), read from the highest bit on: less where the codes first differ at a
// one of the bound, equal while they agree.
__device__ Words compare_codes(const u64* own, i64 num_words, i64 bits, i64 bound, bool want_less, i64 word) {
  if (bound < 0 || bound >> bits) {  // no code of so many bits reaches the bound, or it is negative
    const u64 all = want_less && bound > 0 ? ~u64{0} : 0;
    return {all, all};
  }
  Words less{0, 0}, equal{~u64{0}, ~u64{0}};
  for (i64 bit = bits; bit-- > 0;) {
    const Words code = load_words(own + bit * num_words, word, num_words);
    if (bound >> bit & 1) {
      less = {less.low | (equal.low & ~code.low), less.high | (equal.high & ~code.high)};
      equal = {equal.low & code.low, equal.high & code.high};
    } else {
      equal = {equal.low & ~code.low, equal.high & ~code.high};
    }
  }
  return want_less ? less : equal;
}

extern "C" __global__ void __launch_bounds__(256)
    filter_leaves(const u64* own, i64 num_words, const u64* bloom, const i64* bloom_offsets, i64 num_hashes,
                  const i64* leaves, i64 num_leaves, i64 first_word, i64 num_group_words, u64* masks) {
  const u32 lane = threadIdx.x % 32;
  const i64 place = static_cast<i64>(blockIdx.x) * BLOCK_WORDS + lane, word = first_word + place;
  const i64 block = word / BLOCK_WORDS;
  const i64 step = static_cast<i64>(gridDim.y) * 8;
  for (i64 leaf = static_cast<i64>(blockIdx.y) * 8 + threadIdx.x / 32; leaf < num_leaves; leaf += step) {
    const i64 kind = leaves[4 * leaf], a = leaves[4 * leaf + 1], b = leaves[4 * leaf + 2], c = leaves[4 * leaf + 3];
    Words mask{0, 0};
    if (kind == LEAF_BLOOM) {
      const bool inside = block * BLOCK_WORDS < num_words;
      const i64 first_row = inside ? bloom_offsets[block] : 0;
      const i64 width = inside ? bloom_offsets[block + 1] - first_row : 0;
      if (width > 0) {
        BloomHash hash(static_cast<u64>(a), static_cast<u64>(block));
        mask = {~u64{0}, ~u64{0}};
        for (i64 i = 0; i < num_hashes; ++i) {
          const u64* row = bloom + (first_row + hash.next(width)) * BLOCK_WORDS;
          mask = {mask.low & row[lane], mask.high & row[lane + 32]};
        }
      }
    } else if (kind == LEAF_LESS || kind == LEAF_EQUAL) {
      mask = compare_codes(own + a * num_words, num_words, b, c, kind == LEAF_LESS, word);
    } else {
      continue;
    }
    masks[leaf * num_group_words + place] = mask.low;
    masks[leaf * num_group_words + place + 32] = mask.high;
  }
}

extern "C" __global__ void __launch_bounds__(256)
    filter_match(const u64* own, i64 num_words, const i64* leaves, const u64* masks, i64 num_group_words,
                 const i32* ops, const i64* op_offsets, i64 num_filters, i64 max_depth, i64 num_items, i64 first_word,
                 u64* out) {
  const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32, num_warps = blockDim.x / 32;
  const i64 place = static_cast<i64>(blockIdx.x) * BLOCK_WORDS + lane, word = first_word + place;
  // A lane reads only what it has written itself, so the stack needs no barrier.
  u64* stack = reinterpret_cast<u64*>(shared_memory) + warp * (max_depth - 1) * BLOCK_WORDS + lane;
  const i64 step = static_cast<i64>(gridDim.y) * num_warps;
  for (i64 filter = static_cast<i64>(blockIdx.y) * num_warps + warp; filter < num_filters; filter += step) {
    const i32 *op = ops + op_offsets[filter], *end = ops + op_offsets[filter + 1];
    u64* below = stack;  // the masks below the top
    Words top{0, 0};
    bool first = true;
    while (op != end) {
      const i32 code = *op++;
      if (code == OP_NOT) {
        top = {~top.low, ~top.high};
        continue;
      }
      Words mask;
      i32 join = code;
      if (code >= 0) {
        const i64 kind = leaves[4 * code];
        if (kind == LEAF_OWN) {
          mask = load_words(own + leaves[4 * code + 1] * num_words, word, num_words);
        } else if (kind == LEAF_ALL || kind == LEAF_NONE) {
          mask.low = mask.high = kind == LEAF_ALL ? ~u64{0} : 0;
        } else {
          mask = load_words(masks + code * num_group_words, place, num_group_words);
        }
        for (; op != end && *op == OP_NOT; ++op) mask = {~mask.low, ~mask.high};
        if (first || op == end || *op >= 0) {  // a mask for later: it becomes the top
          if (!first) {
            below[0] = top.low;
            below[32] = top.high;
            below += BLOCK_WORDS;
          }
          first = false;
          top = mask;
          continue;
        }
        join = *op++;  // a mask that is joined at once never lies on the stack
      } else {
        below -= BLOCK_WORDS;
        mask = {below[0], below[32]};
      }
      top = join == OP_AND ? Words{top.low & mask.low, top.high & mask.high}
                           : Words{top.low | mask.low, top.high | mask.high};
    }
    u64* line = out + filter * num_words;
    const i64 last = num_items / 64;  // the word that the items end in, where they fill it partly
    const u64 tail = (u64{1} << num_items % 64) - 1;
    if (word < num_words) line[word] = word == last ? top.low & tail : top.low;
    if (word + 32 < num_words) line[word + 32] = word + 32 == last ? top.high & tail : top.high;
  }
}
