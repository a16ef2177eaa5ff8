//! TFTP (RFC 1350, with the options of RFC 2347 to 2349 and 7440).
//!
//! The accept loop is `server`, a request is judged by `request`, has a place in `slots`, and is carried by `transfer` through its `window`.
//!
//! # Built on `tftpd`
//!
//! The crate's `Packet` reads and writes datagrams and its `Worker` sends the files; its `Server` is not used. What version 1.0.0 does
//! and how it is kept from mattering here (each would be worth a change there):
//!
//! - `Server` can be ended from outside: one request with the largest window and block size asks for 8.6 GB and aborts the process; a
//!   system out of threads panics its loop. `request` clamps, `slots` caps, `transfer` catches.
//! - `Server` follows links out of its directory, blocks on a FIFO, and answers a directory with silence: `files` opens, and the worker
//!   gets `/proc/self/fd/N`.
//! - `Server` has no hooks, no files from memory, no limit and no memory of a request it is already serving.
//! - `Worker` spins after a repeated or late ACK: only acknowledgements that make progress reach it (`window`).
//! - `Worker` counts lost packets over the whole transfer and gives up after six: it gets endless tries, and `transfer` has time limits.
//! - `Worker` sends the OACK's answer no second chance and a lost first block of a window only after its timeout: `transfer` does both.
//! - `Worker` prints to standard output and error: it is told to be quiet, and a transfer that ends early unwinds its thread.
//! - `Worker::send` makes a thread with the default stack (2 MiB of addresses, some 10 kB of memory) and panics when there is none.
//! - `Worker::new` takes a type whose name is private; `transfer` lets the compiler infer it.
//! - `Worker` tries for ever to send a packet when the socket's error is not an `io::Error`.

mod request;
mod server;
mod slots;
mod transfer;
mod window;

pub(super) use self::request::{Refusal, clean_name};
pub use server::{Config, Running, Server};

/// The way in for the fuzz target: whatever a stranger sends to the well-known port.
#[cfg(fuzzing)]
pub fn fuzz(datagram: &[u8]) {
    match request::parse(datagram) {
        Some(Ok(request)) => {
            assert!(!request.name.split('/').any(|part| matches!(part, "" | "." | "..")));
            let terms = request::Terms::agree(&request.options, 1);
            assert!(terms.block_bytes >= 8 && terms.window_blocks >= 1);
        }
        Some(Err(refusal)) => drop(refusal.to_packet()),
        None => {}
    }
}
