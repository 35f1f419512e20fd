/* The scheduler of simt.h. Compiled without ThreadSanitizer's instrumentation: what happens here is no access of a kernel. */
#pragma GCC optimize("no-tree-loop-distribute-patterns") /* no memcpy, memset: ThreadSanitizer would see them */
#include "simt/simt.h"

#include <link.h>
#include <mutex>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/common_interface_defs.h>
#endif
#ifdef LMI_SIMT_TSAN
extern "C" {
void *__tsan_get_current_fiber(void);
void *__tsan_create_fiber(unsigned flags);
void __tsan_switch_to_fiber(void *fiber, unsigned flags);
void __tsan_acquire(void *address);
void __tsan_release(void *address);
void __tsan_java_init(uintptr_t begin, uintptr_t size);
void __tsan_java_alloc(uintptr_t begin, uintptr_t size);
void __tsan_java_free(uintptr_t begin, uintptr_t size);
}
#else
#define __tsan_acquire(address) ((void)(address))
#define __tsan_release(address) ((void)(address))
#endif

/* simt_switch(save, to): keeps what the calling convention asks a function to keep, and the stack pointer in *save; goes on where the other one
 * called it. A new fiber begins at simt_begin. */
#if defined(__x86_64__)
asm(".text\n.globl simt_switch\n.hidden simt_switch\nsimt_switch:\n"
    "push %rbp\npush %rbx\npush %r12\npush %r13\npush %r14\npush %r15\n"
    "mov %rsp, (%rdi)\nmov %rsi, %rsp\n"
    "pop %r15\npop %r14\npop %r13\npop %r12\npop %rbx\npop %rbp\nret\n");
enum { SAVED_WORDS = 8, RETURN_WORD = 6 };
#elif defined(__aarch64__)
asm(".text\n.globl simt_switch\n.hidden simt_switch\nsimt_switch:\n"
    "sub sp, sp, #160\nstp x19, x20, [sp]\nstp x21, x22, [sp, #16]\nstp x23, x24, [sp, #32]\nstp x25, x26, [sp, #48]\n"
    "stp x27, x28, [sp, #64]\nstp x29, x30, [sp, #80]\nstp d8, d9, [sp, #96]\nstp d10, d11, [sp, #112]\nstp d12, d13, [sp, "
    "#128]\n"
    "stp d14, d15, [sp, #144]\nmov x2, sp\nstr x2, [x0]\nmov sp, x1\n"
    "ldp x19, x20, [sp]\nldp x21, x22, [sp, #16]\nldp x23, x24, [sp, #32]\nldp x25, x26, [sp, #48]\n"
    "ldp x27, x28, [sp, #64]\nldp x29, x30, [sp, #80]\nldp d8, d9, [sp, #96]\nldp d10, d11, [sp, #112]\nldp d12, d13, [sp, "
    "#128]\n"
    "ldp d14, d15, [sp, #144]\nadd sp, sp, #160\nret\n");
enum { SAVED_WORDS = 20, RETURN_WORD = 11 };
#else
#error "the emulator needs simt_switch for this processor"
#endif
extern "C" void simt_switch(void **save, void *to);

