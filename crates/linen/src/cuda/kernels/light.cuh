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

// Passes the total of each of a block's `tile_height` values to `store(index, total)`. If that is
// fewer than there are threads, several threads add up the parts of a value.
template <class Store>
__device__ void store_totals(const Job &job, float *tiles, int block, int length,
                             const Store &store) {
    const int values = job.tile_height, groups = THREADS / values, group = threadIdx.x / values;
    const int index = block * values + threadIdx.x % values;
    float sum = 0;
    if (index < length)
        for (int part = group; part < job.parts; part += groups)
            sum += job.partials[part * length + index];
    tiles[threadIdx.x] = sum;
    __syncthreads();
    if (group != 0 || index >= length) return;
    for (int other = 1; other < groups; other++) sum += tiles[other * values + threadIdx.x];
    store(index, sum);
}

// Adds up the partial gradients of a convolution, and updates its parameters.
__device__ void update_all(const Job &job, float *tiles, int block) {
    store_totals(job, tiles, block, (job.inputs + 1) * job.features,
                 [&](int index, float sum) { momentum_update(job, index, sum); });
}

// A dense layer's output from the sum of products for value `index`.
__device__ float dense_output(const Job &job, int index, float sum) {
    const float value = sum + job.bias[index % job.features];
    return job.relu && value <= 0 ? 0 : value;
}

// Adds up the partial sums of a dense layer, then applies bias and ReLU.
__device__ void finish(const Job &job, float *tiles, int block) {
    store_totals(job, tiles, block, job.batch * job.features, [&](int index, float sum) {
        job.output[index] = dense_output(job, index, sum);
    });
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
            const int index = row * job.features + j;
            logits[j] = dense_output(job, index, total(job, index, job.batch * job.features));
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
