//! Runs plans on the GPU: compiles the kernels, chooses tiles, captures launches as CUDA graphs,
//! replays them.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::ffi::{CString, c_void};
use std::sync::{Mutex, PoisonError};
use std::thread::{self, ThreadId};

use candle_core::cuda_backend::cudarc::driver::{
    CudaFunction, CudaSlice, DevicePtr, DeviceRepr, DriverError, result, sys,
};
use candle_core::cuda_backend::cudarc::nvrtc::result::NvrtcError;
use candle_core::cuda_backend::cudarc::nvrtc::{Ptx, result as nvrtc, sys as nvrtc_sys};
use candle_core::cuda_backend::{CudaDType, CudaDevice, WrapErr};
use candle_core::{Device, Storage, Tensor, Var};
use cpu_kernels::Layer;
use sha2::{Digest, Sha256};

use crate::cuda::cache::{cached, compute_cache};
use crate::cuda::plan::{Addresses, Epoch, Grid, Job, Launch, MomentumRule, Plan, ROW, read};
use crate::cuda::rows::{Rows, metrics_in};
use crate::cuda::tile::{Card, Tile};
use crate::error::{Error, Result};
use crate::metrics::{BatchMetrics, Metrics};
use crate::precision::{Precision, matmul_precision};

/// The CUDA source, compiled at run time for the GPU at hand.
const SOURCE: &str = concat!(
    include_str!("kernels/job.cuh"),
    include_str!("kernels/light.cuh"),
    include_str!("kernels/scalar.cuh"),
    include_str!("kernels/mma.cuh"),
    include_str!("kernels/tensor.cuh"),
    include_str!("kernels.cu"),
);

/// Steps per replay of an epoch: enough that the host keeps ahead of the GPU.
const STEPS_AT_ONCE: usize = 16;

// SAFETY: `Job` is plain data in C layout; its addresses are integers.
unsafe impl DeviceRepr for Job {}
// SAFETY: `Epoch` is, too.
unsafe impl DeviceRepr for Epoch {}

/// A network on a GPU, planned for one batch size.
pub(crate) struct Program {
    shape: [usize; 4],
    layers: Vec<Layer>,
    precision: Precision,
    gpu: Gpu,
    planned: Planned,
    rows: Rows,
    /// The thread that queued the latest work.
    thread: ThreadId,
}

/// Images `[B, height, width, channels]` with their labels `[B]`.
#[derive(Clone, Copy)]
pub(crate) struct Batch<'a> {
    pub(crate) image: &'a Tensor,
    pub(crate) label: &'a Tensor,
}

/// A plan with its memory.
struct Planned {
    plan: Plan,
    arena: CudaSlice<f32>,
    /// The latest recordings, each valid only for its subject.
    training: Option<Recording>,
    evaluation: Option<Recording>,
}

/// A GPU and its kernels, by tile; an older one has only the first.
struct Gpu {
    device: CudaDevice,
    kernels: Vec<CudaFunction>,
}

impl Drop for Gpu {
    fn drop(&mut self) {
        // The kernels may still run, and their code is unloaded with the last of them.
        let _ = self.device.cuda_stream().context().synchronize();
    }
}

/// What a recording depends on.
#[derive(Clone, Debug, PartialEq)]
struct Subject {
    at: Addresses,
    /// `None` in evaluation.
    rule: Option<MomentumRule>,
}

/// A sequence of launches as a CUDA graph.
struct Recording {
    subject: Subject,
    graph: Graph,
    /// The launches' jobs in GPU memory, which the graph reads.
    _jobs: CudaSlice<Job>,
}

/// An executable graph.
struct Graph(sys::CUgraphExec);

// SAFETY: an executable graph belongs to no thread; it must only not be used by two at a time, and
// using it takes a reference that no other thread can have.
unsafe impl Send for Graph {}

impl Drop for Graph {
    fn drop(&mut self) {
        // SAFETY: this is the only owner. On failure the graph leaks.
        let _ = unsafe { result::graph::exec_destroy(self.0) };
    }
}

