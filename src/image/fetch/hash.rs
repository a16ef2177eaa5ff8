//! The two hash algorithms of published files.
//!
//! The sink feeds it chunk by chunk.

use sha2::{
    Sha256, Sha512,
    digest::{Digest as _, DynDigest},
};

use crate::model::ids::{Digest, DigestAlgorithm};

/// An unfinished hash of either algorithm.
pub(in crate::image) struct Hash {
    algorithm: DigestAlgorithm,
    state: Box<dyn DynDigest + Send>,
}

impl Hash {
    pub(in crate::image) fn new(algorithm: DigestAlgorithm) -> Self {
        let state: Box<dyn DynDigest + Send> = match algorithm {
            DigestAlgorithm::Sha256 => Box::new(Sha256::new()),
            DigestAlgorithm::Sha512 => Box::new(Sha512::new()),
        };
        Self { algorithm, state }
    }

    pub(in crate::image) fn update(&mut self, bytes: &[u8]) {
        self.state.update(bytes);
    }

    pub(in crate::image) fn finish(self) -> Digest {
        Digest::from_bytes(self.algorithm, &self.state.finalize())
            .unwrap_or_else(|| unreachable!("a hash has its algorithm's length"))
    }
}
