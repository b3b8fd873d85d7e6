// Runs kernels.cu on the CPU, for the tests: one block at a time, with threads as fibers that yield
// at barriers.
//
// A GPU may run blocks, and threads between barriers, in any order. So everything can also run
// backwards: a missing barrier, or a race between blocks, then changes the result.
//
// Tensor cores need all threads of a warp at the same instruction, and asynchronous copies arrive
// as late as allowed: both are imitated (without TENSOR_CORES: an older GPU).

#include <cmath>
#include <csetjmp>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <ucontext.h>
#include <vector>

#define __global__
#define __device__
#define __shared__ static
#define __launch_bounds__(...)
#define __grid_constant__
#define __syncthreads() yield_thread(AT_BLOCK)
#define DYNAMIC_SHARED(name) float *name = dynamic_shared

struct Index {
    unsigned x;
};
static Index threadIdx, blockIdx;

// Where a thread waits for others.
enum State { RUNS, AT_WARP, AT_BLOCK, ENDED };
static void yield_thread(State state);

template <class T> static T min(T a, T b) { return a < b ? a : b; }
template <class T> static T max(T a, T b) { return a > b ? a : b; }

constexpr int MOST_SHARED = 227 * 1024; // of an H200
alignas(16) static float dynamic_shared[MOST_SHARED / 4];

static void require(bool condition, const char *what) {
    if (condition) return;
    fprintf(stderr, "kernels.cu: %s\n", what);
    abort();
}

#ifdef TENSOR_CORES

static unsigned bits_of(float value) {
    unsigned bits;
    memcpy(&bits, &value, 4);
    return bits;
}

