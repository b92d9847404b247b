// Numbers of the filter programs, as in stcli/types.py.
#pragma once

#include "types.cuh"

enum LeafKind : i64 { LEAF_ALL, LEAF_NONE, LEAF_OWN, LEAF_BLOOM, LEAF_LESS, LEAF_EQUAL };
constexpr i32 OP_AND = -1, OP_OR = -2, OP_NOT = -3;

constexpr i64 BLOCK_WORDS = 64;  // of the bit matrix: 4,096 rows
