// Decoder step on a CPU: all norms, products and attention of a batch in one call. The functions of a set's library.
//
// Weights are read in place, except that short rows are packed into panels (`toolwire_panel_bytes`). Every output is
// summed in the same order whatever the number of tokens, so a sequence's result does not depend on the rest of the
// batch, on prompt chunks, or on the number of threads.
//
// Elements are bfloat16 or float32. Sums, norms, angles, softmax and the residual stream are float32 in both.
// Sizes: head_dim is a multiple of 32, as are the inputs of every product; block_size is even.

#pragma once

#include "attention.h"
#include "norms.h"
#include "products.h"

#include <memory>

using namespace toolwire;

// Mirrored by the ctypes structures in server/model/cpu/library.py.
extern "C" {
struct Layer {
    const void *query, *key, *value, *output, *gate, *up, *down;
    const void *query_bias, *key_bias, *value_bias;  // or null
    const void *attention_norm, *mlp_norm;
    const void *query_norm, *key_norm;  // or null
};

struct Model {
    int64_t is_bf16, hidden, inner, heads, kv_heads, head_dim, num_layers;
    float epsilon, scaling;
    const Layer* layers;
    const void* norm;
};

struct Step {
    int64_t num_tokens, num_rows, num_threads, block_size;
    const Row* rows;                    // in the order of their tokens
    void *const *keys, *const *values;  // each layer's part of the KV cache
    const void* embedded;               // [num_tokens, hidden]
    const float *cosines, *sines;       // [num_tokens, head_dim]
    void* results;                      // [num_tokens, hidden]
    void* scratch;                      // toolwire_step_bytes
};

struct Attention {  // of one layer
    int64_t is_bf16, heads, kv_heads, head_dim, num_tokens, num_rows, num_threads, block_size;
    float scaling;
    const Row* rows;
    const void *queries, *new_keys, *new_values;  // [num_tokens, heads or kv_heads, head_dim]
    void *keys, *values;                          // the layer's part of the KV cache
    void* results;                                // like queries
    void* scratch;                                // toolwire_attention_bytes
};
}

