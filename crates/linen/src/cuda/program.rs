//! Runs plans on the GPU: compiles the kernel, captures launches as CUDA graphs, replays them.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::ffi::{CString, c_void};
use std::sync::{Mutex, PoisonError};

use candle_core::cuda_backend::cudarc::driver::{
    CudaFunction, CudaSlice, DevicePtr, DeviceRepr, DriverError, result, sys,
};
use candle_core::cuda_backend::cudarc::nvrtc::result::NvrtcError;
use candle_core::cuda_backend::cudarc::nvrtc::{Ptx, result as nvrtc, sys as nvrtc_sys};
use candle_core::cuda_backend::{CudaDType, CudaDevice, WrapErr};
use candle_core::{Device, Storage, Tensor, Var};
use cpu_kernels::Layer;

use crate::cuda::cache::{cached, compute_cache};
use crate::cuda::plan::{Addresses, Epoch, Job, Launch, Plan, ROW, THREADS, read};
use crate::cuda::rows::{Rows, metrics_in};
use crate::error::{Error, Result};
use crate::metrics::{BatchMetrics, Metrics};

/// The CUDA source, compiled at run time for the GPU at hand.
const SOURCE: &str = include_str!("kernels.cu");

/// Steps per replay of an epoch: enough that the host keeps ahead of the GPU.
const STEPS_AT_ONCE: usize = 16;

// SAFETY: `Job` is plain data in C layout; its addresses are integers.
unsafe impl DeviceRepr for Job {}
// SAFETY: `Epoch` is, too.
unsafe impl DeviceRepr for Epoch {}

/// A network on a GPU, planned for one batch size.
pub(crate) struct Program {
    gpu: Gpu,
    planned: Planned,
    rows: Rows,
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

/// A GPU and its kernel.
struct Gpu {
    device: CudaDevice,
    run: CudaFunction,
}

/// What a recording depends on.
#[derive(Clone, Debug, PartialEq)]
struct Subject {
    at: Addresses,
    rate: f32,
    beta: f32,
}

/// A sequence of launches as a CUDA graph.
struct Recording {
    subject: Subject,
    graph: sys::CUgraphExec,
    /// The launches' jobs in GPU memory, which the graph reads.
    _jobs: CudaSlice<Job>,
}

// SAFETY: an executable graph belongs to no thread; it must only not be used by two at a time, and
// using it takes a reference that no other thread can have.
unsafe impl Send for Recording {}

impl Drop for Recording {
    fn drop(&mut self) {
        // SAFETY: only this recording owns the graph. On failure it leaks.
        let _ = unsafe { result::graph::exec_destroy(self.graph) };
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
        let on_gpu = || Ok((compiled(device)?, Rows::new(device)?));
        let (run, rows) = on_gpu().map_err(|error: Error| error.to_string())?;
        keep_freed_memory(device);
        let gpu = Gpu { device: device.clone(), run };
        let plan = Plan::new(shape, layers)?;
        let arena = gpu.device.alloc_zeros(plan.words);
        let arena = arena.map_err(|error| Error::from(error).to_string())?;
        let planned = Planned { plan, arena, training: None, evaluation: None };
        Ok(Self { gpu, planned, rows })
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
        rate: f32,
        beta: f32,
    ) -> Result<BatchMetrics> {
        let Self { gpu, planned, rows } = self;
        let subject = Subject { at: planned.addresses(gpu, params, momenta)?, rate, beta };
        if !planned.training.as_ref().is_some_and(|known| known.subject == subject) {
            let launches = planned.plan.training(&subject.at, rate, beta);
            planned.training = Some(gpu.record(subject, &launches, 1)?);
        }
        planned.replay(planned.training.as_ref(), gpu, batch, rows)
    }

