// Products of bfloat16 in tiles (Intel AMX): sixteen outputs by sixteen tokens at once.
//
// The weights are the first operand, read from the checkpoint's own rows, whatever their length. The inputs are the
// second, copied once a product: [tokens / 16, inputs / 2, 16 tokens, 2]. Each sum is computed by one instruction after
// the other over the inputs, in the same order in whatever column of a tile its token is.
#pragma once

#include "products.h"

namespace toolwire {

constexpr long TILE = 16;         // rows of a tile: outputs of weights and results, pairs of inputs
constexpr long TILE_INPUTS = 32;  // in a row of weights
static_assert(GROUP == TILE);

struct alignas(64) TileShapes {  // as the CPU reads them
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {};
    uint8_t rows[16] = {};
};

// Tiles 0 to 4 are results and weights, with a row for each of `outputs` outputs; 5 and 6 are inputs.
inline void configure_tiles(int outputs) {
    TileShapes shapes;
    for (int tile = 0; tile < 7; tile++) {
        shapes.row_bytes[tile] = 64;
        shapes.rows[tile] = tile < 5 ? outputs : TILE;
    }
    _tile_loadconfig(&shapes);
}

// Rows of sixteen 32-bit numbers, transposed. The last of `rows` rows stands for those that are missing.
inline void transpose(const float* from, long stride, long rows, float* to) {
    Floats a[TILE], b[TILE];
    for (long i = 0; i < TILE; i++) a[i] = load(from + at_most(i, rows - 1) * stride);
    for (int i = 0; i < TILE; i += 2) {
        b[i] = _mm512_unpacklo_ps(a[i], a[i + 1]);
        b[i + 1] = _mm512_unpackhi_ps(a[i], a[i + 1]);
    }
    for (int i = 0; i < TILE; i += 4)
        for (int half = 0; half < 2; half++) {
            const __m512d low = (__m512d)b[i + half], high = (__m512d)b[i + half + 2];
            a[i + 2 * half] = (Floats)_mm512_unpacklo_pd(low, high);
            a[i + 2 * half + 1] = (Floats)_mm512_unpackhi_pd(low, high);
        }
    for (int i = 0; i < 4; i++) {  // a quarter of a[i] holds four rows of one column
        const Floats p = _mm512_shuffle_f32x4(a[i], a[4 + i], 0x44), q = _mm512_shuffle_f32x4(a[i], a[4 + i], 0xee);
        const Floats r = _mm512_shuffle_f32x4(a[8 + i], a[12 + i], 0x44);
        const Floats s = _mm512_shuffle_f32x4(a[8 + i], a[12 + i], 0xee);
        store(to + i * TILE, _mm512_shuffle_f32x4(p, r, 0x88));
        store(to + (4 + i) * TILE, _mm512_shuffle_f32x4(p, r, 0xdd));
        store(to + (8 + i) * TILE, _mm512_shuffle_f32x4(q, s, 0x88));
        store(to + (12 + i) * TILE, _mm512_shuffle_f32x4(q, s, 0xdd));
    }
}

template <class E> struct Tiles {
    static constexpr int TOKENS = 64, UNIT = 16;  // four tiles of results; inputs of sixteen tokens lie together

    const E* weights;
    long size;

    static void begin() { configure_tiles(TILE); }
    static void end() { _tile_release(); }

    // One tile of outputs by P tiles of tokens, whose inputs begin at `inputs`.
    template <int P> void tiles(const E* inputs, long column, float (*sums)[GROUP]) const {
        const E* rows = weights + column * size;
        const long row_bytes = size * sizeof(E), panel = TILE * size;
        alignas(64) float results[P][TILE][TILE];
        _tile_zero(0);
        if constexpr (P > 1) _tile_zero(1);
        if constexpr (P > 2) _tile_zero(2);
        if constexpr (P > 3) _tile_zero(3);
        for (long k = 0; k < size; k += TILE_INPUTS) {
            const E* own = inputs + k * TILE;
            _tile_loadd(4, rows + k, row_bytes);
            _tile_loadd(5, own, 64);
            _tile_dpbf16ps(0, 4, 5);
            if constexpr (P > 1) {
                _tile_loadd(6, own + panel, 64);
                _tile_dpbf16ps(1, 4, 6);
            }
            if constexpr (P > 2) {
                _tile_loadd(5, own + 2 * panel, 64);
                _tile_dpbf16ps(2, 4, 5);
            }
            if constexpr (P > 3) {
                _tile_loadd(6, own + 3 * panel, 64);
                _tile_dpbf16ps(3, 4, 6);
            }
        }
        _tile_stored(0, results[0], 64);
        if constexpr (P > 1) _tile_stored(1, results[1], 64);
        if constexpr (P > 2) _tile_stored(2, results[2], 64);
        if constexpr (P > 3) _tile_stored(3, results[3], 64);
        for (int p = 0; p < P; p++) transpose(results[p][0], TILE, TILE, sums[p * TILE]);
    }
};

inline void multiply(const Tiles<Bf16>& form, const Operand<Bf16>& inputs, long token, int tokens, long column,
                     int count, float (*sums)[GROUP]) {
    const Bf16* own = inputs.tiles + token * form.size;
    if (count < TILE) configure_tiles(count);  // rows that do not exist must not be read
    switch ((tokens + TILE - 1) / TILE) {
        case 1: form.tiles<1>(own, column, sums); break;
        case 2: form.tiles<2>(own, column, sums); break;
        case 3: form.tiles<3>(own, column, sums); break;
        default: form.tiles<4>(own, column, sums);
    }
    if (count < TILE) configure_tiles(TILE);
}

template <> struct Formats<Bf16> {
    using Long = Tiles<Bf16>;
    static constexpr long SHORT = 0;
    static constexpr bool LAYS_OUT = true;

    static long elements(long tokens, long size) { return rounded_up(tokens, TILE) * size; }

    static void lay_out(const Bf16* rows, long tokens, long size, Bf16* copy) {
        const long blocks = size / TILE_INPUTS, panels = (tokens + TILE - 1) / TILE;
#pragma omp for schedule(static) nowait
        for (long item = 0; item < panels * blocks; item++) {
            const long first = item / blocks * TILE, k = item % blocks * TILE_INPUTS;
            transpose((const float*)(rows + first * size + k), size / 2, at_most(TILE, tokens - first),
                      (float*)(copy + first * size + k * TILE));
        }
    }
};

}  // namespace toolwire