namespace simt {

thread *current;
dim3 grid_size, block_size;
uint3 block_index;

namespace {

enum { MAX_THREADS = 1024, MAX_WARPS = 32, MAX_COPIES = 256, MAX_DYNAMIC = 232448, PAGE = 4096, MAX_SEEN = 16 };
#if defined(__SANITIZE_ADDRESS__) || defined(LMI_SIMT_TSAN)
enum { STACK_BYTES = 256 * 1024 };
#else
enum { STACK_BYTES = 64 * 1024 };
#endif
/* ThreadSanitizer knows a fiber by what it did before: two blocks on the same fibers are ordered to it. So blocks take one of a few sets, in an order
 * without a pattern. */
#ifdef LMI_SIMT_TSAN
enum { SETS = 2 };
#else
enum { SETS = 1 };
#endif

enum condition { READY, IN_WARP, IN_BLOCK, ENDED };

struct fiber : thread {
    unsigned char *stack; /* its lowest byte that can be used */
    void *stack_pointer, *tsan, *asan;
    condition state;
    unsigned n_warp_meetings, n_block_meetings;
    bool waited, fenced;
    int n_copies, first_copy, group; /* copies first_copy .. n_copies are under way; those of `group` are not committed */
    pending_copy copies[MAX_COPIES];
};

struct warp {
    unsigned n_arrived, ready; /* ready: a bit a lane */
    meeting kind;
    size_t bytes;
    slot slots[2][32]; /* a lane may be one meeting ahead of another */
    char order[2];     /* addresses that stand for what __syncwarp orders */
};

struct fiber_set {
    fiber fibers[MAX_THREADS];
    warp warps[MAX_WARPS];
    char order[2]; /* the same of __syncthreads */
};

fiber_set *sets[SETS], *set;
fiber host;
#ifdef __SANITIZE_ADDRESS__
const void *host_stack;
size_t host_stack_bytes;
#endif
const char *kernel_name;
const std::function<void()> *kernel_body;
unsigned n_threads, n_warps, n_running, n_in_block, warps_ready;
uint64_t n_launches;
bool reversed;
unsigned char *dynamic_end, *dynamic_begin; /* of the whole area, of this launch */
unsigned char *static_begin;
size_t static_bytes;
const void *seen[MAX_SEEN]; /* addresses of the block's latest atomics */
unsigned n_seen;
char start_order, launch_order[2];
std::mutex one_at_a_time;
SHARED volatile char touched; /* a library's thread-local variables are there from a thread's first use of one */

const char *const meeting_names[] = {"a shuffle", "a vote", "mma", "load_matrices", "__syncwarp", "__syncthreads"};

fiber *self() { return static_cast<fiber *>(current); }
unsigned number(const fiber *f) { return (unsigned)(f - set->fibers); }

void *map(size_t bytes) {
    void *memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) {
        perror("simt: mmap");
        abort();
    }
    return memory;
}

void switch_to(fiber *to) {
    fiber *from = self();
    current = to;
#ifdef LMI_SIMT_TSAN
    __tsan_switch_to_fiber(to->tsan, 1);
#endif
#ifdef __SANITIZE_ADDRESS__
    const bool to_host = to == &host;
    __sanitizer_start_switch_fiber(from->state == ENDED ? nullptr : &from->asan, to_host ? host_stack : to->stack,
                                   to_host ? host_stack_bytes : (size_t)STACK_BYTES);
#endif
    simt_switch(&from->stack_pointer, to->stack_pointer);
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_finish_switch_fiber(self()->asan, nullptr, nullptr);
#endif
}

unsigned pick(unsigned bits) { return reversed ? 31 - (unsigned)__builtin_clz(bits) : (unsigned)__builtin_ctz(bits); }

void set_ready(fiber *f) {
    const unsigned w = number(f) / 32;
    f->state = READY;
    set->warps[w].ready |= 1u << f->lane;
    warps_ready |= 1u << w;
}

/* Nobody can go on: says who waits for whom. */
[[noreturn]] void stop_stuck() {
    fiber *waiting = nullptr;
    for (unsigned i = 0; i < n_threads; i++) { /* a warp's meeting tells more than the barrier that others wait at */
        fiber *f = &set->fibers[i];
        if (f->state == IN_WARP || (f->state == IN_BLOCK && waiting == nullptr)) {
            waiting = f;
            if (f->state == IN_WARP) {
                break;
            }
        }
    }
    current = waiting;
    if (waiting->state == IN_WARP) {
        const unsigned w = number(waiting) / 32;
        const warp *at = &set->warps[w];
        if (n_threads < 32 * w + 32) {
            stop("%s in a warp of %u threads", meeting_names[at->kind], n_threads - 32 * w);
        }
        for (unsigned i = 32 * w; i < 32 * w + 32; i++) {
            if (set->fibers[i].state != IN_WARP) {
                stop("%s: only %u lanes come; lane %u %s", meeting_names[at->kind], at->n_arrived, i % 32,
                     set->fibers[i].state == ENDED ? "has ended" : "waits at __syncthreads");
            }
        }
    }
    stop("__syncthreads: only %u of %u threads come, the others have ended", n_in_block, n_threads);
}

/* Leaves the running fiber, which has set its state, for one that can go on. */
void leave() {
    fiber *f = self();
    warp *own = &set->warps[number(f) / 32];
    unsigned w = number(f) / 32;
    if (own->ready == 0) {
        warps_ready &= ~(1u << w);
        if (warps_ready == 0) {
            if (n_running > 0) {
                stop_stuck();
            }
            switch_to(&host);
            return;
        }
        w = pick(warps_ready);
    }
    switch_to(&set->fibers[32 * w + pick(set->warps[w].ready)]);
}

/* The running fiber can no longer be picked. */
void not_ready(condition why) {
    self()->state = why;
    set->warps[number(self()) / 32].ready &= ~(1u << self()->lane);
}

/* Where a fiber begins, on an empty stack. */
[[noreturn]] void begin() {
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_finish_switch_fiber(nullptr, nullptr, nullptr);
#endif
    __tsan_acquire(&start_order);
    (*kernel_body)();
    __tsan_release(&launch_order[n_launches % 2]);
    not_ready(ENDED);
    n_running--;
    leave();
    abort(); /* an ended fiber is not gone on with */
}

void prepare(fiber *f, unsigned i) {
    if (f->stack == nullptr) {
        unsigned char *memory = (unsigned char *)map(STACK_BYTES + PAGE);
        mprotect(memory, PAGE, PROT_NONE);
        f->stack = memory + PAGE;
#ifdef LMI_SIMT_TSAN
        f->tsan = __tsan_create_fiber(0);
#endif
    }
    void **words = (void **)(void *)(f->stack + STACK_BYTES) - SAVED_WORDS;
    for (int w = 0; w < SAVED_WORDS; w++) {
        words[w] = w == RETURN_WORD ? (void *)begin : nullptr;
    }
    f->stack_pointer = words;
    f->index = {i % block_size.x, i / block_size.x % block_size.y, i / block_size.x / block_size.y};
    f->lane = i % 32;
    f->n_warp_meetings = f->n_block_meetings = 0;
    f->waited = f->fenced = false;
    f->n_copies = f->first_copy = f->group = 0;
    set_ready(f);
}

void copy_bytes(unsigned char *to, const void *from, size_t n) {
    for (size_t i = 0; i < n; i++) {
        to[i] = ((const unsigned char *)from)[i];
    }
}

/* Bytes that make a NaN of any float, -1 of any integer. */
void spoil(unsigned char *memory, size_t bytes) {
#ifdef LMI_SIMT_TSAN
    if (bytes > 0) { /* the memory of another block at the same place: what that did to it is forgotten */
        __tsan_java_free((uintptr_t)memory & ~(uintptr_t)7, (bytes + 15) & ~(size_t)7);
        __tsan_java_alloc((uintptr_t)memory & ~(uintptr_t)7, (bytes + 15) & ~(size_t)7);
    }
#endif
    for (size_t i = 0; i < bytes; i++) {
        memory[i] = 0xff;
    }
}

/* The thread-local variables of this program or library, in the running thread: all of them are SHARED. */
int find_static(dl_phdr_info *info, size_t, void *) {
    const ElfW(Phdr) *tls = nullptr;
    bool ours = false;
    for (int i = 0; i < info->dlpi_phnum; i++) {
        const ElfW(Phdr) *segment = &info->dlpi_phdr[i];
        const uintptr_t at = (uintptr_t)&kernel_name - info->dlpi_addr;
        tls = segment->p_type == PT_TLS ? segment : tls;
        ours |= segment->p_type == PT_LOAD && at >= segment->p_vaddr && at < segment->p_vaddr + segment->p_memsz;
    }
    if (ours && tls != nullptr && info->dlpi_tls_data != nullptr) {
        static_begin = (unsigned char *)info->dlpi_tls_data;
        static_bytes = tls->p_memsz;
    }
    return ours;
}

void prepare_process() {
    const size_t bytes = (MAX_DYNAMIC + PAGE - 1) / PAGE * PAGE;
    unsigned char *area = (unsigned char *)map(bytes + 2 * PAGE);
    mprotect(area, PAGE, PROT_NONE);
    mprotect(area + PAGE + bytes, PAGE, PROT_NONE);
    dynamic_end = area + PAGE + bytes;
    for (fiber_set *&each : sets) {
        each = (fiber_set *)map(sizeof(fiber_set));
    }
#ifdef LMI_SIMT_TSAN
    __tsan_java_init(0x7e8000000000, 0x17ffffff000); /* where mappings and thread-local variables are */
#endif
}

void run_block(uint64_t b) {
    block_index = {(unsigned)(b % grid_size.x), (unsigned)(b / grid_size.x % grid_size.y),
                   (unsigned)(b / grid_size.x / grid_size.y)};
    set = sets[((n_launches * 31 + b) * 0x9e3779b97f4a7c15u >> 40) % SETS];
    n_running = n_threads;
    n_in_block = 0;
    n_seen = 0;
    for (unsigned w = 0; w < n_warps; w++) {
        set->warps[w].n_arrived = set->warps[w].ready = 0;
    }
    for (unsigned i = 0; i < n_threads; i++) {
        prepare(&set->fibers[i], i);
    }
    __tsan_release(&start_order);
    const unsigned w = pick(warps_ready);
    switch_to(&set->fibers[32 * w + pick(set->warps[w].ready)]);
    bool waited = false;
    for (unsigned i = 0; i < n_threads; i++) {
        waited |= set->fibers[i].waited;
    }
    if (!waited) {
        stop("no thread called wait_for_previous");
    }
    for (int i = 1; i <= 64; i++) {
        if (dynamic_begin[-i] != 0xff) {
            stop("written below dynamic shared memory");
        }
    }
}

} // namespace