    /// Many steps without the host in between: the GPU fetches each batch from the dataset `data` by
    /// the indices in `order`, a whole number of batches, which must be below its length. Returns
    /// the metrics of each step, or why it changed nothing.
    pub(crate) fn train_epoch(
        &mut self,
        params: &[&Var],
        momenta: &[&Var],
        data: Batch,
        order: &[u32],
        (rate, beta): (f32, f32),
    ) -> Result<Vec<Result<Metrics>>> {
        let Self { gpu, planned, .. } = self;
        let plan = &planned.plan;
        let subject = Subject { at: planned.addresses(gpu, params, momenta)?, rate, beta };
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
        let (first, step) = plan.epoch_step(&subject.at, rate, beta);
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
                result::graph::launch(first.graph, stream)?;
                for _ in 0..steps / STEPS_AT_ONCE {
                    result::graph::launch(many.graph, stream)?;
                }
                for _ in 0..steps % STEPS_AT_ONCE {
                    result::graph::launch(one.graph, stream)?;
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
        let Self { gpu, planned, rows } = self;
        let subject = Subject { at: planned.addresses(gpu, params, &[])?, rate: 0.0, beta: 0.0 };
        if !planned.evaluation.as_ref().is_some_and(|known| known.subject == subject) {
            let launches = planned.plan.evaluation(&subject.at);
            planned.evaluation = Some(gpu.record(subject, &launches, 1)?);
        }
        planned.replay(planned.evaluation.as_ref(), gpu, batch, rows)
    }

    /// Describes each launch of a training step, with its mean time in microseconds over many
    /// repetitions. This changes the parameters.
    pub(crate) fn launch_times(
        &mut self,
        params: &[&Var],
        momenta: &[&Var],
        rate: f32,
        beta: f32,
    ) -> Result<Vec<(String, f32)>> {
        let Self { gpu, planned, .. } = self;
        let launches = planned.plan.training(&planned.addresses(gpu, params, momenta)?, rate, beta);
        let named = launches.iter().map(|launch| {
            let kinds: Vec<_> = launch.jobs.iter().map(|job| format!("{:?}", job.kind)).collect();
            Ok((format!("{} ({} blocks)", kinds.join(" + "), launch.blocks), gpu.time(launch)?))
        });
        named.collect()
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
            unsafe { result::graph::launch(recording.graph, stream) }?;
            copy(out, own + self.plan.metrics, ROW)
        };
        replay().w()?;
        metrics_in(&row)
    }
}

impl Gpu {
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
    ///
    /// Captures on a separate stream, because candle's may be the default stream, which cannot be
    /// captured. The graph is later launched on candle's stream, in order with its operations.
    fn record(&self, subject: Subject, launches: &[Launch], times: usize) -> Result<Recording> {
        let jobs: Vec<Job> = launches.iter().flat_map(|launch| launch.jobs.clone()).collect();
        let jobs = self.device.clone_htod(&jobs)?;
        let stream = self.device.cuda_stream();
        stream.synchronize().w()?;
        let first = jobs.device_ptr(&stream).0;
        let record = || -> Result<sys::CUgraphExec, DriverError> {
            stream.context().bind_to_thread()?;
            let own = result::stream::create(result::stream::StreamKind::NonBlocking)?;
            let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
            // SAFETY: the stream and the graph are created here and used only here. The graph is
            // not needed after instantiation.
            unsafe {
                result::stream::begin_capture(own, mode)?;
                // End the capture even if a launch failed.
                let launched = (0..times).try_for_each(|_| self.launch_all(launches, first, own));
                let graph = result::stream::end_capture(own)?;
                let instantiated = launched.and_then(|()| {
                    result::graph::instantiate(graph, sys::CUgraphInstantiate_flags(0))
                });
                result::graph::destroy(graph)?;
                result::stream::destroy(own)?;
                instantiated
            }
        };
        let graph = record().w()?;
        Ok(Recording { subject, graph, _jobs: jobs })
    }

    /// Queues launches whose jobs are consecutive, starting at `jobs`.
    fn launch_all(
        &self,
        launches: &[Launch],
        mut jobs: u64,
        stream: sys::CUstream,
    ) -> Result<(), DriverError> {
        for launch in launches {
            self.launch(launch, jobs, stream)?;
            jobs += size_of_val(launch.jobs.as_slice()) as u64;
        }
        Ok(())
    }

    /// Queues one launch whose jobs are at `jobs` in GPU memory.
    fn launch(
        &self,
        launch: &Launch,
        mut jobs: u64,
        stream: sys::CUstream,
    ) -> Result<(), DriverError> {
        let mut count = launch.jobs.len() as i32;
        let mut arguments = [(&raw mut jobs).cast::<c_void>(), (&raw mut count).cast::<c_void>()];
        // SAFETY: the arguments are those of `run` in `kernels.cu`. The jobs point to memory that
        // the plan sized for them, and to parameters whose lengths were checked.
        unsafe {
            result::launch_kernel(
                self.run.cu_function(),
                (launch.blocks, 1, 1),
                (THREADS, 1, 1),
                0,
                stream,
                &mut arguments,
            )
        }
    }

    /// The mean time of a repeated launch in microseconds.
    fn time(&self, launch: &Launch) -> Result<f32> {
        const REPEATED: u32 = 100;
        let jobs = self.device.clone_htod(&launch.jobs)?;
        let stream = self.device.cuda_stream();
        let (jobs, _guard) = jobs.device_ptr(&stream);
        let event = || {
            let timing = sys::CUevent_flags::CU_EVENT_DEFAULT;
            stream.record_event(Some(timing)).w()
        };
        self.launch(launch, jobs, stream.cu_stream()).w()?;
        let start = event()?;
        for _ in 0..REPEATED {
            self.launch(launch, jobs, stream.cu_stream()).w()?;
        }
        Ok(start.elapsed_ms(&event()?).w()? * 1e3 / REPEATED as f32)
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

/// The kernel, compiled once per compute capability.
fn compiled(device: &CudaDevice) -> Result<CudaFunction> {
    static COMPILED: Mutex<BTreeMap<(i32, i32), Vec<u8>>> = Mutex::new(BTreeMap::new());
    let stream = device.cuda_stream();
    let capability = stream.context().compute_capability().w()?;
    let mut known = COMPILED.lock().unwrap_or_else(PoisonError::into_inner);
    let code = match known.entry(capability) {
        Entry::Occupied(known) => known.into_mut(),
        Entry::Vacant(unknown) => unknown.insert(machine_code(capability)?),
    };
    let module = stream.context().load_module(Ptx::from_binary(code.clone())).w()?;
    Ok(module.load_function("run").w()?)
}

/// The kernel for a compute capability, from the driver's cache folder if it is there.
fn machine_code((major, minor): (i32, i32)) -> Result<Vec<u8>> {
    let (mut release, mut update) = (0, 0);
    // SAFETY: both pointers are valid for writes.
    unsafe { nvrtc_sys::nvrtcVersion(&mut release, &mut update) }.result().map_err(failure)?;
    let architecture = format!("sm_{major}{minor}");
    let target = format!("{architecture}-nvrtc-{release}.{update}");
    cached(compute_cache().as_deref(), (SOURCE, &target), || compile(&architecture))
}

/// Compiles the kernel to machine code, because drivers reject PTX from newer compilers.
fn compile(architecture: &str) -> Result<Vec<u8>> {
    let options = [format!("--gpu-architecture={architecture}"), "--std=c++17".to_owned()];
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
