// What needs no vectors: a bfloat16 number, sizes, and the distribution of a product over threads.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

namespace toolwire {

struct Bf16 {
    uint16_t bits;
};

inline long at_most(long a, long b) { return a < b ? a : b; }

// Rounds up to a multiple of `unit`.
constexpr long rounded_up(long size, long unit) { return (size + unit - 1) / unit * unit; }

// act(item) for each strip of tokens and column of weights, by the threads of the calling parallel region, which needs a
// barrier afterwards. Weights of a single strip are read once: each thread gets as many adjacent columns as it can, and
// fewer towards the end, where threads wait for each other.
template <class Act> inline void distribute(long strips, long columns, Act act) {
    if (strips == 1) {
#pragma omp for schedule(guided) nowait
        for (long item = 0; item < columns; item++) act(item);
    } else {
#pragma omp for schedule(dynamic) nowait
        for (long item = 0; item < strips * columns; item++) act(item);
    }
}

}  // namespace toolwire
