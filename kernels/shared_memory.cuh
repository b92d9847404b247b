// The dynamic shared memory of a block, as many bytes as its launch asks for.
#pragma once

extern __shared__ __align__(16) unsigned char shared_memory[];