impl Program {
    /// Plans a chain of layers for images `[batch, height, width, channels]` and compiles the
    /// kernels for the GPU, or says why that is not possible.
    pub(crate) fn new(
        shape: [usize; 4],
        layers: &[Layer],
        device: &CudaDevice,
    ) -> Result<Self, String> {
        let precision = matmul_precision();
        let on_gpu = || Ok((Gpu::new(device, precision)?, Rows::new(device)?));
        let (gpu, rows) = on_gpu().map_err(|error: Error| error.to_string())?;
        keep_freed_memory(device);
        let card = gpu.card().map_err(|error| error.to_string())?;
        let plan = Plan::new(shape, layers, card)?;
        let arena = gpu.device.alloc_zeros(plan.words);
        let arena = arena.map_err(|error| Error::from(error).to_string())?;
        let planned = Planned { plan, arena, training: None, evaluation: None };
        let (layers, thread) = (layers.to_vec(), thread::current().id());
        let mut program = Self { shape, layers, precision, gpu, planned, rows, thread };
        program.choose_tiles().map_err(|error| error.to_string())?;
        Ok(program)
    }

    /// Waits for what another thread has queued, as candle's stream is one of the calling thread,
    /// and adopts a precision that was set since the program was made.
    fn prepare(&mut self) -> Result<()> {
        let thread = thread::current().id();
        if thread != self.thread {
            self.gpu.device.cuda_stream().context().synchronize().w()?;
            self.thread = thread;
        }
        let precision = matmul_precision();
        if precision != self.precision {
            self.gpu = Gpu::new(&self.gpu.device.clone(), precision)?;
            (self.planned.training, self.planned.evaluation) = (None, None);
            self.precision = precision;
            self.choose_tiles()?;
        }
        Ok(())
    }

    /// Chooses the fastest tiles, which are measured once for a network, batch size, precision and
    /// kind of GPU, and kept beside the machine code.
    fn choose_tiles(&mut self) -> Result<()> {
        let Self { shape, layers, precision, gpu, planned, .. } = self;
        let context = gpu.device.cuda_stream().context().clone();
        let name = context.name().w()?;
        let subject = format!("{name} {:?} {shape:?} {layers:?} {precision:?}", gpu.card()?);
        let [a, b, c, d, ..] = <[u8; 32]>::from(Sha256::digest(subject));
        let target = format!("tiles-{:08x}", u32::from_be_bytes([a, b, c, d]));
        let measure = || planned.fastest_tiles(gpu);
        let tiles = cached(compute_cache().as_deref(), (SOURCE, &target), measure)?;
        for (product, tile) in planned.plan.products().into_iter().zip(tiles) {
            let candidates = planned.plan.candidates(product);
            if let Some(&tile) = candidates.iter().find(|known| **known as u8 == tile) {
                planned.plan.choose(product, tile);
            }
        }
        Ok(())
    }

    /// Whether a tensor is on the GPU that runs this program.
    pub(crate) fn is_on_gpu(&self, tensor: &Tensor) -> bool {
        tensor.device().same_device(&Device::Cuda(self.gpu.device.clone()))
    }

    /// One step of gradient descent with momentum, asynchronous.
    pub(crate) fn train_step(
        &mut self,
        params: &[&Var],
        momenta: &[&Var],
        batch: Batch,
        rule: MomentumRule,
    ) -> Result<BatchMetrics> {
        self.prepare()?;
        let Self { gpu, planned, rows, .. } = self;
        let at = planned.addresses(gpu, params, momenta)?;
        let subject = Subject { at, rule: Some(rule) };
        if !planned.training.as_ref().is_some_and(|known| known.subject == subject) {
            let launches = planned.plan.training(&subject.at, rule);
            planned.training = Some(gpu.record(subject, &launches, 1)?);
        }
        planned.replay(planned.training.as_ref(), gpu, batch, rows)
    }

