// Matrix products of tokens with weights [outputs, inputs].
//
// An output is the dot product of a token's inputs with one row of the weights. Each sum runs over its inputs in the
// same order, whatever the number of tokens.
#pragma once

#include <omp.h>

#include <cmath>

#include "vectors.h"

namespace toolwire {

constexpr long SHORT = 512;         // weights with at most this many inputs are packed into panels
constexpr long COLUMNS = 64;        // outputs that a thread computes at a time, at most
constexpr int NO_NUMBER = 0x01 | 0x08 | 0x10 | 0x80;  // quiet NaN, infinity, minus infinity, signalling NaN
constexpr long CACHED = 384 << 10;  // bytes of inputs that stay in a core's own cache while weights are streamed

// Horizontal sums of four registers.
inline __m128 totals(Floats a, Floats b, Floats c, Floats d) {
    Floats ab = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
    Floats cd = _mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
    Floats low = (Floats)_mm512_unpacklo_pd((__m512d)ab, (__m512d)cd);
    Floats high = (Floats)_mm512_unpackhi_pd((__m512d)ab, (__m512d)cd);
    Floats all = _mm512_add_ps(low, high);
    __m256 half = _mm256_add_ps(_mm512_castps512_ps256(all), _mm512_extractf32x8_ps(all, 1));
    return _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
}

// Weights as in the checkpoint, row by row. A register holds inputs of one output, which are summed at the end.
template <class E> struct Rows {
    static constexpr int TOKENS = 6;  // per tile: 6 x 4 sums, 4 rows and one input use all registers

    const E* weights;
    long size;

    // M tokens by `count` rows (at most 16) from `column` on.
    template <int M> void tile(const E* inputs, long column, int count, float (*sums)[LANES]) const {
        for (int first = 0; first < count; first += 4) {
            const E* rows[4];
            for (int n = 0; n < 4; n++) rows[n] = weights + (column + at_most(first + n, count - 1)) * size;
            four_columns<M>(inputs, rows, (float(*)[LANES])(&sums[0][first]));
        }
    }

  private:
    // Prefetches the next four rows while four rows are multiplied.
    template <int M> void four_columns(const E* inputs, const E* const rows[4], float (*sums)[LANES]) const {
        using Es = Elements<E>;
        const E* next = rows[0] + 4 * size;
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
};

// Weights packed into panels of sixteen outputs: [panels, inputs / PAIR, 16, PAIR]. A register holds one input (a pair
// in bfloat16) of sixteen outputs, so that no horizontal sums are needed, which would cost as much as the short rows.
template <class E> struct Panels {
    static constexpr int TOKENS = 8;

    const E* weights;
    long size;

    static long elements(long size, long outputs) { return rounded_up(outputs, LANES) * size; }

    static void lay_out(const E* rows, long size, long outputs, E* panels) {
        constexpr int PAIR = Elements<E>::PAIR;
#pragma omp for schedule(static)
        for (long first = 0; first < outputs; first += LANES)
            for (long k = 0; k < size; k += PAIR)
                for (long output = first; output < first + LANES; output++) {
                    E* at = panels + first * size + k * LANES + (output - first) * PAIR;
                    for (long i = 0; i < PAIR; i++) at[i] = output < outputs ? rows[output * size + k + i] : E{};
                }
    }

    template <int M> void tile(const E* inputs, long column, int, float (*sums)[LANES]) const {
        using Es = Elements<E>;
        const E* panel = weights + column * size;
        Floats sum[M];
        for (int m = 0; m < M; m++) sum[m] = _mm512_setzero_ps();
        for (long k = 0; k < size; k += Es::PAIR) {
            Bits weight = Es::load(panel + k * LANES);
            _mm_prefetch((const char*)(panel + (size + k) * LANES), _MM_HINT_T1);
            for (int m = 0; m < M; m++) sum[m] = Es::dot(sum[m], everywhere(inputs + m * size + k), weight);
        }
        for (int m = 0; m < M; m++) _mm512_storeu_ps(sums[m], sum[m]);
    }
};

// Number of threads for work of `products` multiplications and `fetched` numbers read from memory: all, or one. On a
// busy machine threads are preempted and the others wait, for longer than one thread takes for a small product
// (docs/internals/lablog.md).
inline int threads_for(long products, long fetched, long threads) {
    const long as_long_as = 16;  // multiplications, as a fetch takes
    return products + fetched * as_long_as < (64 << 20) ? 1 : (int)threads;
}

// `tokens` by sixteen outputs, by the weights' own `tile`.
template <class W, class E, int M = W::TOKENS>
inline void tile(const W& weights, int tokens, const E* inputs, long column, int count, float (*sums)[LANES]) {
    if constexpr (M > 1)
        if (tokens < M) return tile<W, E, M - 1>(weights, tokens, inputs, column, count, sums);
    weights.template tile<M>(inputs, column, count, sums);
}

// Calls `act` with the weights as Panels or Rows, depending on their size.
template <class E, class Act> inline void in_their_form(const E* weights, long size, Act act) {
    if (size <= SHORT)
        act(Panels<E>{weights, size});
    else
        act(Rows<E>{weights, size});
}

// Splits inputs [tokens, size] times weights [outputs, size] into tiles, distributed over the threads of the calling
// parallel region, which needs a barrier afterwards. `use(token, tokens, column, count)` computes one tile.
template <int TOKENS, class Use> inline void product(long tokens, long outputs, long row_bytes, Use use) {
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
                const int count = (int)((last - token + tiles - 1) / tiles);  // 8 become 4 and 4, not 6 and 2
                use(token, count, column, (int)at_most(LANES, right - column));
                token += count;
            }
    }
}

