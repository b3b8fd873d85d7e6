// Matrix products on tensor cores.
//
// A block of four warps computes a tile of A·B. Slices of A and B go to shared memory in stages, by
// asynchronous copies of 16 bytes where the innermost dimension allows it. While the warps multiply
// one stage, the next two arrive. Indices are decoded once per row, column or tap.
//
// Tensor cores multiply TF32 values. Three products give the accuracy of f32: an operand is the sum
// of two TF32 values, and only the product of the two small ones is left out. Their accumulators
// round toward zero, so each stage has its own, which are added up in f32.

#ifdef TENSOR_CORES

#ifndef PRODUCTS
#define PRODUCTS 3 // 1: operands are cut to TF32
#endif

constexpr int WORKERS = 128; // threads per block
constexpr int STAGES = 3;

// A pixel or a tap, decoded.
struct alignas(8) Place {
    int offset; // in the array; of a tap: relative to the pixel
    short y, x;
};

constexpr short NOWHERE = -16384; // a `y` that no tap brings back into the image

// How a slice of an operand lies in shared memory: `COUNT` rows or columns of `TERMS` terms.
// Padding spreads the fragments that a warp reads over all banks.
template <int COUNT, int TERMS> struct Slice {
    static constexpr int ALONG_PITCH = TERMS + 4, ACROSS_PITCH = COUNT + 8;
    static constexpr int SIZE = COUNT * ALONG_PITCH > TERMS * ACROSS_PITCH ? COUNT * ALONG_PITCH
                                                                          : TERMS * ACROSS_PITCH;
    static constexpr int ROUNDS = COUNT * TERMS / 4 / WORKERS; // chunks per thread
    static_assert(ROUNDS * 4 * WORKERS == COUNT * TERMS);

    template <bool ALONG> static __device__ int at(int side, int term) {
        return ALONG ? side * ALONG_PITCH + term : term * ACROSS_PITCH + side;
    }
};

// A tile of `M` rows and `N` columns. `DOWN` × `ACROSS` warps share it; `SLICES` such groups share
// the `TERMS` of a stage.
template <int M_, int N_, int DOWN_, int ACROSS_, int SLICES_, int TERMS_> struct Tile {
    static constexpr int M = M_, N = N_, DOWN = DOWN_, ACROSS = ACROSS_, SLICES = SLICES_,
                         TERMS = TERMS_;
    static_assert(DOWN * ACROSS * SLICES * 32 == WORKERS && TERMS % (8 * SLICES) == 0);
    static constexpr int DEEP = M / DOWN / 16, WIDE = N / ACROSS / 8; // fragments of a warp
    static_assert(WIDE % 2 == 0);
    using ASlice = Slice<M, TERMS>;
    using BSlice = Slice<N, TERMS>;
    static constexpr int STAGE = ASlice::SIZE + BSlice::SIZE;
    static constexpr int PITCH = N + 8; // of the sums
    static constexpr int SUMS = SLICES * M * PITCH;
    static constexpr int VALUES = STAGES * STAGE > SUMS ? STAGES * STAGE : SUMS;
    static constexpr int PLACES = M + STAGES * TERMS;
    static constexpr int BYTES = VALUES * 4 + PLACES * (int)sizeof(Place);
};

// The shared memory of a block.
template <class T> struct Shared {
    float *values; // the stages; then the sums
    Place *sides;  // of the rows of A
    Place *terms;  // of the terms of each stage

    explicit __device__ Shared(float *memory)
        : values(memory), sides((Place *)(memory + T::VALUES)), terms(sides + T::M) {}

    // Sum (i, j) of the tile.
    __device__ float sum(int i, int j) const {
        float sum = values[i * T::PITCH + j];
        for (int slice = 1; slice < T::SLICES; slice++)
            sum += values[(slice * T::M + i) * T::PITCH + j];
        return sum;
    }
};

