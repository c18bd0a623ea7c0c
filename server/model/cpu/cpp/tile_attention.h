// Attention in bfloat16 in tiles (Intel AMX), over the same cache: its pairs of dimensions by tokens, and of tokens by
// dimensions, are second operands as they lie there.
#pragma once

#include "attention.h"
#include "tiles.h"

namespace toolwire {

constexpr long MOST_DIMENSIONS = 256;  // of a head
constexpr int FEW = 4;                 // queries at once where blocks or heads do not fit tiles

template <> inline constexpr int queries_at_once<Bf16> = TILE;

// Scores of `count` queries [count, head_dim], which are tile 4's rows, with 32 tokens.
inline void score_in_tiles(const Bf16* queries, const Bf16* keys, const Heads& heads, float* scores, long stride) {
    _tile_zero(0);
    _tile_zero(1);
    for (long d = 0; d < heads.head_dim; d += TILE_INPUTS) {
        const Bf16* own = keys + d * heads.block_size;
        _tile_loadd(4, queries + d, heads.head_dim * 2);
        _tile_loadd(5, own, heads.block_size * 4);
        _tile_dpbf16ps(0, 4, 5);
        _tile_loadd(6, own + 2 * TILE, heads.block_size * 4);
        _tile_dpbf16ps(1, 4, 6);
    }
    _tile_stored(0, scores, stride * 4);
    _tile_stored(1, scores + TILE, stride * 4);
}

// sums [count, head_dim] += shares of 32 tokens times their values.
inline void add_in_tiles(const Bf16* shares, long stride, const Bf16* values, long head_dim, float* sums) {
    _tile_loadd(4, shares, stride * 2);
    for (long d = 0; d < head_dim; d += 2 * TILE) {
        _tile_loadd(0, sums + d, head_dim * 4);
        _tile_loadd(1, sums + d + TILE, head_dim * 4);
        _tile_loadd(5, values + d * 2, head_dim * 4);
        _tile_dpbf16ps(0, 4, 5);
        _tile_loadd(6, values + (d + TILE) * 2, head_dim * 4);
        _tile_dpbf16ps(1, 4, 6);
        _tile_stored(0, sums + d, head_dim * 4);
        _tile_stored(1, sums + d + TILE, head_dim * 4);
    }
}

template <>
inline void attend_together<Bf16>(int count, const Heads& heads, const Bf16* const queries[], const long seen[],
                                  long most, const int32_t* blocks, const void* keys, const void* values,
                                  Bf16* const results[], float* scratch) {
    const long head_dim = heads.head_dim, size = heads.block_size;
    if (size % TILE_INPUTS || head_dim > MOST_DIMENSIONS) {
        for (int q = 0; q < count; q += FEW)
            attend_some<Bf16, FEW>((int)at_most(FEW, count - q), heads, queries + q, seen + q, most, blocks, keys, values,
                                   results + q, scratch);
        return;
    }
    const long stride = heads.block_lanes();
    float *sums = scratch, *scores = sums + TILE * head_dim;
    Bf16 *shares = (Bf16*)(scores + TILE * stride), *own = shares + TILE * stride;
    float highest[TILE];
    Floats total[TILE];
    alignas(64) Bf16 padded[TILE_INPUTS * MOST_DIMENSIONS];  // values of fewer tokens than a tile has
    for (int q = 0; q < count; q++) {
        highest[q] = -__builtin_inff(), total[q] = Floats{};
        std::memcpy(own + q * head_dim, queries[q], head_dim * sizeof(Bf16));
    }
    std::memset(sums, 0, count * head_dim * sizeof(float));
    configure_tiles(count);
    for (long first = 0; first < most; first += size) {
        const long here = at_most(size, most - first), wide = rounded_up(here, TILE_INPUTS);
        const OpenBlock<Bf16> block(heads, keys, values, blocks[first / size], here, scratch + tile_floats<Bf16>(heads));
        for (long t = 0; t < wide; t += TILE_INPUTS)
            score_in_tiles(own, block.keys + 2 * t, heads, scores + t, stride);
        for (int q = 0; q < count; q++) {
            float* mine = scores + q * stride;
            for (long t = 0; t < wide; t += LANES) store(mine + t, load(mine + t) * all(heads.scaling));
            soften<Bf16>(mine, at_most(seen[q] - first, here), wide, shares + q * stride, highest[q], total[q],
                         sums + q * head_dim, head_dim, block);
        }
        for (long t = 0; t < wide; t += TILE_INPUTS) {
            const Bf16* from = block.values + t * head_dim;
            if (t + TILE_INPUTS > here) {
                // Stale data in the block may be NaN, and 0 * NaN is NaN.
                std::memset(padded, 0, TILE_INPUTS * head_dim * sizeof(Bf16));
                for (long i = 0; i < here - t; i++)
                    for (long d = 0; d < head_dim; d++) {
                        const long place = i / 2 * 2 * head_dim + 2 * d + i % 2;
                        padded[place] = from[place];
                    }
                from = padded;
            }
            add_in_tiles(shares + t, stride, from, head_dim, sums);
        }
    }
    _tile_release();
    for (int q = 0; q < count; q++) {
        const Floats factor = all(1.0f / sum_of(total[q]));
        for (long d = 0; d < head_dim; d += LANES) store(results[q] + d, load(sums + q * head_dim + d) * factor);
    }
}

}  // namespace toolwire
