//! Resumes the write of a disk after a kill or restart of the agent.
//!
//! Called by the operation that writes a disk. A checkpoint counts only for the same target, whose
//! ramdisk makes a new secret at each boot, the same disk and the same layout, so that nothing else
//! can have written the disk since. A bad checkpoint must never prevent a write.

use serde::{Deserialize, Serialize};
use tokio::{
    sync::watch,
    task::{JoinHandle, spawn_blocking},
};
use tracing::{info, warn};
use zeroize::Zeroizing;

use crate::{
    imaging::{Checkpoint, Geometry},
    lifecycle::Target,
    model::{
        fault::Fault,
        ids::{Digest, NodeName},
        size::show_bytes,
    },
    store::Checkpoints,
};

use super::layout::Seed;

/// The durable progress of a write.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct WriteCheckpoint {
    /// The digest of target, disk and image.
    subject: Digest,
    /// The seed of the layout.
    seed: Seed,
    /// The fingerprint of the layout. `None`: nothing is written.
    layout: Option<Digest>,
    /// The offset up to which the layout is flushed to the disk.
    flushed_bytes: u64,
}

/// A write before its layout, with its checkpoint.
#[derive(Debug)]
pub(super) struct ResumableWrite {
    checkpoints: Checkpoints,
    node: NodeName,
    kept: WriteCheckpoint,
}

/// A write in progress, whose checkpoint is saved.
#[derive(Debug)]
pub(super) struct CheckpointSaver {
    checkpoints: Checkpoints,
    node: NodeName,
    saving: JoinHandle<()>,
}

impl ResumableWrite {
    /// Finds the checkpoint of an earlier write of this image to this disk, or begins a new one.
    pub(super) fn new(
        checkpoints: &Checkpoints,
        node: &NodeName,
        image: &Digest,
        target: &Target,
        disk: Geometry,
    ) -> Result<Self, Fault> {
        let subject = subject(image, target, disk);
        let kept = checkpoints.load(node).unwrap_or_else(|error| {
            warn!(%node, %error, "a checkpoint cannot be used; the disk is written from the start");
            None
        });
        let kept = kept.filter(|kept: &WriteCheckpoint| kept.subject == subject);
        let kept = if let Some(kept) = kept {
            kept
        } else {
            let seed = Seed::random()?;
            WriteCheckpoint { subject, seed, layout: None, flushed_bytes: 0 }
        };
        let (checkpoints, node) = (checkpoints.clone(), node.clone());
        Ok(Self { checkpoints, node, kept })
    }

    /// The seed for the layout.
    pub(super) fn seed(&self) -> &Seed {
        &self.kept.seed
    }

    /// Returns the offset at which this layout's write begins, and saves its progress until the
    /// returned checkpoint is dropped.
    pub(super) fn start(mut self, layout: Option<Digest>) -> (Checkpoint, CheckpointSaver) {
        if layout.is_none() || self.kept.layout != layout {
            self.kept = WriteCheckpoint { layout, flushed_bytes: 0, ..self.kept };
        }
        let resumes_at = self.kept.flushed_bytes;
        let node = self.node;
        if resumes_at > 0 {
            info!(%node, from = show_bytes(resumes_at), "the write goes on where it was flushed");
        } else {
            // This write changes what an older checkpoint says is on the disk.
            remove(&self.checkpoints, &node);
        }
        let (flushed, updates) = watch::channel(resumes_at);
        let saving = save_all(self.checkpoints.clone(), node.clone(), self.kept, updates);
        let saver =
            CheckpointSaver { checkpoints: self.checkpoints, node, saving: tokio::spawn(saving) };
        (Checkpoint { resumes_at, flushed }, saver)
    }
}

impl CheckpointSaver {
    /// Ends the saving after the write, and removes the checkpoint unless the write must be
    /// resumed.
    pub(super) async fn end(self, goes_on: bool) {
        let Self { checkpoints, node, saving } = self;
        if let Err(error) = saving.await {
            warn!(%node, %error, "a task panicked");
        }
        if !goes_on {
            remove(&checkpoints, &node);
        }
    }
}

fn remove(checkpoints: &Checkpoints, node: &NodeName) {
    if let Err(error) = checkpoints.remove(node) {
        warn!(%node, %error, "a checkpoint cannot be removed");
    }
}

