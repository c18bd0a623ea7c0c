// Kernels for CPUs with AVX-512 alone (Intel from Skylake-SP on).

// Precedes the pragma, so that it is compiled for any x86-64 and may be called on any.
extern "C" int toolwire_is_supported() {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("fma");
}

#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,fma")

#include "avx512_widened.h"

namespace toolwire {

inline Ints dot_words(Ints sum, Ints a, Ints b) {
    sum = _mm512_add_epi32(sum, _mm512_madd_epi16(a, b));
    asm("" : "+v"(sum));  // as in avx2.cpp
    return sum;
}

}  // namespace toolwire

#include "split.h"
#include "step.h"
