//! TFTP (RFC 1350, with the options of RFC 2347 to 2349 and 7440).
//!
//! `server` is the accept loop, `request` judges a request, `slots` limits the transfers, and
//! `transfer` runs one through its `window` and over its `wire`.
//!
//! # Built on `tftpd`
//!
//! The crate's `Packet` reads and writes datagrams, and its `Worker` sends the files; its `Server`
//! is not used. The list names faults of version 1.0.0, hostler's protection against each, and a
//! remedy for the crate. Tests in `testbed/integration/tftp` attack each of them.
//!
//! 1. A request for the largest window and blocks makes a buffer of 8.6 GB: the process is aborted.
//!    *Here:* `request` clamps both. *Upstream:* A limit on window × block, in the configuration.
//! 2. The same takes twice the file's size before any ACK. *Here:* The same. *Upstream:* Read no
//!    further ahead than a window.
//! 3. The loop panics when a thread cannot be made. *Here:* `transfer` catches it, the client is
//!    told *busy*. *Upstream:* `thread::Builder`, and the error returned.
//! 4. No limit on transfers; a system without descriptors drops requests. *Here:* `slots` caps
//!    them, also for each address; `files` tells *busy*. *Upstream:* A cap; an ERROR instead of
//!    silence.
//! 5. It logs with `println!`, which panics when standard output is closed. *Here:* A transfer that
//!    ends early unwinds its thread, before the worker has anything to say. *Upstream:* The `log`
//!    crate.
//! 6. A FIFO, `utimeout` or `windowwait` of any size keep a thread for ever. *Here:* `files` opens
//!    without waiting; neither option is granted. *Upstream:* Regular files only; limits on both.
//! 7. A repeated or late ACK makes the worker spin until its timeout. *Here:* `window` lets only
//!    acknowledgements through that make progress. *Upstream:* Back to a blocking read after an ACK
//!    that changes nothing.
//! 8. Lost packets are counted over the whole transfer; the seventh ends it. *Here:* Endless tries;
//!    `transfer` has time limits. *Upstream:* Count anew after each ACK that makes progress.
//! 9. A lost OACK is never sent again, a lost first block of a window only after the timeout.
//!    *Here:* `transfer` sends both again. *Upstream:* The same (RFC 7440 §4).
//! 10. Links lead out of the directory. *Here:* `files` opens beneath it, and the worker gets
//!     `/proc/self/fd/N`. *Upstream:* `openat2`, or a worker that takes an open file.
//! 11. A directory, no name or an unreadable file: OACK, then silence. *Here:* `files` checks
//!     first; a worker that ends early is an ERROR. *Upstream:* Open before answering; an ERROR
//!     when a worker ends early.
//! 12. Every name with `..` in it is refused, and a directory's name that is not UTF-8 panics.
//!     *Here:* `clean_name` looks at whole parts; paths are never text. *Upstream:* The same.
//! 13. `Config { directory, ..Default::default() }` serves the working directory. *Here:* `Config`
//!     has one directory, and `None` is none. *Upstream:* One field, or `send_directory: Option`.
//! 14. With `single_port` the loop spins after the first transfer, and clients are never forgotten.
//!     *Here:* A socket for each transfer; `slots` forgets with it. *Upstream:* The mode of a
//!     descriptor is shared by its duplicates: use `MSG_DONTWAIT`.
//! 15. Errors show the server's paths to clients, and names go raw into the log. *Here:* A refusal
//!     is one of six sentences; names are logged escaped. *Upstream:* The same.
//! 16. No way to learn the port, to pass a socket in, or to choose the address that answers.
//!     *Here:* [`Server::bind`] and [`Server::local_addr`]; transfers speak from the address
//!     listened on. *Upstream:* `Server::from_socket`, `local_addr`.
//! 17. No hooks, no files from memory, and a request sent twice is served twice. *Here:* `Transfer`
//!     is the worker's `Socket` and counts; `memfd`; `slots` knows repetitions. *Upstream:* A
//!     callback for the file and one for the end; one transfer for each peer.
//! 18. Netascii is sent as octets; a request that is long, not UTF-8, or has one option it does not
//!     understand gets silence. *Here:* `request` reads requests itself: netascii gets an ERROR,
//!     such an option is ignored, and names are bytes. *Upstream:* The same.
//! 19. `Worker::new` takes a type whose name is private, and `Worker` tries for ever when a
//!     socket's error is no `io::Error`. *Here:* The compiler infers it; every error is one.
//!     *Upstream:* Make it public; end on any error.
//! 20. While a window is out, every block costs a check for ACKs, three copies and three
//!     allocations. *Here:* The check is answered without a system call, and a window goes out with
//!     one. *Upstream:* Blocks as slices of one buffer; `UDP_SEGMENT`.

mod request;
mod server;
mod slots;
mod transfer;
mod window;
mod wire;

pub use server::{Config, Running, Server};

/// Entry point of the fuzz target: a datagram to the well-known port.
#[cfg(fuzzing)]
pub fn fuzz(datagram: &[u8]) {
    match request::parse(datagram) {
        Some(Ok(request)) => {
            let name = request.name.as_encoded_bytes();
            let mut parts = name.split(|byte| *byte == b'/');
            assert!(!parts.any(|part| matches!(part, b"" | b"." | b"..")));
            let path = request::PathLimits {
                block_bytes_max: request::BLOCK_BYTES_MAX,
                block_bytes_in_one_packet: None,
            };
            let terms = request::Terms::agree(&request.options, 1, path);
            assert!(terms.block_bytes >= 8 && terms.window_blocks >= 1);
        }
        Some(Err(refusal)) => drop(refusal.to_packet()),
        None => {}
    }
}
