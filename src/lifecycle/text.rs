//! Texts from outside, as they may be shown and kept.
//!
//! Called wherever a message takes in what a machine, a BMC or a spec said. No such text may steer
//! a terminal, or grow without a bound.

use crate::model::{fault::Fault, printable::is_escaped};

/// Longest text shown, in characters: parts of it come from machines.
const TEXT_CHARS_MAX: usize = 1000;

/// A text from outside as it may be shown and kept: bounded, and without what steers a terminal.
pub(super) fn plain(text: &str) -> String {
    plain_up_to(TEXT_CHARS_MAX, text)
}

/// A text from outside, cut to so many characters.
pub(super) fn plain_up_to(chars_max: usize, text: &str) -> String {
    text.chars().filter(|c| !is_escaped(*c)).take(chars_max).collect()
}

/// A fault from outside, with such a text.
pub(super) fn plain_fault(fault: Fault) -> Fault {
    Fault { message: plain(&fault.message), ..fault }
}