    /// Many steps without the host in between: the GPU fetches each batch from the dataset `data`
    /// by the indices in `order`, a whole number of batches, which must be below its length.
    /// Returns the metrics of each step, or why it changed nothing.
    pub(crate) fn train_epoch(
        &mut self,
        params: &[&Var],
        momenta: &[&Var],
        data: Batch,
        order: &[u32],
        rule: MomentumRule,
    ) -> Result<Vec<Result<Metrics>>> {
        self.prepare()?;
        let Self { gpu, planned, .. } = self;
        let plan = &planned.plan;
        let at = planned.addresses(gpu, params, momenta)?;
        let subject = Subject { at, rule: Some(rule) };
        let steps = order.len() / plan.batch;
        let stream = gpu.device.cuda_stream();
        let order = gpu.device.clone_htod(order)?;
        let rows = gpu.device.alloc_zeros::<f32>(steps * ROW)?;
        let epoch = Epoch {
            images: gpu.address::<f32>(data.image)?,
            labels: gpu.address::<u32>(data.label)?,
            order: order.device_ptr(&stream).0,
            rows: rows.device_ptr(&stream).0,
            step: 0,
            steps: steps as i32,
        };
        let (first, step) = plan.epoch_step(&subject.at, rule);
        let at_epoch = subject.at.arena + plan.epoch;
        let first = gpu.record(subject.clone(), &[first], 1)?;
        let one = gpu.record(subject.clone(), &step, 1)?;
        let many = gpu.record(subject, &step, STEPS_AT_ONCE)?;
        let epoch = gpu.device.clone_htod(&[epoch])?;
        let replay = || -> Result<(), DriverError> {
            stream.context().bind_to_thread()?;
            let words = epoch.device_ptr(&stream).0;
            let stream = stream.cu_stream();
            // SAFETY: the plan has memory for an epoch there. The graphs were recorded for the
            // plan's memory, for these parameters, and for an epoch, all of which are alive.
            unsafe {
                result::memcpy_dtod_async(at_epoch, words, size_of::<Epoch>(), stream)?;
                result::graph::launch(first.graph.0, stream)?;
                for _ in 0..steps / STEPS_AT_ONCE {
                    result::graph::launch(many.graph.0, stream)?;
                }
                for _ in 0..steps % STEPS_AT_ONCE {
                    result::graph::launch(one.graph.0, stream)?;
                }
            }
            Ok(())
        };
        replay().w()?;
        let rows = gpu.device.clone_dtoh(&rows)?;
        Ok(rows.as_chunks::<ROW>().0.iter().map(read).collect())
    }

    /// Loss and accuracy of a batch, asynchronous.
    pub(crate) fn eval_step(&mut self, params: &[&Var], batch: Batch) -> Result<BatchMetrics> {
        self.prepare()?;
        let Self { gpu, planned, rows, .. } = self;
        let subject = Subject { at: planned.addresses(gpu, params, &[])?, rule: None };
        if !planned.evaluation.as_ref().is_some_and(|known| known.subject == subject) {
            let launches = planned.plan.evaluation(&subject.at);
            planned.evaluation = Some(gpu.record(subject, &launches, 1)?);
        }
        planned.replay(planned.evaluation.as_ref(), gpu, batch, rows)
    }

    /// Describes each grid of a training step, with its mean time in microseconds over many
    /// repetitions. This changes the parameters.
    pub(crate) fn launch_times(
        &mut self,
        params: &[&Var],
        momenta: &[&Var],
        rule: MomentumRule,
    ) -> Result<Vec<(String, f32)>> {
        const REPEATED: u32 = 100;
        self.prepare()?;
        let Self { gpu, planned, .. } = self;
        let launches = planned.plan.training(&planned.addresses(gpu, params, momenta)?, rule);
        let grids = launches.iter().flat_map(|launch| &launch.grids);
        let named = grids.map(|grid| {
            let kinds: Vec<_> = grid.jobs.iter().map(|job| format!("{:?}", job.kind)).collect();
            let name = format!("{} ({} blocks of {:?})", kinds.join(" + "), grid.blocks, grid.tile);
            Ok((name, gpu.time(&[grid], REPEATED)?))
        });
        named.collect()
    }

