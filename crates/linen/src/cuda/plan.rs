//! Plans launches for a chain of layers: which jobs run concurrently, and where arrays lie in GPU
//! memory.

use cpu_kernels::{Layer, check_chain};

use crate::error::{Error, Result};
use crate::metrics::Metrics;

/// Threads per block, as in `kernels.cu`.
pub(super) const THREADS: u32 = 256;
/// The maximum size of a max-pooling window: a tile of a convolution's output holds whole windows.
const LARGEST_MAX_WINDOW: usize = 64;
/// The maximum size of an average-pooling window: the mask has a bit for each of its pixels.
const LARGEST_AVERAGE_WINDOW: usize = 8;
/// Blocks that occupy a GPU: two for each of the 132 multiprocessors of an H100 or H200.
const TARGET_BLOCKS: usize = 264;
/// Alignment of arrays in words: a cache line.
const LINE: usize = 32;
/// Words of the metrics of a step, the size of `Metrics` in `kernels.cu`.
pub(super) const ROW: usize = 8;
/// Array indices have 31 bits.
const MAX_WORDS: u64 = 1 << 31;

/// A kind of job, as `Kind` in `kernels.cu`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(i32)]
pub(super) enum Kind {
    /// Convolution, bias, ReLU and pooling.
    #[default]
    Conv,
    /// Input gradient of a convolution.
    ConvInput,
    /// Kernel gradient of a convolution, as partial sums.
    ConvKernel,
    /// Total of these partial sums, and the momentum update.
    Update,
    /// Matrix product of a dense layer, as partial sums.
    Dense,
    /// Total of these partial sums, bias and ReLU.
    Finish,
    /// The same for the last layer, with log-softmax, loss and its gradient.
    Head,
    /// Mean loss and accuracy.
    Metrics,
    /// Input gradient of a dense layer.
    DenseInput,
    /// Kernel gradient of a dense layer, and the momentum update.
    DenseKernel,
    /// The next batch of an epoch, copied to where the layers read it.
    Gather,
}

/// An epoch that runs without the host; the same struct as `Epoch` in `kernels.cu`.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub(super) struct Epoch {
    /// The addresses of a dataset: images, labels, and the indices of examples, batch after batch.
    pub(super) images: u64,
    pub(super) labels: u64,
    pub(super) order: u64,
    /// The address of a row of metrics for each step.
    pub(super) rows: u64,
    /// The next step, and the number of steps.
    pub(super) step: i32,
    pub(super) steps: i32,
}

/// The work of one layer; the same struct as `Job` in `kernels.cu`.
///
/// During planning, pointers into the plan's memory are byte offsets, and 0 is a null pointer.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub(super) struct Job {
    input: u64,
    kernel: u64,
    bias: u64,
    output: u64,
    gradient: u64,
    input_gradient: u64,
    momentum: u64,
    bias_momentum: u64,
    partials: u64,
    losses: u64,
    metrics: u64,
    labels: u64,
    epoch: u64,
    mask: u64,
    pub(super) kind: Kind,
    first_block: i32,
    batch: i32,
    height: i32,
    width: i32,
    channels: i32,
    kernel_height: i32,
    kernel_width: i32,
    features: i32,
    window_height: i32,
    window_width: i32,
    rows: i32,
    columns: i32,
    inputs: i32,
    relu: i32,
    max: i32,
    parts: i32,
    part: i32,
    tiles_across: i32,
    tile_height: i32,
    tile_width: i32,
    rate: f32,
    beta: f32,
}

/// Independent jobs, and their total number of blocks.
#[derive(Debug, Default)]
pub(super) struct Launch {
    pub(super) jobs: Vec<Job>,
    pub(super) blocks: u32,
}

/// Addresses of arrays.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Addresses {
    /// The plan's memory.
    pub(super) arena: u64,
    /// The parameters, indexed as in the layers.
    pub(super) params: Vec<u64>,
    /// The momentum of each parameter; empty in evaluation.
    pub(super) momenta: Vec<u64>,
}

