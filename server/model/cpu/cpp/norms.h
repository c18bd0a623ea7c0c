// RMS norms and rotary positions, in float32.
#pragma once

#include "vec.h"

namespace toolwire {

// Scale factor of an RMS norm over `size` values; `size` is a multiple of 16.
inline float norm_factor(const float* values, long size, float epsilon) {
    Floats sum = Floats{};
    for (long i = 0; i < size; i += LANES) {
        Floats value = load(values + i);
        sum = fma(value, value, sum);
    }
    return 1.0f / __builtin_sqrtf(sum_of(sum) / (float)size + epsilon);
}

template <class R>
void norm(const float* stream, long tokens, long size, const float* weight, float epsilon, R* results) {
#pragma omp for schedule(static)
    for (long token = 0; token < tokens; token++) {
        const float* values = stream + token * size;
        Floats factor = all(norm_factor(values, size, epsilon));
        for (long i = 0; i < size; i += LANES) {
            Floats value = load(values + i) * factor;
            store(results + token * size + i, value * load(weight + i));
        }
    }
}

// Norms a head, if `weight` is not null, and rotates its first `rotated` dimensions by cosines and sines of both halves.
// In place.
inline void turn(float* head, long head_dim, long rotated, const float* weight, float epsilon, const float* cosines,
                 const float* sines) {
    if (weight) {
        Floats factor = all(norm_factor(head, head_dim, epsilon));
        for (long i = 0; i < head_dim; i += LANES) {
            Floats value = load(head + i) * factor;
            store(head + i, value * load(weight + i));
        }
    }
    const long half = rotated / 2;
    for (long i = 0; i < half; i += LANES) {
        const int count = (int)at_most(LANES, half - i);
        Floats one = load(head + i, count), two = load(head + half + i, count);
        Floats first = one * load(cosines + i, count);
        Floats second = two * load(cosines + half + i, count);
        store(head + i, fnma(two, load(sines + i, count), first), count);
        store(head + half + i, fma(one, load(sines + half + i, count), second), count);
    }
}

}  // namespace toolwire
