// The compiled step on an NVIDIA GPU.
//
// A step is a short row of launches of one kernel, `run`. Each launch works off a few jobs that do not depend on one
// another, side by side; a job is a layer, forward or backward, and takes as many blocks as its result has tiles.
// Everything is f32 and summed in an order that depends on the shapes alone: the same bits every time.
//
// Arrays are laid out as in Flax: images [image, y, x, channel], kernels [y, x, in, out] and [in, out]. Pixels of a
// convolution's output are numbered window by window, so that a tile holds whole pooling windows; pixels that fill no
// window have no influence and do not occur.
//
// Compiled at run time by NVRTC, and by a C++ compiler for the tests, which run it on the CPU (emulate.cpp).

constexpr int THREADS = 256;
constexpr int SIDE = 16;  // threads along each side of a tile
constexpr int DEPTH = 16; // of a tile's slices along the sum
constexpr int WIDEST = 64;
constexpr int STRIDE = WIDEST + 4; // keeps rows aligned and off each other's banks

// What to do; the numbers are those of `Kind` in plan.rs.
enum Kind { CONV, CONV_INPUT, CONV_KERNEL, UPDATE, DENSE, FINISH, HEAD, SCORE, DENSE_INPUT, DENSE_KERNEL };

// What a step says of its batch; `read` in plan.rs understands it.
struct Metrics {
    float loss, accuracy; // means
    int classes;          // 0, unless a label is none of so many classes
    unsigned label;       // the first such label
    int position;         // its place in the batch
};

// One layer's work, as plan.rs writes it. Pointers that a kind does not use are null.
struct Job {
    float *input;    // of the layer
    float *kernel;
    float *bias;
    float *output;   // of the layer: pooled, if it pools
    float *gradient; // with respect to that output
    float *below;    // gradient with respect to the input
    float *momentum; // of the kernel
    float *bias_momentum;
    float *partials; // sums over parts, one after the other
    float *losses;   // per image, then as many 1s and 0s for right and wrong
    Metrics *metrics;
    unsigned *labels;
    unsigned char *marks; // per pooled value: which pixels passed on their value
    int kind;
    int first_block;
    int batch;
    int height, width, channels;   // of a convolution's input
    int kernel_height, kernel_width;
    int features;                  // of the output
    int window_height, window_width;
    int rows, columns;             // of windows
    int inputs;                    // of a dense layer; of a convolution: values under its kernel
    int relu, max;
    int parts, part;               // of a divided sum: how many, and their length
    int tiles_across;              // tiles of the result from left to right
    int tile_height, tile_width;
    float rate, beta;
};

