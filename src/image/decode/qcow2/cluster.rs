//! Unpacks compressed clusters.
//!
//! A worker uses it, cluster by cluster. It must never return a part of a cluster as a whole one.

use std::{fs::File, os::unix::fs::FileExt as _};

use flate2::{Decompress, FlushDecompress};
use zstd::stream::raw::{DParameter, Decoder, InBuffer, Operation as _, OutBuffer};

use super::header::{Compression, Header};
use crate::image::decode::DecodeError;

/// The window that every decoder should support (RFC 8878, 3.1.1.1.2). QEMU's clusters have at most
/// 2 MiB, and need no larger one.
const ZSTD_WINDOW_LOG_MAX: u32 = 23;

/// A cluster's buffer, and the decoder that fills it.
pub(super) struct Cluster {
    unpacker: Unpacker,
    packed: Vec<u8>,
    unpacked: Vec<u8>,
}

enum Unpacker {
    Deflate(Decompress),
    Zstd(Decoder<'static>),
}

impl Cluster {
    pub(super) fn new(header: Header) -> Result<Self, DecodeError> {
        let unpacker = match header.compression {
            Compression::Deflate => Unpacker::Deflate(Decompress::new(false)),
            Compression::Zstd => {
                let mut decoder = Decoder::new()?;
                decoder.set_parameter(DParameter::WindowLogMax(ZSTD_WINDOW_LOG_MAX))?;
                Unpacker::Zstd(decoder)
            }
        };
        let bytes = usize::try_from(header.cluster_bytes()).unwrap_or(usize::MAX);
        Ok(Self { unpacker, packed: Vec::new(), unpacked: vec![0; bytes] })
    }

    /// Unpacks the cluster at `at`, which ends within `bytes`: at most twice a cluster, by the bits
    /// of its entry.
    pub(super) fn read(&mut self, image: &File, at: u64, bytes: u64) -> Result<&[u8], DecodeError> {
        self.packed.resize(usize::try_from(bytes).unwrap_or(usize::MAX), 0);
        image.read_exact_at(&mut self.packed, at)?;
        self.unpack().map_err(|why| {
            DecodeError::Unusable(format!("qcow2: the compressed cluster at {at}: {why}"))
        })?;
        Ok(&self.unpacked)
    }

    fn unpack(&mut self) -> Result<(), String> {
        let done = match &mut self.unpacker {
            Unpacker::Deflate(inflate) => {
                inflate.reset(false);
                let finish = FlushDecompress::Finish;
                let result = inflate.decompress(&self.packed, &mut self.unpacked, finish);
                result.map_err(|error| error.to_string())?;
                usize::try_from(inflate.total_out()).unwrap_or(0)
            }
            Unpacker::Zstd(decoder) => unzstd(decoder, &self.packed, &mut self.unpacked)?,
        };
        if done == self.unpacked.len() {
            return Ok(());
        }
        Err(format!("it unpacks to {done} bytes instead of {}", self.unpacked.len()))
    }
}

/// Unpacks one cluster, and returns its length; other clusters may follow in the last sector.
fn unzstd(decoder: &mut Decoder<'_>, packed: &[u8], unpacked: &mut [u8]) -> Result<usize, String> {
    decoder.reinit().map_err(|error| error.to_string())?;
    let bytes = unpacked.len();
    let (mut from, mut into) = (InBuffer::around(packed), OutBuffer::around(unpacked));
    while into.pos() < bytes {
        let before = (from.pos(), into.pos());
        decoder.run(&mut from, &mut into).map_err(|error| error.to_string())?;
        if (from.pos(), into.pos()) == before {
            break;
        }
    }
    Ok(into.pos())
}
