// float16 to float32 without instructions for it; exact, subnormal numbers included.
#pragma once
#include <cstdint>
#include <cstring>

#include "isa.h"

namespace stcli {

STCLI_INLINE float half_to_float(uint16_t half) {
  // The exponent's bias goes from 15 to 127 by a product, which also normalises subnormal numbers.
  const uint32_t magnitude = static_cast<uint32_t>(half & 0x7fff) << 13;
  const uint32_t special = (half & 0x7c00) == 0x7c00 ? 0x7f800000u : 0u;
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000) << 16;
  float value;
  std::memcpy(&value, &magnitude, 4);
  value *= 0x1p112f;
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  bits |= special | sign;
  std::memcpy(&value, &bits, 4);
  return value;
}

}  // namespace stcli
