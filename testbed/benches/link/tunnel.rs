//! Prototype: a tunnel under iSCSI that compresses the bytes to the machine. Both ends of iSCSI
//! stay as they are.

use std::{
    io::{self, Read as _, Write as _},
    net::{TcpListener, TcpStream},
    thread,
};

const PIECE_BYTES: usize = 1 << 20;
/// zstd's level: the quickest of the common ones.
const LEVEL: i32 = 1;

/// Takes connections for ever, and passes each on to the peer. `to_peer` copies the bytes to it;
/// those from it are copied as they are.
pub(crate) fn serve(listen: &str, peer: &str, to_peer: fn(TcpStream, TcpStream) -> io::Result<()>) {
    for stream in TcpListener::bind(listen).unwrap().incoming() {
        let (near, far) = (stream.unwrap(), TcpStream::connect(peer).unwrap());
        near.set_nodelay(true).unwrap();
        far.set_nodelay(true).unwrap();
        let (from_far, to_near) = (far.try_clone().unwrap(), near.try_clone().unwrap());
        thread::spawn(move || to_peer(near, far));
        thread::spawn(move || copy(from_far, to_near));
    }
}

/// Compresses what comes in, and sends all of it before it waits for more.
pub(crate) fn pack(mut from: TcpStream, to: TcpStream) -> io::Result<()> {
    let mut packed = zstd::stream::Encoder::new(to, LEVEL)?;
    let mut piece = vec![0; PIECE_BYTES];
    loop {
        let read = from.read(&mut piece)?;
        if read == 0 {
            packed.finish()?;
            return Ok(());
        }
        packed.write_all(&piece[..read])?;
        packed.flush()?;
    }
}

pub(crate) fn unpack(from: TcpStream, to: TcpStream) -> io::Result<()> {
    copy(zstd::stream::read::Decoder::new(from)?, to)
}

fn copy(mut from: impl io::Read, mut to: TcpStream) -> io::Result<()> {
    let mut piece = vec![0; PIECE_BYTES];
    loop {
        let read = from.read(&mut piece)?;
        if read == 0 {
            return to.shutdown(std::net::Shutdown::Write);
        }
        to.write_all(&piece[..read])?;
    }
}