// Loads slices of an operand into shared memory, stage by stage.
//
// An operand is `ALONG` if its values are contiguous along the sum. If it is `chunked`, `load`
// begins to copy four contiguous values. Otherwise `value` is called for each. `side` is a row or
// column of the tile. A term is walked by `start` and `advance` along the sum; else it is a number
// and its place.
template <class T, int COUNT, class Operand> struct Loader {
    using S = Slice<COUNT, T::TERMS>;
    static constexpr bool ALONG = Operand::ALONG;
    static constexpr int ACROSS = ALONG ? T::TERMS / 4 : COUNT / 4; // chunks side by side
    static constexpr int AT_ONCE = WORKERS / ACROSS;
    const Operand &operand;
    const Place *places; // of the terms
    const int begin, end;
    typename Operand::Term term;

    __device__ Loader(const Operand &operand, const Place *places, int begin, int end)
        : operand(operand), places(places), begin(begin), end(end) {
        if constexpr (ALONG) term = operand.start(begin + (int)threadIdx.x % ACROSS * 4);
    }

    // Where this thread's chunk of a round goes.
    __device__ static int side(int round) {
        return ALONG ? threadIdx.x / ACROSS + AT_ONCE * round : threadIdx.x % ACROSS * 4;
    }
    __device__ static int depth(int round) {
        return ALONG ? threadIdx.x % ACROSS * 4 : threadIdx.x / ACROSS + AT_ONCE * round;
    }

    // Begins to load the slice of a step. Steps are loaded in order.
    __device__ void load(int step, float *slice) {
        const int start = begin + step * T::TERMS;
        if (!operand.chunked) return load_values(step, start, slice);
        for (int round = 0; round < S::ROUNDS; round++) {
            float *to = slice + S::template at<ALONG>(side(round), depth(round));
            const bool exists = start + depth(round) < end;
            if constexpr (ALONG) {
                operand.load(to, side(round), term, exists);
            } else {
                operand.load(to, side(round), start + depth(round),
                             places[step % STAGES * T::TERMS + depth(round)], exists);
            }
        }
        if constexpr (ALONG) operand.advance(term, T::TERMS);
    }

    // Value by value. Several loads are under way before the first is stored.
    __device__ void load_values(int step, int start, float *slice) const {
        constexpr int VALUES = COUNT * T::TERMS / WORKERS, AT_ONCE = VALUES < 8 ? VALUES : 8;
        float values[AT_ONCE];
        if constexpr (ALONG) {
            constexpr int STRIDE = WORKERS / COUNT; // in terms
            const int side = threadIdx.x % COUNT;
            int depth = threadIdx.x / COUNT;
            auto term = operand.start(start + depth);
            for (int batch = 0; batch < VALUES; batch += AT_ONCE) {
                for (int i = 0; i < AT_ONCE; i++) {
                    const bool exists = start + depth + i * STRIDE < end;
                    values[i] = exists ? operand.value(side, term) : 0;
                    operand.advance(term, STRIDE);
                }
                for (int i = 0; i < AT_ONCE; i++, depth += STRIDE)
                    slice[S::template at<true>(side, depth)] = values[i];
            }
        } else {
            constexpr int STRIDE = WORKERS / T::TERMS; // in sides
            const int depth = threadIdx.x % T::TERMS;
            const Place &place = places[step % STAGES * T::TERMS + depth];
            int side = threadIdx.x / T::TERMS;
            for (int batch = 0; batch < VALUES; batch += AT_ONCE) {
                for (int i = 0; i < AT_ONCE; i++)
                    values[i] = start + depth < end
                                    ? operand.value(side + i * STRIDE, start + depth, place)
                                    : 0;
                for (int i = 0; i < AT_ONCE; i++, side += STRIDE)
                    slice[S::template at<false>(side, depth)] = values[i];
            }
        }
    }
};

// A fragment of an operand: its values and, for three products, what they lack as TF32 values.
template <int LENGTH> struct Fragment {
    float large[LENGTH], small[LENGTH];

    __device__ void set(int index, float value) {
        // How tensor cores make a TF32 number of an f32 is not defined: leave them no choice.
        large[index] = PRODUCTS == 3 ? from_bits(bits_of(value) & ~0x1fffu) : value;
        if (PRODUCTS == 3) small[index] = value - large[index];
    }
};

// A warp's place in a tile: its first row and column, and its first term of a stage.
template <class T> struct WarpPlace {
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    int slice = warp / (T::DOWN * T::ACROSS); // of the terms
    int top = warp % T::DOWN * T::DEEP * 16;
    int left = warp / T::DOWN % T::ACROSS * T::WIDE * 8;
};

