//! From a chain of layers to launches: which jobs run side by side, and where everything lies in the GPU's memory.

use cpu_kernels::{Layer, Program};

use crate::metrics::Metrics;
use crate::error::{Error, Result};

/// Threads of a block, as in `kernels.cu`.
pub(super) const THREADS: u32 = 256;
/// The most pixels of a pooling window: one tile of a convolution's output holds whole windows.
const MAX_WINDOW: usize = 64;
/// Blocks that keep a GPU busy: two for each of the 132 multiprocessors of an H100 or H200.
const BUSY: usize = 264;
/// Where arrays begin, in words: at a line of the cache.
const LINE: usize = 32;
/// Words that the metrics of a step take: those of `Metrics` in `kernels.cu`, and some to spare.
pub(super) const ROW: usize = 8;
/// Positions in an array are counted with 31 bits.
const MAX_WORDS: u64 = 1 << 31;

/// A kind of job, as `Kind` in `kernels.cu`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(i32)]
pub(super) enum Kind {
    /// Convolution, bias, ReLU and pooling.
    #[default]
    Conv,
    /// Gradient of a convolution's input.
    ConvInput,
    /// Gradient of a convolution's kernel, in parts.
    ConvKernel,
    /// The sum of these parts, and the momentum step.
    Update,
    /// Product of a dense layer, in parts.
    Dense,
    /// The sum of these parts, bias and ReLU.
    Finish,
    /// The same for the last layer, with log-softmax, loss and gradient.
    Head,
    /// Mean loss and accuracy.
    Score,
    /// Gradient of a dense layer's input.
    DenseInput,
    /// Gradient of a dense layer's kernel, and the momentum step.
    DenseKernel,
}

/// One layer's work, as `Job` in `kernels.cu`, whose fields these are.
///
/// While it is planned, a pointer into the plan's own memory is an offset in bytes, and 0 for none.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub(super) struct Job {
    input: u64,
    kernel: u64,
    bias: u64,
    output: u64,
    gradient: u64,
    below: u64,
    momentum: u64,
    bias_momentum: u64,
    partials: u64,
    losses: u64,
    metrics: u64,
    labels: u64,
    marks: u64,
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

/// Jobs that do not depend on one another, and the blocks that they take together.
#[derive(Debug, Default)]
pub(super) struct Launch {
    pub(super) jobs: Vec<Job>,
    pub(super) blocks: u32,
}

/// Where the arrays lie.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Addresses {
    /// The plan's own memory.
    pub(super) arena: u64,
    /// Each parameter, in the order that the chain's positions refer to.
    pub(super) params: Vec<u64>,
    /// The momentum of each; none where nothing is trained.
    pub(super) momenta: Vec<u64>,
}

/// A planned chain of layers.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) batch: usize,
    pub(super) image_len: usize,
    pub(super) param_lens: Vec<usize>,
    /// Words of memory that it takes, 4 bytes each; the first line is left free.
    pub(super) words: usize,
    /// Offsets into it, in bytes: images, labels, and the metrics, a row.
    pub(super) images: u64,
    pub(super) labels: u64,
    pub(super) metrics: u64,
    losses: u64,
    convs: Vec<Stage>,
    denses: Vec<Stage>,
}

/// A layer with what is fused into it.
#[derive(Debug)]
struct Stage {
    /// Its sizes and the offsets of its arrays.
    job: Job,
    /// Positions of kernel and bias among the parameters.
    params: (usize, usize),
    /// Whether its input went through a ReLU that its gradient must pass.
    input_relu: bool,
}

impl Plan {
    /// Plans a chain of layers for images `[batch, height, width, channels]`; the chains are those
    /// of [`Program`].
    pub(super) fn new(shape: [usize; 4], layers: &[Layer]) -> Result<Self, String> {
        let [batch, height, width, channels] = shape;
        // The rules are the same as on the CPU; one image is enough to see whether they are kept.
        Program::new([1, height, width, channels], layers).map_err(|error| error.to_string())?;
        let mut plan = Self {
            batch,
            image_len: height * width * channels,
            param_lens: Vec::new(),
            words: LINE,
            images: 0,
            labels: 0,
            metrics: 0,
            losses: 0,
            convs: Vec::new(),
            denses: Vec::new(),
        };
        plan.images = plan.array(&[batch, plan.image_len])?;
        plan.labels = plan.array(&[batch])?;
        plan.losses = plan.array(&[2, batch])?;
        plan.metrics = plan.array(&[ROW])?;
        // What flows from layer to layer: height, width, channels.
        let mut flow = [height, width, channels];
        let mut layers = layers.iter().peekable();
        while let Some(layer) = layers.next() {
            match *layer {
                Layer::Conv { kernel, features, params } => {
                    let relu = layers.next_if_eq(&&Layer::Relu).is_some();
                    let is_pooling = |layer: &&Layer| {
                        matches!(layer, Layer::AvgPool { .. } | Layer::MaxPool { .. })
                    };
                    let (max, window) = match layers.next_if(is_pooling) {
                        Some(Layer::MaxPool { window }) => (true, *window),
                        Some(Layer::AvgPool { window }) => (false, *window),
                        _ => (false, (1, 1)),
                    };
                    flow = plan.conv(flow, kernel, features, (relu, max, window), params)?;
                }
                Layer::Dense { features, params } => {
                    let relu = layers.next_if_eq(&&Layer::Relu).is_some();
                    flow = plan.dense(flow.iter().product(), features, relu, params)?;
                }
                // The shape is all that flattening changes, and log-softmax is part of the head.
                _ => {}
            }
        }
        Ok(plan)
    }

