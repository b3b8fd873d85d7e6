// Matrix products, one multiplication at a time: for every GPU, and for sums that are too small for
// tensor cores.

constexpr int SIDE = 16;  // threads along each side of a tile
constexpr int DEPTH = 16; // terms of the sums that are loaded at once
constexpr int WIDEST = 64;
constexpr int STRIDE = WIDEST + 4; // keeps rows aligned and avoids bank conflicts

// A tile of the matrix product A·B: rows of A from `top`, columns of B from `left`, summed over k
// from `begin` to `end`.
//
// A and B are functions of two indices, decoded separately so that constant parts are computed
// once: `A.row(i)`, `A.sum(k)`, `A.at(row, sum)`; `B.column(j)`, `B.sum(k)`, `B.at(sum, column)`.
// Out-of-range indices give 0. Each thread keeps TM × TN sums in registers and passes each to
// `store(i, j, sum)`.
template <int TM, int TN, class A, class B, class Store>
__device__ void matmul_tile(float *tiles, int top, int left, int begin, int end, const A &a,
                            const B &b, const Store &store) {
    float *a_tile = tiles, *b_tile = tiles + DEPTH * STRIDE;
    const int across = threadIdx.x % SIDE, down = threadIdx.x / SIDE;
    float sums[TM][TN] = {};

    typename A::Row rows[TM]; // this thread loads A at depth `across`
    for (int i = 0; i < TM; i++) rows[i] = a.row(top + down + SIDE * i);
    // Neighboring threads load neighboring values of B, for coalesced access.
    constexpr int WIDTH = SIDE * TN, AT_ONCE = THREADS / WIDTH;
    typename B::Column columns[TN];
    for (int j = 0; j < TN; j++)
        columns[j] = b.column(left + (B::ALONG_SUM ? down + SIDE * j : threadIdx.x % WIDTH));

    for (int start = begin; start < end; start += DEPTH) {
        {
            const int k = start + across;
            const auto sum = a.sum(k < end ? k : begin);
            for (int i = 0; i < TM; i++)
                a_tile[across * STRIDE + down + SIDE * i] = k < end ? a.at(rows[i], sum) : 0;
        }
        if (B::ALONG_SUM) {
            const int k = start + across;
            const auto sum = b.sum(k < end ? k : begin);
            for (int j = 0; j < TN; j++)
                b_tile[across * STRIDE + down + SIDE * j] = k < end ? b.at(sum, columns[j]) : 0;
        } else {
            for (int j = 0; j < TN; j++) {
                const int depth = threadIdx.x / WIDTH + AT_ONCE * j, k = start + depth;
                b_tile[depth * STRIDE + threadIdx.x % WIDTH] =
                    k < end ? b.at(b.sum(k), columns[j]) : 0;
            }
        }
        __syncthreads();
        for (int k = 0; k < DEPTH; k++) {
            float a_values[TM], b_values[TN];
            for (int i = 0; i < TM; i++) a_values[i] = a_tile[k * STRIDE + down * TM + i];
            for (int j = 0; j < TN; j++) b_values[j] = b_tile[k * STRIDE + across * TN + j];
            for (int i = 0; i < TM; i++)
                for (int j = 0; j < TN; j++) sums[i][j] += a_values[i] * b_values[j];
        }
        __syncthreads();
    }
    for (int i = 0; i < TM; i++)
        for (int j = 0; j < TN; j++) store(down * TM + i, across * TN + j, sums[i][j]);
}

// A pixel of a convolution's output or input.
struct Pixel {
    int image, y, x;
};

// Pixel `number` of a convolution's output, counted window by window.
__device__ Pixel pixel(const Job &job, int number) {
    const int size = job.window_height * job.window_width;
    const int window = number / size, within = number % size;
    const int line = window / job.columns;
    return {line / job.rows, line % job.rows * job.window_height + within / job.window_width,
            window % job.columns * job.window_width + within % job.window_width};
}

__device__ int pixels(const Job &job) {
    return job.batch * job.rows * job.columns * job.window_height * job.window_width;
}

// Tap `number` of a convolution's kernel: offset from the pixel, and channel.
struct Tap {
    int y, x, channel;
    bool is_bias; // one past the kernel: a constant 1
};