// Adds the product of a stage to `sums`.
template <class T, class A, class B>
__device__ void multiply_stage(const float *stage, float (&sums)[T::DEEP][T::WIDE][4]) {
    const WarpPlace<T> place;
    constexpr int TERMS = T::TERMS / T::SLICES; // of a warp
    // The value that this thread reads first, or the row of a matrix that it names.
    const int lane = place.lane, matrix = lane / 8;
    const int a_side = A::ALONG ? lane % 8 + matrix % 2 * 8 : lane / 4;
    const int a_term = A::ALONG ? matrix / 2 * 4 : lane % 4;
    const int b_side = B::ALONG ? lane % 8 + matrix / 2 * 8 : lane / 4;
    const int b_term = B::ALONG ? matrix % 2 * 4 : lane % 4;
    const int first = place.slice * TERMS;
    using ASlice = typename T::ASlice;
    using BSlice = typename T::BSlice;
    const float *a_first =
        stage + ASlice::template at<A::ALONG>(place.top + a_side, first + a_term);
    const float *b_first = stage + ASlice::SIZE +
                           BSlice::template at<B::ALONG>(place.left + b_side, first + b_term);
    float stage_sums[T::DEEP][T::WIDE][4] = {};
    auto &to = PRODUCTS == 3 ? stage_sums : sums;
#pragma unroll
    for (int k = 0; k < TERMS; k += 8) {
        Fragment<4> a[T::DEEP];
        Fragment<2> b[T::WIDE];
        for (int i = 0; i < T::DEEP; i++) {
            float values[4];
            if constexpr (A::ALONG) {
                load_matrices(values, a_first + ASlice::template at<true>(16 * i, k));
            } else {
                for (int part = 0; part < 4; part++)
                    values[part] = a_first[ASlice::template at<false>(16 * i + part % 2 * 8,
                                                                      k + part / 2 * 4)];
            }
            for (int part = 0; part < 4; part++) a[i].set(part, values[part]);
        }
        for (int j = 0; j < T::WIDE; j += 2) { // two at once
            float values[4];
            if constexpr (B::ALONG) {
                load_matrices(values, b_first + BSlice::template at<true>(8 * j, k));
            } else {
                for (int part = 0; part < 4; part++)
                    values[part] = b_first[BSlice::template at<false>(8 * (j + part / 2),
                                                                      k + part % 2 * 4)];
            }
            for (int part = 0; part < 4; part++) b[j + part / 2].set(part % 2, values[part]);
        }
#pragma unroll
        for (int product = 0; product < PRODUCTS; product++)
            for (int i = 0; i < T::DEEP; i++)
                for (int j = 0; j < T::WIDE; j++)
                    multiply_add(to[i][j],
                                 PRODUCTS == 3 && product == 0 ? a[i].small : a[i].large,
                                 product == 1 ? b[j].small : b[j].large);
    }
    if (PRODUCTS == 3)
        for (int i = 0; i < T::DEEP; i++)
            for (int j = 0; j < T::WIDE; j++)
                for (int part = 0; part < 4; part++) sums[i][j][part] += stage_sums[i][j][part];
}

// Leaves the tile of A·B, summed from `begin` to `end`, in shared memory. `prepare(step)` decodes
// the terms of a step into `shared.terms`.
template <class T, class A, class B, class Prepare>
__device__ void multiply(const Shared<T> &shared, int begin, int end, const A &a, const B &b,
                         const Prepare &prepare) {
    const int steps = (end - begin + T::TERMS - 1) / T::TERMS;
    Loader<T, T::M, A> load_a(a, shared.terms, begin, end);
    Loader<T, T::N, B> load_b(b, shared.terms, begin, end);
    const auto stage = [&](int step) { return shared.values + step % STAGES * T::STAGE; };
    const auto load = [&](int step) {
        if (step < steps) {
            load_a.load(step, stage(step));
            load_b.load(step, stage(step) + T::ASlice::SIZE);
        }
        commit_copies(); // even if empty: groups are counted
    };
    float sums[T::DEEP][T::WIDE][4] = {};

    for (int step = 0; step < STAGES; step++) prepare(step);
    __syncthreads();
    for (int step = 0; step < STAGES - 1; step++) load(step);
    for (int step = 0; step < steps; step++) {
        wait_copies<STAGES - 2>();
        __syncthreads(); // the step has arrived, and all are done with the one before it
        const int next = step + STAGES - 1;
        prepare(next + 1);
        load(next);
        multiply_stage<T, A, B>(stage(step), sums);
    }
    wait_copies<0>();
    __syncthreads();

    const WarpPlace<T> place;
    const int top = place.slice * T::M + place.top + place.lane / 4;
    const int left = place.left + place.lane % 4 * 2;
    for (int i = 0; i < T::DEEP; i++)
        for (int j = 0; j < T::WIDE; j++)
            for (int part = 0; part < 4; part++)
                shared.values[(top + 16 * i + part / 2 * 8) * T::PITCH + left + 8 * j + part % 2] =
                    sums[i][j][part];
    __syncthreads();
}

