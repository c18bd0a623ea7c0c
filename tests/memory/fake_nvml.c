/* The part of NVML that the guard uses, with figures from a file that the test changes while it is mapped.
 *
 * The layout of the structures is repeated in fake_nvml.py. A process id of CALLING_PROCESS stands for the calling process.
 * Compiled with -DOLD_DRIVER, the functions that older drivers lack are left out.
 */
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define CALLING_PROCESS 0xFFFFFFFFu
enum { SUCCESS = 0, INVALID = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6, TOO_SMALL = 7, TIMEOUT = 10, UNKNOWN = 999 };

typedef struct { uint32_t pid, pad; uint64_t bytes; } process;
typedef struct { char uuid[96]; uint32_t instance, compute; uint64_t total, used; } slice;
typedef struct {
    char uuid[96], name[64];
    uint64_t total, used, throttle, memory_errors;
    uint32_t fault, utilisation, temperature, remap_failed, xid, mig, num_slices, num_processes;
    slice slices[4];
    process processes[8];
} card;
typedef struct { uint32_t init_fault, num_cards, no_process_list, reads; card cards[4]; } figures;

static figures *state(void) {
    static figures *mapped;
    if (mapped == NULL) {
        int file = open(getenv("FAKE_NVML"), O_RDWR);
        mapped = mmap(NULL, sizeof *mapped, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
        close(file);
    }
    return mapped;
}

/* A handle is the address of a card or a slice; this is the card that either belongs to. */
static card *card_of(void *handle) {
    size_t place = ((char *)handle - (char *)state()->cards) / sizeof(card);
    return place < 4 ? &state()->cards[place] : NULL;
}

static slice *slice_of(void *handle) {
    card *whole = card_of(handle);
    for (uint32_t i = 0; i < 4; i++)
        if (handle == (void *)&whole->slices[i]) return &whole->slices[i];
    return NULL;
}

int nvmlInitWithFlags(unsigned flags) { (void)flags; return (int)state()->init_fault; }
int nvmlShutdown(void) { return SUCCESS; }
const char *nvmlErrorString(int code) { (void)code; return "a fault of the fake"; }
int nvmlDeviceGetCount_v2(unsigned *count) { *count = state()->num_cards; return SUCCESS; }

int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **handle) {
    if (index >= state()->num_cards) return INVALID;
    *handle = &state()->cards[index];
    return (int)state()->cards[index].fault;
}

int nvmlDeviceGetUUID(void *handle, char *text, unsigned length) {
    slice *part = slice_of(handle);
    strncpy(text, part ? part->uuid : card_of(handle)->uuid, length);
    return SUCCESS;
}

int nvmlDeviceGetName(void *handle, char *text, unsigned length) {
    strncpy(text, card_of(handle)->name, length);
    return SUCCESS;
}

typedef struct { unsigned long long total, free, used; } memory;

int nvmlDeviceGetMemoryInfo(void *handle, memory *out) {
    card *whole = card_of(handle);
    slice *part = slice_of(handle);
    state()->reads++;
    out->total = part ? part->total : whole->total;
    out->used = part ? part->used : whole->used;
    out->free = out->used > out->total ? 0 : out->total - out->used;
    return (int)whole->fault;
}

typedef struct { unsigned pid; unsigned long long bytes; unsigned instance, compute; } listed;

int nvmlDeviceGetComputeRunningProcesses_v3(void *handle, unsigned *count, listed *out) {
    card *whole = card_of(handle);
    unsigned room = *count;
    if (state()->no_process_list) return NOT_SUPPORTED;
    *count = whole->num_processes;
    if (whole->num_processes == 0) return SUCCESS;
    if (out == NULL || room < whole->num_processes) return TOO_SMALL;
    for (unsigned i = 0; i < whole->num_processes; i++) {
        memset(&out[i], 0, sizeof out[i]);
        out[i].pid = whole->processes[i].pid == CALLING_PROCESS ? (unsigned)getpid() : whole->processes[i].pid;
        out[i].bytes = whole->processes[i].bytes;
    }
    return SUCCESS;
}

int nvmlDeviceGetUtilizationRates(void *handle, unsigned *rates) {
    rates[0] = card_of(handle)->utilisation;
    rates[1] = 0;
    return slice_of(handle) ? NOT_SUPPORTED : SUCCESS;
}

int nvmlDeviceGetTemperature(void *handle, int sensor, unsigned *degrees) {
    (void)sensor;
    *degrees = card_of(handle)->temperature;
    return SUCCESS;
}

int nvmlDeviceGetTotalEccErrors(void *handle, int kind, int counter, unsigned long long *count) {
    (void)kind, (void)counter;
    *count = card_of(handle)->memory_errors;
    return SUCCESS;
}

#ifndef OLD_DRIVER
int nvmlDeviceGetCurrentClocksEventReasons(void *handle, unsigned long long *reasons) {
    *reasons = card_of(handle)->throttle;
    return SUCCESS;
}

int nvmlDeviceGetRemappedRows(void *handle, unsigned *corrected, unsigned *uncorrected, unsigned *pending, unsigned *failed) {
    *corrected = *uncorrected = *pending = 0;
    *failed = card_of(handle)->remap_failed;
    return SUCCESS;
}

int nvmlDeviceGetMigMode(void *handle, unsigned *current, unsigned *pending) {
    *current = *pending = card_of(handle)->mig;
    return SUCCESS;
}

int nvmlDeviceGetMaxMigDeviceCount(void *handle, unsigned *count) { (void)handle; *count = 4; return SUCCESS; }

int nvmlDeviceGetMigDeviceHandleByIndex(void *handle, unsigned index, void **part) {
    card *whole = card_of(handle);
    *part = &whole->slices[index];
    return whole->slices[index].uuid[0] ? SUCCESS : NOT_FOUND; /* places may be empty */
}

int nvmlDeviceGetGpuInstanceId(void *handle, unsigned *id) { *id = slice_of(handle)->instance; return SUCCESS; }
int nvmlDeviceGetComputeInstanceId(void *handle, unsigned *id) { *id = slice_of(handle)->compute; return SUCCESS; }

int nvmlEventSetCreate(void **set) { *set = state(); return SUCCESS; }
int nvmlDeviceRegisterEvents(void *handle, unsigned long long kinds, void *set) {
    (void)handle, (void)kinds, (void)set;
    return SUCCESS;
}

typedef struct { void *device; unsigned long long kind, value; unsigned instance, compute; } event;

int nvmlEventSetWait_v2(void *set, event *out, unsigned timeout_ms) {
    (void)set, (void)timeout_ms;
    for (uint32_t i = 0; i < state()->num_cards; i++)
        if (state()->cards[i].xid) {
            out->device = &state()->cards[i];
            out->value = state()->cards[i].xid;
            state()->cards[i].xid = 0;
            return SUCCESS;
        }
    return TIMEOUT;
}
#endif
