// Products of tokens with weights as they lie in a checkpoint: [outputs, inputs], row by row.
//
// An output is the dot product of a token's inputs with one row. A tile of tokens meets four rows at a time; however
// many tokens there are, each sum runs over its inputs in the same order.
#pragma once

#include <omp.h>

#include "vectors.h"

namespace toolwire {

constexpr int TOKENS = 6;           // of one tile: 6 x 4 sums, 4 rows and an input fill the registers
constexpr long COLUMNS = 64;        // outputs that a thread takes at a time, at most
constexpr long CACHED = 384 << 10;  // bytes of inputs that stay in a core's own cache while weights pass by

// The sums over the lanes of four registers.
inline __m128 totals(Floats a, Floats b, Floats c, Floats d) {
    Floats ab = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
    Floats cd = _mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
    Floats low = (Floats)_mm512_unpacklo_pd((__m512d)ab, (__m512d)cd);
    Floats high = (Floats)_mm512_unpackhi_pd((__m512d)ab, (__m512d)cd);
    Floats all = _mm512_add_ps(low, high);
    __m256 half = _mm256_add_ps(_mm512_castps512_ps256(all), _mm512_extractf32x8_ps(all, 1));
    return _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
}

// M tokens by four rows of weights. While they are multiplied, the rows that come next are fetched.
template <class E, int M>
inline void four_columns(const E* inputs, long size, const E* const rows[4], const E* next, float (*sums)[LANES]) {
    using Es = Elements<E>;
    Floats sum[M][4];
    for (int m = 0; m < M; m++)
        for (int n = 0; n < 4; n++) sum[m][n] = _mm512_setzero_ps();
    for (long k = 0; k < size; k += Es::STEP) {
        Bits weight[4];
        for (int n = 0; n < 4; n++) {
            weight[n] = Es::load(rows[n] + k);
            _mm_prefetch((const char*)(next + n * size + k), _MM_HINT_T1);
        }
        for (int m = 0; m < M; m++) {
            Bits input = Es::load(inputs + m * size + k);
            for (int n = 0; n < 4; n++) sum[m][n] = Es::dot(sum[m][n], input, weight[n]);
        }
    }
    for (int m = 0; m < M; m++) _mm_storeu_ps(sums[m], totals(sum[m][0], sum[m][1], sum[m][2], sum[m][3]));
}

// M tokens by `count` rows of weights, at most 16.
template <class E, int M>
inline void tile(const E* inputs, long size, const E* weights, int count, float (*sums)[LANES]) {
    for (int first = 0; first < count; first += 4) {
        const E* rows[4];
        for (int n = 0; n < 4; n++) {
            int row = first + n < count ? first + n : count - 1;
            rows[n] = weights + row * size;
        }
        four_columns<E, M>(inputs, size, rows, rows[0] + 4 * size, (float(*)[LANES])(&sums[0][first]));
    }
}

template <class E>
inline void tile(int tokens, const E* inputs, long size, const E* weights, int count, float (*sums)[LANES]) {
    switch (tokens) {
    case 1: return tile<E, 1>(inputs, size, weights, count, sums);
    case 2: return tile<E, 2>(inputs, size, weights, count, sums);
    case 3: return tile<E, 3>(inputs, size, weights, count, sums);
    case 4: return tile<E, 4>(inputs, size, weights, count, sums);
    case 5: return tile<E, 5>(inputs, size, weights, count, sums);
    default: return tile<E, 6>(inputs, size, weights, count, sums);
    }
}

// inputs [tokens, size] times weights [outputs, size], shared among the threads of the region that calls it, which must
// wait for each other afterwards. `use(token, tokens, column, count)` computes a tile and keeps what it wants of it.
template <class Use> inline void product(long tokens, long outputs, long row_bytes, Use use) {
    long strip = CACHED / row_bytes / TOKENS * TOKENS;
    if (strip < 4 * TOKENS) strip = 4 * TOKENS;
    const long share = rounded_up(outputs / (4 * omp_get_num_threads()) + 1, LANES), width = at_most(share, COLUMNS);
    const long strips = (tokens + strip - 1) / strip, columns = (outputs + width - 1) / width;
#pragma omp for schedule(dynamic, 1) nowait
    for (long item = 0; item < strips * columns; item++) {
        long first = item / columns * strip, last = at_most(tokens, first + strip);
        long left = item % columns * width, right = at_most(outputs, left + width);
        for (long column = left; column < right; column += LANES)
            for (long token = first, tiles = (last - first + TOKENS - 1) / TOKENS; tiles > 0; tiles--) {
                const int count = (int)((last - token + tiles - 1) / tiles);  // 8 are 4 and 4, not 6 and 2
                use(token, count, column, (int)at_most(LANES, right - column));
                token += count;
            }
    }
}

// results = inputs times weights, plus a bias.
template <class E, class R>
void project(const E* inputs, long tokens, long size, const E* weights, const E* bias, long outputs, R* results,
             long stride) {
    product(tokens, outputs, size * sizeof(E), [=](long token, int m, long column, int count) {
        float sums[TOKENS][LANES];
        tile<E>(m, inputs + token * size, size, weights + column * size, count, sums);
        for (int i = 0; i < m; i++) {
            Floats sum = _mm512_loadu_ps(sums[i]);
            if (bias) {
                alignas(64) E own[LANES] = {};
                std::memcpy(own, bias + column, count * sizeof(E));
                sum = _mm512_add_ps(sum, Elements<E>::floats(own));
            }
            Elements<R>::store(results + (token + i) * stride + column, sum, count);
        }
    });
}

// stream += inputs times weights.
template <class E>
void project_onto(const E* inputs, long tokens, long size, const E* weights, long outputs, float* stream) {
    product(tokens, outputs, size * sizeof(E), [=](long token, int m, long column, int count) {
        float sums[TOKENS][LANES];
        tile<E>(m, inputs + token * size, size, weights + column * size, count, sums);
        __mmask16 own = (__mmask16)((1u << count) - 1);
        for (int i = 0; i < m; i++) {
            float* at = stream + (token + i) * outputs + column;
            Floats sum = _mm512_add_ps(_mm512_maskz_loadu_ps(own, at), _mm512_loadu_ps(sums[i]));
            _mm512_mask_storeu_ps(at, own, sum);
        }
    });
}

// results = silu(inputs times gate) * (inputs times up).
template <class E>
void project_gated(const E* inputs, long tokens, long size, const E* gate, const E* up, long outputs, E* results) {
    product(tokens, outputs, size * sizeof(E), [=](long token, int m, long column, int count) {
        float gates[TOKENS][LANES], ups[TOKENS][LANES];
        tile<E>(m, inputs + token * size, size, gate + column * size, count, gates);
        tile<E>(m, inputs + token * size, size, up + column * size, count, ups);
        for (int i = 0; i < m; i++) {
            Floats open = _mm512_loadu_ps(gates[i]), value = _mm512_loadu_ps(ups[i]);
            Floats down = exponential(_mm512_sub_ps(_mm512_setzero_ps(), open));
            Floats silu = _mm512_div_ps(open, _mm512_add_ps(_mm512_set1_ps(1.0f), down));
            Elements<E>::store(results + (token + i) * outputs + column, _mm512_mul_ps(silu, value), count);
        }
    });
}

}  // namespace toolwire
