//! The imaging pipeline against tgtd, over connections that break and through a proxy that loses
//! writes.

#![expect(clippy::indexing_slicing, reason = "helpers of tests may fail like tests")]

mod relay;

use std::{
    fs,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use hostler::{
    imaging::{
        self, Checkpoint, Connector, Content, ImageFile, ImagingError, ImagingOrder, Layout,
        LeastRate, Segment, VolumeError, Written,
    },
    iscsi::{IscsiOptions, Lun, TargetAddress},
    model::spec::Verify,
    progress::{Cancel, Meter},
};
use tempfile::NamedTempFile;
use tokio::sync::watch;

use self::relay::{Relay, Trouble};
use crate::iscsi::tgtd::{IQN, Tgtd};

const MIB: u64 = 1 << 20;
const STALL: Duration = Duration::from_secs(30);
/// The byte of the disk's old content.
const OLD: u8 = 0xAA;

/// The connector of a target's disk.
struct Way(TargetAddress);

impl Way {
    fn to(portal: SocketAddr) -> Self {
        Self(TargetAddress { portal, iqn: IQN.to_owned(), lun: 1 })
    }
}

impl Connector for Way {
    type Volume = Lun;

    async fn connect(&self) -> Result<Arc<Lun>, VolumeError> {
        let lun = Lun::connect(&self.0, None, &IscsiOptions::default()).await;
        let refused = |message| VolumeError { code: "Test", hint: "", message, reconnect: true };
        lun.map(Arc::new).map_err(|error| refused(error.to_string()))
    }

    async fn close(&self, lun: Arc<Lun>) {
        // A failure on a broken connection does no harm.
        drop(Lun::clone(&lun).logout().await);
    }
}

/// An image in a file, and its bytes: data without repetition, with a hole in it and a run of
/// written zeros.
struct Image {
    file: NamedTempFile,
    bytes: Vec<u8>,
}

impl Image {
    fn new(bytes: u64) -> Self {
        let mut random = fastrand::Rng::with_seed(bytes);
        let mut content = vec![0; usize::try_from(bytes).unwrap()];
        random.fill(&mut content);
        let third = content.len() / 3;
        content[third..third + (5 << 20)].fill(0);
        let file = NamedTempFile::new().unwrap();
        fs::write(file.path(), &content).unwrap();
        Self { file, bytes: content }
    }

    fn order(&self, verify: Verify) -> ImagingOrder {
        let file = Arc::new(self.file.reopen().unwrap());
        let image = ImageFile::new(file, self.file.path()).unwrap();
        ImagingOrder {
            layout: Layout::of_file(image),
            verify,
            salt: None,
            stall: STALL,
            least_rate: LeastRate::ANY,
            checkpoint: Checkpoint::default(),
        }
    }
}

async fn write(way: &Way, order: &ImagingOrder, cancel: Cancel) -> Result<Written, ImagingError> {
    let disk = Box::pin(imaging::open(way, cancel.clone())).await?;
    Box::pin(disk.write(order, &Meter::default(), cancel)).await
}

/// Starts a target with a disk of old content.
fn target(disk_bytes: u64) -> Tgtd {
    let tgtd = Tgtd::serve(IQN, disk_bytes);
    tgtd.fill_disk(OLD);
    tgtd
}

/// Asserts that the disk has the image, wiped ends, and old content elsewhere.
fn assert_holds(tgtd: &Tgtd, image: &[u8]) {
    let disk = tgtd.disk();
    assert!(disk.starts_with(image), "the disk differs from the image");
    let (rest, tail) = disk[image.len()..].split_at(disk.len() - image.len() - (1 << 20));
    assert!(rest.iter().all(|byte| *byte == OLD), "more was written than the image");
    assert!(tail.iter().all(|byte| *byte == 0), "the tail is not wiped");
}

fn assert_wiped(tgtd: &Tgtd) {
    let (disk, zeros) = (tgtd.disk(), vec![0; 1 << 20]);
    assert!(disk.starts_with(&zeros) && disk.ends_with(&zeros), "the ends are not wiped");
}

fn await_no_session(tgtd: &Tgtd, limit: Duration) {
    let started = Instant::now();
    while tgtd.sessions().contains("Session") {
        assert!(started.elapsed() < limit, "sessions left: {}", tgtd.sessions());
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_image_is_written_over_old_content_in_every_way_of_verifying() {
    let image = Image::new(40 * MIB);
    for verify in [Verify::Full, Verify::Node, Verify::None] {
        let tgtd = target(64 * MIB);
        let (_keep, cancel) = watch::channel(false);
        let written = write(&Way::to(tgtd.portal), &image.order(verify), cancel).await.unwrap();
        assert!(!tgtd.sessions().contains("Session"), "{}", tgtd.sessions());
        assert_holds(&tgtd, &image.bytes);
        let covered: u64 = written.ranges.iter().map(|range| range.bytes).sum();
        assert_eq!(covered, if verify == Verify::Node { 40 * MIB } else { 0 });
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_is_cut_every_20_mb_ends_bit_exact_and_what_is_written_twice_is_bounded()
{
    let (image, tgtd) = (Image::new(120 * MIB), target(128 * MIB));
    let relay = Relay::start(tgtd.portal, Trouble::CutAfter(20_000_000)).await;
    let (_keep, cancel) = watch::channel(false);
    write(&Way::to(relay.address), &image.order(Verify::Full), cancel).await.unwrap();
    assert_holds(&tgtd, &image.bytes);
    let sent = relay.sent_bytes();
    assert!(relay.connections() > 6, "{}", relay.connections());
    assert!(sent < 4 * 120 * MIB, "{} MiB sent for 120 MiB", sent / MIB);
    await_no_session(&tgtd, Duration::from_secs(5));
}

/// Invariant (disk): A disk that drops writes is caught by default.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_target_that_acknowledges_and_drops_a_write_is_caught_by_reading_back_at_a_named_place() {
    let (image, tgtd) = (Image::new(40 * MIB), target(64 * MIB));
    let lie = 30 * MIB + 8192..30 * MIB + 12288;
    let relay = Relay::start(tgtd.portal, Trouble::Drops(lie.clone(), OLD)).await;
    let (_keep, cancel) = watch::channel(false);
    let order = image.order(Verify::Full);
    let error = write(&Way::to(relay.address), &order, cancel).await.unwrap_err();
    let caught = matches!(error, ImagingError::Differs { from, to } if (from..to) == lie);
    assert!(caught, "{error}");
    assert_wiped(&tgtd);
    assert!(!tgtd.sessions().contains("Session"), "{}", tgtd.sessions());
}

/// Invariant (disk): A disk that drops writes is caught by default.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_node_is_to_compare_tells_of_a_target_that_drops_a_write() {
    let (image, tgtd) = (Image::new(40 * MIB), target(64 * MIB));
    let lie = 30 * MIB + 8192..30 * MIB + 12288;
    let relay = Relay::start(tgtd.portal, Trouble::Drops(lie.clone(), OLD)).await;
    let (_keep, cancel) = watch::channel(false);
    let order = image.order(Verify::Node);
    let written = write(&Way::to(relay.address), &order, cancel).await.unwrap();
    let disk = tgtd.disk();
    let is_wrong = |range: &&hostler::model::callback::DiskRange| {
        let from = usize::try_from(range.from).unwrap();
        let bytes = &disk[from..from + usize::try_from(range.bytes).unwrap()];
        let hash = sha256_of(bytes);
        range.digest.to_string() != format!("sha256:{hash}")
    };
    let wrong: Vec<_> = written.ranges.iter().filter(is_wrong).collect();
    let [wrong] = wrong[..] else { panic!("{wrong:?}") };
    assert!((wrong.from..wrong.from + wrong.bytes).contains(&lie.start), "{wrong:?}");
}

/// SHA-256 in hexadecimal digits.
fn sha256_of(bytes: &[u8]) -> String {
    use sha2::Digest as _;
    hostler::model::ids::hex(&sha2::Sha256::digest(bytes))
}

/// Invariant (disk): A cancel ends within a second and leaves no session.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancel_ends_within_a_second_and_leaves_no_session_and_nothing_that_boots() {
    let (image, tgtd) = (Image::new(120 * MIB), target(128 * MIB));
    let relay = Relay::start(tgtd.portal, Trouble::None).await;
    let (cancel, cancelled) = watch::channel(false);
    let (way, order) = (Way::to(relay.address), image.order(Verify::Full));
    let cancelling = async {
        relay.wait_for_sent(20 * MIB).await;
        cancel.send_replace(true);
        Instant::now()
    };
    let (written, since) = tokio::join!(write(&way, &order, cancelled), cancelling);
    assert!(since.elapsed() < Duration::from_secs(1), "{:?}", since.elapsed());
    assert!(matches!(written, Err(ImagingError::Cancelled)), "{written:?}");
    assert!(!tgtd.sessions().contains("Session"), "{}", tgtd.sessions());
    assert_wiped(&tgtd);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_target_that_hangs_cannot_hold_up_a_cancel_and_keeps_no_session() {
    let (image, tgtd) = (Image::new(120 * MIB), target(128 * MIB));
    let relay = Relay::start(tgtd.portal, Trouble::None).await;
    let (cancel, cancelled) = watch::channel(false);
    let (way, order) = (Way::to(relay.address), image.order(Verify::Full));
    let cancelling = async {
        relay.wait_for_sent(20 * MIB).await;
        tgtd.signal("-STOP");
        cancel.send_replace(true);
        Instant::now()
    };
    let (written, since) = tokio::join!(write(&way, &order, cancelled), cancelling);
    // 900 ms, and the delays of a busy machine.
    assert!(since.elapsed() < Duration::from_millis(1500), "{:?}", since.elapsed());
    let Err(ImagingError::NotWiped { cause, .. }) = written else { panic!("{written:?}") };
    assert!(matches!(*cause, ImagingError::Cancelled), "{cause}");
    tgtd.signal("-CONT");
    await_no_session(&tgtd, Duration::from_secs(10));
    // The head was wiped first and is written last.
    assert!(tgtd.disk().starts_with(&vec![0; 1 << 20]), "half an image that may boot");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_layout_of_tables_at_both_ends_is_whole_after_cuts_in_every_part() {
    let (image, tgtd) = (Image::new(40 * MIB), target(64 * MIB));
    let tables = |at, byte| Segment { at, content: Content::Made(vec![byte; 33 * 512].into()) };
    let root = match image.order(Verify::None).layout.segments() {
        [whole] => Segment { at: 2 * MIB, content: whole.content.clone() },
        _ => panic!("one file is one segment"),
    };
    let swap = Segment { at: 50 * MIB, content: Content::Zeros(6 * MIB) };
    let segments = [tables(0, 1), root, swap, tables(64 * MIB - 33 * 512, 2)];
    let order = ImagingOrder {
        layout: Layout::new(segments),
        verify: Verify::Full,
        salt: None,
        stall: STALL,
        least_rate: LeastRate::ANY,
        checkpoint: Checkpoint::default(),
    };
    let relay = Relay::start(tgtd.portal, Trouble::CutAfter(16_000_000)).await;
    let (_keep, cancel) = watch::channel(false);
    write(&Way::to(relay.address), &order, cancel).await.unwrap();
    let disk = tgtd.disk();
    let part = |at: u64, bytes: u64| {
        let at = usize::try_from(at).unwrap();
        &disk[at..at + usize::try_from(bytes).unwrap()]
    };
    assert!(part(0, 33 * 512).iter().all(|byte| *byte == 1));
    assert!(part(33 * 512, MIB - 33 * 512).iter().all(|byte| *byte == 0));
    assert!(part(MIB, MIB).iter().all(|byte| *byte == OLD));
    assert!(part(2 * MIB, 40 * MIB) == image.bytes);
    assert!(part(42 * MIB, 8 * MIB).iter().all(|byte| *byte == OLD));
    assert!(part(50 * MIB, 6 * MIB).iter().all(|byte| *byte == 0));
    assert!(disk.ends_with(&vec![2; 33 * 512]));
}

/// Invariant (disk): A further connection is kept only if it pays, and never leads to another disk.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_path_that_is_narrow_for_each_connection_is_filled_by_several() {
    let (image, tgtd) = (Image::new(160 * MIB), target(168 * MIB));
    let relay = Relay::start(tgtd.portal, Trouble::Narrow(24 * MIB)).await;
    let (_keep, cancel) = watch::channel(false);
    write(&Way::to(relay.address), &image.order(Verify::None), cancel).await.unwrap();
    let carried = relay.carried();
    assert!((2..=4).contains(&carried.len()), "{carried:?}");
    assert!(carried[1] > 4 * MIB, "{carried:?}");
    assert_holds(&tgtd, &image.bytes);
    await_no_session(&tgtd, Duration::from_secs(5));
}

/// Invariant (fair): A slow disk gives its permit up.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_target_that_takes_its_data_too_slowly_is_given_up_and_half_an_image_does_not_boot() {
    let (image, tgtd) = (Image::new(24 * MIB), target(32 * MIB));
    let least_rate = LeastRate { bytes_per_s: MIB, over: Duration::from_secs(2) };
    let order = ImagingOrder { least_rate, ..image.order(Verify::None) };
    let (_keep, cancel) = watch::channel(false);
    let slow = Relay::start(tgtd.portal, Trouble::Narrow(MIB / 2)).await;
    let error = write(&Way::to(slow.address), &order, cancel.clone()).await.unwrap_err();
    assert!(matches!(error, ImagingError::TooSlow { .. }), "{error}");
    let said = error.to_string();
    assert!(said.contains("s of waiting for the disk, less than 1.0 MiB/s"), "{said}");
    let disk = tgtd.disk();
    let edge = usize::try_from(MIB).unwrap();
    assert!(disk[..edge].iter().chain(&disk[disk.len() - edge..]).all(|byte| *byte == 0));

    let quick = Relay::start(tgtd.portal, Trouble::Narrow(8 * MIB)).await;
    write(&Way::to(quick.address), &order, cancel).await.unwrap();
    assert_holds(&tgtd, &image.bytes);
}

/// Invariant (disk): With several connections no write overtakes one that must come before it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_of_several_connections_that_is_cut_takes_the_others_along_and_the_image_is_whole() {
    let (image, tgtd) = (Image::new(112 * MIB), target(120 * MIB));
    let relay = Relay::start(tgtd.portal, Trouble::NarrowCutsSecond(24 * MIB, 12 * MIB)).await;
    let (_keep, cancel) = watch::channel(false);
    write(&Way::to(relay.address), &image.order(Verify::None), cancel).await.unwrap();
    let carried = relay.carried();
    assert!(carried.len() == 3 && carried[1] >= 12 * MIB, "{carried:?}");
    assert_holds(&tgtd, &image.bytes);
    await_no_session(&tgtd, Duration::from_secs(5));
}