namespace {

Heads heads_of(const Model& model, long block_size) {
    return {(long)model.heads, (long)model.kv_heads, (long)model.head_dim, block_size, model.scaling};
}

// Intermediate results of a step in its scratch memory.
template <class E> struct Places {
    float *stream, *projected, *attention;
    Input<E> *normed, *queries, *attended, *opened;
    long bytes = 0;

    Places(const Model& model, const Step& step) : base((char*)step.scratch) {
        const long tokens = step.num_tokens, query_size = model.heads * model.head_dim;
        stream = take<float>(tokens * model.hidden);
        // Queries replace the normed stream once they are computed, and results of attention what was projected.
        normed = queries = take<Input<E>>(tokens * (query_size > model.hidden ? query_size : model.hidden));
        // Attention and MLP of a layer reuse the same memory.
        const long shared = bytes;
        projected = take<float>(tokens * (query_size + 2 * model.kv_heads * model.head_dim));
        attended = (Input<E>*)projected;
        attention = take<float>(step.num_threads * scratch_floats(heads_of(model, step.block_size)));
        const long attending = bytes;
        bytes = shared;
        opened = take<Input<E>>(tokens * model.inner);
        if (bytes < attending) bytes = attending;
    }

  private:
    char* base;

    template <class T> T* take(long count) {
        char* place = base + bytes;
        bytes += rounded_up(count * sizeof(T), 64);
        return (T*)place;
    }
};

// One thread's part of a step; the loops distribute the work over all threads.
template <class E> class Worker {
  public:
    Worker(const Model& model, const Step& step, const Places<E>& places)
        : model(model), step(step), places(places), heads(heads_of(model, step.block_size)),
          query_size(model.heads * model.head_dim), key_size(model.kv_heads * model.head_dim),
          scratch(places.attention + omp_get_thread_num() * scratch_floats(heads)) {}

    void run() const {
        const E* embedded = (const E*)step.embedded;
#pragma omp for schedule(static)
        for (long i = 0; i < step.num_tokens * model.hidden; i += LANES)
            store(places.stream + i, load(embedded + i));
        for (long index = 0; index < model.num_layers; index++) {
            attend(model.layers[index], (E*)step.keys[index], (E*)step.values[index]);
            feed_forward(model.layers[index]);
        }
        norm(places.stream, step.num_tokens, model.hidden, (const E*)model.norm, model.epsilon, (E*)step.results);
    }

  private:
    const Model& model;
    const Step& step;
    const Places<E>& places;
    const Heads heads;
    const long query_size, key_size;
    float* scratch;

    void attend(const Layer& layer, E* keys, E* values) const {
        const long tokens = step.num_tokens, hidden = model.hidden, all = query_size + 2 * key_size;
        norm(places.stream, tokens, hidden, (const E*)layer.attention_norm, model.epsilon, places.normed);
        auto make = [&](const void* weights, const void* bias, long size, long at) {
            project(places.normed, tokens, hidden, (const E*)weights, (const E*)bias, size, places.projected + at, all);
        };
        make(layer.query, layer.query_bias, query_size, 0);
        make(layer.key, layer.key_bias, key_size, query_size);
        make(layer.value, layer.value_bias, key_size, query_size + key_size);
#pragma omp barrier
#pragma omp for schedule(static)
        for (long token = 0; token < tokens; token++) place(layer, token, keys, values);
        toolwire::attend<E>(heads, step.rows, step.num_rows, places.queries, keys, values, places.attended, scratch);
        project_onto(places.attended, tokens, query_size, (const E*)layer.output, hidden, places.stream);
#pragma omp barrier
    }

    // Norms and rotates one token's queries and keys, and stores queries, keys and values for attention.
    void place(const Layer& layer, long token, E* keys, E* values) const {
        float* own = places.projected + token * (query_size + 2 * key_size);
        const float *cosines = step.cosines + token * heads.head_dim, *sines = step.sines + token * heads.head_dim;
        for (long head = 0; head < heads.heads + heads.kv_heads; head++) {
            const void* weight = head < heads.heads ? layer.query_norm : layer.key_norm;
            turn(own + head * heads.head_dim, heads.head_dim, (const E*)weight, model.epsilon, cosines, sines);
        }
        for (long i = 0; i < query_size; i += LANES)
            store(places.queries + token * query_size + i, load(own + i));
        const Place at = place_of(step.rows, token, heads.block_size);
        keep(heads, own + query_size, own + query_size + key_size, keys, values, at);
    }

    void feed_forward(const Layer& layer) const {
        const long tokens = step.num_tokens, hidden = model.hidden, inner = model.inner;
        norm(places.stream, tokens, hidden, (const E*)layer.mlp_norm, model.epsilon, places.normed);
        project_gated(places.normed, tokens, hidden, (const E*)layer.gate, (const E*)layer.up, inner, places.opened);
#pragma omp barrier
        project_onto(places.opened, tokens, inner, (const E*)layer.down, hidden, places.stream);
#pragma omp barrier
    }
};

// Number of threads for a step; there are several barriers a layer.
int threads_of(const Model& model, const Step& step) {
    const long attended = model.heads * model.head_dim, kept = 2 * model.kv_heads * model.head_dim;
    const long weights = model.hidden * (2 * attended + kept + 3 * model.inner);
    long products = step.num_tokens * weights, fetched = weights;
    for (long i = 0; i < step.num_rows; i++) {
        const Row& row = step.rows[i];
        products += row.num_tokens * (row.start + row.num_tokens) * 2 * attended;
        fetched += (row.start + row.num_tokens) * kept;
    }
    return threads_for(products, fetched, step.num_threads);
}

template <class E> void compute(const Model& model, const Step& step) {
    const Places<E> places(model, step);
#pragma omp parallel num_threads(threads_of(model, step))
    Worker<E>(model, step, places).run();
}

template <class E> void attend_alone(const Attention& step) {
    const Heads heads = {(long)step.heads, (long)step.kv_heads, (long)step.head_dim, (long)step.block_size,
                         step.scaling};
    const long key_size = heads.kv_heads * heads.head_dim;
    const E *new_keys = (const E*)step.new_keys, *new_values = (const E*)step.new_values;
    E *keys = (E*)step.keys, *values = (E*)step.values;
#pragma omp parallel num_threads((int)step.num_threads)
    {
#pragma omp for schedule(static)
        for (long token = 0; token < step.num_tokens; token++) {
            const Place at = place_of(step.rows, token, heads.block_size);
            keep(heads, new_keys + token * key_size, new_values + token * key_size, keys, values, at);
        }
        float* scratch = (float*)step.scratch + omp_get_thread_num() * scratch_floats(heads);
        attend<E>(heads, step.rows, step.num_rows, (const E*)step.queries, keys, values, (E*)step.results, scratch);
    }
}

// Id of a token's greatest output over all threads, the lowest of equal ones; -1 if an output is not finite.
int64_t likeliest(const Seen* first, long threads, long tokens) {
    float greatest = -INFINITY;
    int id = 0;
    for (long thread = 0; thread < threads; thread++) {
        const Seen& seen = first[thread * tokens];
        if (seen.is_broken) return -1;
        float values[LANES];
        int ids[LANES];
        store(values, seen.peaks.values);
        store(ids, seen.peaks.ids);
        for (int lane = 0; lane < LANES; lane++)
            if (values[lane] > greatest || (values[lane] == greatest && ids[lane] < id)) {
                greatest = values[lane];
                id = ids[lane];
            }
    }
    return id;
}

// Inputs of a product in the type in which it takes them.
template <class E> class Taken {
  public:
    Taken(const void* inputs, long count)
        : copies(std::is_same_v<E, Input<E>> ? nullptr : new Input<E>[count]),
          at(as_input<E>((const E*)inputs, count, copies.get())) {}

  private:
    const std::unique_ptr<Input<E>[]> copies;

  public:
    const Input<E>* const at;
};

template <class E>
void project_alone(const void* inputs, long tokens, long size, const void* weights, long outputs, float* results,
                   long threads) {
    const Taken<E> taken(inputs, tokens * size);
#pragma omp parallel num_threads(threads_for(tokens * size * outputs, size * outputs, threads))
    project(taken.at, tokens, size, (const E*)weights, (const E*)nullptr, outputs, results, outputs);
}

// The number of threads that filled their part of `seen` [threads, tokens].
template <class E>
int find_peaks(const void* inputs, long tokens, long size, const void* weights, long outputs, Seen* seen,
               long threads) {
    const Taken<E> taken(inputs, tokens * size);
    int working = 0;  // OpenMP may give fewer threads than requested
#pragma omp parallel num_threads(threads_for(tokens * size * outputs, size * outputs, threads))
    {
#pragma omp single nowait
        working = omp_get_num_threads();
        Seen* own = seen + omp_get_thread_num() * tokens;
        project_to_peaks(taken.at, tokens, size, (const E*)weights, outputs, own);
    }
    return working;
}

}  // namespace

