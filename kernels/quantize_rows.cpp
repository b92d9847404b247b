// quantize_rows: int8 codes and one scale for each row; bound by memory.
//   in   vectors f16 or f32 [R, D]   scale: of all rows, or 0 for one each
//   out  codes i8 [R, padded]   scales f32 [R]; returns 0, or 1 if memory ran out
#include <algorithm>
#include <cfloat>
#include <new>
#include <vector>

#include "half.h"
#include "isa.h"
#include "parallel.h"

namespace stcli {
namespace {

struct Arguments {
  const void* vectors;
  bool half;
  int64_t dim, padded;
  float scale;
  int8_t* codes;
  float* scales;
};

// One plain form, compiled for each set of instructions: the compiler makes good vectors of these loops.
STCLI_INLINE void quantize_body(const Arguments& a, int64_t begin, int64_t end, float* wide) {
  for (int64_t row = begin; row < end; ++row) {
    const float* vector = static_cast<const float*>(a.vectors) + row * a.dim;
    if (a.half) {
      const uint16_t* halves = static_cast<const uint16_t*>(a.vectors) + row * a.dim;
      for (int64_t d = 0; d < a.dim; ++d) wide[d] = half_to_float(halves[d]);
      vector = wide;
    }
    float scale = a.scale;
    if (scale == 0) {
      // Magnitudes compare like their bits, and the compiler may reorder a maximum of integers.
      int32_t bits = 0;
      for (int64_t d = 0; d < a.dim; ++d) {
        int32_t magnitude;
        std::memcpy(&magnitude, vector + d, 4);
        bits = std::max(bits, magnitude & 0x7fffffff);
      }
      float largest;
      std::memcpy(&largest, &bits, 4);
      scale = largest == 0 ? 1.0f : std::max(largest / 127.0f, FLT_MIN);
    }
    int8_t* codes = a.codes + row * a.padded;
    for (int64_t d = 0; d < a.dim; ++d) {
      float value = vector[d] / scale;
      value = value < 127.0f ? value : 127.0f;
      value = value > -127.0f ? value : -127.0f;
      constexpr float ROUND = 0x1.8p23f;  // adding it leaves no bits for a fraction: rounds half to even
      codes[d] = static_cast<int8_t>(static_cast<int32_t>((value + ROUND) - ROUND));
    }
    std::fill(codes + a.dim, codes + a.padded, int8_t{0});
    a.scales[row] = scale;
  }
}

#if STCLI_X86
STCLI_AVX512 void quantize_avx512(const Arguments& a, int64_t begin, int64_t end, float* wide) {
  quantize_body(a, begin, end, wide);
}
STCLI_AVX2 void quantize_avx2(const Arguments& a, int64_t begin, int64_t end, float* wide) {
  quantize_body(a, begin, end, wide);
}
#endif

void quantize(Isa isa, const Arguments& a, int64_t begin, int64_t end, float* wide) {
#if STCLI_X86
  if (isa == AVX512) return quantize_avx512(a, begin, end, wide);
  if (isa == AVX2) return quantize_avx2(a, begin, end, wide);
#endif
  quantize_body(a, begin, end, wide);
}

}  // namespace
}  // namespace stcli

extern "C" int stcli_quantize_rows(const void* vectors, int64_t half, int64_t num_rows, int64_t dim, int64_t padded,
                                   double scale, int64_t num_threads, int8_t* codes, float* scales) try {
  constexpr int64_t CHUNK = 1024;
  const stcli::Isa isa = stcli::current_isa();
  const stcli::Arguments arguments{vectors, half != 0, dim, padded, static_cast<float>(scale), codes, scales};
  stcli::parallel_for((num_rows + CHUNK - 1) / CHUNK, static_cast<int>(num_threads), [&](int64_t chunk, int) {
    std::vector<float> wide(half ? dim : 0);
    stcli::quantize(isa, arguments, chunk * CHUNK, std::min(num_rows, (chunk + 1) * CHUNK), wide.data());
  });
  return 0;
} catch (const std::bad_alloc&) {
  return 1;
}
