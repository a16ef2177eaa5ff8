//! hostler's contender: the agent's write of an image to a machine's disk, without the machine.

use std::{fs::File, ops::ControlFlow, path::Path, sync::Arc, time::Duration};

use hostler::{
    image::{DecodeLimits, decode},
    imaging::{
        self, Checkpoint, Connector, ImageFile, ImagingOrder, Layout, LeastRate, VolumeError,
        Written,
    },
    iscsi::{IscsiOptions, Lun, TargetAddress},
    model::spec::{ImageFormat, Verify},
    progress::Meter,
};
use tokio::sync::watch;

/// Writes each image to its disk, all concurrently; arguments are groups of `IMAGE PORTAL IQN/LUN`.
/// Reads nothing back, like the other programs.
pub(crate) fn write(disks: &[String]) {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let mut writing = tokio::task::JoinSet::new();
        for disk in disks.chunks(3) {
            writing.spawn(write_one(disk.to_vec()));
        }
        writing.join_all().await;
    });
}

async fn write_one(disk: Vec<String>) {
    write_and_verify(&disk, Verify::None, None, &Meter::default()).await;
}

/// Writes one image to its disk, and reads it back if `verify` is full.
pub(crate) async fn write_and_verify(
    disk: &[String],
    verify: Verify,
    salt: Option<u32>,
    meter: &Meter,
) -> Written {
    let [image, portal, unit] = disk else { panic!("{disk:?}") };
    let (iqn, lun) = unit.rsplit_once('/').unwrap();
    let target = Target(TargetAddress {
        portal: portal.parse().unwrap(),
        iqn: iqn.to_owned(),
        lun: lun.parse().unwrap(),
    });
    let layout = Layout::of_file(raw(Path::new(image)));
    let order = ImagingOrder {
        layout,
        verify,
        salt,
        stall: Duration::from_secs(60),
        least_rate: LeastRate::ANY,
        checkpoint: Checkpoint::default(),
    };
    let (_stop, cancel) = watch::channel(false);
    let disk = imaging::open(&target, cancel.clone()).await.unwrap();
    disk.write(&order, meter, cancel).await.unwrap()
}

/// The disk's bytes; a packed image is unpacked first, as in the cache.
fn raw(path: &Path) -> ImageFile {
    let mut file = File::open(path).unwrap();
    if path.extension().is_none_or(|extension| extension != "raw") {
        let into = tempfile::tempfile().unwrap();
        let mut limits = DecodeLimits {
            raw_bytes_max: u64::MAX,
            progress: &mut |_| ControlFlow::Continue(()),
            scratch: &tempfile::tempfile,
        };
        decode(&file, ImageFormat::Auto, &into, &mut limits).unwrap();
        file = into;
    }
    ImageFile::new(Arc::new(file), path).unwrap()
}

/// A target without a password.
struct Target(TargetAddress);

impl Connector for Target {
    type Volume = Lun;

    async fn connect(&self) -> Result<Arc<Lun>, VolumeError> {
        let connected = Lun::connect(&self.0, None, &IscsiOptions::default()).await;
        connected.map(Arc::new).map_err(|error| VolumeError {
            code: "Connect",
            hint: "",
            message: error.to_string(),
            reconnect: false,
        })
    }

    async fn close(&self, lun: Arc<Lun>) {
        Lun::clone(&lun).logout().await.unwrap();
    }
}