// Passes each sum of a tile to `store(i, j, sum)`, in rows.
template <class T, class Store>
__device__ void store_tile(const Shared<T> &shared, const Store &store) {
    for (int at = threadIdx.x; at < T::M * T::N; at += WORKERS)
        store(at / T::N, at % T::N, shared.sum(at / T::N, at % T::N));
}

// Terms that are their own number.
struct NumberedTerms {
    using Term = int;
    __device__ int start(int k) const { return k; }
    __device__ void advance(int &k, int by) const { k += by; }
};

// A matrix [sides, sum].
struct AlongMatrix : NumberedTerms {
    static constexpr bool ALONG = true;
    const float *values;
    int first, count, length;
    bool chunked;
    __device__ AlongMatrix(const float *values, int first, int count, int length, bool aligned)
        : values(values), first(first), count(count), length(length),
          chunked(aligned && length % 4 == 0) {}
    __device__ void load(float *to, int side, int k, bool exists) const {
        exists = exists && first + side < count;
        copy_async(to, values + (exists ? (first + side) * length + k : 0), exists);
    }
    __device__ float value(int side, int k) const {
        return first + side < count ? values[(first + side) * length + k] : 0;
    }
};

// The side after the last of an operand that has ones there, and what is beside it in a chunk.
alignas(16) __device__ const float ONE[] = {1, 0, 0, 0};

// A matrix [sum, sides], with an additional row of ones if it is asked for.
template <bool ONES> struct AcrossMatrix : NumberedTerms {
    static constexpr bool ALONG = false;
    const float *values;
    int first, count;
    bool chunked;
    __device__ AcrossMatrix(const float *values, int first, int count, bool aligned)
        : values(values), first(first), count(count), chunked(aligned && count % 4 == 0) {}
    __device__ void load(float *to, int side, int k, const Place &, bool exists) const {
        const bool is_one = ONES && first + side == count;
        exists &= first + side < count;
        const float *from = values + (exists ? k * count + first + side : 0);
        copy_async(to, is_one ? ONE : from, exists | is_one);
    }
    __device__ float value(int side, int k, const Place &) const {
        if (ONES && first + side == count) return 1;
        return first + side < count ? values[k * count + first + side] : 0;
    }
};

// A kernel's taps, walked along the sum over taps and `channels`. Taps lead from an output pixel to
// an input pixel, or back if `BACK`.
struct WalkedTap {
    int y, x, channel;
};

template <bool BACK> struct Taps {
    using Term = WalkedTap;
    const Job &job;
    int channels;
    __device__ int from_center(int y, int height) const {
        return BACK ? (height - 1) / 2 - y : y - (height - 1) / 2;
    }
    __device__ WalkedTap start(int k) const {
        const int offset = k / channels;
        return {offset / job.kernel_width, offset % job.kernel_width, k % channels};
    }
    __device__ void advance(WalkedTap &tap, int by) const {
        tap.channel += by;
        while (tap.channel >= channels) {
            tap.channel -= channels;
            if (++tap.x == job.kernel_width) {
                tap.x = 0;
                tap.y++;
            }
        }
    }
    __device__ int y(const WalkedTap &tap) const { return from_center(tap.y, job.kernel_height); }
    __device__ int x(const WalkedTap &tap) const { return from_center(tap.x, job.kernel_width); }
};

// The places of a job's pixels in an array [image, height, width, channels].
struct Layout {
    int height, width, channels;
    __device__ bool is_inside(int y, int x) const {
        return (unsigned)y < (unsigned)height & (unsigned)x < (unsigned)width; // without a branch
    }
    __device__ Place place(const Pixel &pixel) const {
        return {((pixel.image * height + pixel.y) * width + pixel.x) * channels, (short)pixel.y,
                (short)pixel.x};
    }
};

__device__ Layout input_layout(const Job &job) { return {job.height, job.width, job.channels}; }