// inputs times weights, distributed as by `product`; `keep(token, column, count, sums)` gets sixteen outputs at a time.
template <class E, class Keep>
void project_each(const E* inputs, long tokens, long size, const E* weights, long outputs, Keep keep) {
    in_their_form(weights, size, [=](auto form) {
        using Form = decltype(form);
        product<Form::TOKENS>(tokens, outputs, size * sizeof(E), [=](long token, int m, long column, int count) {
            float sums[Form::TOKENS][LANES];
            tile(form, m, inputs + token * size, column, count, sums);
            for (int i = 0; i < m; i++) keep(token + i, column, count, _mm512_loadu_ps(sums[i]));
        });
    });
}

inline __mmask16 first_lanes(int count) { return (__mmask16)((1u << count) - 1); }

// results = inputs times weights, plus a bias.
template <class E, class R>
void project(const E* inputs, long tokens, long size, const E* weights, const E* bias, long outputs, R* results,
             long stride) {
    project_each(inputs, tokens, size, weights, outputs, [=](long token, long column, int count, Floats sum) {
        if (bias) {
            alignas(64) E own[LANES] = {};
            std::memcpy(own, bias + column, count * sizeof(E));
            sum = _mm512_add_ps(sum, Elements<E>::floats(own));
        }
        Elements<R>::store(results + token * stride + column, sum, count);
    });
}

// Maximum and its id in each lane so far; the lowest id of equal ones.
struct Peaks {
    Floats values;
    Bits ids;

    void see(Floats numbers, long first, __mmask16 own) {
        __mmask16 greater = _mm512_mask_cmp_ps_mask(own, numbers, values, _CMP_GT_OQ);
        Bits here = _mm512_add_epi32(_mm512_set1_epi32((int)first), _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10,
                                                                                   11, 12, 13, 14, 15));
        values = _mm512_mask_mov_ps(values, greater, numbers);
        ids = _mm512_mask_mov_epi32(ids, greater, here);
    }
};

// One thread's maxima over one token's outputs.
struct Seen {
    Peaks peaks;
    int64_t is_broken;  // an output was NaN or infinite
};

// Each thread's `seen` [tokens] of inputs times weights; the products themselves are not stored.
template <class E>
void project_to_peaks(const E* inputs, long tokens, long size, const E* weights, long outputs, Seen* seen) {
    for (long token = 0; token < tokens; token++)
        seen[token] = {{_mm512_set1_ps(-INFINITY), _mm512_setzero_si512()}, 0};
    project_each(inputs, tokens, size, weights, outputs, [=](long token, long column, int count, Floats sum) {
        seen[token].is_broken |= _mm512_mask_fpclass_ps_mask(first_lanes(count), sum, NO_NUMBER);
        seen[token].peaks.see(sum, column, first_lanes(count));
    });
}

// stream += inputs times weights.
template <class E>
void project_onto(const E* inputs, long tokens, long size, const E* weights, long outputs, float* stream) {
    project_each(inputs, tokens, size, weights, outputs, [=](long token, long column, int count, Floats sum) {
        float* at = stream + token * outputs + column;
        __mmask16 own = first_lanes(count);
        _mm512_mask_storeu_ps(at, own, _mm512_add_ps(_mm512_maskz_loadu_ps(own, at), sum));
    });
}

// results = silu(inputs times gate) * (inputs times up).
template <class E>
void project_gated(const E* inputs, long tokens, long size, const E* gate, const E* up, long outputs, E* results) {
    in_their_form(gate, size, [=](auto gate) {
        using Form = decltype(gate);
        const Form other{up, size};
        product<Form::TOKENS>(tokens, outputs, size * sizeof(E), [=](long token, int m, long column, int count) {
            float gates[Form::TOKENS][LANES], ups[Form::TOKENS][LANES];
            tile(gate, m, inputs + token * size, column, count, gates);
            tile(other, m, inputs + token * size, column, count, ups);
            for (int i = 0; i < m; i++) {
                Floats open = _mm512_loadu_ps(gates[i]), value = _mm512_loadu_ps(ups[i]);
                Floats down = exponential(_mm512_sub_ps(_mm512_setzero_ps(), open));
                Floats silu = _mm512_div_ps(open, _mm512_add_ps(_mm512_set1_ps(1.0f), down));
                Elements<E>::store(results + (token + i) * outputs + column, _mm512_mul_ps(silu, value), count);
            }
        });
    });
}

}  // namespace toolwire
