// The compiled step on an NVIDIA GPU.
//
// A step is a short sequence of launches. Each launch runs a few independent jobs concurrently. A
// job is a layer, forward or backward, with one block per tile of its result. Matrix products have
// several kinds of tile, each with a kernel of its own; everything else is `run`. The order of sums
// depends only on shapes and tiles: results are reproducible bit for bit.
//
// Arrays are laid out as in Flax: images [image, y, x, channel], kernels [y, x, in, out] and
// [in, out]. Pixels of a convolution's output are numbered window by window, so that a tile holds
// whole pooling windows. Pixels that do not fill a window are skipped. The gradient of that output
// is stored as it is before pooling and ReLU, so that both are undone once, and not at every tap.
//
// Compiled at run time by NVRTC, which gets the files in this order as one. The tests compile it
// with a C++ compiler and run it on the CPU (emulate.cpp).

#ifndef __CUDACC_RTC__
#include "kernels/job.cuh"
#include "kernels/light.cuh"
#include "kernels/scalar.cuh"
#include "kernels/mma.cuh"
#include "kernels/tensor.cuh"
#endif

// Runs a job's tile, or all of a job that is no matrix product.
extern "C" __global__ void __launch_bounds__(THREADS) run(const Job *__restrict__ jobs, int count) {
    // The loaded slices of A and B, or a tile of a convolution's output.
    alignas(16) __shared__ float tiles[WIDEST * (WIDEST + 1)];
    const Job &job = job_of_block(jobs, count);
    const int block = blockIdx.x - job.first_block;
    const bool narrow = job.tile_width < WIDEST, low = job.tile_height < WIDEST;
    switch (job.kind) {
    case CONV: return narrow ? conv<4, 2>(job, tiles, block) : conv<4, 4>(job, tiles, block);
    case CONV_INPUT:
        return narrow ? conv_input<4, 2>(job, tiles, block) : conv_input<4, 4>(job, tiles, block);
    case CONV_KERNEL:
        return narrow ? conv_kernel<4, 2>(job, tiles, block) : conv_kernel<4, 4>(job, tiles, block);
    case UPDATE: return update_all(job, tiles, block);
    case DENSE: return low ? dense<2, 2>(job, tiles, block) : dense<4, 4>(job, tiles, block);
    case FINISH: return finish(job, tiles, block);
    case HEAD: return head(job, tiles, block);
    case METRICS: return batch_metrics(job, tiles);
    case DENSE_INPUT:
        return low ? dense_input<2, 2>(job, tiles, block) : dense_input<4, 4>(job, tiles, block);
    case DENSE_KERNEL: return dense_kernel<2, 2>(job, tiles, block);
    case GATHER: return gather(job, block);
    }
}

#ifdef TENSOR_CORES
// Name, blocks per multiprocessor; rows, columns, warps down, across, and along the sum, terms.
// In the order of `Tile` in plan.rs.
#define TILES                                                                                    \
    TILE(tile_16x32, 4, 16, 32, 1, 1, 4, 32)                                                     \
    TILE(tile_32x32, 4, 32, 32, 1, 1, 4, 32)                                                     \
    TILE(tile_64x32, 3, 64, 32, 2, 1, 2, 32)                                                     \
    TILE(tile_64x64, 3, 64, 64, 2, 2, 1, 32)                                                     \
    TILE(tile_128x32, 3, 128, 32, 4, 1, 1, 16)                                                   \
    TILE(tile_128x64, 2, 128, 64, 2, 2, 1, 16)

#ifndef DYNAMIC_SHARED // the emulation has its own
#define DYNAMIC_SHARED(name) extern __shared__ float4 name[]
#endif

// The job is a parameter, and so in constant memory: reading it takes no time and no registers.
#define TILE(name, blocks, ...)                                                                  \
    extern "C" __global__ void __launch_bounds__(WORKERS, blocks)                                \
        name(const __grid_constant__ Job job) {                                                  \
        DYNAMIC_SHARED(memory);                                                                  \
        run_tile<Tile<__VA_ARGS__>>(job, (float *)memory);                                       \
    }
TILES
#undef TILE
#endif
