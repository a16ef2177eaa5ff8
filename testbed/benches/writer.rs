//! hostler's side of the contest: what the agent does with a prepared machine, without the machine.

use std::{fs::File, path::Path, sync::Arc, time::Duration};

use hostler::{
    imaging::{ImageFile, Order, write_image},
    iscsi::{Lun, Options, TargetAddress},
    model::spec::Verify,
    progress::Meter,
};
use tokio::sync::watch;

/// Writes each image to its disk, all at once: `IMAGE PORTAL IQN/LUN` three by three. Nothing is read back: no peer does that.
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
    let [image, portal, unit] = &disk[..] else { panic!("{disk:?}") };
    let (iqn, lun) = unit.rsplit_once('/').unwrap();
    let target = TargetAddress {
        portal: portal.parse().unwrap(),
        iqn: iqn.to_owned(),
        lun: lun.parse().unwrap(),
    };
    let path = Path::new(image);
    let image = ImageFile::new(Arc::new(File::open(path).unwrap()), path).unwrap();
    let order = Order { image, verify: Verify::None, stall: Duration::from_secs(60) };
    let (_stop, cancel) = watch::channel(false);
    let lun = Lun::connect(&target, None, &Options::default()).await.unwrap();
    let lun = Arc::new(lun);
    write_image(Arc::clone(&lun), &order, &Meter::default(), cancel).await.unwrap();
    Arc::into_inner(lun).unwrap().logout().await.unwrap();
}
