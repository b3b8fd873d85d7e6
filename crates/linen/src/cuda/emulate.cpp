// Runs kernels.cu on the CPU, for the tests: one block at a time, with threads as fibers that yield
// at barriers.
//
// A GPU may run blocks, and threads between barriers, in any order. So everything can also run
// backwards: a missing barrier, or a race between blocks, then changes the result.

#include <cmath>
#include <memory>
#include <ucontext.h>
#include <vector>

#define __global__
#define __device__
#define __shared__ static
#define __launch_bounds__(threads)
#define __syncthreads() yield_thread()

struct Index {
    unsigned x;
};
static Index threadIdx, blockIdx;
static void yield_thread();

template <class T> static T min(T a, T b) { return a < b ? a : b; }
template <class T> static T max(T a, T b) { return a > b ? a : b; }

#include "kernels.cu"

static ucontext_t scheduler, fibers[THREADS];
static bool ended[THREADS];
static unsigned current;
static const Job *jobs_of_block;
static int job_count;

static void yield_thread() {
    const unsigned self = current;
    swapcontext(&fibers[self], &scheduler);
}

static void work() {
    run(jobs_of_block, job_count);
    ended[current] = true;
}

// Runs each thread to the next barrier in turn, until all have ended.
static void run_block(std::vector<std::unique_ptr<char[]>> &stacks, bool backwards) {
    constexpr int STACK = 64 * 1024;
    for (unsigned i = 0; i < THREADS; i++) {
        if (stacks.size() <= i) stacks.emplace_back(new char[STACK]);
        getcontext(&fibers[i]);
        fibers[i].uc_stack.ss_sp = stacks[i].get();
        fibers[i].uc_stack.ss_size = STACK;
        fibers[i].uc_link = &scheduler;
        makecontext(&fibers[i], work, 0);
        ended[i] = false;
    }
    for (bool alive = true; alive;) {
        alive = false;
        for (unsigned turn = 0; turn < THREADS; turn++) {
            current = backwards ? THREADS - 1 - turn : turn;
            if (ended[current]) continue;
            threadIdx.x = current;
            swapcontext(&scheduler, &fibers[current]);
            alive |= !ended[current];
        }
    }
}

extern "C" unsigned long job_size() { return sizeof(Job); }
extern "C" unsigned long epoch_size() { return sizeof(Epoch); }
extern "C" unsigned long row_size() { return sizeof(Metrics); }

extern "C" void launch(const Job *jobs, int count, int blocks, bool backwards) {
    static std::vector<std::unique_ptr<char[]>> stacks;
    jobs_of_block = jobs;
    job_count = count;
    for (int turn = 0; turn < blocks; turn++) {
        blockIdx.x = backwards ? blocks - 1 - turn : turn;
        run_block(stacks, backwards);
    }
}
