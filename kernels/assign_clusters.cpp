// assign_clusters: for each row the centroid with the largest ((dot * centroid scale) * row scale) - half norm.
//   in   rows i8 [R, dim], f32 [R]   centroids i8 [C, dim], f32 [C]   half norms f32 [C], C >= 1
//   out  clusters i64 [R]; returns 0, or 1 if memory ran out
// All centroids are packed once, 2 * C * dim bytes at most; a task takes some rows through all of them.
#include <algorithm>
#include <cmath>
#include <limits>
#include <new>
#include <vector>

#include "buffer.h"
#include "int8_tile.h"
#include "parallel.h"

namespace stcli {
namespace {

// Rows of a task; with a tile of centroids they should stay in the first two caches.
constexpr int64_t TASK_ROWS = 256;

struct Centroids {
  alignas(64) float scales[TILE_ROWS];
  alignas(64) float half_norms[TILE_ROWS];
  float least_half_norm;
};

struct Best {
  float value;
  int64_t cluster;
};

STCLI_INLINE void values_body(const int32_t* dots, int count, float row_scale, const Centroids& centroids,
                              float* values) {
  for (int i = 0; i < count; ++i)
    values[i] = (static_cast<float>(dots[i]) * centroids.scales[i]) * row_scale - centroids.half_norms[i];
}

// Bit i: the value of centroid i is larger than `best`. Bits past `count` are unspecified.
uint64_t larger_portable(const int32_t* dots, int count, float row_scale, const Centroids& centroids, float best,
                         float* values) {
  values_body(dots, count, row_scale, centroids, values);
  uint64_t mask = 0;
  for (int i = 0; i < count; ++i) mask |= static_cast<uint64_t>(values[i] > best) << i;
  return mask;
}

#if STCLI_X86
STCLI_AVX512 uint64_t larger_avx512(const int32_t* dots, int count, float row_scale, const Centroids& centroids,
                                    float best, float* values) {
  uint64_t mask = 0;
  for (int i = 0; i < count; i += 16) {
    __m512 value = _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_load_si512(dots + i)), _mm512_load_ps(centroids.scales + i));
    value = _mm512_sub_ps(_mm512_mul_ps(value, _mm512_set1_ps(row_scale)), _mm512_load_ps(centroids.half_norms + i));
    _mm512_store_ps(values + i, value);
    mask |= static_cast<uint64_t>(_mm512_cmp_ps_mask(value, _mm512_set1_ps(best), _CMP_GT_OQ)) << i;
  }
  return mask;
}

STCLI_AVX2 uint64_t larger_avx2(const int32_t* dots, int count, float row_scale, const Centroids& centroids, float best,
                                float* values) {
  values_body(dots, count, row_scale, centroids, values);
  uint64_t mask = 0;
  for (int i = 0; i < count; i += 8) {
    const __m256 hit = _mm256_cmp_ps(_mm256_load_ps(values + i), _mm256_set1_ps(best), _CMP_GT_OQ);
    mask |= static_cast<uint64_t>(static_cast<uint32_t>(_mm256_movemask_ps(hit))) << i;
  }
  return mask;
}
#endif

void improve(Isa isa, const int32_t* dots, int count, float row_scale, const Centroids& centroids, int64_t first,
             Best& best) {
  alignas(64) float values[TILE_ROWS];
  uint64_t mask;
#if STCLI_X86
  if (isa == AVX512)
    mask = larger_avx512(dots, count, row_scale, centroids, best.value, values);
  else if (isa == AVX2)
    mask = larger_avx2(dots, count, row_scale, centroids, best.value, values);
  else
#endif
    mask = larger_portable(dots, count, row_scale, centroids, best.value, values);
  if (count < TILE_ROWS) mask &= (uint64_t{1} << count) - 1;
  for (; mask; mask &= mask - 1) {
    const int i = __builtin_ctzll(mask);
    if (values[i] > best.value) best = {values[i], first + i};
  }
}

}  // namespace
}  // namespace stcli

extern "C" int stcli_assign_clusters(const int8_t* row_codes, const float* row_scales, const int8_t* centroid_codes,
                                     const float* centroid_scales, const float* half_norms, int64_t num_rows,
                                     int64_t num_clusters, int64_t dim, int64_t num_threads, int64_t* clusters) try {
  using namespace stcli;
  const Isa isa = current_isa();
  const int width = static_cast<int>(dim), threads = static_cast<int>(num_threads);
  const int64_t num_tiles = (num_clusters + TILE_ROWS - 1) / TILE_ROWS;
  const Buffer packed(num_tiles * tile_bytes(width));
  std::vector<Centroids> factors(num_tiles);
  auto count_of = [&](int64_t tile) {
    return static_cast<int>(std::min<int64_t>(TILE_ROWS, num_clusters - tile * TILE_ROWS));
  };
  parallel_for(num_tiles, threads, [&](int64_t tile, int) {
    const int64_t first = tile * TILE_ROWS;
    pack_tile(isa, centroid_codes + first * dim, count_of(tile), width,
              packed.as<uint8_t>() + tile * tile_bytes(width));
    std::copy_n(centroid_scales + first, count_of(tile), factors[tile].scales);
    std::copy_n(half_norms + first, count_of(tile), factors[tile].half_norms);
    factors[tile].least_half_norm = *std::min_element(half_norms + first, half_norms + first + count_of(tile));
  });
  parallel_for((num_rows + TASK_ROWS - 1) / TASK_ROWS, threads, [&](int64_t task, int) {
    const int64_t begin = task * TASK_ROWS, end = std::min(num_rows, begin + TASK_ROWS);
    std::vector<Best> best(end - begin, Best{-std::numeric_limits<float>::infinity(), 0});
    std::vector<int32_t> offsets(end - begin);
    for (int64_t row = begin; row < end; ++row) offsets[row - begin] = dot_offset(isa, row_codes + row * dim, width);
    for (int64_t tile = 0; tile < num_tiles; ++tile) {
      const TileRows centroids{packed.as<uint8_t>() + tile * tile_bytes(width), count_of(tile), width, 0, width,
                               factors[tile].scales, nullptr};
      for (int64_t row = begin; row < end; row += TILE_QUERIES) {
        alignas(64) int32_t dots[TILE_QUERIES * TILE_ROWS];
        TileQueries<TILE_QUERIES> rows;
        for (int j = 0; j < TILE_QUERIES; ++j) {
          const int64_t place = std::min(row + j, end - 1);
          rows.codes[j] = row_codes + place * dim;
          rows.offsets[j] = offsets[place - begin];
          const float value = best[place - begin].value, least = factors[tile].least_half_norm;
          rows.limits[j] = dot_limit(value + least, std::fabs(value) + std::fabs(least), 1 / row_scales[place]);
        }
        unsigned found = tile_dots(isa, centroids, rows, dots);
        if (end - row < TILE_QUERIES) found &= (1u << (end - row)) - 1;
        for (; found; found &= found - 1) {
          const int j = __builtin_ctz(found);
          improve(isa, dots + j * TILE_ROWS, count_of(tile), row_scales[row + j], factors[tile], tile * TILE_ROWS,
                  best[row + j - begin]);
        }
      }
    }
    for (int64_t row = begin; row < end; ++row) clusters[row] = best[row - begin].cluster;
  });
  return 0;
} catch (const std::bad_alloc&) {
  return 1;
}