void stop(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    fprintf(stderr, "simt: %s, block (%u, %u, %u)", kernel_name, block_index.x, block_index.y, block_index.z);
    if (current != &host) {
        fprintf(stderr, ", thread (%u, %u, %u)", current->index.x, current->index.y, current->index.z);
    }
    fprintf(stderr, ": ");
    vfprintf(stderr, format, arguments);
    fprintf(stderr, "\n");
    abort();
}

const slot *meet_warp(meeting kind, unsigned mask, const void *value, size_t bytes) {
    fiber *f = self();
    warp *w = &set->warps[number(f) / 32];
    const unsigned turn = f->n_warp_meetings++ % 2;
    if (mask != 0xffffffffu) {
        stop("%s of the lanes %08x only", meeting_names[kind], mask);
    }
    if (w->n_arrived > 0 && w->kind != kind) {
        stop("%s, while other lanes wait at %s", meeting_names[kind], meeting_names[w->kind]);
    }
    if (w->n_arrived > 0 && w->bytes != bytes) {
        stop("%s of %zu bytes, while other lanes bring %zu", meeting_names[kind], bytes, w->bytes);
    }
    w->kind = kind;
    w->bytes = bytes;
    copy_bytes(w->slots[turn][f->lane].bytes, value, bytes);
    if (kind == SYNC_WARP) {
        __tsan_release(&w->order[turn]);
    }
    if (++w->n_arrived == 32) {
        w->n_arrived = 0;
        for (unsigned lane = 0; lane < 32; lane++) {
            set_ready(f - f->lane + lane);
        }
    } else {
        not_ready(IN_WARP);
        leave();
    }
    if (kind == SYNC_WARP) {
        __tsan_acquire(&w->order[turn]);
    }
    return w->slots[turn];
}

