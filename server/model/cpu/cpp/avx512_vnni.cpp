// Kernels for CPUs with AVX-512 and its integer products (Intel from Cascade Lake on), which weights of few bits use.

// Precedes the pragma, so that it is compiled for any x86-64 and may be called on any.
extern "C" int toolwire_is_supported() {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("fma");
}

#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,fma")

#include "avx512_products.h"
#include "avx512_widened.h"

#include "split.h"
#include "step.h"