    /// Adds a convolution with its ReLU and pooling; returns what flows on.
    fn conv(
        &mut self,
        [height, width, channels]: [usize; 3],
        kernel: (usize, usize),
        features: usize,
        (relu, max, window): (bool, bool, (usize, usize)),
        params: (usize, usize),
    ) -> Result<[usize; 3], String> {
        let size = window.0 * window.1;
        if size > MAX_WINDOW {
            return Err(format!(
                "a pooling window has {size} pixels, and at most {MAX_WINDOW} are supported on a GPU"
            ));
        }
        let (rows, columns) = (height / window.0, width / window.1);
        let inputs = kernel.0 * kernel.1 * channels;
        // Positions among the pixels are counted, too.
        words(&[self.batch, height, width, channels.max(features)])?;
        words(&[kernel.0, kernel.1, channels, features])?;
        let tiles = (inputs + 1).div_ceil(64) * features.div_ceil(narrow_or_wide(features));
        let (parts, part) = divided(self.batch * rows * columns * size, tiles);
        let pooled = [self.batch, rows, columns, features];
        let job = Job {
            input: self.flowing(),
            output: self.array(&pooled)?,
            gradient: self.array(&pooled)?,
            below: self.convs.last().map_or(0, |stage| stage.job.gradient),
            partials: self.array(&[parts, inputs + 1, features])?,
            metrics: self.metrics,
            marks: self.array(&[words(&pooled)?.div_ceil(4)])?,
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
        self.note_params(params, inputs * features, features);
        self.convs.push(Stage { job, params, input_relu: false });
        Ok([rows, columns, features])
    }

    /// Adds a dense layer with its ReLU; returns what flows on.
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
        let (parts, part) = divided(inputs, tiles);
        let below = self.denses.last().or(self.convs.last());
        let below = below.map_or(0, |stage| stage.job.gradient);
        let job = Job {
            input: self.flowing(),
            output: self.array(&[self.batch, features])?,
            gradient: self.array(&[self.batch, features])?,
            below,
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
        let input_relu = self.denses.last().is_some_and(|below| below.job.relu != 0);
        self.note_params(params, inputs * features, features);
        self.denses.push(Stage { job, params, input_relu });
        Ok([1, 1, features])
    }

    /// The array that the next layer reads.
    fn flowing(&self) -> u64 {
        self.denses.last().or(self.convs.last()).map_or(self.images, |stage| stage.job.output)
    }

    /// Takes memory for an array of 4-byte words; returns its offset in bytes.
    fn array(&mut self, extents: &[usize]) -> Result<u64, String> {
        let offset = self.words as u64 * 4;
        self.words += words(extents)?.next_multiple_of(LINE);
        Ok(offset)
    }

    fn note_params(&mut self, (kernel, bias): (usize, usize), kernel_len: usize, bias_len: usize) {
        let len = self.param_lens.len().max(kernel.max(bias) + 1);
        self.param_lens.resize(len, 0);
        self.param_lens[kernel] = kernel_len;
        self.param_lens[bias] = bias_len;
    }

    /// The launches of a step of training.
    ///
    /// Everything that a launch reads was written by launches before it, and nothing that it writes
    /// is read by another of its jobs: so a layer's kernel changes one launch after the gradient of
    /// its input, which needs the old one.
    pub(super) fn training(&self, at: &Addresses, rate: f32, beta: f32) -> Vec<Launch> {
        let mut launches = self.forward(at);
        let mut add = |jobs: Vec<Job>| launches.push(Launch::new(jobs));
        let with_rate = |job: Job| Job { rate, beta, ..job };
        let mut side = self.denses.last().map(|stage| stage.job(Kind::Score, at));
        for (index, stage) in self.denses.iter().enumerate().rev() {
            let has_below = index > 0 || !self.convs.is_empty();
            let input = has_below.then(|| stage.job(Kind::DenseInput, at));
            add(input.into_iter().chain(side).collect());
            side = Some(with_rate(stage.job(Kind::DenseKernel, at)));
        }
        for (index, stage) in self.convs.iter().enumerate().rev() {
            let input = (index > 0).then(|| stage.job(Kind::ConvInput, at));
            let kernel = Some(stage.job(Kind::ConvKernel, at));
            add(input.into_iter().chain(kernel).chain(side.take()).collect());
        }
        let updates = self.convs.iter().map(|stage| with_rate(stage.job(Kind::Update, at)));
        add(updates.chain(side).collect());
        launches
    }

    /// The launches that find loss and accuracy.
    pub(super) fn evaluation(&self, at: &Addresses) -> Vec<Launch> {
        let mut launches = self.forward(at);
        let score = self.denses.last().map(|stage| stage.job(Kind::Score, at));
        launches.push(Launch::new(score.into_iter().collect()));
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
    /// The layer's job of a kind, with true addresses.
    fn job(&self, kind: Kind, at: &Addresses) -> Job {
        let offsets = self.job;
        let own = |offset: u64| if offset == 0 { 0 } else { at.arena + offset };
        let of = |arrays: &[u64], index: usize| arrays.get(index).copied().unwrap_or(0);
        let relu = if kind == Kind::DenseInput { self.input_relu.into() } else { offsets.relu };
        Job {
            kind,
            relu,
            input: own(offsets.input),
            kernel: of(&at.params, self.params.0),
            bias: of(&at.params, self.params.1),
            output: own(offsets.output),
            gradient: own(offsets.gradient),
            below: own(offsets.below),
            momentum: of(&at.momenta, self.params.0),
            bias_momentum: of(&at.momenta, self.params.1),
            partials: own(offsets.partials),
            losses: own(offsets.losses),
            metrics: own(offsets.metrics),
            labels: own(offsets.labels),
            marks: own(offsets.marks),
            ..offsets
        }
    }
}

impl Launch {
    /// Gives each job its tiles and its blocks, one job after the other.
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
    /// Chooses the tiles of the job's result; returns the blocks that it takes.
    fn tile(&mut self) -> u32 {
        let of = |value: i32| value as usize;
        let windows = of(self.batch) * of(self.rows) * of(self.columns);
        let (features, inputs, batch) = (of(self.features), of(self.inputs), of(self.batch));
        let side = low_or_high(batch);
        let parts = of(self.parts);
        let ((rows, height), (columns, width), parts) = match self.kind {
            Kind::Conv => {
                let whole = 64 / (of(self.window_height) * of(self.window_width));
                // Tiles of whole windows: 64 rows of pixels each, or a few less.
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
            Kind::Score => ((1, 1), (1, 1), 1),
            Kind::DenseInput => ((batch, side), (inputs, side), 1),
            Kind::DenseKernel => ((inputs + 1, 32), (features, 32), 1),
        };
        self.tiles_across = columns.div_ceil(width) as i32;
        (self.tile_height, self.tile_width) = (height as i32, width as i32);
        (rows.div_ceil(height) * columns.div_ceil(width) * parts) as u32
    }
}

/// The width of tiles for so many columns.
fn narrow_or_wide(columns: usize) -> usize {
    if columns <= 32 { 32 } else { 64 }
}

/// The side of a dense layer's tiles for so many rows.
fn low_or_high(rows: usize) -> usize {
    if rows <= 32 { 32 } else { 64 }
}

/// Into how many parts of what length a sum is divided, so that so many tiles keep the GPU busy.
fn divided(len: usize, tiles: usize) -> (usize, usize) {
    let parts = (BUSY / tiles).clamp(1, len.div_ceil(64));
    let part = len.div_ceil(parts).next_multiple_of(16);
    (len.div_ceil(part), part)
}

/// The words of an array, unless there are more than can be counted.
fn words(extents: &[usize]) -> Result<usize, String> {
    let product = extents.iter().try_fold(1u64, |all, &extent| all.checked_mul(extent as u64));
    match product {
        Some(words) if words < MAX_WORDS => Ok(words as usize),
        _ => Err(format!("an array of {extents:?} values is too large for a GPU")),
    }
}

/// What a row of metrics says.
///
/// # Errors
/// [`Error::Label`] after a step that met a label which is no class.
pub(super) fn read(row: &[f32; ROW]) -> Result<Metrics> {
    match [row[2], row[3], row[4]].map(f32::to_bits) {
        [0, _, _] => Ok(Metrics { loss: row[0], accuracy: row[1] }),
        [num_classes, label, index] => {
            Err(Error::Label { label, index: index as usize, num_classes: num_classes as usize })
        }
    }
}
