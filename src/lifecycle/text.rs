//! Makes external texts safe to show and record.
//!
//! Called wherever a message includes a text of a machine, a BMC or a spec. No such text may act on
//! a terminal or be unbounded.

use crate::model::{fault::Fault, printable::is_escaped};

/// Longest text, in characters.
const TEXT_CHARS_MAX: usize = 1000;

/// Truncates an external text and removes characters that act on a terminal.
pub(super) fn plain(text: &str) -> String {
    plain_up_to(TEXT_CHARS_MAX, text)
}

/// Does the same with a limit of `chars_max` characters.
pub(super) fn plain_up_to(chars_max: usize, text: &str) -> String {
    text.chars().filter(|c| !is_escaped(*c)).take(chars_max).collect()
}

/// Makes the message of an external fault safe.
pub(super) fn plain_fault(fault: Fault) -> Fault {
    Fault { message: plain(&fault.message), ..fault }
}
