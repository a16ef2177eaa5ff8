//! Reading a disk back: does it hold what was written?
//!
//! Called last. A disk or a target may acknowledge what it drops; only this tells. It must never trust a digest of anything but what came
//! back from the disk.

use super::{
    ImagingError, Volume,
    disk::Disk,
    flight::{Watch, chunks},
    write::Order,
};
use crate::model::status::ImagingStage;

/// Compares the disk's content with the order's, and names the first place where they differ.
pub(super) async fn verify<V: Volume>(
    disk: &Disk<V>,
    order: &Order,
    watch: &Watch<'_>,
) -> Result<(), ImagingError> {
    watch.meter.begin(ImagingStage::Verify, 0, order.image.bytes());
    let pairs = chunks(0..order.image.bytes()).map(|(at, bytes)| {
        let (disk, image) = (disk.clone(), order.image.clone());
        async move { Ok((at, image.read(at, bytes).await?, disk.read(at, bytes).await?)) }
    });
    let block_bytes = disk.block_bytes();
    let landed = |(at, wanted, found): (u64, Vec<u8>, bytes::Bytes)| {
        watch.meter.add(found.len() as u64);
        first_bad_blocks(&wanted, &found, block_bytes).map_or(Ok(()), |(from, to)| {
            Err(ImagingError::Differs { from: at + from, to: at + to })
        })
    };
    watch.fly(pairs, landed).await
}

/// The first run of blocks that differ, as offsets of its begin and end.
fn first_bad_blocks(wanted: &[u8], found: &[u8], block_bytes: u64) -> Option<(u64, u64)> {
    let size = usize::try_from(block_bytes).ok()?;
    let blocks = wanted.chunks(size).zip(found.chunks(size));
    let differs = |(wanted, found): (&[u8], &[u8])| wanted != found;
    let good = blocks.clone().take_while(|pair| !differs(*pair)).count() as u64;
    let bad = blocks.skip_while(|pair| !differs(*pair)).take_while(|pair| differs(*pair)).count();
    (bad > 0).then(|| (good * block_bytes, (good + bad as u64) * block_bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_run_of_bad_blocks_is_named_from_its_begin_to_its_end() {
        let wanted = vec![7; 5000];
        for (spoilt, range) in [
            (&[][..] as &[usize], None),
            (&[0], Some((0, 512))),
            (&[600, 1100], Some((512, 1536))),
            (&[600, 1600], Some((512, 1024))),
            (&[4999], Some((4608, 5120))),
        ] {
            let mut found = wanted.clone();
            for at in spoilt {
                found[*at] = 8;
            }
            assert_eq!(first_bad_blocks(&wanted, &found, 512), range, "{spoilt:?}");
        }
    }
}
