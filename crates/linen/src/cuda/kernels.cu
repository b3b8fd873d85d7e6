// The compiled step on an NVIDIA GPU.
//
// A step is a short sequence of launches of one kernel, `run`. Each launch runs a few independent
// jobs concurrently. A job is a layer, forward or backward, with one block per tile of its result.
// Everything is f32, and the order of sums depends only on shapes: results are reproducible bit for
// bit.
//
// Arrays are laid out as in Flax: images [image, y, x, channel], kernels [y, x, in, out] and
// [in, out]. Pixels of a convolution's output are numbered window by window, so that a tile holds
// whole pooling windows. Pixels that do not fill a window are skipped.
//
// Compiled at run time by NVRTC. The tests compile it with a C++ compiler and run it on the CPU
// (emulate.cpp).

constexpr int THREADS = 256;
constexpr int SIDE = 16;  // threads along each side of a tile
constexpr int DEPTH = 16; // terms of the sums that are loaded at once
constexpr int WIDEST = 64;
constexpr int STRIDE = WIDEST + 4; // keeps rows aligned and avoids bank conflicts

// In the order of `Kind` in plan.rs.
enum Kind {
    CONV,
    CONV_INPUT,
    CONV_KERNEL,
    UPDATE,
    DENSE,
    FINISH,
    HEAD,
    METRICS,
    DENSE_INPUT,
    DENSE_KERNEL,
    GATHER,
};

// The metrics of a step; decoded by `read` in plan.rs.
struct Metrics {
    float loss, accuracy; // means
    int classes;          // the number of classes if a label is out of range, else 0
    unsigned label;       // the first such label
    int position;         // its index in the batch
    int unused[3];        // to the size of a row
};

// An epoch that runs without the host, filled in by program.rs: step by step the examples of a
// dataset, in an order, and the metrics of all steps.
struct Epoch {
    const float *images;
    const unsigned *labels;
    const unsigned *order; // indices of examples, batch after batch
    Metrics *rows;
    int step, steps;
};

// The work of one layer, filled in by plan.rs. Pointers that a kind does not use are null.
struct Job {
    float *input;    // of the layer
    float *kernel;
    float *bias;
    float *output;   // of the layer: pooled, if it pools
    float *gradient; // with respect to that output
    float *input_gradient;
    float *momentum; // of the kernel
    float *bias_momentum;
    float *partials; // partial sums, one array per part
    float *losses;   // per image; then, per image, 1 if correct, else 0
    Metrics *metrics;
    unsigned *labels;
    Epoch *epoch; // null if the host supplies each batch
    unsigned char *mask; // per window: the index of the maximum, or the pixels that passed the ReLU
    int kind;
    int first_block;
    int batch;
    int height, width, channels;   // of a convolution's input
    int kernel_height, kernel_width;
    int features;                  // of the output
    int window_height, window_width;
    int rows, columns;             // of windows
    int inputs;                    // of a dense layer; in a convolution: values under its kernel
    int relu, max;
    int parts, part;               // of a split sum: number of parts, and their length
    int tiles_across;              // tiles per row of the result
    int tile_height, tile_width;
    float rate, beta;
};

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

