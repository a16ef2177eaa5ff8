//! The fingerprint of a layout: equal for layouts that put the same bytes on a disk.
//!
//! A write that resumes an earlier one computes it first: the disk holds a part of the earlier
//! layout, so that the rest must come from the very same layout.

use sha2::{Digest as _, Sha256};

use super::{Content, Layout};
use crate::{
    imaging::{ImageFile, ImagingError},
    model::ids::{Digest, DigestAlgorithm},
};

/// Bytes read and hashed at once.
const CHUNK_BYTES: u64 = 1 << 20;

impl Layout {
    /// Computes the fingerprint. Blocks: it reads every file except those that `is_known` accepts,
    /// because their content is known by other means.
    pub fn fingerprint(
        &self,
        is_known: impl Fn(&ImageFile) -> bool,
    ) -> Result<Option<Digest>, ImagingError> {
        let mut hash = Sha256::new();
        for segment in self.segments() {
            hash.update(segment.at.to_be_bytes());
            hash.update(segment.content.bytes().to_be_bytes());
            match &segment.content {
                Content::Zeros(_) => hash.update(b"zeros"),
                Content::Made(made) => {
                    hash.update(b"made");
                    hash.update(made);
                }
                Content::File { file, offset, .. } if is_known(file) => {
                    hash.update(b"known");
                    hash.update(offset.to_be_bytes());
                }
                Content::File { file, offset, bytes } => {
                    hash.update(b"file");
                    hash_data(&mut hash, file, *offset, offset.saturating_add(*bytes))?;
                }
            }
        }
        Ok(Digest::from_bytes(DigestAlgorithm::Sha256, &hash.finalize()))
    }
}

/// Hashes a part of a file without its holes.
fn hash_data(hash: &mut Sha256, file: &ImageFile, from: u64, end: u64) -> Result<(), ImagingError> {
    let mut at = file.data_from(from)?.min(end);
    while at < end {
        let data_end = file.hole_from(at)?.min(end);
        while at < data_end {
            let bytes = CHUNK_BYTES.min(data_end - at);
            let mut buffer = vec![0; usize::try_from(bytes).unwrap_or_default()];
            file.read(at, &mut buffer)?;
            hash.update(at.to_be_bytes());
            hash.update(&buffer);
            at += bytes;
        }
        at = file.data_from(at)?.min(end);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::{fs::File, os::unix::fs::FileExt as _, sync::Arc};

    use tempfile::TempDir;

    use super::*;
    use crate::imaging::Segment;

    /// A sparse file of 4 MiB with these bytes.
    fn file(dir: &TempDir, name: &str, parts: &[(u64, &[u8])]) -> ImageFile {
        let path = dir.path().join(name);
        let file = File::options().create(true).read(true).write(true).truncate(true).open(&path);
        let file = file.unwrap();
        file.set_len(4 << 20).unwrap();
        for (at, bytes) in parts {
            file.write_all_at(bytes, *at).unwrap();
        }
        ImageFile::new(Arc::new(file), &path).unwrap()
    }

    fn fingerprint(segments: impl IntoIterator<Item = Segment>) -> String {
        let layout = Layout::new(segments);
        layout.fingerprint(|file| file.path().ends_with("known")).unwrap().unwrap().to_string()
    }

    #[test]
    fn only_the_same_bytes_at_the_same_places_have_the_same_fingerprint() {
        let dir = tempfile::tempdir().unwrap();
        let at = |at, content| Segment { at, content };
        let of = |name, parts: &[(u64, &[u8])]| Content::of_file(file(&dir, name, parts));
        let made = |bytes: &'static [u8]| Content::Made(bytes.into());
        let parts: &[(u64, &[u8])] = &[(0, b"one"), (2 << 20, b"two")];
        let same = fingerprint([at(0, of("a", parts)), at(8 << 20, made(b"x"))]);
        assert_eq!(same, fingerprint([at(0, of("b", parts)), at(8 << 20, made(b"x"))]));
        for other in [
            vec![at(0, of("c", &[(0, b"one"), (2 << 20, b"twO")])), at(8 << 20, made(b"x"))],
            vec![at(0, of("d", &[(0, b"one"), (3 << 20, b"two")])), at(8 << 20, made(b"x"))],
            vec![at(1 << 20, of("a", parts)), at(8 << 20, made(b"x"))],
            vec![at(0, of("a", parts)), at(8 << 20, made(b"y"))],
            vec![at(0, of("a", parts)), at(8 << 20, Content::Zeros(1))],
            vec![at(0, of("a", parts))],
        ] {
            assert_ne!(same, fingerprint(other.clone()), "{other:?}");
        }
        // A known file is not read.
        let known = |bytes| fingerprint([at(0, of("known", &[(0, bytes)]))]);
        assert_eq!(known(b"one"), known(b"two"));
    }
}
