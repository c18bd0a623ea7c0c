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

template <class E, class R>
void norm(const float* stream, long tokens, long size, const E* weight, float epsilon, R* results) {
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

// Norms a head, if `weight` is not null, and rotates it by cosines and sines of both halves. In place.
template <class E>
inline void turn(float* head, long head_dim, const E* weight, float epsilon, const float* cosines, const float* sines) {
    if (weight) {
        Floats factor = all(norm_factor(head, head_dim, epsilon));
        for (long i = 0; i < head_dim; i += LANES) {
            Floats value = load(head + i) * factor;
            store(head + i, value * load(weight + i));
        }
    }
    const long half = head_dim / 2;
    for (long i = 0; i < half; i += LANES) {
        Floats one = load(head + i), two = load(head + half + i);
        Floats first = one * load(cosines + i);
        Floats second = two * load(cosines + half + i);
        store(head + i, fnma(two, load(sines + i), first));
        store(head + half + i, fma(one, load(sines + half + i), second));
    }
}

}  // namespace toolwire