// The gradient of a convolution's output covers the pixels that fill windows.
__device__ Layout gradient_layout(const Job &job) {
    return {covered_height(job), covered_width(job), job.features};
}

// The values of an array under the kernel [pixels, taps], or those that it leads back to.
template <bool BACK> struct PatchesAlong : Taps<BACK> {
    static constexpr bool ALONG = true;
    const float *values;
    Layout layout;
    const Place *pixels;
    bool chunked;
    __device__ PatchesAlong(const Job &job, const float *values, Layout layout, const Place *pixels)
        : Taps<BACK>{job, layout.channels}, values(values), layout(layout), pixels(pixels),
          chunked(layout.channels % 4 == 0) {}
    __device__ bool is_inside(const Place &pixel, const WalkedTap &tap) const {
        return layout.is_inside(pixel.y + this->y(tap), pixel.x + this->x(tap));
    }
    __device__ int index(const Place &pixel, const WalkedTap &tap) const {
        const int offset = this->y(tap) * layout.width + this->x(tap);
        return pixel.offset + offset * layout.channels + tap.channel;
    }
    __device__ void load(float *to, int side, const WalkedTap &tap, bool exists) const {
        const Place &pixel = pixels[side];
        exists &= is_inside(pixel, tap);
        copy_async(to, values + (exists ? index(pixel, tap) : 0), exists);
    }
    __device__ float value(int side, const WalkedTap &tap) const {
        const Place &pixel = pixels[side];
        return is_inside(pixel, tap) ? values[index(pixel, tap)] : 0;
    }
};

template <class T> __device__ void conv_tile(const Job &job, float *memory, int block) {
    const Shared<T> shared(memory);
    const int size = job.window_height * job.window_width, windows = T::M / size;
    const int first = block / job.tiles_across * windows;
    const int left = block % job.tiles_across * T::N;
    const Layout layout = input_layout(job);
    for (int i = threadIdx.x; i < T::M; i += WORKERS) {
        const int number = first * size + i;
        const bool exists = i < windows * size && number < pixels(job);
        shared.sides[i] = exists ? layout.place(pixel(job, number)) : Place{0, NOWHERE};
    }
    multiply(shared, 0, job.inputs, PatchesAlong<false>(job, job.input, layout, shared.sides),
             AcrossMatrix<false>(job.kernel, left, job.features, job.aligned), [](int) {});
    pool(job, first, windows, left, T::N, WORKERS,
         [&](int i, int j) { return shared.sum(i, j); });
}

// A convolution's kernel [y, x, in, out] as [in, (y, x, out)].
struct KernelAlong : Taps<true> {
    static constexpr bool ALONG = true;
    int first;
    bool chunked;
    __device__ KernelAlong(const Job &job, int first)
        : Taps<true>{job, job.features}, first(first),
          chunked(job.aligned && job.features % 4 == 0) {}
    __device__ int index(int side, const WalkedTap &tap) const {
        const int number = tap.y * job.kernel_width + tap.x;
        return (number * job.channels + first + side) * job.features + tap.channel;
    }
    __device__ void load(float *to, int side, const WalkedTap &tap, bool exists) const {
        exists = exists && first + side < job.channels;
        copy_async(to, job.kernel + (exists ? index(side, tap) : 0), exists);
    }
    __device__ float value(int side, const WalkedTap &tap) const {
        return first + side < job.channels ? job.kernel[index(side, tap)] : 0;
    }
};

// Stores a tile of the gradient of a layer's input [rows, columns].
template <class T>
__device__ void store_input_gradient(const Job &job, const Shared<T> &shared, int top, int left,
                                     int rows, int columns) {
    if (job.below.mask == nullptr || columns % 4 != 0 || job.below.features % 4 != 0) {
        store_tile(shared, [&](int i, int j, float sum) {
            if (top + i < rows && left + j < columns)
                input_gradient(job, (top + i) * columns + left + j, sum);
        });
        return;
    }
    for (int at = threadIdx.x; at < T::M * T::N / 4; at += WORKERS) {
        const int i = at / (T::N / 4), j = at % (T::N / 4) * 4;
        if (top + i >= rows || left + j >= columns) continue;
        Four sums;
        for (int k = 0; k < 4; k++) sums.at[k] = shared.sum(i, j + k);
        unpool(job, (top + i) * columns + left + j, sums);
    }
}

