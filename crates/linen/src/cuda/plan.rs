//! Plans launches for a chain of layers: which jobs run concurrently, and where arrays lie in GPU
//! memory.

use cpu_kernels::{Layer, check_chain};

use crate::cuda::tile::{Card, Extent, THREADS, Tile};
use crate::error::{Error, Result};
use crate::metrics::Metrics;

/// The maximum size of a max-pooling window: a tile of a convolution's output holds whole windows.
const LARGEST_MAX_WINDOW: usize = 64;
/// The maximum size of an average-pooling window: the mask has a bit for each of its pixels.
const LARGEST_AVERAGE_WINDOW: usize = 8;
/// The maximum height and width of a convolution's input and kernel on tensor cores: places have 16
/// bits.
const LARGEST_SIDE: usize = 8192;
/// Alignment of arrays in words: a cache line.
const LINE: usize = 32;
/// Words of the metrics of a step, the size of `Metrics` in `job.cuh`.
pub(super) const ROW: usize = 8;
/// Array indices have 31 bits.
const MAX_WORDS: u64 = 1 << 31;

/// A kind of job, as `Kind` in `job.cuh`.
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

/// An epoch that runs without the host; the same struct as `Epoch` in `job.cuh`.
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

/// The convolution below a layer; the same struct as `Below` in `job.cuh`.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub(super) struct Below {
    mask: u64,
    features: i32,
    columns: i32,
    window_height: i32,
    window_width: i32,
    max: i32,
}

/// The work of one layer; the same struct as `Job` in `job.cuh`.
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
    below: Below,
    mask: u64,
    pub(super) kind: Kind,
    first_block: i32,
    blocks: i32,
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
    aligned: i32,
    pub(super) tile: Tile,
    rate: f32,
    beta: f32,
}

/// How a training step updates the parameters.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct MomentumRule {
    pub(crate) rate: f32,
    pub(crate) beta: f32,
}

/// Independent jobs, which may run side by side.
#[derive(Debug, Default)]
pub(super) struct Launch {
    /// By kernel. Only the first is on the critical path: later launches do not depend on the
    /// others, unless they say so.
    pub(super) grids: Vec<Grid>,
    /// Whether it depends on all grids of earlier launches.
    pub(super) joins: bool,
}

/// Jobs for one kernel, and their total number of blocks.
#[derive(Debug)]
pub(super) struct Grid {
    pub(super) tile: Tile,
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
    card: Card,
    convs: Vec<Stage>,
    denses: Vec<Stage>,
}

/// A layer with the layers fused into it.
#[derive(Debug)]
struct Stage {
    /// Sizes, and offsets of arrays.
    job: Job,
    card: Card,
    /// The tiles of its matrix products: forward, input gradient, kernel gradient.
    tiles: [Tile; 3],
    /// Indices of kernel and bias among the parameters.
    params: (usize, usize),
    /// Whether the dense layer before it has a ReLU; a convolution's is in its mask.
    input_relu: bool,
    is_conv: bool,
}

impl Plan {
    /// Plans a chain of layers, of the kind that [`check_chain`] accepts, for images
    /// `[batch, height, width, channels]`.
    pub(super) fn new(shape: [usize; 4], layers: &[Layer], card: Card) -> Result<Self, String> {
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
            card,
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
        let pooled = [self.batch, rows, columns, features];
        let job = Job {
            input: self.latest_output(),
            output: self.array(&pooled)?,
            gradient: self.array(&[self.batch, rows * window.0, columns * window.1, features])?,
            input_gradient: self.convs.last().map_or(0, |stage| stage.job.gradient),
            below: self.latest_conv(),
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
            ..Job::default()
        };
        self.set_lens(params, inputs * features, features);
        let mut stage = Stage::new(job, self.card, params, false, true);
        let parts = stage.most_parts(Kind::ConvKernel);
        stage.job.partials = self.array(&[parts, inputs + 1, features])?;
        self.convs.push(stage);
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
        let before = self.denses.last().or(self.convs.last());
        let input_gradient = before.map_or(0, |stage| stage.job.gradient);
        let job = Job {
            input: self.latest_output(),
            output: self.array(&[self.batch, features])?,
            gradient: self.array(&[self.batch, features])?,
            input_gradient,
            below: if self.denses.is_empty() { self.latest_conv() } else { Below::default() },
            losses: self.losses,
            metrics: self.metrics,
            labels: self.labels,
            batch: self.batch as i32,
            features: features as i32,
            inputs: inputs as i32,
            relu: i32::from(relu),
            ..Job::default()
        };
        let input_relu = self.denses.last().is_some_and(|stage| stage.job.relu != 0);
        self.set_lens(params, inputs * features, features);
        let mut stage = Stage::new(job, self.card, params, input_relu, false);
        let parts = stage.most_parts(Kind::Dense);
        stage.job.partials = self.array(&[parts, self.batch, features])?;
        self.denses.push(stage);
        Ok([1, 1, features])
    }