__device__ Tap tap(const Job &job, int number) {
    const int channel = number % job.channels, offset = number / job.channels;
    return {offset / job.kernel_width - (job.kernel_height - 1) / 2,
            offset % job.kernel_width - (job.kernel_width - 1) / 2, channel, number == job.inputs};
}

__device__ float input_at(const Job &job, const Pixel &pixel, const Tap &tap) {
    const int y = pixel.y + tap.y, x = pixel.x + tap.x;
    if (y < 0 || y >= job.height || x < 0 || x >= job.width) return 0;
    return job.input[((pixel.image * job.height + y) * job.width + x) * job.channels + tap.channel];
}

// The height and width of the pixels of a convolution's output that fill windows.
__device__ int covered_height(const Job &job) { return job.rows * job.window_height; }
__device__ int covered_width(const Job &job) { return job.columns * job.window_width; }

// Pixel `number` of those, counted row by row.
__device__ Pixel covered_pixel(const Job &job, int number) {
    const int line = number / covered_width(job);
    return {line / covered_height(job), line % covered_height(job), number % covered_width(job)};
}

// Pixel `number` of a convolution's input.
__device__ Pixel input_pixel(const Job &job, int number) {
    const int line = number / job.width;
    return {line / job.height, line % job.height, number % job.width};
}

struct alignas(16) Four {
    float at[4];
};

// Stores the gradient of neighboring values of a convolution's output, from value `index`, as the
// gradient before its pooling and ReLU: `Values` is `float` or `Four`.
template <class Values>
__device__ void unpool(const Job &job, int index, const Values &gradient) {
    constexpr int COUNT = sizeof(Values) / sizeof(float);
    const Below &below = job.below;
    const int window = index / below.features, feature = index % below.features;
    const int line = window / below.columns, column = window % below.columns;
    const int width = below.columns * below.window_width;
    const float share = below.max ? 1 : 1.0f / (below.window_height * below.window_width);
    unsigned masks = 0;
    if constexpr (COUNT == 4) masks = *(const unsigned *)(below.mask + index);
    else masks = below.mask[index];
    for (int i = 0; i < below.window_height; i++)
        for (int j = 0; j < below.window_width; j++) {
            const int within = i * below.window_width + j;
            const int pixel = (line * below.window_height + i) * width +
                              column * below.window_width + j;
            Values values;
            for (int k = 0; k < COUNT; k++) {
                const int mask = masks >> 8 * k & 255;
                const bool passes = below.max ? mask == within : mask >> within & 1;
                ((float *)&values)[k] = passes ? ((const float *)&gradient)[k] * share : 0;
            }
            *(Values *)(job.input_gradient + pixel * below.features + feature) = values;
        }
}

// Stores the gradient of value `index` of a layer's input: of what its ReLU and pooling got.
__device__ void input_gradient(const Job &job, int index, float gradient) {
    if (job.below.mask != nullptr) return unpool(job, index, gradient);
    job.input_gradient[index] = job.relu && job.input[index] <= 0 ? 0 : gradient;
}

// Forward: the input values under the kernel, for each pixel [pixels, taps] (im2col).
struct Patches {
    const Job &job;
    using Row = Pixel;
    __device__ Pixel row(int i) const { return pixel(job, i < pixels(job) ? i : 0); }
    __device__ Tap sum(int k) const { return tap(job, k); }
    __device__ float at(const Pixel &pixel, const Tap &tap) const {
        return input_at(job, pixel, tap);
    }
};

// A matrix [sum, columns] as the right factor.
struct Matrix {
    const float *values;
    int width;
    static constexpr bool ALONG_SUM = false;
    using Column = int;
    __device__ int column(int j) const { return j; }
    __device__ int sum(int k) const { return k * width; }
    __device__ float at(int sum, int column) const {
        return column < width ? values[sum + column] : 0;
    }
};

// A matrix [columns, sum] as the right factor.
struct Transposed {
    const float *values;
    int width, height;
    static constexpr bool ALONG_SUM = true;
    using Column = int;
    __device__ int column(int j) const { return j; }
    __device__ int sum(int k) const { return k; }
    __device__ float at(int sum, int column) const {
        return column < height ? values[column * width + sum] : 0;
    }
};

// A matrix [rows, sum] as the left factor.
struct Rows {
    const float *values;
    int height, width;
    using Row = int;
    __device__ int row(int i) const { return i; }
    __device__ int sum(int k) const { return k; }
    __device__ float at(int row, int sum) const {
        return row < height ? values[row * width + sum] : 0;
    }
};

