// Attention over the paged KV cache (`cache.h`) with an online softmax over the blocks (Dao et al., FlashAttention).
#pragma once

#include "cache.h"

namespace toolwire {

// So few queries take no longer than their keys and values take from memory, if those of the next block are prefetched.
constexpr int FEW_QUERIES = 8;

// Scores of N queries with LANES * U tokens; `ahead` is how far behind the keys those of the next block are, in bytes.
template <class E, int N, int U>
inline void score(const Input<E>* const queries[], const E* keys, const Heads& heads, float* scores, long stride,
                  long ahead) {
    using Es = Elements<E>;
    Floats sum[N][U];
    for (int q = 0; q < N; q++)
        for (int u = 0; u < U; u++) sum[q][u] = Floats{};
    for (long d = 0; d < heads.head_dim; d += Es::PAIR) {
        typename Es::Bits key[U];
        for (int u = 0; u < U; u++) {
            const E* at = keys + d * heads.block_size + u * Es::STEP;
            key[u] = Es::load(at);
            if constexpr (N <= FEW_QUERIES) __builtin_prefetch((const char*)at + ahead, 0, 2);
        }
        for (int q = 0; q < N; q++) {
            typename Es::Bits query = Es::everywhere(queries[q] + d);
            for (int u = 0; u < U; u++) sum[q][u] = Es::dot(sum[q][u], query, key[u]);
        }
    }
    for (int q = 0; q < N; q++)
        for (int u = 0; u < U; u++)
            store(scores + q * stride + u * LANES, sum[q][u] * all(heads.scaling));
}

// Queries that are computed together; a set with products of its own specializes it.
template <class E> constexpr int queries_at_once = QUERIES;

// Of one thread: sums, scores and shares of a tile, and its queries and results if they are copied.
template <class E> inline long tile_floats(const Heads& heads) {
    return rounded_up(queries_at_once<E> * (2 * heads.head_dim + 2 * heads.block_lanes()), 16);
}

// Of one thread: those of a tile, and behind them the room of an open block.
template <class E> inline long scratch_floats(const Heads& heads) {
    return tile_floats<E>(heads) + rounded_up(OpenBlock<E>::room_floats(heads), 16);
}

// A query's scores of a block's first `wide` tokens become its shares of these tokens' values, none from `visible` on,
// and the sums and the total of shares, a part of it in each lane, fade to the highest score so far. Keys and values of
// bytes have scales.
template <class E>
inline void soften(float* scores, long visible, long wide, Input<E>* shares, float& highest, Floats& total, float* sums,
                   long head_dim, const OpenBlock<E>& block) {
    if (block.key_scales)
        for (long t = 0; t < wide; t += LANES) store(scores + t, load(scores + t) * load(block.key_scales + t));
    if (visible < wide) {
        Floats none = all(-__builtin_inff());
        for (long t = visible < 0 ? 0 : visible / LANES * LANES; t < wide; t += LANES) {
            long open = visible - t;
            store(scores + t, open <= 0 ? none : select(first_lanes((int)open), load(scores + t), none));
        }
    }
    Floats top = load(scores);
    for (long t = LANES; t < wide; t += LANES) top = max(top, load(scores + t));
    float before = highest, now = max_of(top);
    highest = now = now > before ? now : before;
    Floats sum = Floats{}, level = all(now);
    for (long t = 0; t < wide; t += LANES) {
        Floats share = exponential(load(scores + t) - level);
        sum = sum + share;
        store(shares + t, block.value_scales ? share * load(block.value_scales + t) : share);
    }
    if (now > before) {
        const Floats fade = exponential(all(before - now));
        total = total * fade;
        for (float* at = sums; at < sums + head_dim; at += LANES) store(at, load(at) * fade);
    }
    total = total + sum;
}

// N queries of one KV head over a sequence's blocks with online softmax. Query q attends to the first seen[q] tokens,
// at most `most`. results [N] of head_dim.
template <class E, int N>
void attend_tile(const Heads& heads, const Input<E>* const queries[], const long seen[], long most,
                 const int32_t* blocks, const void* keys, const void* values, Input<E>* const results[],
                 float* scratch) {
    using Es = Elements<E>;
    constexpr int PAIR = Es::PAIR;
    long head_dim = heads.head_dim, size = heads.block_size;
    const long stride = heads.block_lanes();
    float* sums = scratch;                                     // [N, head_dim]
    float* scores = sums + queries_at_once<E> * head_dim;      // [N, block_lanes]
    Input<E>* shares = (Input<E>*)(scores + queries_at_once<E> * stride);  // [N, block_lanes]
    float highest[N];
    Floats total[N];
    for (int q = 0; q < N; q++) highest[q] = -__builtin_inff(), total[q] = Floats{};
    for (long i = 0; i < N * head_dim; i += LANES) store(sums + i, Floats{});

    for (long first = 0; first < most; first += size) {
        long here = at_most(size, most - first), wide = rounded_up(here, LANES);
        const long index = first / size;
        const OpenBlock<E> block(heads, keys, values, blocks[index], here, scratch + tile_floats<E>(heads));
        const bool has_next = first + size < most && !heads.of_bytes;
        const long ahead = has_next ? (blocks[index + 1] - blocks[index]) * heads.block_bytes(sizeof(E)) : 0;
        long token = 0;
        for (; token + 2 * LANES <= wide; token += 2 * LANES)
            score<E, N, 2>(queries, block.keys + token * PAIR, heads, scores + token, stride, ahead);
        if (token < wide) score<E, N, 1>(queries, block.keys + token * PAIR, heads, scores + token, stride, ahead);

        for (int q = 0; q < N; q++)
            soften<E>(scores + q * stride, at_most(seen[q] - first, here), wide, shares + q * stride, highest[q],
                      total[q], sums + q * head_dim, head_dim, block);

        for (long d = 0; d < head_dim; d += 2 * LANES) {
            Floats sum[N][2];
            for (int q = 0; q < N; q++)
                for (int u = 0; u < 2; u++) sum[q][u] = load(sums + q * head_dim + d + u * LANES);
            for (long t = 0; t < here; t += PAIR) {
                typename Es::Bits value[2];
                for (int u = 0; u < 2; u++) {
                    const E* at = block.values + t * head_dim + (d + u * LANES) * PAIR;
                    value[u] = Es::load(at);
                    if constexpr (N <= FEW_QUERIES) __builtin_prefetch((const char*)at + ahead, 0, 2);
                    // Stale data in the block may be NaN, and 0 * NaN is NaN.
                    if (t + PAIR > here) value[u] = Es::first_of_pairs(value[u]);
                }
                for (int q = 0; q < N; q++) {
                    typename Es::Bits share = Es::everywhere(shares + q * stride + t);
                    for (int u = 0; u < 2; u++) sum[q][u] = Es::dot(sum[q][u], share, value[u]);
                }
            }
            for (int q = 0; q < N; q++)
                for (int u = 0; u < 2; u++) store(sums + q * head_dim + d + u * LANES, sum[q][u]);
        }
    }
    for (int q = 0; q < N; q++) {
        Floats factor = all(1.0f / sum_of(total[q]));
        for (long d = 0; d < head_dim; d += LANES) store(results[q] + d, load(sums + q * head_dim + d) * factor);
    }
}

template <class E, int N = queries_at_once<E>>
inline void attend_some(int count, const Heads& heads, const Input<E>* const queries[], const long seen[], long most,
                        const int32_t* blocks, const void* keys, const void* values, Input<E>* const results[],
                        float* scratch) {
    if constexpr (N > 0) {
        if (count == N) return attend_tile<E, N>(heads, queries, seen, most, blocks, keys, values, results, scratch);
        attend_some<E, N - 1>(count, heads, queries, seen, most, blocks, keys, values, results, scratch);
    }
}

// How `count` queries attend; a set with products of its own specializes it.
template <class E>
inline void attend_together(int count, const Heads& heads, const Input<E>* const queries[], const long seen[], long most,
                            const int32_t* blocks, const void* keys, const void* values,
                            Input<E>* const results[], float* scratch) {
    attend_some<E>(count, heads, queries, seen, most, blocks, keys, values, results, scratch);
}

// queries [tokens, heads, head_dim] -> results of the same shape. Tiles of one KV head are consecutive, so that rows
// with common blocks find them in the CPU's caches.
template <class E, class Q>
void attend(const Heads& heads, const Row* rows, long num_rows, const Q* queries, const void* keys, const void* values,
            Q* results, float* scratch) {
    constexpr bool WIDENS = !std::is_same_v<Q, Input<E>>;
    constexpr int QUERIES = queries_at_once<E>;
    const long group = heads.group(), head_dim = heads.head_dim;
    long tiles = 0;
    for (long row = 0; row < num_rows; row++) tiles += (rows[row].num_tokens * group + QUERIES - 1) / QUERIES;
#pragma omp for schedule(dynamic, 1)
    for (long item = 0; item < tiles * heads.kv_heads; item++) {
        long head = item / tiles, tile = item % tiles;
        const Row* row = rows;
        for (long own; tile >= (own = (row->num_tokens * group + QUERIES - 1) / QUERIES); row++) tile -= own;
        long first = tile * QUERIES, count = at_most(QUERIES, row->num_tokens * group - first), most = 0;
        const Input<E>* own[QUERIES];
        Input<E>* to[QUERIES];
        long seen[QUERIES], places[QUERIES];
        for (long q = 0; q < count; q++) {
            long token = (first + q) / group, query = head * group + (first + q) % group;
            places[q] = ((row->first_token + token) * heads.heads + query) * head_dim;
            float* copy = scratch + tile_floats<E>(heads) - (q + 1) * head_dim;
            own[q] = as_input<E>(queries + places[q], head_dim, copy);
            if constexpr (WIDENS) to[q] = copy;  // when the query is no longer read
            else to[q] = results + places[q];
            seen[q] = most = row->start + token + 1;
        }
        const long offset = head * heads.head_bytes(sizeof(E));
        attend_together<E>((int)count, heads, own, seen, most, row->blocks, (const char*)keys + offset,
                           (const char*)values + offset, to, scratch);
        if constexpr (WIDENS)
            for (long q = 0; q < count; q++)
                for (long d = 0; d < head_dim; d += LANES) store(results + places[q] + d, load(to[q] + d));
    }
}

}  // namespace toolwire
