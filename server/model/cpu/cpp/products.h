// Matrix products of tokens with weights [outputs, inputs].
//
// An output is the dot product of a token's inputs with one row of the weights. Each sum runs over its inputs in the
// same order, whatever the number of tokens.
#pragma once

#include <omp.h>

#include <type_traits>
#include <utility>

#include "quantized.h"

namespace toolwire {

constexpr long COLUMNS = 64;        // outputs that a thread computes at a time, at most
constexpr long CACHED = 384 << 10;  // bytes of inputs that stay in a core's own cache while weights are streamed

template <class E> using Input = typename Elements<E>::Input;

// Numbers as products with elements E take them: themselves, or widened copies; `count` is a multiple of LANES.
template <class E> const Input<E>* as_input(const Input<E>* numbers, long, void*) { return numbers; }
template <class E, class Q>
    requires(!std::is_same_v<Q, Input<E>>)
const Input<E>* as_input(const Q* numbers, long count, void* copies) {
    Input<E>* at = (Input<E>*)copies;
    for (long i = 0; i < count; i += LANES) store(at + i, load(numbers + i));
    return at;
}

// Inputs [tokens, size] of a product.
template <class E> struct Operand {
    const Input<E>* rows;
    const Input<E>* tiles;  // a copy in the layout of the set's own products, if it has any (`Formats`)
};

// The register of a row's next 64 bytes that is multiplied as number PART.
template <class E> struct InOrder {
    template <int PART> static auto part(const E* line) { return Elements<E>::load(line + PART * Elements<E>::STEP); }
};

// Weights as in the checkpoint, row by row. A register holds inputs of one output, which are summed at the end; `Order`
// says which ones.
template <class E, class Order> struct OrderedRows {
    static constexpr int TOKENS = ROW_TOKENS, UNIT = 1;

    const E* weights;
    long size;

    static void begin() {}
    static void end() {}

    // M tokens by `count` rows (at most GROUP) from `column` on, a stretch of inputs at a time.
    template <int M> void tile(const Input<E>* inputs, long column, int count, float (*sums)[GROUP]) const {
        constexpr int N = rows_at_once(M);
        // As many bytes of inputs as TOKENS tokens have.
        constexpr long OWN = STRETCH < 1L << 32 ? rounded_up(STRETCH * TOKENS / M, 64) : STRETCH;
        Floats begun[M][GROUP];
        for (long begin = 0; begin < size; begin += OWN) {
            const long end = at_most(begin + OWN, size);
            for (int first = 0; first < count; first += N) {
                const E* rows[N];
                for (int n = 0; n < N; n++) rows[n] = weights + (column + at_most(first + n, count - 1)) * size;
                Floats sum[M][N];
                for (int m = 0; m < M; m++)
                    for (int n = 0; n < N; n++) sum[m][n] = begin > 0 ? begun[m][first + n] : Floats{};
                add<M, N>(inputs, rows, begin, end, sum);
                for (int m = 0; m < M; m++) {
                    if (end == size) store_totals(&sums[m][first], sum[m]);
                    else
                        for (int n = 0; n < N; n++) begun[m][first + n] = sum[m][n];
                }
            }
        }
    }

  private:
    // Prefetches the next rows while these are multiplied.
    template <int M, int N>
    [[gnu::always_inline]] inline void add(const Input<E>* inputs, const E* const (&rows)[N], long begin, long end,
                                           Floats (&sum)[M][N]) const {
        constexpr int LINE = 64 / sizeof(E);
        const E* next = rows[0] + N * size;
        for (long line = begin; line < end; line += LINE) {
            for (int n = 0; n < N; n++) __builtin_prefetch(next + n * size + line, 0, 2);
            add_parts<M, N>(inputs + line, rows, line, sum, std::make_index_sequence<LINE / Elements<E>::STEP>{});
        }
    }

    template <int M, int N, size_t... PARTS>
    [[gnu::always_inline]] inline void add_parts(const Input<E>* inputs, const E* const (&rows)[N], long line,
                                                 Floats (&sum)[M][N], std::index_sequence<PARTS...>) const {
        (add_part<M, N, PARTS>(inputs, rows, line, sum), ...);
    }

    template <int M, int N, int PART>
    [[gnu::always_inline]] inline void add_part(const Input<E>* inputs, const E* const (&rows)[N], long line,
                                                Floats (&sum)[M][N]) const {
        using Es = Elements<E>;
        asm volatile("" ::: "memory");  // without it, loads move up until registers are spilled: a quarter slower
        typename Es::Bits weight[N];
        for (int n = 0; n < N; n++) weight[n] = Order::template part<PART>(rows[n] + line);
        for (int m = 0; m < M; m++) {
            typename Es::Bits input = Es::load(inputs + m * size + PART * Es::STEP);
            for (int n = 0; n < N; n++) sum[m][n] = Es::dot(sum[m][n], input, weight[n]);
        }
    }
};

template <class E> struct Rows : OrderedRows<E, InOrder<E>> {};

// Weights packed into panels of sixteen outputs: [panels, inputs / PAIR, GROUP, PAIR]. A register holds one input (a
// pair in bfloat16 products) of several outputs, so that no horizontal sums are needed, which would cost as much as the
// short rows.
template <class E> struct Panels {
    static constexpr int TOKENS = PANEL_TOKENS, UNIT = 1;

    const E* weights;
    long size;

    static void begin() {}
    static void end() {}
    static long elements(long size, long outputs) { return rounded_up(outputs, GROUP) * size; }

    static void lay_out(const E* rows, long size, long outputs, E* panels) {
        constexpr int PAIR = Elements<E>::PAIR;
#pragma omp for schedule(static)
        for (long first = 0; first < outputs; first += GROUP)
            for (long k = 0; k < size; k += PAIR)
                for (long output = first; output < first + GROUP; output++) {
                    E* at = panels + first * size + k * GROUP + (output - first) * PAIR;
                    for (long i = 0; i < PAIR; i++) at[i] = output < outputs ? rows[output * size + k + i] : E{};
                }
    }

    template <int M> void tile(const Input<E>* inputs, long column, int, float (*sums)[GROUP]) const {
        using Es = Elements<E>;
        constexpr int PARTS = GROUP / LANES;
        const E* panel = weights + column * size;
        Floats sum[M][PARTS];
        for (int m = 0; m < M; m++)
            for (int part = 0; part < PARTS; part++) sum[m][part] = Floats{};
        for (long k = 0; k < size; k += Es::PAIR) {
            typename Es::Bits weight[PARTS];
            for (int part = 0; part < PARTS; part++) weight[part] = Es::load(panel + k * GROUP + part * Es::STEP);
            __builtin_prefetch(panel + (size + k) * GROUP, 0, 2);
            for (int m = 0; m < M; m++) {
                typename Es::Bits input = Es::everywhere(inputs + m * size + k);
                for (int part = 0; part < PARTS; part++) sum[m][part] = Es::dot(sum[m][part], input, weight[part]);
            }
        }
        for (int m = 0; m < M; m++)
            for (int part = 0; part < PARTS; part++) store(sums[m] + part * LANES, sum[m][part]);
    }
};

// Number of threads for work of `products` multiplications and `fetched` numbers read from memory: all, or one. On a
// busy machine threads are preempted and the others wait, for longer than one thread takes for a small product
// (docs/internals/lablog.md).
inline int threads_for(long products, long fetched, long threads) {
    const long as_long_as = 16;  // multiplications, as a fetch takes
    return products + fetched * as_long_as < (64 << 20) ? 1 : (int)threads;
}

// How weights of a type are read, and inputs for them. A set with products of its own specializes it.
template <class E> struct Formats {
    using Long = Rows<E>;
    static constexpr long SHORT = 512;  // weights with at most this many inputs are packed into panels

    // Inputs [tokens, size] are copied to another layout, if LAYS_OUT: elements of the copy, and the copy itself, made
    // by all threads of a parallel region, which needs a barrier afterwards.
    static constexpr bool LAYS_OUT = false;
    static constexpr long elements(long, long) { return 0; }
    static void lay_out(const Input<E>*, long, long, Input<E>*) {}
};

// Inputs as products take them; every thread of the parallel region calls it. `copy` has room for `Formats::elements`.
template <class E>
inline Operand<E> operand(const Input<E>* rows, long tokens, long size, Input<E>* copy) {
    if constexpr (Formats<E>::LAYS_OUT) {
        Formats<E>::lay_out(rows, tokens, size, copy);
#pragma omp barrier
    }
    return {rows, copy};
}

// Sums of `tokens` tokens by sixteen outputs.
template <class E, template <class> class Form, int M = Form<E>::TOKENS>
inline void multiply(const Form<E>& form, const Operand<E>& inputs, long token, int tokens, long column, int count,
                     float (*sums)[GROUP]) {
    if constexpr (M > 1)
        if (tokens < M) return multiply<E, Form, M - 1>(form, inputs, token, tokens, column, count, sums);
    constexpr bool IS_LONG = std::is_same_v<Form<E>, typename Formats<E>::Long>;
    const Input<E>* rows = Formats<E>::LAYS_OUT && IS_LONG ? inputs.tiles : inputs.rows;
    form.template tile<M>(rows + token * form.size, column, count, sums);
}

// Calls `act` with the weights in the form that they have, depending on their size.
template <class E, class Act> inline void in_their_form(const E* weights, long size, Act act) {
    if (size <= Formats<E>::SHORT)
        act(Panels<E>{weights, size});
    else
        act(typename Formats<E>::Long{weights, size});
}

// Splits inputs [tokens, size] times weights [outputs, size] into tiles, distributed over the threads of the calling
// parallel region, which needs a barrier afterwards. `use(token, tokens, column, count)` computes one tile.
template <class Form, class Use> inline void product(long tokens, long outputs, long row_bytes, Use use) {
    constexpr int TOKENS = Form::TOKENS;
    long strip = CACHED / row_bytes / TOKENS * TOKENS;
    if (strip < 4 * TOKENS) strip = 4 * TOKENS;
    const long strips = (tokens + strip - 1) / strip;
    const long share = rounded_up(outputs / (4 * omp_get_num_threads()) + 1, GROUP);
    const long width = strips == 1 ? GROUP : at_most(share, COLUMNS), columns = (outputs + width - 1) / width;
    Form::begin();
    distribute(strips, columns, [&](long item) {
        long first = item / columns * strip, last = at_most(tokens, first + strip);
        long left = item % columns * width, right = at_most(outputs, left + width);
        for (long column = left; column < right; column += GROUP)
            for (long token = first, tiles = (last - first + TOKENS - 1) / TOKENS; tiles > 0; tiles--) {
                // 8 become 4 and 4, not 6 and 2.
                const long even = rounded_up((last - token + tiles - 1) / tiles, Form::UNIT);
                const int count = (int)at_most(even, last - token);
                use(token, count, column, (int)at_most(GROUP, right - column));
                token += count;
            }
    });
    Form::end();
}

// `use(first, count)` for each register of `outputs` numbers: its first one, and how many are in it.
template <class Use> inline void by_registers(int outputs, Use use) {
    for (int first = 0; first < outputs; first += LANES) use(first, (int)at_most(LANES, outputs - first));
}

// inputs times weights, distributed as by `product`; `keep(token, column, count, sums)` gets a register at a time.
template <class E, class Keep>
void project_each(Operand<E> inputs, long tokens, long size, const E* weights, long outputs, Keep keep) {
    if (const Quantized* quantized = as_quantized(weights))
        return project_quantized(inputs.rows, tokens, *quantized, keep);
    in_their_form(weights, size, [=](auto form) {
        using Form = decltype(form);
        const long row_bytes = size * sizeof(Input<E>);
        product<Form>(tokens, outputs, row_bytes, [=](long token, int m, long column, int count) {
            float sums[Form::TOKENS][GROUP];
            multiply(form, inputs, token, m, column, count, sums);
            for (int i = 0; i < m; i++)
                by_registers(count, [&](int first, int own) {
                    keep(token + i, column + first, own, load(sums[i] + first));
                });
        });
    });
}

// What sums become before they are used (`Adapted` in adapters.h): `change(token, column, sums)` gets a register at a
// time.
struct Unchanged {
    Floats operator()(long, long, Floats sums) const { return sums; }
};

// results = inputs times weights, plus a bias.
template <class E, class R, class Change = Unchanged>
void project(Operand<E> inputs, long tokens, long size, const E* weights, const E* bias, long outputs, R* results,
             long stride, Change change = {}) {
    project_each(inputs, tokens, size, weights, outputs, [=](long token, long column, int count, Floats sum) {
        if (bias) {
            alignas(64) E own[LANES] = {};
            std::memcpy(own, bias + column, count * sizeof(E));
            sum = sum + load(own);
        }
        store(results + token * stride + column, change(token, column, sum), count);
    });
}

// One thread's maxima over one token's outputs.
struct Seen {
    Peaks peaks;
    int64_t is_broken;  // an output was NaN or infinite
};

// Each thread's `seen` [tokens] of inputs times weights; the products themselves are not stored.
template <class E>
void project_to_peaks(Operand<E> inputs, long tokens, long size, const E* weights, long outputs, Seen* seen) {
    for (long token = 0; token < tokens; token++) seen[token] = {{all(-INFINITY), Ints{}}, 0};
    project_each(inputs, tokens, size, weights, outputs, [=](long token, long column, int count, Floats sum) {
        const Mask own = first_lanes(count);
        seen[token].is_broken |= is_broken(own, sum);
        seen[token].peaks.see(sum, column, own);
    });
}

// stream += inputs times weights.
template <class E, class Change = Unchanged>
void project_onto(Operand<E> inputs, long tokens, long size, const E* weights, long outputs, float* stream,
                  Change change = {}) {
    project_each(inputs, tokens, size, weights, outputs, [=](long token, long column, int count, Floats sum) {
        float* at = stream + token * outputs + column;
        store(at, load(at, count) + change(token, column, sum), count);
    });
}

// results = silu(gates) * values, of a register.
template <class R> inline void store_gated(R* results, Floats gates, Floats values, int count) {
    store(results, silu(gates) * values, count);
}

// results = silu(inputs times gate) * (inputs times up); both in elements, or both quantized.
template <class E, class Change = Unchanged>
void project_gated(Operand<E> inputs, long tokens, long size, const E* gate, const E* up, long outputs,
                   Input<E>* results, Change change_gate = {}, Change change_up = {}) {
    if (const Quantized* quantized = as_quantized(gate))
        return project_both(inputs.rows, tokens, *quantized, *as_quantized(up),
                            [=](long token, long column, int count, Floats gates, Floats values) {
                                store_gated(results + token * outputs + column, change_gate(token, column, gates),
                                            change_up(token, column, values), count);
                            });
    in_their_form(gate, size, [=](auto gate) {
        using Form = decltype(gate);
        const Form other{up, size};
        const long row_bytes = size * sizeof(Input<E>);
        product<Form>(tokens, outputs, row_bytes, [=](long token, int m, long column, int count) {
            float gates[Form::TOKENS][GROUP], ups[Form::TOKENS][GROUP];
            multiply(gate, inputs, token, m, column, count, gates);
            multiply(other, inputs, token, m, column, count, ups);
            for (int i = 0; i < m; i++)
                by_registers(count, [&](int first, int own) {
                    Input<E>* at = results + (token + i) * outputs + column + first;
                    store_gated(at, change_gate(token + i, column + first, load(gates[i] + first)),
                                change_up(token + i, column + first, load(ups[i] + first)), own);
                });
        });
    });
}

}  // namespace toolwire