/// A planned chain of layers.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) batch: usize,
    pub(super) image_len: usize,
    pub(super) param_lens: Vec<usize>,
    /// Size of its memory in words of 4 bytes; the first cache line stays unused.
    pub(super) words: usize,
    /// Byte offsets into it: images, labels, the row of metrics, and an [`Epoch`].
    pub(super) images: u64,
    pub(super) labels: u64,
    pub(super) metrics: u64,
    pub(super) epoch: u64,
    losses: u64,
    convs: Vec<Stage>,
    denses: Vec<Stage>,
}

/// A layer with the layers fused into it.
#[derive(Debug)]
struct Stage {
    /// Sizes, and offsets of arrays.
    job: Job,
    /// Indices of kernel and bias among the parameters.
    params: (usize, usize),
    /// Whether the dense layer before it has a ReLU; a convolution's is in its mask.
    input_relu: bool,
}

impl Plan {
    /// Plans a chain of layers, of the kind that [`check_chain`] accepts, for images
    /// `[batch, height, width, channels]`.
    pub(super) fn new(shape: [usize; 4], layers: &[Layer]) -> Result<Self, String> {
        let [batch, height, width, channels] = shape;
        // The batch has limits of its own here: one image, or none, is enough to check the chain.
        check_chain([batch.min(1), height, width, channels], layers)
            .map_err(|error| error.to_string())?;
        let mut plan = Self {
            batch,
            image_len: height * width * channels,
            param_lens: Vec::new(),
            words: LINE,
            images: 0,
            labels: 0,
            metrics: 0,
            epoch: 0,
            losses: 0,
            convs: Vec::new(),
            denses: Vec::new(),
        };
        plan.images = plan.array(&[batch, plan.image_len])?;
        plan.labels = plan.array(&[batch])?;
        plan.losses = plan.array(&[2, batch])?;
        plan.metrics = plan.array(&[ROW])?;
        plan.epoch = plan.array(&[size_of::<Epoch>().div_ceil(4)])?;
        // The shape of an example: height, width, channels.
        let mut shape = [height, width, channels];
        let mut layers = layers.iter().peekable();
        while let Some(layer) = layers.next() {
            match *layer {
                Layer::Conv { kernel_size: kernel, features, params } => {
                    let relu = layers.next_if_eq(&&Layer::Relu).is_some();
                    let is_pooling = |layer: &&Layer| {
                        matches!(layer, Layer::AvgPool { .. } | Layer::MaxPool { .. })
                    };
                    let (max, window) = match layers.next_if(is_pooling) {
                        Some(Layer::MaxPool { window }) => (true, *window),
                        Some(Layer::AvgPool { window }) => (false, *window),
                        _ => (false, (1, 1)),
                    };
                    shape = plan.conv(shape, kernel, features, (relu, max, window), params)?;
                }
                Layer::Dense { features, params } => {
                    let relu = layers.next_if_eq(&&Layer::Relu).is_some();
                    shape = plan.dense(shape.iter().product(), features, relu, params)?;
                }
                // Flattening moves no data, and log-softmax is part of the head.
                _ => {}
            }
        }
        Ok(plan)
    }

