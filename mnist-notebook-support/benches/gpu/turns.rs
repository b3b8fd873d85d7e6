//! Alternating turns, so that changes in the machine's speed affect all alike.

use std::collections::BTreeMap;
use std::time::Instant;

use crate::clock::{Clock, Failure};

/// Measurements of each row if time allows; the median is reported.
const ROUNDS: usize = 7;

/// Who answers requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Who {
    Ours,
    OursInTf32,
    Jax,
    TorchGraph,
    TorchCompile,
}

impl Who {
    /// Whether this is not this crate.
    fn is_peer(self) -> bool {
        !matches!(self, Self::Ours | Self::OursInTf32)
    }
}

/// The clocks that run. One that gives no more answers is removed.
pub type Clocks = BTreeMap<Who, Box<dyn Clock>>;

/// What is measured for a row of a table.
#[derive(Clone, Copy)]
pub struct Row {
    pub name: &'static str,
    pub who: Who,
    pub what: &'static str,
    /// Whether a repetition is an epoch rather than a step.
    pub is_epoch: bool,
}

impl Row {
    pub const fn step(name: &'static str, who: Who, what: &'static str) -> Self {
        Self { name, who, what, is_epoch: false }
    }

    pub const fn epoch(name: &'static str, who: Who, what: &'static str) -> Self {
        Self { name, who, what, is_epoch: true }
    }
}

/// The median milliseconds per repetition of each row; `None` if its clock is missing, does not
/// answer, or is a peer whose turn to prepare comes too late. `count` returns the repetitions of a
/// turn from the milliseconds of one.
pub fn measure(
    clocks: &mut Clocks,
    rows: &[Row],
    batch: usize,
    count: impl Fn(f64) -> usize,
    until: Instant,
) -> Vec<Option<f64>> {
    let start = Instant::now();
    // The rest is for the turns.
    let prepared = start + (until - start) * 3 / 4;
    let mut counts = Vec::new();
    for row in rows {
        let is_there = clocks.contains_key(&row.who);
        if is_there && row.who.is_peer() && Instant::now() >= prepared {
            println!(
                "{}, batches of {batch}: left out, because the time is over",
                row.name
            );
            counts.push(None);
            continue;
        }
        // The first repetitions compile and record.
        let first = if row.is_epoch { 1 } else { 3 };
        let ms =
            ask(clocks, row, batch, first).and_then(|_| ask(clocks, row, batch, first));
        counts.push(ms.map(&count));
    }
    let mut times = vec![Vec::new(); rows.len()];
    for round in 0..ROUNDS {
        if round > 0 && Instant::now() > until {
            break;
        }
        let mut order: Vec<usize> = (0..rows.len()).collect();
        // So that no row always follows the same one.
        if round % 2 == 1 {
            order.reverse();
        }
        for index in order {
            let Some(count) = counts[index] else { continue };
            match ask(clocks, &rows[index], batch, count) {
                Some(ms) => times[index].push(ms),
                None => counts[index] = None,
            }
        }
    }
    let medians =
        counts.iter().zip(times).map(|(count, times)| count.and(median(times)));
    medians.collect()
}

/// A clock's answer. If there is none, prints the reason.
fn ask(clocks: &mut Clocks, row: &Row, batch: usize, count: usize) -> Option<f64> {
    let Row { name, who, what, .. } = *row;
    match clocks.get_mut(&who)?.time(what, batch, count) {
        Ok(ms) => Some(ms),
        Err(Failure::Request(reason)) => {
            println!("{name}, batches of {batch}: left out: {reason}");
            None
        }
        Err(Failure::Gone(reason)) => {
            println!(
                "{name}, batches of {batch}: left out, as all of {who:?} from here: {reason}"
            );
            clocks.remove(&who);
            None
        }
    }
}

fn median(mut times: Vec<f64>) -> Option<f64> {
    times.sort_by(f64::total_cmp);
    times.get(times.len() / 2).copied()
}
