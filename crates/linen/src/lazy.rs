//! Values that wait until they are needed, but never outlive what they are computed from.

use std::cell::RefCell;
use std::sync::{Arc, Weak};

/// A value that may not have been computed yet.
pub(crate) trait Lazy {
    /// Computes the value, unless this has been done.
    fn settle(&self);
}

thread_local! {
    static WAITING: RefCell<Vec<Weak<dyn Lazy>>> = const { RefCell::new(Vec::new()) };
}

/// Has a value computed at the next [`settle_all`] in this thread, if it still waits then.
pub(crate) fn register<T: Lazy + 'static>(value: &Arc<T>) {
    let value = Arc::downgrade(value);
    WAITING.with_borrow_mut(|waiting| waiting.push(value));
}

/// Computes all values that wait. Whoever hands out the variables that they depend on calls this
/// before, because the variables may be changed then.
pub(crate) fn settle_all() {
    for value in WAITING.take() {
        if let Some(value) = value.upgrade() {
            value.settle();
        }
    }
}