    /// The output of the latest layer, which the next one reads.
    fn latest_output(&self) -> u64 {
        self.denses.last().or(self.convs.last()).map_or(self.images, |stage| stage.job.output)
    }

    /// The latest convolution, if any, to which the next layer passes its gradient.
    fn latest_conv(&self) -> Below {
        self.convs.last().map_or(Below::default(), |Stage { job, .. }| Below {
            mask: job.mask,
            features: job.features,
            columns: job.columns,
            window_height: job.window_height,
            window_width: job.window_width,
            max: job.max,
        })
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

    /// The matrix products of a training step, by index of the layer among those with parameters.
    pub(super) fn products(&self) -> Vec<(usize, Kind)> {
        let stages = self.stages().enumerate();
        let products = stages
            .flat_map(|(index, stage)| stage.products().into_iter().map(move |kind| (index, kind)));
        // Nothing needs the gradient of the images.
        products.filter(|&(index, kind)| index > 0 || kind.slot() != Some(1)).collect()
    }

    /// The tiles that a product can be divided into.
    pub(super) fn candidates(&self, (index, kind): (usize, Kind)) -> Vec<Tile> {
        self.stages().nth(index).map_or(Vec::new(), |stage| stage.candidates(kind))
    }

    /// Chooses the tile of a product, one of its candidates.
    pub(super) fn choose(&mut self, (index, kind): (usize, Kind), tile: Tile) {
        let stage = self.convs.iter_mut().chain(&mut self.denses).nth(index);
        if let (Some(stage), Some(slot)) = (stage, kind.slot()) {
            stage.tiles[slot] = tile;
        }
    }

    /// The launches of a product alone, with the sum of its parts, for all that a tile changes.
    #[cfg_attr(not(feature = "cuda"), expect(dead_code))]
    pub(super) fn alone(&self, (index, kind): (usize, Kind), at: &Addresses) -> Vec<Launch> {
        let end = match kind {
            Kind::ConvKernel => Some(Kind::Update),
            Kind::Dense => Some(Kind::Finish),
            _ => None,
        };
        let Some(stage) = self.stages().nth(index) else { return Vec::new() };
        let kinds = [kind].into_iter().chain(end);
        kinds.map(|kind| Launch::new(vec![stage.job(kind, at)])).collect()
    }

    fn stages(&self) -> impl Iterator<Item = &Stage> {
        self.convs.iter().chain(&self.denses)
    }

    /// The launches of a training step.
    ///
    /// A launch only reads what earlier launches wrote, and its jobs do not read what the others
    /// write. So a layer's kernel is updated one launch after its input gradient, which needs the
    /// old kernel.
    pub(super) fn training(&self, at: &Addresses, rule: MomentumRule) -> Vec<Launch> {
        self.step(at, rule, None)
    }

    /// The launches of a training step of an epoch that runs without the host, and the launch that
    /// goes before the first step. The last launch of each step fetches the batch of the next.
    pub(super) fn epoch_step(&self, at: &Addresses, rule: MomentumRule) -> (Launch, Vec<Launch>) {
        let threads = THREADS as usize;
        let gather = Job {
            kind: Kind::Gather,
            output: at.arena + self.images,
            labels: at.arena + self.labels,
            epoch: at.arena + self.epoch,
            batch: self.batch as i32,
            inputs: self.image_len as i32,
            blocks: (self.batch * self.image_len).div_ceil(threads) as i32,
            ..Job::default()
        };
        (Launch::new(vec![gather]), self.step(at, rule, Some(gather)))
    }

    fn step(&self, at: &Addresses, rule: MomentumRule, gather: Option<Job>) -> Vec<Launch> {
        let mut launches = self.forward(at);
        let mut add = |jobs: Vec<Job>| launches.push(Launch::new(jobs));
        let MomentumRule { rate, beta } = rule;
        let updating = |job: Job| Job { rate, beta, ..job };
        let epoch = gather.map_or(0, |job| job.epoch);
        let metrics = |stage: &Stage| Job { epoch, ..stage.job(Kind::Metrics, at) };
        let mut delayed = self.denses.last().map(metrics);
        for (index, stage) in self.denses.iter().enumerate().rev() {
            let is_first = index == 0 && self.convs.is_empty();
            let input = (!is_first).then(|| stage.job(Kind::DenseInput, at));
            add(input.into_iter().chain(delayed).collect());
            delayed = Some(updating(stage.job(Kind::DenseKernel, at)));
        }
        for (index, stage) in self.convs.iter().enumerate().rev() {
            let input = (index > 0).then(|| stage.job(Kind::ConvInput, at));
            let kernel = Some(stage.job(Kind::ConvKernel, at));
            add(input.into_iter().chain(kernel).chain(delayed.take()).collect());
        }
        let updates = self.convs.iter().map(|stage| updating(stage.job(Kind::Update, at)));
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

impl Kind {
    /// The index of a matrix product among those of its layer.
    fn slot(self) -> Option<usize> {
        match self {
            Self::Conv | Self::Dense => Some(0),
            Self::ConvInput | Self::DenseInput => Some(1),
            Self::ConvKernel | Self::DenseKernel => Some(2),
            Self::Update | Self::Finish | Self::Head | Self::Metrics | Self::Gather => None,
        }
    }

    /// The product whose partial sums a job writes or adds up.
    fn split_product(self) -> Option<Self> {
        match self {
            Self::ConvKernel | Self::Update => Some(Self::ConvKernel),
            Self::Dense | Self::Finish | Self::Head => Some(Self::Dense),
            _ => None,
        }
    }

    /// Whether it waits for all earlier jobs: to change parameters, which depends on the metrics
    /// (not after an invalid label), or to fetch the next batch.
    fn joins(self) -> bool {
        matches!(self, Self::Update | Self::DenseKernel | Self::Gather)
    }
}

impl Stage {
    fn new(job: Job, card: Card, params: (usize, usize), input_relu: bool, is_conv: bool) -> Self {
        let mut stage = Self { job, card, tiles: [Tile::Scalar; 3], params, input_relu, is_conv };
        for (slot, kind) in stage.products().into_iter().enumerate() {
            let cost =
                |tile: &Tile| tile.cost(card, stage.extent(kind), kind.split_product().is_some());
            let best =
                stage.candidates(kind).into_iter().min_by(|a, b| cost(a).total_cmp(&cost(b)));
            stage.tiles[slot] = best.unwrap_or_default();
        }
        stage
    }

    /// The kinds of its matrix products: forward, input gradient, kernel gradient.
    fn products(&self) -> [Kind; 3] {
        if self.is_conv {
            [Kind::Conv, Kind::ConvInput, Kind::ConvKernel]
        } else {
            [Kind::Dense, Kind::DenseInput, Kind::DenseKernel]
        }
    }

    /// The tiles that fit one of its products, without much waste.
    fn candidates(&self, kind: Kind) -> Vec<Tile> {
        let of = |value: i32| value as usize;
        let Extent { rows, columns, .. } = self.extent(kind);
        let window = of(self.job.window_height) * of(self.job.window_width);
        let Job { height, width, kernel_height, kernel_width, .. } = self.job;
        let sides = [height, width, kernel_height, kernel_width];
        let has_places = sides.into_iter().all(|side| of(side) <= LARGEST_SIDE);
        let fits = |tile: &Tile| {
            let (height, width) = tile.size();
            match tile {
                Tile::Scalar => true,
                _ if !self.card.tensor_cores || !has_places => false,
                Tile::T16x32 => kind == Kind::ConvKernel && rows <= 16,
                _ => {
                    (height == 32 || height / 2 < rows)
                        && (width == 32 || width / 2 < columns)
                        && (kind != Kind::Conv || window <= height)
                }
            }
        };
        Tile::ALL.into_iter().filter(fits).collect()
    }

    /// The size of one of its matrix products.
    fn extent(&self, kind: Kind) -> Extent {
        let of = |value: i32| value as usize;
        let job = &self.job;
        let (features, inputs, batch) = (of(job.features), of(job.inputs), of(job.batch));
        let windows = batch * of(job.rows) * of(job.columns);
        let pixels = windows * of(job.window_height) * of(job.window_width);
        let (rows, columns, terms) = match kind {
            Kind::ConvInput => {
                let pixels = batch * of(job.height) * of(job.width);
                let taps = of(job.kernel_height) * of(job.kernel_width);
                (pixels, of(job.channels), taps * features)
            }
            Kind::ConvKernel => (inputs + 1, features, pixels),
            Kind::Dense => (batch, features, inputs),
            Kind::DenseInput => (batch, inputs, features),
            Kind::DenseKernel => (inputs + 1, features, batch),
            _ => (pixels, features, inputs),
        };
        Extent { rows, columns, terms }
    }

    /// The height and width of a tile of one of its products.
    fn tile_size(&self, kind: Kind, tile: Tile) -> (usize, usize) {
        if tile != Tile::Scalar {
            return tile.size();
        }
        match kind {
            Kind::Dense | Kind::DenseInput => {
                let side = if self.job.batch <= 32 { 32 } else { 64 };
                (side, side)
            }
            Kind::DenseKernel => (32, 32),
            _ if self.extent(kind).columns <= 32 => (64, 32),
            _ => (64, 64),
        }
    }

    /// The number of parts of a split sum, and their length.
    fn split(&self, kind: Kind, tile: Tile) -> (usize, usize) {
        let (height, width) = self.tile_size(kind, tile);
        let Extent { rows, columns, terms } = self.extent(kind);
        tile.split(self.card, terms, rows.div_ceil(height) * columns.div_ceil(width))
    }

    /// The number of parts of a split sum with any tile.
    fn most_parts(&self, kind: Kind) -> usize {
        let parts = self.candidates(kind).into_iter().map(|tile| self.split(kind, tile).0);
        parts.max().unwrap_or(1)
    }

    /// The layer's job of a kind, with absolute addresses.
    fn job(&self, kind: Kind, at: &Addresses) -> Job {
        let offsets = self.job;
        let address = |offset: u64| if offset == 0 { 0 } else { at.arena + offset };
        let of = |arrays: &[u64], index: usize| arrays.get(index).copied().unwrap_or(0);
        let relu = if kind == Kind::DenseInput { self.input_relu.into() } else { offsets.relu };
        let tile_of = |kind: Kind| kind.slot().map_or(Tile::Scalar, |slot| self.tiles[slot]);
        let (parts, part) = match kind.split_product() {
            Some(product) => self.split(product, tile_of(product)),
            None => (1, 0),
        };
        let mut job = Job {
            kind,
            relu,
            parts: parts as i32,
            part: part as i32,
            tile: tile_of(kind),
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
            below: Below { mask: address(offsets.below.mask), ..offsets.below },
            mask: address(offsets.mask),
            ..offsets
        };
        let parameters = [job.kernel, job.bias, job.momentum, job.bias_momentum];
        job.aligned = parameters.iter().all(|address| address.is_multiple_of(16)).into();
        let (height, width, blocks) = self.blocks(&job);
        (job.tile_height, job.tile_width) = (height as i32, width as i32);
        job.tiles_across = if kind.slot().is_some() {
            self.extent(kind).columns.div_ceil(width) as i32
        } else {
            1
        };
        job.blocks = blocks as i32;
        job
    }

    /// Divides a job's result into tiles; returns their height and width, and the number of blocks.
    fn blocks(&self, job: &Job) -> (usize, usize, usize) {
        let of = |value: i32| value as usize;
        let (features, inputs, batch) = (of(job.features), of(job.inputs), of(job.batch));
        let threads = THREADS as usize;
        // Where there are many partial sums, threads share them.
        let values = if job.parts < 8 { threads } else { threads / 8 };
        let (rows, height) = match job.kind {
            Kind::Update => ((inputs + 1) * features, values),
            Kind::Finish => (batch * features, values),
            Kind::Head => (batch, threads / 32),
            Kind::Metrics => (1, 1),
            kind => {
                let Extent { rows, columns, .. } = self.extent(kind);
                let (height, width) = self.tile_size(kind, job.tile);
                let down = if kind == Kind::Conv {
                    // A tile has whole windows.
                    let size = of(job.window_height) * of(job.window_width);
                    (rows / size).div_ceil(height / size)
                } else {
                    rows.div_ceil(height)
                };
                return (height, width, down * columns.div_ceil(width) * of(job.parts));
            }
        };
        (height, 1, rows.div_ceil(height))
    }
}

impl Launch {
    /// Assigns consecutive blocks to the jobs of each kernel.
    fn new(jobs: Vec<Job>) -> Self {
        let mut grids: Vec<Grid> = Vec::new();
        for mut job in jobs {
            // Products on tensor cores each have their own grid, to run side by side.
            let known = grids.iter().position(|grid| grid.tile == job.tile);
            let grid = match known.filter(|_| job.tile == Tile::Scalar) {
                Some(known) => &mut grids[known],
                None => {
                    grids.push(Grid { tile: job.tile, jobs: Vec::new(), blocks: 0 });
                    let last = grids.len() - 1;
                    &mut grids[last]
                }
            };
            job.first_block = grid.blocks as i32;
            grid.blocks += job.blocks as u32;
            grid.jobs.push(job);
        }
        // The first job's grid may have others, and none of them runs beside earlier launches.
        let main = grids.first().map_or(&[][..], |grid| &grid.jobs);
        let joins = main.iter().any(|job| job.kind.joins());
        Self { grids, joins }
    }
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
