// Mixture of experts: a router chooses experts for each token, and the tokens of one expert are multiplied together.
#pragma once

#include <algorithm>

#include "products.h"

namespace toolwire {

constexpr long MAX_EXPERTS = 1024;
constexpr long EXPERT_TOKENS = 512;  // of a step that are gathered at a time: they take memory, weights are fetched again
constexpr long COPIED = 16;          // tokens whose copies lie together, where inputs are copied (`Formats`)

extern "C" {
struct Experts {  // of a layer
    int64_t count, chosen;  // all, and those of a token
    int64_t inner, shared_inner;  // shared_inner: of the expert that every token passes through, or 0
    int64_t normalizes;  // the weights of a token's experts sum to 1
    const void* router;  // [count, hidden], followed by the row of the shared expert's gate
    const void *gate_up, *down;  // [count, 2, inner, hidden], [count, hidden, inner]; marked: descriptions, one a matrix
    const void *shared_gate, *shared_up, *shared_down;  // or null
};
}

// Intermediate results of a layer's experts for at most EXPERT_TOKENS tokens, from `base` on.
template <class E> struct ExpertPlaces {
    float *scores, *results, *portions;
    Input<E>*gathered, *opened, *tiles;
    int32_t *ids, *places;                 // [tokens, chosen]: a token's experts, and where it is gathered for each
    int64_t *begins, *ends, *tile_begins;  // of each expert's tokens, and of their copy
    long bytes = 0;

    ExpertPlaces(const Experts& experts, long hidden, long all_tokens, char* base) : base(base) {
        const long tokens = at_most(all_tokens, EXPERT_TOKENS), rows = tokens * experts.chosen;
        const long shared = experts.shared_inner, longest = std::max<long>(hidden, experts.inner);
        const long copied = rows + at_most(rows, experts.count) * (COPIED - 1);
        scores = take<float>(tokens * outputs(experts));
        portions = take<float>(rows);
        ids = take<int32_t>(rows);
        places = take<int32_t>(rows);
        begins = take<int64_t>(experts.count);
        ends = take<int64_t>(experts.count);
        tile_begins = take<int64_t>(experts.count);
        results = take<float>(rows * hidden);
        gathered = (Input<E>*)results;  // no longer read when there are results
        opened = take<Input<E>>(std::max(rows * experts.inner, tokens * shared));
        tiles = take<Input<E>>(std::max(Formats<E>::elements(copied, longest), Formats<E>::elements(tokens, shared)));
    }

    static long outputs(const Experts& experts) { return experts.count + (experts.shared_inner > 0); }

  private:
    char* base;

    template <class T> T* take(long count) {
        char* place = base + bytes;
        bytes += rounded_up(count * sizeof(T), 64);
        return (T*)place;
    }
};

// The matrix of this number; `elements` are those of one. A description of it where weights are marked, marked, too.
template <class E> inline const E* matrix_of(const void* weights, long index, long elements) {
    if (const Quantized* first = as_quantized(weights)) return (const E*)((intptr_t)(first + index) | 1);
    return (const E*)weights + index * elements;
}

// A token's experts of the greatest scores, of equal ones those of the lowest ids, and their portions of its result: the
// softmax of all scores. Ids are valid where scores are NaN, too.
inline void choose(const Experts& experts, const float* scores, int32_t* ids, float* portions) {
    float top = scores[0], total = 0.0f, sum = 0.0f;
    for (long id = 1; id < experts.count; id++) top = scores[id] > top ? scores[id] : top;
    for (long id = 0; id < experts.count; id++) total += std::exp(scores[id] - top);
    bool is_taken[MAX_EXPERTS] = {};
    for (long i = 0; i < experts.chosen; i++) {
        long best = -1;
        for (long id = 0; id < experts.count; id++)
            if (!is_taken[id] && (best < 0 || scores[id] > scores[best])) best = id;
        is_taken[best] = true;
        ids[i] = (int32_t)best;
        portions[i] = std::exp(scores[best] - top) / total;
        sum += portions[i];
    }
    if (experts.normalizes)
        for (long i = 0; i < experts.chosen; i++) portions[i] /= sum;
}

// Where each of the tokens is gathered for its experts: by expert, then in the order of the tokens.
template <class E> void sort_by_expert(const Experts& experts, long tokens, const ExpertPlaces<E>& at) {
    for (long id = 0; id < experts.count; id++) at.ends[id] = 0;
    for (long i = 0; i < tokens * experts.chosen; i++) at.ends[at.ids[i]]++;
    long begin = 0, tile_begin = 0;
    for (long id = 0; id < experts.count; id++) {
        const long count = at.ends[id];
        at.begins[id] = at.ends[id] = begin;
        at.tile_begins[id] = tile_begin;
        begin += count;
        tile_begin += rounded_up(count, COPIED);
    }
    for (long i = 0; i < tokens * experts.chosen; i++) at.places[i] = (int32_t)at.ends[at.ids[i]]++;
}

// stream [tokens, hidden] += the experts' results for at most EXPERT_TOKENS normed tokens. Every thread of a parallel
// region calls it. Of a token, its experts are added in the order of their scores, whatever other tokens there are.
template <class E>
void feed_experts(const Experts& experts, const Input<E>* normed, long tokens, long hidden, const ExpertPlaces<E>& at,
                  float* stream) {
    const long inner = experts.inner, outputs = at.outputs(experts), shared = experts.shared_inner;
    const Operand<E> inputs = operand<E>(normed, tokens, hidden, at.tiles);
    project(inputs, tokens, hidden, (const E*)experts.router, (const E*)nullptr, outputs, at.scores, outputs);
    if (shared)
        project_gated(inputs, tokens, hidden, (const E*)experts.shared_gate, (const E*)experts.shared_up, shared,
                      at.opened);
#pragma omp barrier
    if (shared) {
        const float* gates = at.scores + experts.count;
        const Operand<E> opened = operand<E>(at.opened, tokens, shared, at.tiles);
        project_each(opened, tokens, shared, (const E*)experts.shared_down, hidden,
                     [=](long token, long column, int count, Floats sum) {
                         float* to = stream + token * hidden + column;
                         store(to, fma(sigmoid(all(gates[token * outputs])), sum, load(to, count)), count);
                     });
    }
#pragma omp for schedule(static)
    for (long token = 0; token < tokens; token++)
        choose(experts, at.scores + token * outputs, at.ids + token * experts.chosen,
               at.portions + token * experts.chosen);
#pragma omp single
    sort_by_expert(experts, tokens, at);
#pragma omp for schedule(static)
    for (long i = 0; i < tokens * experts.chosen; i++)
        std::memcpy(at.gathered + at.places[i] * hidden, normed + i / experts.chosen * hidden,
                    hidden * sizeof(Input<E>));
    // act(an expert, the number of its tokens, the first of them as products take them)
    auto each = [&](const Input<E>* rows, long size, auto act) {
        for (long id = 0; id < experts.count; id++)
            if (const long count = at.ends[id] - at.begins[id]) {
                Input<E>* copy = at.tiles + Formats<E>::elements(at.tile_begins[id], size);
                act(id, count, Operand<E>{rows + at.begins[id] * size, copy});
            }
    };
    auto lay_out = [&](const Input<E>* rows, long size, const void* weights) {
        if constexpr (Formats<E>::LAYS_OUT) {
            if (as_quantized(weights)) return;  // read from rows
            each(rows, size, [&](long, long count, Operand<E> own) {
                Formats<E>::lay_out(own.rows, count, size, (Input<E>*)own.tiles);
            });
#pragma omp barrier
        }
    };
    lay_out(at.gathered, hidden, experts.gate_up);
    each(at.gathered, hidden, [&](long id, long count, Operand<E> own) {
        const E* gate = matrix_of<E>(experts.gate_up, 2 * id, inner * hidden);
        const E* up = matrix_of<E>(experts.gate_up, 2 * id + 1, inner * hidden);
        project_gated(own, count, hidden, gate, up, inner, at.opened + at.begins[id] * inner);
    });
#pragma omp barrier
    lay_out(at.opened, inner, experts.down);
    each(at.opened, inner, [&](long id, long count, Operand<E> own) {
        project(own, count, inner, matrix_of<E>(experts.down, id, hidden * inner), (const E*)nullptr, hidden,
                at.results + at.begins[id] * hidden, hidden);
    });
#pragma omp barrier
#pragma omp for schedule(static)
    for (long token = 0; token < tokens; token++)
        for (long i = 0; i < hidden; i += LANES) {
            float* to = stream + token * hidden + i;
            Floats sum = load(to);
            for (long own = token * experts.chosen; own < (token + 1) * experts.chosen; own++)
                sum = fma(all(at.portions[own]), load(at.results + at.places[own] * hidden + i), sum);
            store(to, sum);
        }
}

}  // namespace toolwire