    /// Adds a convolution with its ReLU and pooling; returns the output shape.
    fn conv(
        &mut self,
        [height, width, channels]: [usize; 3],
        kernel: (usize, usize),
        features: usize,
        (relu, max, window): (bool, bool, (usize, usize)),
        params: (usize, usize),
    ) -> Result<[usize; 3], String> {
        let size = window.0 * window.1;
        let largest = if max { LARGEST_MAX_WINDOW } else { LARGEST_AVERAGE_WINDOW };
        if size > largest {
            return Err(format!(
                "a pooling window has {size} pixels, and at most {largest} are supported on a GPU"
            ));
        }
        let (rows, columns) = (height / window.0, width / window.1);
        let inputs = kernel.0 * kernel.1 * channels;
        // These arrays are not all allocated, but their elements are indexed.
        words(&[self.batch, height, width, channels.max(features)])?;
        words(&[kernel.0, kernel.1, channels, features])?;
        let tiles = (inputs + 1).div_ceil(64) * features.div_ceil(narrow_or_wide(features));
        let (parts, part) = split_sum(self.batch * rows * columns * size, tiles);
        let pooled = [self.batch, rows, columns, features];
        let job = Job {
            input: self.latest_output(),
            output: self.array(&pooled)?,
            gradient: self.array(&pooled)?,
            input_gradient: self.convs.last().map_or(0, |stage| stage.job.gradient),
            partials: self.array(&[parts, inputs + 1, features])?,
            metrics: self.metrics,
            mask: self.array(&[words(&pooled)?.div_ceil(4)])?,
            batch: self.batch as i32,
            height: height as i32,
            width: width as i32,
            channels: channels as i32,
            kernel_height: kernel.0 as i32,
            kernel_width: kernel.1 as i32,
            features: features as i32,
            window_height: window.0 as i32,
            window_width: window.1 as i32,
            rows: rows as i32,
            columns: columns as i32,
            inputs: inputs as i32,
            relu: i32::from(relu),
            max: i32::from(max),
            parts: parts as i32,
            part: part as i32,
            ..Job::default()
        };
        self.set_lens(params, inputs * features, features);
        self.convs.push(Stage { job, params, input_relu: false });
        Ok([rows, columns, features])
    }

    /// Adds a dense layer with its ReLU; returns the output shape.
    fn dense(
        &mut self,
        inputs: usize,
        features: usize,
        relu: bool,
        params: (usize, usize),
    ) -> Result<[usize; 3], String> {
        words(&[inputs + 1, features])?;
        let side = low_or_high(self.batch);
        let tiles = self.batch.div_ceil(side) * features.div_ceil(side);
        let (parts, part) = split_sum(inputs, tiles);
        let before = self.denses.last().or(self.convs.last());
        let input_gradient = before.map_or(0, |stage| stage.job.gradient);
        let job = Job {
            input: self.latest_output(),
            output: self.array(&[self.batch, features])?,
            gradient: self.array(&[self.batch, features])?,
            input_gradient,
            partials: self.array(&[parts, self.batch, features])?,
            losses: self.losses,
            metrics: self.metrics,
            labels: self.labels,
            batch: self.batch as i32,
            features: features as i32,
            inputs: inputs as i32,
            relu: i32::from(relu),
            parts: parts as i32,
            part: part as i32,
            ..Job::default()
        };
        let input_relu = self.denses.last().is_some_and(|stage| stage.job.relu != 0);
        self.set_lens(params, inputs * features, features);
        self.denses.push(Stage { job, params, input_relu });
        Ok([1, 1, features])
    }

    /// The output of the latest layer, which the next one reads.
    fn latest_output(&self) -> u64 {
        self.denses.last().or(self.convs.last()).map_or(self.images, |stage| stage.job.output)
    }

    /// Allocates an array of 4-byte words; returns its byte offset.
    fn array(&mut self, extents: &[usize]) -> Result<u64, String> {
        let offset = self.words as u64 * 4;
        self.words += words(extents)?.next_multiple_of(LINE);
        Ok(offset)
    }

    fn set_lens(&mut self, (kernel, bias): (usize, usize), kernel_len: usize, bias_len: usize) {
        let len = self.param_lens.len().max(kernel.max(bias) + 1);
        self.param_lens.resize(len, 0);
        self.param_lens[kernel] = kernel_len;
        self.param_lens[bias] = bias_len;
    }

    /// The launches of a training step.
    ///
    /// A launch only reads what earlier launches wrote, and its jobs do not read what the others
    /// write. So a layer's kernel is updated one launch after its input gradient, which needs the
    /// old kernel.
    pub(super) fn training(&self, at: &Addresses, rate: f32, beta: f32) -> Vec<Launch> {
        self.step(at, rate, beta, None)
    }