// A tile of a product A·B: A's rows from `top`, B's columns from `left`, summed from `begin` to `end`.
//
// A and B are functions of two positions, each looked up apart: `A.row(i)`, `A.sum(k)`, `A.at(row, sum)` and
// `B.column(j)`, `B.sum(k)`, `B.at(sum, column)`; so whatever does not change is worked out once. Positions beyond
// the result give 0. Each thread keeps TM × TN sums in registers and hands each to `store(i, j, sum)`.
template <int TM, int TN, class A, class B, class Store>
__device__ void product(float *tiles, int top, int left, int begin, int end, const A &a, const B &b, const Store &store) {
    float *a_tile = tiles, *b_tile = tiles + DEPTH * STRIDE;
    const int across = threadIdx.x % SIDE, down = threadIdx.x / SIDE;
    float sums[TM][TN] = {};

    typename A::Row rows[TM]; // this thread loads A at depth `across`
    for (int i = 0; i < TM; i++) rows[i] = a.row(top + down + SIDE * i);
    // Neighbouring threads load B along the direction in which it lies in memory.
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
                b_tile[depth * STRIDE + threadIdx.x % WIDTH] = k < end ? b.at(b.sum(k), columns[j]) : 0;
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

// Pixel `number` of a convolution's output, counted window by window.
struct Pixel {
    int image, y, x;
};

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

// Place `number` under a convolution's kernel: as far from the pixel, which channel.
struct Place {
    int y, x, channel;
    bool is_bias; // one past the kernel: a constant 1
};

__device__ Place place(const Job &job, int number) {
    const int channel = number % job.channels, tap = number / job.channels;
    return {tap / job.kernel_width - (job.kernel_height - 1) / 2, tap % job.kernel_width - (job.kernel_width - 1) / 2,
            channel, number == job.inputs};
}

__device__ float input_at(const Job &job, const Pixel &pixel, const Place &place) {
    const int y = pixel.y + place.y, x = pixel.x + place.x;
    if (y < 0 || y >= job.height || x < 0 || x >= job.width) return 0;
    return job.input[((pixel.image * job.height + y) * job.width + x) * job.channels + place.channel];
}

// The gradient of a convolution's output, before ReLU and pooling, from that of the pooled one.
__device__ float unpooled(const Job &job, int window, int within, int feature) {
    const int index = window * job.features + feature;
    const int mark = job.marks[index];
    if (job.max) return mark == within ? job.gradient[index] : 0;
    return mark >> within & 1 ? job.gradient[index] / (job.window_height * job.window_width) : 0;
}

// Forward: what lies under the kernel, for each pixel.
struct Patches {
    const Job &job;
    using Row = Pixel;
    __device__ Pixel row(int i) const { return pixel(job, i < pixels(job) ? i : 0); }
    __device__ Place sum(int k) const { return place(job, k); }
    __device__ float at(const Pixel &pixel, const Place &place) const { return input_at(job, pixel, place); }
};

// A matrix as it lies in memory, [sum, columns].
struct Matrix {
    const float *values;
    int width;
    static constexpr bool ALONG_SUM = false;
    using Column = int;
    __device__ int column(int j) const { return j; }
    __device__ int sum(int k) const { return k * width; }
    __device__ float at(int sum, int column) const { return column < width ? values[sum + column] : 0; }
};

// The same turned, [columns, sum].
struct Turned {
    const float *values;
    int width, height;
    static constexpr bool ALONG_SUM = true;
    using Column = int;
    __device__ int column(int j) const { return j; }
    __device__ int sum(int k) const { return k; }
    __device__ float at(int sum, int column) const { return column < height ? values[column * width + sum] : 0; }
};

// A matrix as the left factor, [rows, sum].
struct Rows {
    const float *values;
    int height, width;
    using Row = int;
    __device__ int row(int i) const { return i; }
    __device__ int sum(int k) const { return k; }
    __device__ float at(int row, int sum) const { return row < height ? values[row * width + sum] : 0; }
};

// A matrix [sum, rows] as the left factor, with a last row of ones, for the bias.
struct TurnedWithOnes {
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
    const int windows = SIDE * TM / size; // whole ones in a tile
    const int first = block / job.tiles_across * windows, left = block % job.tiles_across * SIDE * TN;
    constexpr int PITCH = SIDE * TN + 1;
    const auto keep = [=](int i, int j, float sum) { tiles[i * PITCH + j] = sum; };
    product<TM, TN>(tiles, first * size, left, 0, job.inputs, Patches{job}, Matrix{job.kernel, job.features}, keep);
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
                position = passes ? i : 255; // no pixel: the ReLU lets nothing back
            }
        }
        const int index = window * job.features + feature;
        job.output[index] = job.max ? largest : sum / size;
        job.marks[index] = job.max ? position : passed;
    }
}

// Gradient of a convolution's kernel and bias, a part of the pixels each.
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

struct TurnedPatches {
    const Job &job;
    using Row = Place;
    __device__ Place row(int i) const { return place(job, i <= job.inputs ? i : 0); }
    __device__ Pixel sum(int k) const { return pixel(job, k); }
    __device__ float at(const Place &place, const Pixel &pixel) const {
        return place.is_bias ? 1 : input_at(job, pixel, place);
    }
};