void meet_block() {
    char *order = &set->order[self()->n_block_meetings++ % 2];
    __tsan_release(order);
    if (++n_in_block == n_threads) {
        n_in_block = 0;
        for (unsigned i = 0; i < n_threads; i++) {
            set_ready(&set->fibers[i]);
        }
    } else {
        not_ready(IN_BLOCK);
        leave();
    }
    __tsan_acquire(order);
}

/* A fence before an atomic hands on what was done before it, a fence after takes over what others handed on there; which thread of the block made the
 * atomic does not matter. */
void fence() {
    self()->fenced = true;
    for (unsigned i = 0; i < n_seen && i < MAX_SEEN; i++) {
        __tsan_acquire(const_cast<void *>(seen[i]));
    }
}

void before_atomic(const void *address) {
    check_aligned(address, 4, "an atomic");
    if (self()->fenced) {
        __tsan_release(const_cast<void *>(address));
        self()->fenced = false;
    }
    seen[n_seen++ % MAX_SEEN] = address;
}

bool is_shared(const void *address, size_t bytes) {
    const unsigned char *p = (const unsigned char *)address;
    return (p >= dynamic_begin && p + bytes <= dynamic_end) || (p >= static_begin && p + bytes <= static_begin + static_bytes);
}

unsigned char *dynamic() { return dynamic_begin; }

