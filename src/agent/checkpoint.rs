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
pub(super) struct Begun {
    checkpoints: Checkpoints,
    node: NodeName,
    kept: WriteCheckpoint,
}

/// A write in progress, whose checkpoint is saved.
#[derive(Debug)]
pub(super) struct Followed {
    checkpoints: Checkpoints,
    node: NodeName,
    saving: JoinHandle<()>,
}

impl Begun {
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
    pub(super) fn follow(mut self, layout: Option<Digest>) -> (Checkpoint, Followed) {
        if layout.is_none() || self.kept.layout != layout {
            self.kept = WriteCheckpoint { layout, flushed_bytes: 0, ..self.kept };
        }
        let resumes_at = self.kept.flushed_bytes;
        let node = self.node;
        if resumes_at > 0 {
            info!(%node, from = show_bytes(resumes_at), "the write goes on where it was flushed");
        }
        let (flushed, updates) = watch::channel(resumes_at);
        let saving = save_all(self.checkpoints.clone(), node.clone(), self.kept, updates);
        let followed =
            Followed { checkpoints: self.checkpoints, node, saving: tokio::spawn(saving) };
        (Checkpoint { resumes_at, flushed }, followed)
    }
}

impl Followed {
    /// Ends the saving after the write, and removes the checkpoint unless the write must be
    /// resumed.
    pub(super) async fn end(self, goes_on: bool) {
        let Self { checkpoints, node, saving } = self;
        if let Err(error) = saving.await {
            warn!(%node, %error, "a task panicked");
        }
        if !goes_on && let Err(error) = checkpoints.remove(&node) {
            warn!(%node, %error, "a checkpoint cannot be removed");
        }
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