    /// The launches of a training step of an epoch that runs without the host, and the launch that
    /// goes before the first step. The last launch of each step fetches the batch of the next.
    pub(super) fn epoch_step(&self, at: &Addresses, rate: f32, beta: f32) -> (Launch, Vec<Launch>) {
        let gather = Job {
            kind: Kind::Gather,
            output: at.arena + self.images,
            labels: at.arena + self.labels,
            epoch: at.arena + self.epoch,
            batch: self.batch as i32,
            inputs: self.image_len as i32,
            ..Job::default()
        };
        (Launch::new(vec![gather]), self.step(at, rate, beta, Some(gather)))
    }

    fn step(&self, at: &Addresses, rate: f32, beta: f32, gather: Option<Job>) -> Vec<Launch> {
        let mut launches = self.forward(at);
        let mut add = |jobs: Vec<Job>| launches.push(Launch::new(jobs));
        let with_rate = |job: Job| Job { rate, beta, ..job };
        let epoch = gather.map_or(0, |job| job.epoch);
        let metrics = |stage: &Stage| Job { epoch, ..stage.job(Kind::Metrics, at) };
        let mut delayed = self.denses.last().map(metrics);
        for (index, stage) in self.denses.iter().enumerate().rev() {
            let is_first = index == 0 && self.convs.is_empty();
            let input = (!is_first).then(|| stage.job(Kind::DenseInput, at));
            add(input.into_iter().chain(delayed).collect());
            delayed = Some(with_rate(stage.job(Kind::DenseKernel, at)));
        }
        for (index, stage) in self.convs.iter().enumerate().rev() {
            let input = (index > 0).then(|| stage.job(Kind::ConvInput, at));
            let kernel = Some(stage.job(Kind::ConvKernel, at));
            add(input.into_iter().chain(kernel).chain(delayed.take()).collect());
        }
        let updates = self.convs.iter().map(|stage| with_rate(stage.job(Kind::Update, at)));
        let last: Vec<Job> = updates.chain(delayed).collect();
        // Without a convolution, the last launch still reads this batch.
        if self.convs.is_empty() {
            add(last);
            gather.into_iter().for_each(|gather| add(vec![gather]));
        } else {
            add(last.into_iter().chain(gather).collect());
        }
        launches
    }

    /// The launches of an evaluation step.
    pub(super) fn evaluation(&self, at: &Addresses) -> Vec<Launch> {
        let mut launches = self.forward(at);
        let metrics = self.denses.last().map(|stage| stage.job(Kind::Metrics, at));
        launches.push(Launch::new(metrics.into_iter().collect()));
        launches
    }

    fn forward(&self, at: &Addresses) -> Vec<Launch> {
        let convs = self.convs.iter().map(|stage| stage.job(Kind::Conv, at));
        let last = self.denses.len() - 1; // a chain has a dense layer
        let denses = self.denses.iter().enumerate().flat_map(|(index, stage)| {
            let finish = if index == last { Kind::Head } else { Kind::Finish };
            [stage.job(Kind::Dense, at), stage.job(finish, at)]
        });
        convs.chain(denses).map(|job| Launch::new(vec![job])).collect()
    }
}

impl Stage {
    /// The layer's job of a kind, with absolute addresses.
    fn job(&self, kind: Kind, at: &Addresses) -> Job {
        let offsets = self.job;
        let address = |offset: u64| if offset == 0 { 0 } else { at.arena + offset };
        let of = |arrays: &[u64], index: usize| arrays.get(index).copied().unwrap_or(0);
        let relu = if kind == Kind::DenseInput { self.input_relu.into() } else { offsets.relu };
        Job {
            kind,
            relu,
            input: address(offsets.input),
            kernel: of(&at.params, self.params.0),
            bias: of(&at.params, self.params.1),
            output: address(offsets.output),
            gradient: address(offsets.gradient),
            input_gradient: address(offsets.input_gradient),
            momentum: of(&at.momenta, self.params.0),
            bias_momentum: of(&at.momenta, self.params.1),
            partials: address(offsets.partials),
            losses: address(offsets.losses),
            metrics: address(offsets.metrics),
            labels: address(offsets.labels),
            mask: address(offsets.mask),
            ..offsets
        }
    }
}