static float from_bits(unsigned bits) {
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

// What the threads of a warp bring to an instruction, for two of them in turn: a thread may begin
// the next one before others have read this one.
static struct {
    float a[32][4], b[32][2];
} operands[2][8];
static int exchanges[256]; // of each thread with its warp

static void multiply_add(float (&sums)[4], const float (&a)[4], const float (&b)[2]) {
    const int lane = threadIdx.x % 32;
    auto &all = operands[exchanges[threadIdx.x]++ % 2][threadIdx.x / 32];
    // Cards may cut or round; rounding shows whether a kernel relies on a cut.
    const auto tf32 = [](float value) { return from_bits((bits_of(value) + 0x1000u) & ~0x1fffu); };
    for (int i = 0; i < 4; i++) all.a[lane][i] = tf32(a[i]);
    for (int i = 0; i < 2; i++) all.b[lane][i] = tf32(b[i]);
    yield_thread(AT_WARP);
    for (int part = 0; part < 4; part++) {
        const int row = lane / 4 + part / 2 * 8, column = lane % 4 * 2 + part % 2;
        double sum = sums[part];
        for (int k = 0; k < 8; k++) {
            const double left = all.a[row % 8 * 4 + k % 4][row / 8 + k / 4 * 2];
            sum += left * all.b[column * 4 + k % 4][k / 4];
        }
        float rounded = sum;
        if (std::fabs(rounded) > std::fabs(sum)) rounded = std::nextafter(rounded, 0.0f);
        sums[part] = rounded; // toward zero, as tensor cores do
    }
}

static const float *named_rows[2][8][32];

static void load_matrices(float (&values)[4], const float *row) {
    require((uintptr_t)row % 16 == 0, "a row of a matrix is not aligned");
    const int lane = threadIdx.x % 32;
    auto &rows = named_rows[exchanges[threadIdx.x]++ % 2][threadIdx.x / 32];
    rows[lane] = row;
    yield_thread(AT_WARP);
    for (int i = 0; i < 4; i++) values[i] = rows[8 * i + lane / 4][lane % 4];
}

// The copies that each thread has begun, by group.
struct Copy {
    float *to;
    const float *from; // null: zeros
};
static std::vector<std::vector<Copy>> groups[256];

static void copy_async(float *shared, const float *global, bool exists) {
    require((uintptr_t)shared % 16 == 0 && (uintptr_t)global % 16 == 0, "a copy is not aligned");
    for (int i = 0; i < 4; i++) shared[i] = NAN; // reveals reads that come too early
    auto &own = groups[threadIdx.x];
    if (own.empty()) own.emplace_back();
    own.back().push_back({shared, exists ? global : nullptr});
}

static void commit_copies() {
    auto &own = groups[threadIdx.x];
    if (own.empty()) own.emplace_back();
    own.emplace_back();
}

template <int LATEST> static void wait_copies() {
    auto &own = groups[threadIdx.x];
    while (own.size() > LATEST + 1) {
        for (const Copy &copy : own.front())
            for (int i = 0; i < 4; i++) copy.to[i] = copy.from ? copy.from[i] : 0;
        own.erase(own.begin());
    }
}

#endif

#include "kernels.cu"

using Kernel = void (*)(const Job *, int);
static Kernel kernel;
static const Job *jobs_of_block;
static int job_count;

// Fibers live as long as the process. They begin as contexts, but then switch by jumps, which need
// no system calls.
static ucontext_t contexts[THREADS];
static jmp_buf scheduler, fibers[THREADS];
static bool have_begun[THREADS];
static State states[THREADS];
static unsigned current;

static void yield_thread(State state) {
    const unsigned self = current;
    states[self] = state;
    if (_setjmp(fibers[self]) == 0) _longjmp(scheduler, 1);
}

// Runs one thread of each block.
static void work() {
    for (;;) {
        kernel(jobs_of_block, job_count);
        yield_thread(ENDED);
    }
}

static void begin(unsigned thread) {
    constexpr int STACK = 64 * 1024;
    static std::unique_ptr<char[]> stacks[THREADS];
    stacks[thread].reset(new char[STACK]);
    ucontext_t &context = contexts[thread];
    getcontext(&context);
    context.uc_stack.ss_sp = stacks[thread].get();
    context.uc_stack.ss_size = STACK;
    makecontext(&context, work, 0);
    have_begun[thread] = true;
    setcontext(&context);
}

// Runs a thread until it yields.
static void resume(unsigned thread) {
    current = threadIdx.x = thread;
    if (_setjmp(scheduler) != 0) return;
    if (have_begun[thread]) _longjmp(fibers[thread], 1);
    begin(thread);
}

// Runs the threads of a warp until each waits for the block or has ended.
static void run_warp(unsigned first, bool backwards) {
    for (bool again = true; again;) {
        int waiting = 0;
        for (unsigned turn = 0; turn < 32; turn++) {
            const unsigned thread = first + (backwards ? 31 - turn : turn);
            if (states[thread] == RUNS) resume(thread);
            waiting += states[thread] == AT_WARP;
        }
        require(waiting == 0 || waiting == 32,
                "only a part of a warp is at an instruction of the warp");
        again = waiting != 0;
        for (unsigned i = first; again && i < first + 32; i++) states[i] = RUNS;
    }
}

static void run_block(unsigned threads, bool backwards) {
    for (unsigned i = 0; i < threads; i++) states[i] = RUNS;
    for (bool alive = true; alive;) {
        alive = false;
        const unsigned warps = threads / 32;
        for (unsigned turn = 0; turn < warps; turn++)
            run_warp((backwards ? warps - 1 - turn : turn) * 32, backwards);
        for (unsigned i = 0; i < threads; i++) {
            if (states[i] == ENDED) continue;
            states[i] = RUNS;
            alive = true;
        }
    }
}

// The kernel for each tile, in the order of `Tile` in plan.rs, and its shared memory.
struct Entry {
    Kernel kernel;
    int threads, shared;
};
static const Entry KERNELS[] = {
    {run, THREADS, 0},
#ifdef TENSOR_CORES
#define TILE(name, blocks, ...)                                                                  \
    {[](const Job *jobs, int) { name(*jobs); }, WORKERS, Tile<__VA_ARGS__>::BYTES},
    TILES
#endif
};

extern "C" unsigned long job_size() { return sizeof(Job); }
extern "C" unsigned long epoch_size() { return sizeof(Epoch); }
extern "C" unsigned long row_size() { return sizeof(Metrics); }

extern "C" unsigned long tiles() { return sizeof(KERNELS) / sizeof(*KERNELS); }

extern "C" int shared_bytes(int tile) { return KERNELS[tile].shared; }

extern "C" void launch(const Job *jobs, int count, int blocks, int tile, bool backwards) {
    kernel = KERNELS[tile].kernel;
    jobs_of_block = jobs;
    job_count = count;
    for (int turn = 0; turn < blocks; turn++) {
        blockIdx.x = backwards ? blocks - 1 - turn : turn;
        // What an earlier block left in shared memory is not to be read.
        for (int i = 0; i < KERNELS[tile].shared / 4; i++) dynamic_shared[i] = NAN;
        run_block(KERNELS[tile].threads, backwards);
    }
}

#ifdef TENSOR_CORES

// One warp's product A·B of [16, 8] and [8, 8], with the fragments as the PTX ISA defines them.
static const float *test_a, *test_b;
static float *test_sums;

static void multiply_once(const Job *, int) {
    const int group = threadIdx.x / 4, thread = threadIdx.x % 4;
    const int lane = threadIdx.x, matrix = lane / 8;
    float a[4], b[2], sums[4] = {};
    load_matrices(a, test_a + (lane % 8 + matrix % 2 * 8) * 8 + matrix / 2 * 4);
    for (int part = 0; part < 4; part++) {
        const int row = group + part % 2 * 8, k = thread + part / 2 * 4;
        require(a[part] == test_a[row * 8 + k], "a matrix is not where it belongs");
    }
    for (int part = 0; part < 2; part++) b[part] = test_b[(thread + 4 * part) * 8 + group];
    multiply_add(sums, a, b);
    for (int part = 0; part < 4; part++)
        test_sums[(group + part / 2 * 8) * 8 + 2 * thread + part % 2] = sums[part];
}

extern "C" void multiply_fragments(const float *a, const float *b, float *sums) {
    test_a = a;
    test_b = b;
    test_sums = sums;
    kernel = multiply_once;
    run_block(32, false);
}

#endif