template <int TM, int TN> __device__ void conv_kernel(const Job &job, float *tiles, int block) {
    const int down = (job.inputs + SIDE * TM) / (SIDE * TM); // tiles of inputs + 1 rows
    const int part = block / (job.tiles_across * down), tile = block % (job.tiles_across * down);
    const int top = tile / job.tiles_across * SIDE * TM, left = tile % job.tiles_across * SIDE * TN;
    const int begin = part * job.part, end = min(begin + job.part, pixels(job));
    float *partial = job.partials + part * (job.inputs + 1) * job.features;
    const auto store = [&](int i, int j, float sum) {
        if (top + i <= job.inputs && left + j < job.features) partial[(top + i) * job.features + left + j] = sum;
    };
    product<TM, TN>(tiles, top, left, begin, end, TurnedPatches{job}, UnpooledColumns{job}, store);
}

// Gradient of a convolution's input: every output pixel whose kernel lay over it.
struct Outputs {
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
        const int tap = k / job.features;
        return {(job.kernel_height - 1) / 2 - tap / job.kernel_width,
                (job.kernel_width - 1) / 2 - tap % job.kernel_width, k % job.features};
    }
    __device__ float at(const Pixel &pixel, const Sum &sum) const {
        const int y = pixel.y + sum.y, x = pixel.x + sum.x;
        const int row = y / job.window_height, column = x / job.window_width;
        if (pixel.image >= job.batch || y < 0 || x < 0 || row >= job.rows || column >= job.columns) return 0;
        const int within = y % job.window_height * job.window_width + x % job.window_width;
        return unpooled(job, (pixel.image * job.rows + row) * job.columns + column, within, sum.feature);
    }
};

// A convolution's kernel, [tap, in, out], as the matrix [(tap, out), in].
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
    const int top = block / job.tiles_across * SIDE * TM, left = block % job.tiles_across * SIDE * TN;
    const int end = job.kernel_height * job.kernel_width * job.features;
    const auto store = [&](int i, int j, float sum) {
        const int row = top + i, column = left + j;
        if (row < job.batch * job.height * job.width && column < job.channels)
            job.below[row * job.channels + column] = sum;
    };
    product<TM, TN>(tiles, top, left, 0, end, Outputs{job}, KernelByInput{job}, store);
}

// The momentum step for value `index` of kernel or bias, which lie one after the other in a gradient. After a label that
// is no class there is none: everything stays as it was.
__device__ void update(const Job &job, int index, float gradient) {
    if (job.metrics->classes != 0) return;
    const int length = job.inputs * job.features;
    const bool is_bias = index >= length;
    float *parameter = is_bias ? job.bias + index - length : job.kernel + index;
    float *momentum = is_bias ? job.bias_momentum + index - length : job.momentum + index;
    *momentum = job.beta * *momentum + gradient;
    *parameter -= job.rate * *momentum;
}

__device__ float total(const Job &job, int index, int length) {
    float sum = 0;
    for (int part = 0; part < job.parts; part++) sum += job.partials[part * length + index];
    return sum;
}

// Adds up the parts of a convolution's gradient, and takes the step.
__device__ void update_all(const Job &job, int block) {
    const int index = block * THREADS + threadIdx.x, length = (job.inputs + 1) * job.features;
    if (index < length) update(job, index, total(job, index, length));
}

// A dense layer's product, a part of the inputs each.
template <int TM, int TN> __device__ void dense(const Job &job, float *tiles, int block) {
    const int down = (job.batch + SIDE * TM - 1) / (SIDE * TM);
    const int part = block / (job.tiles_across * down), tile = block % (job.tiles_across * down);
    const int top = tile / job.tiles_across * SIDE * TM, left = tile % job.tiles_across * SIDE * TN;
    const int begin = part * job.part, end = min(begin + job.part, job.inputs);
    float *partial = job.partials + part * job.batch * job.features;
    const auto store = [&](int i, int j, float sum) {
        if (top + i < job.batch && left + j < job.features) partial[(top + i) * job.features + left + j] = sum;
    };
    product<TM, TN>(tiles, top, left, begin, end, Rows{job.input, job.batch, job.inputs},
                    Matrix{job.kernel, job.features}, store);
}

