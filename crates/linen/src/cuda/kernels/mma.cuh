// Tensor cores and asynchronous copies, of GPUs from compute capability 8.0.
//
// The tests replace these functions (emulate.cpp), with the same layout of fragments.

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
#define TENSOR_CORES

__device__ unsigned bits_of(float value) { return __float_as_uint(value); }
__device__ float from_bits(unsigned bits) { return __uint_as_float(bits); }

// sums += A·B for A [16, 8] and B [8, 8] by the 32 threads of a warp. TF32 has the sign, exponent
// and first 10 bits of the mantissa of f32; tensor cores cut or round the factors to it.
// Thread 4·g + t holds A at (g, t), (g + 8, t), (g, t + 4) and (g + 8, t + 4), B at (t, g) and
// (t + 4, g), and the sums at (g, 2t), (g, 2t + 1), (g + 8, 2t) and (g + 8, 2t + 1).
__device__ void multiply_add(float (&sums)[4], const float (&a)[4], const float (&b)[2]) {
    asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
        : "r"(bits_of(a[0])), "r"(bits_of(a[1])), "r"(bits_of(a[2])), "r"(bits_of(a[3])),
          "r"(bits_of(b[0])), "r"(bits_of(b[1])));
}

// Loads four matrices [8, 4] from shared memory by the 32 threads of a warp. Thread 8·i + r names
// row r of matrix i, 16 bytes. Thread 4·g + t gets the value at (g, t) of each.
__device__ void load_matrices(float (&values)[4], const float *row) {
    unsigned bits[4];
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(bits[0]), "=r"(bits[1]), "=r"(bits[2]), "=r"(bits[3])
                 : "r"((unsigned)__cvta_generic_to_shared(row))
                 : "memory");
    for (int i = 0; i < 4; i++) values[i] = from_bits(bits[i]);
}

// Begins to copy 16 bytes to shared memory, or zeros if they do not exist. Through the first-level
// cache, because a convolution reads a value once for each tap.
__device__ void copy_async(float *shared, const float *global, bool exists) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 16, %2;"
                 :
                 : "r"((unsigned)__cvta_generic_to_shared(shared)), "l"(global),
                   "r"(exists ? 16 : 0)
                 : "memory");
}

// Ends a group of this thread's copies.
__device__ void commit_copies() { asm volatile("cp.async.commit_group;" : : : "memory"); }

// Waits until at most `LATEST` of this thread's groups are incomplete.
template <int LATEST> __device__ void wait_copies() {
    asm volatile("cp.async.wait_group %0;" : : "n"(LATEST) : "memory");
}

#endif
