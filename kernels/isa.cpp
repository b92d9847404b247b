#include "isa.h"

// Uses at most the instructions of `level` (0 portable, 1 AVX2, 2 AVX-512 VNNI) from now on; returns the level in use,
// which is lower where the CPU has less.
extern "C" int stcli_force_isa(int level) {
  stcli::allowed_isa.store(level < 0 ? 0 : level, std::memory_order_relaxed);
  return stcli::current_isa();
}