    /// Describes each tile that was a candidate for a product of a training step, with its time in
    /// microseconds, measured again.
    pub(crate) fn tile_times(&mut self) -> Result<Vec<(String, f32)>> {
        self.prepare()?;
        let times = self.planned.tile_times(&self.gpu)?;
        self.choose_tiles()?;
        let named = self.planned.plan.products().into_iter().zip(times);
        let named = named.flat_map(|((index, kind), times)| {
            let name = move |tile: Tile| format!("{kind:?} of layer {index}: {tile:?}");
            times.into_iter().map(move |(tile, time)| (name(tile), time))
        });
        Ok(named.collect())
    }
}

impl Planned {
    fn addresses(&self, gpu: &Gpu, params: &[&Var], momenta: &[&Var]) -> Result<Addresses> {
        let of = |vars: &[&Var]| -> Result<Vec<u64>> {
            let lens = vars.iter().map(|var| var.elem_count());
            if !vars.is_empty() && !lens.eq(self.plan.param_lens.iter().copied()) {
                return Err(Error::Tensor("the parameters are not those of the plan".into()));
            }
            vars.iter().map(|var| gpu.address::<f32>(var)).collect()
        };
        let stream = gpu.device.cuda_stream();
        let (arena, _guard) = self.arena.device_ptr(&stream);
        Ok(Addresses { arena, params: of(params)?, momenta: of(momenta)? })
    }

    /// The fastest candidate for each product.
    fn fastest_tiles(&mut self, gpu: &Gpu) -> Result<Vec<u8>> {
        let fastest =
            |times: Vec<(Tile, f32)>| times.into_iter().min_by(|a, b| a.1.total_cmp(&b.1));
        let times = self.tile_times(gpu)?.into_iter();
        Ok(times.map(|times| fastest(times).unwrap_or_default().0 as u8).collect())
    }

    /// The candidates for each product with their times in microseconds, on made-up parameters.
    /// Leaves the last of each chosen.
    fn tile_times(&mut self, gpu: &Gpu) -> Result<Vec<Vec<(Tile, f32)>>> {
        const REPEATED: u32 = 10;
        let stream = gpu.device.cuda_stream();
        let lens = self.plan.param_lens.iter();
        let scratch = lens.map(|&len| Ok(gpu.device.alloc_zeros::<f32>(len)?));
        let scratch = scratch.collect::<Result<Vec<_>>>()?;
        let params: Vec<u64> = scratch.iter().map(|array| array.device_ptr(&stream).0).collect();
        let arena = self.arena.device_ptr(&stream).0;
        let at = Addresses { arena, momenta: params.clone(), params };
        let time = |plan: &mut Plan, product, tile| {
            plan.choose(product, tile);
            let launches = plan.alone(product, &at);
            let grids: Vec<_> = launches.iter().flat_map(|launch| &launch.grids).collect();
            Ok((tile, gpu.time(&grids, REPEATED)?))
        };
        let products = self.plan.products().into_iter();
        let times = products.map(|product| {
            let candidates = self.plan.candidates(product).into_iter();
            candidates.map(|tile| time(&mut self.plan, product, tile)).collect()
        });
        times.collect()
    }

    /// Copies a batch to where the recording reads it, replays it, and copies out the metrics.
    fn replay(
        &self,
        recording: Option<&Recording>,
        gpu: &Gpu,
        batch: Batch,
        rows: &mut Rows,
    ) -> Result<BatchMetrics> {
        let Some(recording) = recording else {
            return Err(Error::Tensor("nothing has been recorded".into()));
        };
        let row = rows.next()?;
        let (image, label) = (gpu.address::<f32>(batch.image)?, gpu.address::<u32>(batch.label)?);
        let (out, own) = (gpu.address::<f32>(&row)?, recording.subject.at.arena);
        let stream = gpu.device.cuda_stream();
        let replay = || -> Result<(), DriverError> {
            stream.context().bind_to_thread()?;
            let stream = stream.cu_stream();
            let copy = |to: u64, from: u64, words: usize| {
                // SAFETY: both arrays have at least `words` words, as the batch fits the plan.
                unsafe { result::memcpy_dtod_async(to, from, words * 4, stream) }
            };
            copy(own + self.plan.images, image, self.plan.batch * self.plan.image_len)?;
            copy(own + self.plan.labels, label, self.plan.batch)?;
            // SAFETY: the graph was recorded for this memory, which the plan owns.
            unsafe { result::graph::launch(recording.graph.0, stream) }?;
            copy(out, own + self.plan.metrics, ROW)
        };
        replay().w()?;
        metrics_in(&row)
    }
}