// A matrix [sum, rows] as the left factor, with an additional row of ones for the bias.
struct TransposedWithOnes {
    const float *values;
    int width;
    using Row = int;
    __device__ int row(int i) const { return i; }
    __device__ int sum(int k) const { return k; }
    __device__ float at(int row, int sum) const {
        return row < width ? values[sum * width + row] : row == width ? 1 : 0;
    }
};

// Bias, ReLU and pooling of a tile of a convolution's output: `windows` whole windows from `first`,
// and `width` features from `left`. Window by window, pixel i of the tile is `values(i, j)`.
// `SIZE` is that of a window, or 0 for any.
template <int SIZE, class Values>
__device__ void pool_windows(const Job &job, int first, int windows, int left, int width,
                             int threads, const Values &values) {
    const int count = job.batch * job.rows * job.columns;
    const int size = SIZE != 0 ? SIZE : job.window_height * job.window_width;
    for (int at = threadIdx.x; at < windows * width; at += threads) {
        const int window = first + at / width, j = at % width, feature = left + j;
        if (window >= count || feature >= job.features) continue;
        const float bias = job.bias[feature];
        float sum = 0, largest = 0;
        int passed = 0, position = -1;
        for (int i = 0; i < size; i++) {
            float value = values(at / width * size + i, j) + bias;
            const bool passes = !job.relu || value > 0 || value != value;
            if (!passes) value = 0;
            sum += value;
            if (passes) passed |= 1 << (i & 31);
            if (i == 0 || value > largest || value != value) {
                largest = value;
                position = passes ? i : 255; // no pixel: the ReLU blocks the gradient
            }
        }
        const int index = window * job.features + feature;
        job.output[index] = job.max ? largest : sum / size;
        job.mask[index] = job.max ? position : passed;
    }
}

template <class Values>
__device__ void pool(const Job &job, int first, int windows, int left, int width, int threads,
                     const Values &values) {
    if (job.window_height * job.window_width == 4)
        pool_windows<4>(job, first, windows, left, width, threads, values);
    else
        pool_windows<0>(job, first, windows, left, width, threads, values);
}

// Convolution, bias, ReLU and pooling.
template <int TM, int TN> __device__ void conv(const Job &job, float *tiles, int block) {
    const int size = job.window_height * job.window_width;
    const int windows = SIDE * TM / size; // whole windows per tile
    const int first = block / job.tiles_across * windows;
    const int left = block % job.tiles_across * SIDE * TN;
    constexpr int PITCH = SIDE * TN + 1;
    const auto keep = [=](int i, int j, float sum) { tiles[i * PITCH + j] = sum; };
    matmul_tile<TM, TN>(tiles, first * size, left, 0, job.inputs, Patches{job},
                        Matrix{job.kernel, job.features}, keep);
    __syncthreads();

    const auto value = [=](int i, int j) { return tiles[i * PITCH + j]; };
    pool(job, first, windows, left, SIDE * TN, THREADS, value);
}

// Kernel and bias gradient of a convolution; each block sums over a part of the pixels.
struct TransposedPatches {
    const Job &job;
    using Row = Tap;
    __device__ Tap row(int i) const { return tap(job, i <= job.inputs ? i : 0); }
    __device__ Pixel sum(int k) const { return covered_pixel(job, k); }
    __device__ float at(const Tap &tap, const Pixel &pixel) const {
        return tap.is_bias ? 1 : input_at(job, pixel, tap);
    }
};

template <int TM, int TN> __device__ void conv_kernel(const Job &job, float *tiles, int block) {
    const int down = (job.inputs + SIDE * TM) / (SIDE * TM); // tiles of inputs + 1 rows
    const int part = block / (job.tiles_across * down), tile = block % (job.tiles_across * down);
    const int top = tile / job.tiles_across * SIDE * TM, left = tile % job.tiles_across * SIDE * TN;
    const int begin = part * job.part, end = min(begin + job.part, pixels(job));
    float *partial = job.partials + part * (job.inputs + 1) * job.features;
    const auto store = [&](int i, int j, float sum) {
        if (top + i <= job.inputs && left + j < job.features)
            partial[(top + i) * job.features + left + j] = sum;
    };
    matmul_tile<TM, TN>(tiles, top, left, begin, end, TransposedPatches{job},
                        Matrix{job.gradient, job.features}, store);
}

