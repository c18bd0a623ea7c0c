// Kernels for CPUs with tiles of bfloat16 (Intel AMX: Xeon from the fourth generation on).

#include <sys/syscall.h>
#include <unistd.h>

// Precedes the pragma, so that it is compiled for any x86-64 and may be called on any. Linux wants to be asked before
// the process uses tiles, whose registers take 8 KiB of each thread.
extern "C" int toolwire_is_supported() {
    constexpr int REQUEST_PERMISSION = 0x1023, TILE_DATA = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vnni") &&
           __builtin_cpu_supports("fma") &&
           __builtin_cpu_supports("amx-tile") && __builtin_cpu_supports("amx-bf16") &&
           syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) == 0;
}

#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx512vnni,fma,amx-tile,amx-bf16")

#include "avx512_bf16.h"

#include "tiles.h"

#include "tile_attention.h"

#include "step.h"
