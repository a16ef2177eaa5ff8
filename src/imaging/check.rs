//! Comparing an image file with the checksum its spec gives.
//!
//! Called before the machine is touched. It must never keep reading once nobody waits for it.

use std::time::Duration;

use sha2::{
    Sha256, Sha512,
    digest::{Digest as _, DynDigest},
};

use super::{
    Cancel, Image, ImagingError, Meter,
    flight::{Watch, chunks},
};
use crate::model::{
    ids::{Digest, DigestAlgorithm},
    status::ImagingStage,
};

/// Reads the whole image and compares its digest. `stall` limits the wait for each MiB: a file server may be gone.
pub async fn verify_checksum(
    image: &Image,
    wanted: &Digest,
    stall: Duration,
    meter: &Meter,
    cancel: Cancel,
) -> Result<(), ImagingError> {
    let watch = Watch { cancel, stall, meter };
    meter.begin(ImagingStage::Check, image.bytes());
    let mut hash = Hash::new(wanted.algorithm());
    let jobs = chunks(0..image.bytes()).map(|(offset, bytes)| {
        let image = image.clone();
        async move { image.read(offset, bytes).await }
    });
    let landed = |chunk: Vec<u8>| {
        hash.update(&chunk);
        meter.add(chunk.len() as u64);
        Ok(())
    };
    watch.fly(jobs, landed).await?;
    let found = hash.finish();
    if found == *wanted {
        Ok(())
    } else {
        let (path, wanted) = (image.path().to_owned(), wanted.clone());
        Err(ImagingError::Checksum { path, wanted, found })
    }
}

/// A hash of either algorithm, under way.
pub(super) struct Hash {
    algorithm: DigestAlgorithm,
    state: Box<dyn DynDigest + Send>,
}

impl Hash {
    pub(super) fn new(algorithm: DigestAlgorithm) -> Self {
        let state: Box<dyn DynDigest + Send> = match algorithm {
            DigestAlgorithm::Sha256 => Box::new(Sha256::new()),
            DigestAlgorithm::Sha512 => Box::new(Sha512::new()),
        };
        Self { algorithm, state }
    }

    pub(super) fn update(&mut self, bytes: &[u8]) {
        self.state.update(bytes);
    }

    pub(super) fn finish(self) -> Digest {
        Digest::from_bytes(self.algorithm, &self.state.finalize())
            .unwrap_or_else(|| unreachable!("a hash has its algorithm's length"))
    }
}
