// RMS norms and rotary positions, in float32.
#pragma once

#include "vectors.h"

namespace toolwire {

// Scale factor of an RMS norm over `size` values; `size` is a multiple of 16.
inline float norm_factor(const float* values, long size, float epsilon) {
    Floats sum = _mm512_setzero_ps();
    for (long i = 0; i < size; i += LANES) {
        Floats value = _mm512_loadu_ps(values + i);
        sum = _mm512_fmadd_ps(value, value, sum);
    }
    return 1.0f / __builtin_sqrtf(_mm512_reduce_add_ps(sum) / (float)size + epsilon);
}

template <class E>
void norm(const float* stream, long tokens, long size, const E* weight, float epsilon, E* results) {
#pragma omp for schedule(static)
    for (long token = 0; token < tokens; token++) {
        const float* values = stream + token * size;
        Floats factor = _mm512_set1_ps(norm_factor(values, size, epsilon));
        for (long i = 0; i < size; i += LANES) {
            Floats value = _mm512_mul_ps(_mm512_loadu_ps(values + i), factor);
            Elements<E>::store(results + token * size + i, _mm512_mul_ps(value, Elements<E>::floats(weight + i)));
        }
    }
}

// Norms a head, if `weight` is not null, and rotates it by cosines and sines of both halves. In place.
template <class E>
inline void turn(float* head, long head_dim, const E* weight, float epsilon, const float* cosines, const float* sines) {
    if (weight) {
        Floats factor = _mm512_set1_ps(norm_factor(head, head_dim, epsilon));
        for (long i = 0; i < head_dim; i += LANES) {
            Floats value = _mm512_mul_ps(_mm512_loadu_ps(head + i), factor);
            _mm512_storeu_ps(head + i, _mm512_mul_ps(value, Elements<E>::floats(weight + i)));
        }
    }
    const long half = head_dim / 2;
    for (long i = 0; i < half; i += LANES) {
        Floats one = _mm512_loadu_ps(head + i), two = _mm512_loadu_ps(head + half + i);
        Floats first = _mm512_mul_ps(one, _mm512_loadu_ps(cosines + i));
        Floats second = _mm512_mul_ps(two, _mm512_loadu_ps(cosines + half + i));
        _mm512_storeu_ps(head + i, _mm512_fnmadd_ps(two, _mm512_loadu_ps(sines + i), first));
        _mm512_storeu_ps(head + half + i, _mm512_fmadd_ps(one, _mm512_loadu_ps(sines + half + i), second));
    }
}

}  // namespace toolwire
