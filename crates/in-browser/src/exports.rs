//! The functions that the page calls. A null pointer or NaN tells it that something is wrong with
//! the input.
//!
//! # Safety
//! Pointers are those that these functions have returned and that have not been released; lengths
//! are those of what they point to. The page's `program.js` sees to that: it alone calls them.

#![allow(clippy::missing_safety_doc, reason = "the module says it for all")]
#![allow(clippy::undocumented_unsafe_blocks, reason = "the module says it for all")]

use std::ptr::{null_mut, slice_from_raw_parts_mut};
use std::slice::{from_raw_parts, from_raw_parts_mut};

use cpu_kernels::StepResult;

use crate::dataset::{Dataset, IMAGE_LEN};
use crate::error::Result;
use crate::network::{CLASSES, Network, PARAMS};
use crate::training::{STATE_LEN, Training};

/// Memory for the page to write to, initially zero.
#[unsafe(no_mangle)]
pub extern "C" fn allocate(len: usize) -> *mut u8 {
    Box::into_raw(vec![0u8; len].into_boxed_slice()).cast()
}

/// Releases memory of [`allocate`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn release(start: *mut u8, len: usize) {
    drop(unsafe { bytes(start, len) });
}

/// A data set, which takes the memory of its two files; null if they are not MNIST's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dataset_new(
    images: *mut u8,
    images_len: usize,
    labels: *mut u8,
    labels_len: usize,
) -> *mut Dataset {
    pointer(Dataset::new(unsafe { bytes(images, images_len) }, unsafe {
        bytes(labels, labels_len)
    }))
}

/// The labels of a data set.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dataset_labels(data: *const Dataset) -> *const u8 {
    unsafe { &*data }.labels().as_ptr()
}

/// The pixels of the first image of a data set, followed by those of the others.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dataset_images(data: *const Dataset) -> *const u8 {
    unsafe { &*data }.image(0).as_ptr()
}

/// A network for one image at a time, with all parameters zero.
#[unsafe(no_mangle)]
pub extern "C" fn network_new() -> *mut Network {
    pointer(Network::new(1))
}

/// The parameters of a network, for the page to write to.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn network_params(network: *mut Network) -> *mut f32 {
    unsafe { &mut *network }.params_mut().as_mut_ptr()
}

/// Writes the log-probabilities of an image's ten digits; returns whether it could.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn network_predict(
    network: *mut Network,
    image: *const f32,
    log_probs: *mut f32,
) -> bool {
    let network = unsafe { &mut *network };
    let (image, log_probs) =
        unsafe { (from_raw_parts(image, IMAGE_LEN), from_raw_parts_mut(log_probs, CLASSES)) };
    network.log_probabilities(image, log_probs).is_ok()
}

/// A new run of the tutorial; null for an impossible learning rate or batch size.
#[unsafe(no_mangle)]
pub extern "C" fn training_new(seed: u32, learning_rate: f64, batch: usize) -> *mut Training {
    pointer(Training::new(seed, learning_rate, batch))
}

/// Ends a run.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn training_drop(training: *mut Training) {
    drop(unsafe { Box::from_raw(training) });
}

/// The number of epochs that have begun.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn training_epoch(training: *const Training) -> u32 {
    unsafe { &*training }.epoch()
}

/// The present parameters of a run.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn training_params(training: *const Training) -> *const f32 {
    unsafe { &*training }.network().params().as_ptr()
}

/// Begins an epoch; returns the number of its steps.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn training_start_epoch(
    training: *mut Training,
    data: *const Dataset,
) -> usize {
    unsafe { (*training).start_epoch(&*data) }
}

/// The next step of the epoch; returns its loss, and NaN after the last one.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn training_step(training: *mut Training, data: *const Dataset) -> f32 {
    let result = unsafe { (*training).step(&*data) };
    result.ok().flatten().map_or(f32::NAN, |StepResult { loss, .. }| loss)
}

/// Evaluates `len` images from `first` on, and writes the most probable digit of each. Returns
/// their mean loss; NaN if there are not that many images.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn training_evaluate(
    training: *mut Training,
    data: *const Dataset,
    first: usize,
    predictions: *mut u8,
    len: usize,
) -> f32 {
    let predictions = unsafe { from_raw_parts_mut(predictions, len) };
    let result = unsafe { (*training).evaluate(&*data, first, predictions) };
    result.map_or(f32::NAN, |StepResult { loss, .. }| loss)
}

/// The number of parameters of the network.
#[unsafe(no_mangle)]
pub extern "C" fn params_len() -> usize {
    PARAMS
}

/// The number of bytes in a saved run.
#[unsafe(no_mangle)]
pub extern "C" fn state_len() -> usize {
    STATE_LEN
}

/// Saves a run in memory of [`allocate`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn training_save(training: *const Training) -> *mut u8 {
    Box::into_raw(unsafe { &*training }.save().into_boxed_slice()).cast()
}

/// A saved run; null if it is not one.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn training_restore(state: *const u8, len: usize) -> *mut Training {
    pointer(Training::restore(unsafe { from_raw_parts(state, len) }))
}

fn pointer<T>(value: Result<T>) -> *mut T {
    value.map_or(null_mut(), |value| Box::into_raw(Box::new(value)))
}

unsafe fn bytes(start: *mut u8, len: usize) -> Box<[u8]> {
    unsafe { Box::from_raw(slice_from_raw_parts_mut(start, len)) }
}