template <class T> __device__ void conv_input_tile(const Job &job, float *memory, int block) {
    const Shared<T> shared(memory);
    const int top = block / job.tiles_across * T::M, left = block % job.tiles_across * T::N;
    const Layout layout = gradient_layout(job);
    for (int i = threadIdx.x; i < T::M; i += WORKERS) {
        const Pixel pixel = input_pixel(job, top + i);
        shared.sides[i] = pixel.image < job.batch ? layout.place(pixel) : Place{0, NOWHERE};
    }
    multiply(shared, 0, job.kernel_height * job.kernel_width * job.features,
             PatchesAlong<true>(job, job.gradient, layout, shared.sides), KernelAlong(job, left),
             [](int) {});
    store_input_gradient(job, shared, top, left, job.batch * job.height * job.width, job.channels);
}

// The input values under the kernel [pixels, taps], with an additional tap of ones for the bias.
struct PatchesAcross : NumberedTerms {
    static constexpr bool ALONG = false;
    const Job &job;
    const Place *taps;
    int bias; // its side
    Layout layout;
    bool chunked;
    __device__ PatchesAcross(const Job &job, const Place *taps, int first)
        : job(job), taps(taps), bias(job.inputs - first), layout(input_layout(job)),
          chunked(job.channels % 4 == 0) {}
    __device__ bool is_inside(const Place &pixel, const Place &tap) const {
        return layout.is_inside(pixel.y + tap.y, pixel.x + tap.x);
    }
    // A pixel that does not exist is not inside.
    __device__ void load(float *to, int side, int, const Place &pixel, bool) const {
        const Place &tap = taps[side];
        const bool exists = is_inside(pixel, tap), is_one = side == bias;
        const float *from = job.input + (exists ? pixel.offset + tap.offset : 0);
        copy_async(to, is_one ? ONE : from, exists | is_one);
    }
    __device__ float value(int side, int, const Place &pixel) const {
        if (side == bias) return 1;
        const Place &tap = taps[side];
        return is_inside(pixel, tap) ? job.input[pixel.offset + tap.offset] : 0;
    }
};

template <class T> __device__ void conv_kernel_tile(const Job &job, float *memory, int block) {
    const Shared<T> shared(memory);
    const int down = (job.inputs + T::M) / T::M; // tiles of inputs + 1 rows
    const int part = block / (job.tiles_across * down), tile = block % (job.tiles_across * down);
    const int top = tile / job.tiles_across * T::M, left = tile % job.tiles_across * T::N;
    const int begin = part * job.part, end = min(begin + job.part, pixels(job));
    const Layout layout = input_layout(job);
    for (int i = threadIdx.x; i < T::M; i += WORKERS) {
        const Tap tap = ::tap(job, top + i);
        shared.sides[i] = {(tap.y * job.width + tap.x) * job.channels + tap.channel,
                           top + i < job.inputs ? (short)tap.y : NOWHERE, (short)tap.x};
    }
    // The first threads each walk along the pixels, and decode one of each step.
    const int height = covered_height(job), width = covered_width(job);
    int number = begin + threadIdx.x;
    Pixel pixel = covered_pixel(job, number);
    const auto prepare = [&](int step) {
        if (threadIdx.x >= T::TERMS) return;
        shared.terms[step % STAGES * T::TERMS + threadIdx.x] =
            number < end ? layout.place(pixel) : Place{0, NOWHERE};
        number += T::TERMS;
        pixel.x += T::TERMS;
        for (; pixel.x >= width; pixel.x -= width) pixel.y++;
        for (; pixel.y >= height; pixel.y -= height) pixel.image++;
    };
    multiply(shared, begin, end, PatchesAcross(job, shared.sides, top),
             AcrossMatrix<false>(job.gradient, left, job.features, true), prepare);
    float *partial = job.partials + part * (job.inputs + 1) * job.features;
    store_tile(shared, [&](int i, int j, float sum) {
        if (top + i <= job.inputs && left + j < job.features)
            partial[(top + i) * job.features + left + j] = sum;
    });
}