impl Launch {
    /// Assigns tiles and consecutive blocks to the jobs.
    fn new(mut jobs: Vec<Job>) -> Self {
        let mut blocks = 0;
        for job in &mut jobs {
            job.first_block = blocks as i32;
            blocks += job.tile();
        }
        Self { jobs, blocks }
    }
}

impl Job {
    /// Divides the job's result into tiles; returns the number of blocks.
    fn tile(&mut self) -> u32 {
        let of = |value: i32| value as usize;
        let windows = of(self.batch) * of(self.rows) * of(self.columns);
        let (features, inputs, batch) = (of(self.features), of(self.inputs), of(self.batch));
        let side = low_or_high(batch);
        let parts = of(self.parts);
        let ((rows, height), (columns, width), parts) = match self.kind {
            Kind::Conv => {
                let whole = 64 / (of(self.window_height) * of(self.window_width));
                // Tiles of up to 64 pixels, in whole windows.
                ((windows.div_ceil(whole) * 64, 64), (features, narrow_or_wide(features)), 1)
            }
            Kind::ConvInput => {
                let channels = of(self.channels);
                let pixels = batch * of(self.height) * of(self.width);
                ((pixels, 64), (channels, narrow_or_wide(channels)), 1)
            }
            Kind::ConvKernel => ((inputs + 1, 64), (features, narrow_or_wide(features)), parts),
            Kind::Update => (((inputs + 1) * features, THREADS as usize), (1, 1), 1),
            Kind::Dense => ((batch, side), (features, side), parts),
            Kind::Finish => ((batch * features, THREADS as usize), (1, 1), 1),
            Kind::Head => ((batch, THREADS as usize / 32), (1, 1), 1),
            Kind::Metrics => ((1, 1), (1, 1), 1),
            Kind::DenseInput => ((batch, side), (inputs, side), 1),
            Kind::DenseKernel => ((inputs + 1, 32), (features, 32), 1),
            Kind::Gather => ((batch * inputs, THREADS as usize), (1, 1), 1),
        };
        self.tiles_across = columns.div_ceil(width) as i32;
        (self.tile_height, self.tile_width) = (height as i32, width as i32);
        (rows.div_ceil(height) * columns.div_ceil(width) * parts) as u32
    }
}

/// The tile width for a number of columns.
fn narrow_or_wide(columns: usize) -> usize {
    if columns <= 32 { 32 } else { 64 }
}

/// The tile side of a dense layer for a number of rows.
fn low_or_high(rows: usize) -> usize {
    if rows <= 32 { 32 } else { 64 }
}

/// Splits a sum of `len` terms over each of `tiles` tiles into parts that together occupy the GPU;
/// returns their number and length.
fn split_sum(len: usize, tiles: usize) -> (usize, usize) {
    let parts = (TARGET_BLOCKS / tiles).clamp(1, len.div_ceil(64));
    let part = len.div_ceil(parts).next_multiple_of(16);
    (len.div_ceil(part), part)
}

/// The number of words of an array, if it can be indexed.
fn words(extents: &[usize]) -> Result<usize, String> {
    let product = extents.iter().try_fold(1u64, |all, &extent| all.checked_mul(extent as u64));
    match product {
        Some(words) if words < MAX_WORDS => Ok(words as usize),
        _ => Err(format!("an array of {extents:?} values is too large for a GPU")),
    }
}

/// Decodes a row of metrics.
///
/// # Errors
/// [`Error::Label`] if the step found an out-of-range label.
pub(super) fn read(row: &[f32; ROW]) -> Result<Metrics> {
    match [row[2], row[3], row[4]].map(f32::to_bits) {
        [0, _, _] => Ok(Metrics { loss: row[0], accuracy: row[1] }),
        [num_classes, label, index] => {
            Err(Error::Label { label, index: index as usize, num_classes: num_classes as usize })
        }
    }
}
