//! A hundred machines of which thirty misbehave, each in its own way: the others must not notice.
use crate::invariants::Violation;
pub(crate) fn compare() -> Vec<Violation> { Vec::new() }