impl Gpu {
    fn new(device: &CudaDevice, precision: Precision) -> Result<Self> {
        let stream = device.cuda_stream();
        let context = stream.context();
        let capability = context.compute_capability().w()?;
        let module = context.load_module(Ptx::from_binary(compiled(capability, precision)?)).w()?;
        let tiles: &[Tile] =
            if has_tensor_cores(capability) { &Tile::ALL } else { &[Tile::Scalar] };
        let kernels = tiles.iter().map(|tile| {
            let (name, _, shared) = tile.kernel();
            let kernel = module.load_function(name).w()?;
            let most = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            kernel.set_attribute(most, shared as i32).w()?;
            Ok(kernel)
        });
        Ok(Self { device: device.clone(), kernels: kernels.collect::<Result<_>>()? })
    }

    fn card(&self) -> Result<Card> {
        let stream = self.device.cuda_stream();
        let count = sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT;
        let multiprocessors = stream.context().attribute(count).w()? as usize;
        Ok(Card { multiprocessors, tensor_cores: self.kernels.len() > 1 })
    }

    /// The address of a tensor's values in GPU memory.
    fn address<T: CudaDType + DeviceRepr>(&self, tensor: &Tensor) -> Result<u64> {
        let (storage, layout) = tensor.storage_and_layout();
        match &*storage {
            Storage::Cuda(storage) if layout.is_contiguous() => {
                let stream = self.device.cuda_stream();
                let (start, _guard) = storage.as_cuda_slice::<T>()?.device_ptr(&stream);
                Ok(start + (layout.start_offset() * size_of::<T>()) as u64)
            }
            _ => Err(Error::Tensor("expected contiguous values on the GPU".into())),
        }
    }

    /// Records launches, a number of times in a row, as a graph.
    fn record(&self, subject: Subject, launches: &[Launch], times: usize) -> Result<Recording> {
        let grids = launches.iter().flat_map(|launch| &launch.grids);
        let jobs: Vec<Job> = grids.flat_map(|grid| &grid.jobs).copied().collect();
        let jobs = self.device.clone_htod(&jobs)?;
        let stream = self.device.cuda_stream();
        let first = jobs.device_ptr(&stream).0;
        stream.context().bind_to_thread().w()?;
        // It must outlive the capture, which it becomes a part of.
        let side = Queue::new().w()?;
        let graph = self.capture(|main| {
            (0..times).try_for_each(|_| self.launch_all(launches, first, main, &side))
        })?;
        Ok(Recording { subject, graph, _jobs: jobs })
    }

    /// Captures what a function queues.
    ///
    /// Captures on a separate stream, because candle's may be the default stream, which cannot be
    /// captured. The graph is later launched on candle's stream, in order with its operations.
    fn capture(&self, work: impl FnOnce(&Queue) -> Result<(), DriverError>) -> Result<Graph> {
        let stream = self.device.cuda_stream();
        stream.synchronize().w()?;
        let capture = || -> Result<sys::CUgraphExec, DriverError> {
            stream.context().bind_to_thread()?;
            let main = Queue::new()?;
            let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
            // SAFETY: the stream and the graph are created here and used only here. The graph is
            // not needed after instantiation.
            unsafe {
                result::stream::begin_capture(main.stream, mode)?;
                // End the capture even if the work failed.
                let worked = work(&main);
                let graph = result::stream::end_capture(main.stream)?;
                let instantiated = worked.and_then(|()| {
                    result::graph::instantiate(graph, sys::CUgraphInstantiate_flags(0))
                });
                result::graph::destroy(graph)?;
                instantiated
            }
        };
        Ok(Graph(capture().w()?))
    }