// Input gradient of a convolution: the output gradients that each input pixel contributed to.
struct OutputPatches {
    const Job &job;
    using Row = Pixel; // of the input
    struct Sum {
        int y, x, feature;
    };
    __device__ Pixel row(int i) const { return input_pixel(job, i); }
    __device__ Sum sum(int k) const {
        const int offset = k / job.features;
        return {(job.kernel_height - 1) / 2 - offset / job.kernel_width,
                (job.kernel_width - 1) / 2 - offset % job.kernel_width, k % job.features};
    }
    __device__ float at(const Pixel &pixel, const Sum &sum) const {
        const int y = pixel.y + sum.y, x = pixel.x + sum.x;
        const int height = covered_height(job), width = covered_width(job);
        if (pixel.image >= job.batch || y < 0 || x < 0 || y >= height || x >= width) return 0;
        return job.gradient[((pixel.image * height + y) * width + x) * job.features + sum.feature];
    }
};

// A convolution's kernel [y, x, in, out] as the right factor [(y, x, out), in].
struct KernelByInput {
    const Job &job;
    static constexpr bool ALONG_SUM = true;
    using Column = int;
    __device__ int column(int j) const { return j; }
    __device__ int sum(int k) const {
        return k / job.features * job.channels * job.features + k % job.features;
    }
    __device__ float at(int sum, int column) const {
        return column < job.channels ? job.kernel[sum + column * job.features] : 0;
    }
};

template <int TM, int TN> __device__ void conv_input(const Job &job, float *tiles, int block) {
    const int top = block / job.tiles_across * SIDE * TM;
    const int left = block % job.tiles_across * SIDE * TN;
    const int end = job.kernel_height * job.kernel_width * job.features;
    const auto store = [&](int i, int j, float sum) {
        const int row = top + i, column = left + j;
        if (row < job.batch * job.height * job.width && column < job.channels)
            input_gradient(job, row * job.channels + column, sum);
    };
    matmul_tile<TM, TN>(tiles, top, left, 0, end, OutputPatches{job}, KernelByInput{job}, store);
}

// Matrix product of a dense layer; each block sums over a part of the inputs.
template <int TM, int TN> __device__ void dense(const Job &job, float *tiles, int block) {
    const int down = (job.batch + SIDE * TM - 1) / (SIDE * TM);
    const int part = block / (job.tiles_across * down), tile = block % (job.tiles_across * down);
    const int top = tile / job.tiles_across * SIDE * TM, left = tile % job.tiles_across * SIDE * TN;
    const int begin = part * job.part, end = min(begin + job.part, job.inputs);
    float *partial = job.partials + part * job.batch * job.features;
    const auto store = [&](int i, int j, float sum) {
        if (top + i < job.batch && left + j < job.features)
            partial[(top + i) * job.features + left + j] = sum;
    };
    matmul_tile<TM, TN>(tiles, top, left, begin, end, Rows{job.input, job.batch, job.inputs},
                        Matrix{job.kernel, job.features}, store);
}

// Input gradient of a dense layer, through the ReLU of the layer before if it has one.
template <int TM, int TN> __device__ void dense_input(const Job &job, float *tiles, int block) {
    const int top = block / job.tiles_across * SIDE * TM;
    const int left = block % job.tiles_across * SIDE * TN;
    const auto store = [&](int i, int j, float sum) {
        const int row = top + i, column = left + j;
        if (row < job.batch && column < job.inputs)
            input_gradient(job, row * job.inputs + column, sum);
    };
    matmul_tile<TM, TN>(tiles, top, left, 0, job.features,
                        Rows{job.gradient, job.batch, job.features},
                        Transposed{job.kernel, job.features, job.inputs}, store);
}

// Kernel and bias gradient of a dense layer, with the momentum update.
template <int TM, int TN> __device__ void dense_kernel(const Job &job, float *tiles, int block) {
    const int top = block / job.tiles_across * SIDE * TM;
    const int left = block % job.tiles_across * SIDE * TN;
    const auto store = [&](int i, int j, float sum) {
        if (top + i <= job.inputs && left + j < job.features)
            momentum_update(job, (top + i) * job.features + left + j, sum);
    };
    matmul_tile<TM, TN>(tiles, top, left, 0, job.batch, TransposedWithOnes{job.input, job.inputs},
                        Matrix{job.gradient, job.features}, store);
}
