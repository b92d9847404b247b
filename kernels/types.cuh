// The integer types of the kernels; NVRTC has no <stdint.h>.
#pragma once

typedef signed char i8;
typedef unsigned char u8;
typedef unsigned short u16;
typedef int i32;
typedef unsigned u32;
typedef long long i64;
typedef unsigned long long u64;

static_assert(sizeof(i64) == 8, "64-bit rows and offsets");