    /// Queues launches whose jobs are consecutive, starting at `jobs`: the critical path and, as a
    /// second branch of the graph beside it, what it does not wait for.
    fn launch_all(
        &self,
        launches: &[Launch],
        mut jobs: u64,
        main: &Queue,
        side: &Queue,
    ) -> Result<(), DriverError> {
        let mut is_forked = false;
        for Launch { grids, joins } in launches {
            if *joins && std::mem::take(&mut is_forked) {
                main.wait_for(side)?;
            }
            if grids.len() > 1 {
                side.wait_for(main)?;
                is_forked = true;
            }
            for (index, grid) in grids.iter().enumerate() {
                let queue = if index == 0 { main } else { side };
                self.launch(grid, jobs, queue.stream)?;
                jobs += size_of_val(grid.jobs.as_slice()) as u64;
            }
        }
        if is_forked {
            main.wait_for(side)?;
        }
        Ok(())
    }

    /// Queues a grid whose jobs are at `jobs` in GPU memory.
    fn launch(&self, grid: &Grid, mut jobs: u64, stream: sys::CUstream) -> Result<(), DriverError> {
        let mut count = grid.jobs.len() as i32;
        let mut job = grid.jobs[0]; // of a tile, a parameter
        let mut arguments = match grid.tile {
            Tile::Scalar => vec![(&raw mut jobs).cast(), (&raw mut count).cast::<c_void>()],
            _ => vec![(&raw mut job).cast::<c_void>()],
        };
        let (_, threads, shared) = grid.tile.kernel();
        // SAFETY: the arguments are those of the kernels in `kernels.cu`; a plan only has tiles of
        // the GPU's kernels. The jobs point to memory that the plan sized for them, and to
        // parameters whose lengths were checked.
        unsafe {
            result::launch_kernel(
                self.kernels[grid.tile as usize].cu_function(),
                (grid.blocks, 1, 1),
                (threads, 1, 1),
                shared as u32,
                stream,
                &mut arguments,
            )
        }
    }

    /// The mean time of repeated grids, one after the other, in microseconds. They are repeated
    /// within a graph, because small ones are faster than the host launches them.
    fn time(&self, grids: &[&Grid], repeated: u32) -> Result<f32> {
        let jobs: Vec<Job> = grids.iter().flat_map(|grid| &grid.jobs).copied().collect();
        let jobs = self.device.clone_htod(&jobs)?;
        let stream = self.device.cuda_stream();
        let first = jobs.device_ptr(&stream).0;
        let graph = self.capture(|main| {
            for _ in 0..repeated {
                let mut jobs = first;
                for grid in grids {
                    self.launch(grid, jobs, main.stream)?;
                    jobs += size_of_val(grid.jobs.as_slice()) as u64;
                }
            }
            Ok(())
        })?;
        let run_once = || -> Result<_> {
            // SAFETY: the graph was just captured, for memory that still exists.
            unsafe { result::graph::launch(graph.0, stream.cu_stream()) }.w()?;
            stream.record_event(Some(sys::CUevent_flags::CU_EVENT_DEFAULT)).w().map_err(Error::from)
        };
        let (start, end) = (run_once()?, run_once()?);
        Ok(start.elapsed_ms(&end).w()? * 1e3 / repeated as f32)
    }
}

/// A stream for captures, with the event that other streams wait for.
struct Queue {
    stream: sys::CUstream,
    event: sys::CUevent,
}

impl Queue {
    fn new() -> Result<Self, DriverError> {
        let stream = result::stream::create(result::stream::StreamKind::NonBlocking)?;
        let event = result::event::create(sys::CUevent_flags::CU_EVENT_DISABLE_TIMING)?;
        Ok(Self { stream, event })
    }