void copy_later(void *to, const void *from) {
    fiber *f = self();
    if (f->n_copies == MAX_COPIES) {
        for (int i = f->first_copy; i < f->n_copies; i++) {
            f->copies[i - f->first_copy] = f->copies[i];
        }
        f->n_copies -= f->first_copy;
        f->first_copy = 0;
        if (f->n_copies == MAX_COPIES) {
            stop("more than %d copies of a thread under way", (int)MAX_COPIES);
        }
    }
    f->copies[f->n_copies++] = {to, from, f->group};
}

void copy_commit() { self()->group++; }

const pending_copy *copy_due(int groups) {
    fiber *f = self();
    if (f->first_copy == f->n_copies || f->copies[f->first_copy].group >= f->group - groups) {
        return nullptr;
    }
    return &f->copies[f->first_copy++];
}

void wait_for_previous() {
    self()->waited = true;
    __tsan_acquire(&launch_order[(n_launches + 1) % 2]);
}

void host_waits() {
    __tsan_acquire(&launch_order[0]);
    __tsan_acquire(&launch_order[1]);
}

void run(const char *name, dim3 grid, dim3 block, size_t shared_bytes, const std::function<void()> &kernel) {
    const std::lock_guard<std::mutex> guard(one_at_a_time);
    const uint64_t n_blocks = (uint64_t)grid.x * grid.y * grid.z;
    kernel_name = name;
#ifdef LMI_SIMT_TSAN
    kernel_body = new std::function<void()>(kernel); /* stays: fibers read it, and the host does not wait for them */
#else
    kernel_body = &kernel;
#endif
    grid_size = grid;
    block_size = block;
    n_threads = block.x * block.y * block.z;
    n_warps = (n_threads + 31) / 32;
    current = &host;
    if (n_blocks == 0 || grid.x > INT32_MAX || grid.y > 65535 || grid.z > 65535 || n_threads == 0 || n_threads > MAX_THREADS ||
        block.z > 64 || shared_bytes > MAX_DYNAMIC) {
        stop("cannot launch %u x %u x %u blocks of %u x %u x %u threads and %zu bytes", grid.x, grid.y, grid.z, block.x,
             block.y, block.z, shared_bytes);
    }
    if (dynamic_end == nullptr) {
        prepare_process();
    }
#ifdef __SANITIZE_ADDRESS__
    pthread_attr_t attributes;
    void *bottom;
    pthread_getattr_np(pthread_self(), &attributes);
    pthread_attr_getstack(&attributes, &bottom, &host_stack_bytes);
    pthread_attr_destroy(&attributes);
    host_stack = bottom;
#endif
#ifdef LMI_SIMT_TSAN
    host.tsan = __tsan_get_current_fiber();
#endif
    n_launches++;
    reversed = n_launches % 2 == 0;
    dynamic_begin = dynamic_end - (shared_bytes + 15) / 16 * 16;
    touched = 0;
    dl_iterate_phdr(find_static, nullptr);
    size_t first = 0, end = static_bytes; /* of what this kernel writes: as the first block shows */
    for (uint64_t b = 0; b < n_blocks; b++) {
        spoil(static_begin + first, end - first);
        spoil(dynamic_begin - 64, (size_t)(dynamic_end - dynamic_begin) + 64);
        run_block(reversed ? n_blocks - 1 - b : b);
#ifndef LMI_SIMT_TSAN /* which must forget all of it: a block may write what looks like this */
        if (b == 0) {
            while (end > first && static_begin[end - 1] == 0xff) {
                end--;
            }
            while (first < end && static_begin[first] == 0xff) {
                first++;
            }
        }
#endif
    }
}

} // namespace simt