extern "C" {

// Bytes of scratch that a step needs; reads only its numbers of tokens and threads, and its block size.
int64_t toolwire_step_bytes(const Model* model, const Step* step) {
    return model->is_bf16 ? Places<Bf16>(*model, *step).bytes : Places<float>(*model, *step).bytes;
}

// Everything between the embedded tokens and the output head.
void toolwire_compute(const Model* model, const Step* step) {
    model->is_bf16 ? compute<Bf16>(*model, *step) : compute<float>(*model, *step);
}

int64_t toolwire_attention_bytes(const Attention* step) {
    const Heads heads = {1, 1, (long)step->head_dim, (long)step->block_size, 1.0f};
    return step->num_threads * scratch_floats(heads) * sizeof(float);
}

// Stores new keys and values, then attends.
void toolwire_attend(const Attention* step) { step->is_bf16 ? attend_alone<Bf16>(*step) : attend_alone<float>(*step); }

// Bytes of the panels that weights [outputs, size] must be packed into before any product; 0 if they are read in place.
int64_t toolwire_panel_bytes(int64_t is_bf16, int64_t size, int64_t outputs) {
    if (size > SHORT) return 0;
    return Panels<Bf16>::elements(size, outputs) * (is_bf16 ? sizeof(Bf16) : sizeof(float));
}

void toolwire_lay_out(int64_t is_bf16, const void* weights, int64_t size, int64_t outputs, void* panels,
                      int64_t threads) {
#pragma omp parallel num_threads((int)threads)
    is_bf16 ? Panels<Bf16>::lay_out((const Bf16*)weights, size, outputs, (Bf16*)panels)
            : Panels<float>::lay_out((const float*)weights, size, outputs, (float*)panels);
}

// Bytes of scratch that `toolwire_likeliest` needs.
int64_t toolwire_likeliest_bytes(int64_t tokens, int64_t threads) { return (tokens * threads + 1) * sizeof(Seen); }

// ids [tokens] of the greatest outputs, the lowest of equal ones; -1 where an output is not finite.
void toolwire_likeliest(int64_t is_bf16, const void* inputs, int64_t tokens, int64_t size, const void* weights,
                        int64_t outputs, int64_t* ids, void* scratch, int64_t threads) {
    Seen* seen = (Seen*)rounded_up((intptr_t)scratch, alignof(Seen));
    const int working = is_bf16 ? find_peaks<Bf16>(inputs, tokens, size, weights, outputs, seen, threads)
                                : find_peaks<float>(inputs, tokens, size, weights, outputs, seen, threads);
    for (long token = 0; token < tokens; token++) ids[token] = likeliest(seen + token, working, tokens);
}

// results [tokens, outputs] in float32 = inputs [tokens, size] times weights [outputs, size].
void toolwire_project(int64_t is_bf16, const void* inputs, int64_t tokens, int64_t size, const void* weights,
                      int64_t outputs, float* results, int64_t threads) {
    is_bf16 ? project_alone<Bf16>(inputs, tokens, size, weights, outputs, results, threads)
            : project_alone<float>(inputs, tokens, size, weights, outputs, results, threads);
}
}