    /// Makes later work wait for all that another stream has been given.
    fn wait_for(&self, other: &Self) -> Result<(), DriverError> {
        let flags = sys::CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT;
        // SAFETY: both queues own their streams and events.
        unsafe {
            result::event::record(other.event, other.stream)?;
            result::stream::wait_event(self.stream, other.event, flags)
        }
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        // SAFETY: only this queue owns them. On failure they leak.
        let _ =
            unsafe { result::event::destroy(self.event).and(result::stream::destroy(self.stream)) };
    }
}

/// Makes the driver keep freed memory for reuse, such as by the next batch. By default it returns
/// memory to the system at every synchronization. Failure only costs time.
fn keep_freed_memory(device: &CudaDevice) {
    let stream = device.cuda_stream();
    let mut all = u64::MAX;
    let threshold = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
    // SAFETY: the device comes from a context, the pool is its own, and the attribute is a u64.
    let _ = unsafe {
        result::device::get_default_mem_pool(stream.context().cu_device()).and_then(|pool| {
            result::mem_pool::set_attribute(pool, threshold, (&raw mut all).cast())
        })
    };
}

/// Whether a compute capability has tensor cores for TF32, and asynchronous copies.
fn has_tensor_cores((major, _): (i32, i32)) -> bool {
    major >= 8
}

/// The kernels' machine code, compiled once per compute capability and precision.
fn compiled(capability: (i32, i32), precision: Precision) -> Result<Vec<u8>> {
    static COMPILED: Mutex<BTreeMap<(i32, i32, usize), Vec<u8>>> = Mutex::new(BTreeMap::new());
    let products = match precision {
        Precision::Tf32 if has_tensor_cores(capability) => 1,
        _ => 3,
    };
    let mut known = COMPILED.lock().unwrap_or_else(PoisonError::into_inner);
    Ok(match known.entry((capability.0, capability.1, products)) {
        Entry::Occupied(known) => known.get().clone(),
        Entry::Vacant(unknown) => unknown.insert(machine_code(capability, products)?).clone(),
    })
}

/// The kernels for a compute capability and a number of TF32 products, from the driver's cache
/// folder if they are there.
fn machine_code((major, minor): (i32, i32), products: usize) -> Result<Vec<u8>> {
    let (mut release, mut update) = (0, 0);
    // SAFETY: both pointers are valid for writes.
    unsafe { nvrtc_sys::nvrtcVersion(&mut release, &mut update) }.result().map_err(failure)?;
    let architecture = format!("sm_{major}{minor}");
    let target = format!("{architecture}-{products}-nvrtc-{release}.{update}");
    cached(compute_cache().as_deref(), (SOURCE, &target), || compile(&architecture, products))
}

/// Compiles the kernels to machine code, because drivers reject PTX from newer compilers.
fn compile(architecture: &str, products: usize) -> Result<Vec<u8>> {
    let options = [
        format!("--gpu-architecture={architecture}"),
        "--std=c++17".to_owned(),
        format!("--define-macro=PRODUCTS={products}"),
    ];
    let source = CString::new(SOURCE).map_err(|error| Error::Gpu(error.to_string()))?;
    let program = nvrtc::create_program(&source, Some(c"kernels.cu")).map_err(failure)?;
    // SAFETY: the program is valid. Its code is read after compilation, into a buffer of the size
    // that it reports.
    let code = unsafe {
        nvrtc::compile_program(program, &options).and_then(|()| {
            let mut size = 0;
            nvrtc_sys::nvrtcGetCUBINSize(program, &mut size).result()?;
            let mut code = vec![0; size];
            nvrtc_sys::nvrtcGetCUBIN(program, code.as_mut_ptr().cast()).result()?;
            Ok(code)
        })
    };
    // SAFETY: the program is not used any more.
    unsafe { nvrtc::destroy_program(program) }.map_err(failure)?;
    code.map_err(failure)
}

fn failure(error: NvrtcError) -> Error {
    Error::Gpu(format!("NVRTC cannot compile the training step: {error}"))
}
