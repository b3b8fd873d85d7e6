// What plan.rs and the kernels share: jobs, metrics and epochs.

constexpr int THREADS = 256; // per block of `run`

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

// The convolution below a layer.
struct Below {
    unsigned char *mask; // null if there is none
    int features;
    int columns; // of windows
    int window_height, window_width;
    int max;
};

// The work of one layer, filled in by plan.rs. Pointers that a kind does not use are null.
struct Job {
    float *input;    // of the layer
    float *kernel;
    float *bias;
    float *output;   // of the layer: pooled, if it pools
    float *gradient; // of a dense layer's output; of a convolution's before ReLU and pooling
    float *input_gradient; // the gradient of the layer below
    float *momentum; // of the kernel
    float *bias_momentum;
    float *partials; // partial sums, one array per part
    float *losses;   // per image; then, per image, 1 if correct, else 0
    Metrics *metrics;
    unsigned *labels;
    Epoch *epoch; // null if the host supplies each batch
    Below below;
    unsigned char *mask; // per window: the index of the maximum, or the pixels that passed the ReLU
    int kind;
    int first_block, blocks;
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
    int aligned;                   // whether all parameters are aligned to 16 bytes
    int tile;                      // `Tile` in plan.rs
    float rate, beta;
};

// The job that this block belongs to.
__device__ const Job &job_of_block(const Job *jobs, int count) {
    int at = 0;
    while (at + 1 < count && jobs[at + 1].first_block <= (int)blockIdx.x) at++;
    return jobs[at];
}