template <class T> __device__ void dense_tile(const Job &job, float *memory, int block) {
    const Shared<T> shared(memory);
    const int down = (job.batch + T::M - 1) / T::M;
    const int part = block / (job.tiles_across * down), tile = block % (job.tiles_across * down);
    const int top = tile / job.tiles_across * T::M, left = tile % job.tiles_across * T::N;
    const int begin = part * job.part, end = min(begin + job.part, job.inputs);
    multiply(shared, begin, end, AlongMatrix(job.input, top, job.batch, job.inputs, true),
             AcrossMatrix<false>(job.kernel, left, job.features, job.aligned), [](int) {});
    float *partial = job.partials + part * job.batch * job.features;
    store_tile(shared, [&](int i, int j, float sum) {
        if (top + i < job.batch && left + j < job.features)
            partial[(top + i) * job.features + left + j] = sum;
    });
}

template <class T> __device__ void dense_input_tile(const Job &job, float *memory, int block) {
    const Shared<T> shared(memory);
    const int top = block / job.tiles_across * T::M, left = block % job.tiles_across * T::N;
    multiply(shared, 0, job.features,
             AlongMatrix(job.gradient, top, job.batch, job.features, true),
             AlongMatrix(job.kernel, left, job.inputs, job.features, job.aligned), [](int) {});
    store_input_gradient(job, shared, top, left, job.batch, job.inputs);
}

// The momentum update of a tile of a kernel, with several loads of four values at once under way.
template <class T>
__device__ void update_tile(const Job &job, const Shared<T> &shared, int top, int left) {
    constexpr int CHUNKS = T::M * T::N / 4, AT_ONCE = CHUNKS / WORKERS < 4 ? CHUNKS / WORKERS : 4;
    if (job.metrics->classes != 0) return;
    for (int first = threadIdx.x; first < CHUNKS; first += AT_ONCE * WORKERS) {
        Four momenta[AT_ONCE], parameters[AT_ONCE];
        float *momentum[AT_ONCE], *parameter[AT_ONCE];
        for (int turn = 0; turn < AT_ONCE; turn++) {
            const int at = first + turn * WORKERS;
            const int row = top + at / (T::N / 4), column = left + at % (T::N / 4) * 4;
            const bool exists = row <= job.inputs && column < job.features;
            const int index = row * job.features + column;
            momentum[turn] = row < job.inputs ? job.momentum + index : job.bias_momentum + column;
            parameter[turn] = row < job.inputs ? job.kernel + index : job.bias + column;
            if (!exists) momentum[turn] = nullptr;
            if (!exists) continue;
            momenta[turn] = *(const Four *)momentum[turn];
            parameters[turn] = *(const Four *)parameter[turn];
        }
        for (int turn = 0; turn < AT_ONCE; turn++) {
            if (momentum[turn] == nullptr) continue;
            const int at = first + turn * WORKERS;
            for (int i = 0; i < 4; i++) {
                const float sum = shared.sum(at / (T::N / 4), at % (T::N / 4) * 4 + i);
                momenta[turn].at[i] = job.beta * momenta[turn].at[i] + sum;
                parameters[turn].at[i] -= job.rate * momenta[turn].at[i];
            }
            *(Four *)momentum[turn] = momenta[turn];
            *(Four *)parameter[turn] = parameters[turn];
        }
    }
}

template <class T> __device__ void dense_kernel_tile(const Job &job, float *memory, int block) {
    const Shared<T> shared(memory);
    const int top = block / job.tiles_across * T::M, left = block % job.tiles_across * T::N;
    multiply(shared, 0, job.batch, AcrossMatrix<true>(job.input, top, job.inputs, true),
             AcrossMatrix<false>(job.gradient, left, job.features, true), [](int) {});
    if (job.aligned && job.features % 4 == 0) return update_tile(job, shared, top, left);
    store_tile(shared, [&](int i, int j, float sum) {
        if (top + i <= job.inputs && left + j < job.features)
            momentum_update(job, (top + i) * job.features + left + j, sum);
    });
}

// Runs the tile of this block.
template <class T> __device__ void run_tile(const Job &job, float *memory) {
    const int block = blockIdx.x;
    if constexpr (T::M < 32) return conv_kernel_tile<T>(job, memory, block); // of few taps
    else switch (job.kind) {
    case CONV: return conv_tile<T>(job, memory, block);
    case CONV_INPUT: return conv_input_tile<T>(job, memory, block);
    case CONV_KERNEL: return conv_kernel_tile<T>(job, memory, block);
    case DENSE: return dense_tile<T>(job, memory, block);
    case DENSE_INPUT: return dense_input_tile<T>(job, memory, block);
    case DENSE_KERNEL: return dense_kernel_tile<T>(job, memory, block);
    }
}

#endif