/// Saves the newest flushed offset until the sender is dropped.
async fn save_all(
    checkpoints: Checkpoints,
    node: NodeName,
    mut kept: WriteCheckpoint,
    mut updates: watch::Receiver<u64>,
) {
    let mut is_reported = false;
    while updates.changed().await.is_ok() {
        kept.flushed_bytes = *updates.borrow_and_update();
        let (checkpoints, node, kept) = (checkpoints.clone(), node.clone(), kept.clone());
        let saved =
            spawn_blocking(move || checkpoints.save(&node, &kept).map_err(|error| (node, error)));
        if let Ok(Err((node, error))) = saved.await
            && !std::mem::replace(&mut is_reported, true)
        {
            warn!(%node, %error, "a checkpoint cannot be saved; an agent that is killed now writes \
                the disk from the start");
        }
    }
}

/// The digest of everything except the layout that must be the same for a resumed write.
fn subject(image: &Digest, target: &Target, disk: Geometry) -> Digest {
    let text = serde_json::to_vec(&(image, target, disk.bytes, disk.block_bytes));
    Digest::of(&Zeroizing::new(text.unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;
    use crate::{model::secret::Secret, store::Store};

    const DISK: Geometry = Geometry { bytes: 8 << 30, block_bytes: 512, optimal_bytes: 0 };

    fn node() -> NodeName {
        "edge-07".parse().unwrap()
    }

    fn target() -> Target {
        Target {
            address: [192, 0, 2, 7].into(),
            port: 3260,
            lun: 1,
            iqn: "iqn.2026-11.hostler:edge-07".to_owned(),
            chap_username: "user".to_owned(),
            chap_password: Some(Secret::new("secret of this boot".to_owned())),
            knows_salt: true,
        }
    }

    fn image() -> Digest {
        Digest::of(b"image")
    }

    fn layout() -> Digest {
        Digest::of(b"layout")
    }

    fn checkpoints(dir: &TempDir) -> Checkpoints {
        Store::open(dir.path()).unwrap().checkpoints()
    }

    fn write(at: &Checkpoints, target: &Target, image: &Digest, disk: Geometry) -> ResumableWrite {
        ResumableWrite::new(at, &node(), image, target, disk).unwrap()
    }

    /// Leaves the checkpoint of a write that was killed.
    async fn killed_at(at: &Checkpoints, flushed_bytes: u64) -> Seed {
        let write = write(at, &target(), &image(), DISK);
        let seed = write.seed().clone();
        let (checkpoint, saver) = write.start(Some(layout()));
        checkpoint.flushed.send_replace(flushed_bytes);
        drop(checkpoint);
        saver.end(true).await;
        seed
    }

    /// Invariant (disk): A write is resumed only on the same disk of the same boot, with the same
    /// image and layout.
    #[tokio::test]
    async fn a_checkpoint_counts_only_for_the_very_same_write() {
        let dir = tempfile::tempdir().unwrap();
        let at = checkpoints(&dir);
        let seed = killed_at(&at, 5 << 20).await;
        let same = write(&at, &target(), &image(), DISK);
        assert_eq!(same.seed(), &seed);
        assert_eq!(same.start(Some(layout())).0.resumes_at, 5 << 20);

        let chap_password = Some(Secret::new("secret of another boot".to_owned()));
        for other in [
            write(&at, &Target { chap_password, ..target() }, &image(), DISK),
            write(&at, &Target { port: 3261, ..target() }, &image(), DISK),
            write(&at, &target(), &Digest::of(b"another image"), DISK),
            write(&at, &target(), &image(), Geometry { bytes: 9 << 30, ..DISK }),
            write(&at, &target(), &image(), Geometry { block_bytes: 4096, ..DISK }),
        ] {
            killed_at(&at, 5 << 20).await;
            assert_ne!(other.seed(), &seed);
            assert_eq!(other.start(Some(layout())).0.resumes_at, 0);
        }
        for another in [Some(Digest::of(b"another layout")), None] {
            killed_at(&at, 5 << 20).await;
            let changed = write(&at, &target(), &image(), DISK);
            assert_eq!(changed.start(another).0.resumes_at, 0);
            // Nor does the old one count once the disk is written from the start.
            let again = write(&at, &target(), &image(), DISK);
            assert_eq!(again.start(Some(layout())).0.resumes_at, 0);
        }
    }

    #[tokio::test]
    async fn nothing_is_kept_of_a_write_that_nobody_resumes() {
        let dir = tempfile::tempdir().unwrap();
        let at = checkpoints(&dir);
        let seed = killed_at(&at, 5 << 20).await;
        let (checkpoint, saver) = write(&at, &target(), &image(), DISK).start(Some(layout()));
        drop(checkpoint);
        saver.end(false).await;
        assert_ne!(write(&at, &target(), &image(), DISK).seed(), &seed);
    }
}