// Value `index` of a dense layer's output.
__device__ float dense_output(const Job &job, int index) {
    const float value = total(job, index, job.batch * job.features) + job.bias[index % job.features];
    return job.relu && value <= 0 ? 0 : value;
}

// Adds up the parts of a dense layer, with bias and ReLU.
__device__ void finish(const Job &job, int block) {
    const int index = block * THREADS + threadIdx.x;
    if (index < job.batch * job.features) job.output[index] = dense_output(job, index);
}

// Log-softmax, loss and the gradient of the last layer's output, a row for each 32 threads.
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

// Mean loss and accuracy, and the first label that is no class.
__device__ void score(const Job &job, float *tiles) {
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
        *job.metrics = {losses[0] / job.batch, corrects[0] / job.batch, all_classes ? 0 : job.features,
                        all_classes ? 0 : job.labels[position], position};
    }
}

// Gradient of a dense layer's input, through the ReLU below if there is one.
template <int TM, int TN> __device__ void dense_input(const Job &job, float *tiles, int block) {
    const int top = block / job.tiles_across * SIDE * TM, left = block % job.tiles_across * SIDE * TN;
    const auto store = [&](int i, int j, float sum) {
        const int row = top + i, column = left + j;
        if (row >= job.batch || column >= job.inputs) return;
        const int index = row * job.inputs + column;
        job.below[index] = job.relu && job.input[index] <= 0 ? 0 : sum;
    };
    product<TM, TN>(tiles, top, left, 0, job.features, Rows{job.gradient, job.batch, job.features},
                    Turned{job.kernel, job.features, job.inputs}, store);
}

// Gradient of a dense layer's kernel and bias, and the step at once.
template <int TM, int TN> __device__ void dense_kernel(const Job &job, float *tiles, int block) {
    const int top = block / job.tiles_across * SIDE * TM, left = block % job.tiles_across * SIDE * TN;
    const auto store = [&](int i, int j, float sum) {
        if (top + i <= job.inputs && left + j < job.features) update(job, (top + i) * job.features + left + j, sum);
    };
    product<TM, TN>(tiles, top, left, 0, job.batch, TurnedWithOnes{job.input, job.inputs},
                    Matrix{job.gradient, job.features}, store);
}

// Each block finds its job and, within it, its tile.
extern "C" __global__ void __launch_bounds__(THREADS) run(const Job *__restrict__ jobs, int count) {
    // Both slices of a product, or a whole tile of a convolution's output.
    alignas(16) __shared__ float tiles[WIDEST * (WIDEST + 1)];
    int at = 0;
    while (at + 1 < count && jobs[at + 1].first_block <= (int)blockIdx.x) at++;
    const Job &job = jobs[at];
    const int block = blockIdx.x - job.first_block;
    const bool narrow = job.tile_width < WIDEST, low = job.tile_height < WIDEST;
    switch (job.kind) {
    case CONV: return narrow ? conv<4, 2>(job, tiles, block) : conv<4, 4>(job, tiles, block);
    case CONV_INPUT: return narrow ? conv_input<4, 2>(job, tiles, block) : conv_input<4, 4>(job, tiles, block);
    case CONV_KERNEL:
        return narrow ? conv_kernel<4, 2>(job, tiles, block) : conv_kernel<4, 4>(job, tiles, block);
    case UPDATE: return update_all(job, block);
    case DENSE: return low ? dense<2, 2>(job, tiles, block) : dense<4, 4>(job, tiles, block);
    case FINISH: return finish(job, block);
    case HEAD: return head(job, tiles, block);
    case SCORE: return score(job, tiles);
    case DENSE_INPUT: return low ? dense_input<2, 2>(job, tiles, block) : dense_input<4, 4>(job, tiles, block);
    case DENSE_KERNEL: return dense_kernel<2, 2>(job, tiles, block);
    }
}