// The gradient of a convolution's output before ReLU and pooling, from the gradient after them.
__device__ float unpooled(const Job &job, int window, int within, int feature) {
    const int index = window * job.features + feature;
    const int mask = job.mask[index];
    if (job.max) return mask == within ? job.gradient[index] : 0;
    return mask >> within & 1 ? job.gradient[index] / (job.window_height * job.window_width) : 0;
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

    const int count = job.batch * job.rows * job.columns;
    for (int at = threadIdx.x; at < windows * SIDE * TN; at += THREADS) {
        const int window = first + at / (SIDE * TN), j = at % (SIDE * TN), feature = left + j;
        if (window >= count || feature >= job.features) continue;
        const float *values = tiles + at / (SIDE * TN) * size * PITCH + j;
        float sum = 0, largest = 0;
        int passed = 0, position = -1;
        for (int i = 0; i < size; i++) {
            float value = values[i * PITCH] + job.bias[feature];
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

// Kernel and bias gradient of a convolution; each block sums over a part of the pixels.
struct UnpooledColumns {
    const Job &job;
    static constexpr bool ALONG_SUM = false;
    struct Sum {
        int window, within;
    };
    using Column = int;
    __device__ int column(int j) const { return j; }
    __device__ Sum sum(int k) const {
        const int size = job.window_height * job.window_width;
        return {k / size, k % size};
    }
    __device__ float at(const Sum &sum, int column) const {
        return column < job.features ? unpooled(job, sum.window, sum.within, column) : 0;
    }
};

struct TransposedPatches {
    const Job &job;
    using Row = Tap;
    __device__ Tap row(int i) const { return tap(job, i <= job.inputs ? i : 0); }
    __device__ Pixel sum(int k) const { return pixel(job, k); }
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
    matmul_tile<TM, TN>(tiles, top, left, begin, end, TransposedPatches{job}, UnpooledColumns{job},
                        store);
}

// Input gradient of a convolution: the output gradients that each input pixel contributed to.
struct OutputPatches {
    const Job &job;
    using Row = Pixel; // of the input
    struct Sum {
        int y, x, feature;
    };
    __device__ Pixel row(int i) const {
        const int line = i / job.width;
        return {line / job.height, line % job.height, i % job.width};
    }
    __device__ Sum sum(int k) const {
        const int offset = k / job.features;
        return {(job.kernel_height - 1) / 2 - offset / job.kernel_width,
                (job.kernel_width - 1) / 2 - offset % job.kernel_width, k % job.features};
    }
    __device__ float at(const Pixel &pixel, const Sum &sum) const {
        const int y = pixel.y + sum.y, x = pixel.x + sum.x;
        const int row = y / job.window_height, column = x / job.window_width;
        if (pixel.image >= job.batch || y < 0 || x < 0 || row >= job.rows || column >= job.columns)
            return 0;
        const int window = (pixel.image * job.rows + row) * job.columns + column;
        const int within = y % job.window_height * job.window_width + x % job.window_width;
        return unpooled(job, window, within, sum.feature);
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
            job.input_gradient[row * job.channels + column] = sum;
    };
    matmul_tile<TM, TN>(tiles, top, left, 0, end, OutputPatches{job}, KernelByInput{job}, store);
}

// The momentum update of value `index` of a gradient, in which the bias follows the kernel. Does
// nothing after an out-of-range label.
__device__ void momentum_update(const Job &job, int index, float gradient) {
    if (job.metrics->classes != 0) return;
    const int length = job.inputs * job.features;
    const bool is_bias = index >= length;
    float *parameter = is_bias ? job.bias + index - length : job.kernel + index;
    float *momentum = is_bias ? job.bias_momentum + index - length : job.momentum + index;
    *momentum = job.beta * *momentum + gradient;
    *parameter -= job.rate * *momentum;
}

// The total of the partial sums of value `index`, in arrays of `length` values.
__device__ float total(const Job &job, int index, int length) {
    float sum = 0;
    for (int part = 0; part < job.parts; part++) sum += job.partials[part * length + index];
    return sum;
}

// Adds up the partial gradients of a convolution, and updates its parameters.
__device__ void update_all(const Job &job, int block) {
    const int index = block * THREADS + threadIdx.x, length = (job.inputs + 1) * job.features;
    if (index < length) momentum_update(job, index, total(job, index, length));
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

// Value `index` of a dense layer's output.
__device__ float dense_output(const Job &job, int index) {
    const int length = job.batch * job.features;
    const float value = total(job, index, length) + job.bias[index % job.features];
    return job.relu && value <= 0 ? 0 : value;
}

// Adds up the partial sums of a dense layer, then applies bias and ReLU.
__device__ void finish(const Job &job, int block) {
    const int index = block * THREADS + threadIdx.x;
    if (index < job.batch * job.features) job.output[index] = dense_output(job, index);
}

// Log-softmax, loss and its gradient for the last layer; 32 threads per row.
__device__ void head(const Job &job, float *tiles, int block) {
    const int lane = threadIdx.x % 32, group = threadIdx.x / 32;
    const int row = block * (THREADS / 32) + group;
    const bool exists = row < job.batch;
    float *shared = tiles + group * 32;
    float *logits = job.output + row * job.features;

    float largest = -1e38f;
    if (exists)
        for (int j = lane; j < job.features; j += 32) {
            logits[j] = dense_output(job, row * job.features + j);
            largest = max(largest, logits[j]);
        }
    shared[lane] = largest;
    __syncthreads();
    for (int i = 0; i < 32; i++) largest = max(largest, shared[i]);
    __syncthreads();
    float sum = 0;
    if (exists)
        for (int j = lane; j < job.features; j += 32) sum += expf(logits[j] - largest);
    shared[lane] = sum;
    __syncthreads();
    sum = 0;
    for (int i = 0; i < 32; i++) sum += shared[i];
    const float log_sum = largest + logf(sum);
    if (!exists) return;

    const unsigned label = job.labels[row];
    const float share = 1.0f / job.batch;
    for (int j = lane; j < job.features; j += 32) {
        const float d = (expf(logits[j] - log_sum) - (j == (int)label)) * share;
        job.gradient[row * job.features + j] = job.relu && logits[j] <= 0 ? 0 : d;
    }
    if (lane == 0) {
        int best = 0;
        for (int j = 1; j < job.features; j++)
            if (logits[j] > logits[best]) best = j;
        const bool is_class = label < (unsigned)job.features;
        job.losses[row] = is_class ? log_sum - logits[label] : nanf("");
        job.losses[job.batch + row] = best == (int)label;
    }
}

// Mean loss and accuracy, and the first out-of-range label.
__device__ void batch_metrics(const Job &job, float *tiles) {
    float *losses = tiles, *corrects = tiles + THREADS;
    int *firsts = (int *)(tiles + 2 * THREADS);
    float loss = 0, correct = 0;
    int first = job.batch;
    for (int i = threadIdx.x; i < job.batch; i += THREADS) {
        loss += job.losses[i];
        correct += job.losses[job.batch + i];
        if (job.labels[i] >= (unsigned)job.features) first = min(first, i);
    }
    losses[threadIdx.x] = loss;
    corrects[threadIdx.x] = correct;
    firsts[threadIdx.x] = first;
    for (int half = THREADS / 2; half > 0; half /= 2) {
        __syncthreads();
        if ((int)threadIdx.x < half) {
            losses[threadIdx.x] += losses[threadIdx.x + half];
            corrects[threadIdx.x] += corrects[threadIdx.x + half];
            firsts[threadIdx.x] = min(firsts[threadIdx.x], firsts[threadIdx.x + half]);
        }
    }
    if (threadIdx.x == 0) {
        const int position = firsts[0];
        const bool all_classes = position == job.batch;
        *job.metrics = {losses[0] / job.batch, corrects[0] / job.batch,
                        all_classes ? 0 : job.features, all_classes ? 0 : job.labels[position],
                        position};
        if (job.epoch) job.epoch->rows[job.epoch->step++] = *job.metrics;
    }
}

// Copies the next batch of an epoch to where the layers read it.
__device__ void gather(const Job &job, int block) {
    const Epoch &epoch = *job.epoch;
    if (epoch.step >= epoch.steps) return;
    const unsigned *order = epoch.order + (long long)epoch.step * job.batch;
    const int index = block * THREADS + threadIdx.x;
    if (index < job.batch * job.inputs) {
        const long long image = order[index / job.inputs];
        job.output[index] = epoch.images[image * job.inputs + index % job.inputs];
    }
    if (index < job.batch) job.labels[index] = epoch.labels[order[index]];
}

// Input gradient of a dense layer, through the ReLU of the layer before if it has one.
template <int TM, int TN> __device__ void dense_input(const Job &job, float *tiles, int block) {
    const int top = block / job.tiles_across * SIDE * TM;
    const int left = block % job.tiles_across * SIDE * TN;
    const auto store = [&](int i, int j, float sum) {
        const int row = top + i, column = left + j;
        if (row >= job.batch || column >= job.inputs) return;
        const int index = row * job.inputs + column;
        job.input_gradient[index] = job.relu && job.input[index] <= 0 ? 0 : sum;
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

// Each block finds its job, and its tile within the job.
extern "C" __global__ void __launch_bounds__(THREADS) run(const Job *__restrict__ jobs, int count) {
    // The loaded slices of A and B, or a tile of a convolution's output.
    alignas(16) __shared__ float tiles[WIDEST * (WIDEST + 1)];
    int at = 0;
    while (at + 1 < count && jobs[at + 1].first_block <= (int)blockIdx.x) at++;
    const Job &job = jobs[at];
    const int block = blockIdx.x - job.first_block;
    const bool narrow = job.tile_width < WIDEST, low = job.tile_height < WIDEST;
    switch (job.kind) {
    case CONV: return narrow ? conv<4, 2>(job, tiles, block) : conv<4, 4>(job, tiles, block);
    case CONV_INPUT:
        return narrow ? conv_input<4, 2>(job, tiles, block) : conv_input<4, 4>(job, tiles, block);
    case CONV_KERNEL:
        return narrow ? conv_kernel<4, 2>(job, tiles, block) : conv_kernel<4, 4>(job, tiles, block);
    case UPDATE: return update_all(job, block);
    case DENSE: return low ? dense<2, 2>(job, tiles, block) : dense<4, 4>(job, tiles, block);
    case FINISH: return finish(job, block);
    case HEAD: return head(job, tiles, block);
    case METRICS: return batch_metrics(job, tiles);
    case DENSE_INPUT:
        return low ? dense_input<2, 2>(job, tiles, block) : dense_input<4, 4>(job, tiles, block);
    case DENSE_KERNEL: return dense_kernel<2, 2>(job, tiles, block);
    case GATHER: return gather(job, block);
    }
}
