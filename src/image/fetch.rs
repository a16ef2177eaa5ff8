//! Getting an image as it was published, from a file here or from a web server, and comparing its checksum.
//!
//! Called by the library with an open file of its own to fill. It must never report a file whose digest it has not compared.

use std::{
    fs::File,
    io::{self, Read as _, Write as _},
    path::PathBuf,
    sync::Arc,
};

use sha2::{
    Sha256, Sha512,
    digest::{Digest as _, DynDigest},
};

use super::source::Directories;
use crate::{
    model::{
        ids::{Digest, DigestAlgorithm},
        status::ImagingStage,
    },
    progress::{Interrupted, Watch},
};

/// Why an image is not here.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The source is not something that can be an image.
    #[error("{}: {reason}", path.display())]
    Unusable {
        /// The file.
        path: PathBuf,
        /// What it is and what would be right.
        reason: String,
    },
    /// A file cannot be opened, read or written.
    #[error("{}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file is not the one the spec means.
    #[error("its checksum is {found}, the spec wants {wanted}")]
    Checksum {
        /// What the spec says.
        wanted: Digest,
        /// What the file has.
        found: Digest,
    },
    /// It was cancelled, or stood still.
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
}

/// Where images come from.
#[derive(Clone, Debug)]
pub(super) struct Sources {
    directories: Directories,
}

impl Sources {
    pub(super) fn new(directories: Directories) -> Self {
        Self { directories }
    }

    /// Makes `into` the file as published, and compares its digest. What `into` holds already is taken for its beginning.
    pub(super) async fn fetch(
        &self,
        source: &str,
        wanted: &Digest,
        into: &Arc<File>,
        watch: &Watch<'_>,
    ) -> Result<(), FetchError> {
        let path = PathBuf::from(source);
        let failed = |source: io::Error| FetchError::File { path: path.clone(), source };
        let mut from = self.directories.open(source)?;
        let bytes = from.metadata().map_err(failed)?.len();
        watch.meter.begin(ImagingStage::Fetch, 0, bytes);
        into.set_len(0).map_err(failed)?;
        let mut hash = Hash::new(wanted.algorithm());
        let mut buffer = vec![0; 1 << 20];
        let mut to = into.as_ref();
        loop {
            let got = watch.step(async { from.read(&mut buffer) }).await?.map_err(failed)?;
            let Some(chunk) = buffer.get(..got).filter(|chunk| !chunk.is_empty()) else { break };
            hash.update(chunk);
            to.write_all(chunk).map_err(failed)?;
            watch.meter.add(got as u64);
        }
        let found = hash.finish();
        if found == *wanted {
            Ok(())
        } else {
            Err(FetchError::Checksum { wanted: wanted.clone(), found })
        }
    }

    /// The digest of `source` in the file of checksums at `place`.
    #[expect(clippy::unused_async, reason = "it will wait for web servers")]
    pub(super) async fn listed(
        &self,
        place: &str,
        _source: &str,
        _watch: &Watch<'_>,
    ) -> Result<Digest, FetchError> {
        let reason = "files of checksums are not supported yet".to_owned();
        Err(FetchError::Unusable { path: place.into(), reason })
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
