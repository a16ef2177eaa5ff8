//! istgt, a second independent target: threads instead of one loop, a queue that can be switched
//! off, digests and CHAP by its configuration.

use std::{
    net::{SocketAddr, TcpStream},
    os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use hostler::iscsi::{IscsiErrorKind, IscsiOptions, LoginRefusal, Lun, TargetAddress};
use tempfile::TempDir;

use super::{chap, digests, noise, options, write_all};
use crate::ports;

const DISK_BYTES: usize = 64 << 20;

/// Time limit of istgt's start.
const START_LIMIT: Duration = Duration::from_secs(10);

/// A running istgt; killed on drop.
struct Istgt {
    child: Child,
    portal: SocketAddr,
    dir: TempDir,
}

impl Istgt {
    /// Starts a target whose LUN 0 is a disk of old contents; `unit` and `global` are further lines
    /// of its configuration.
    fn start(global: &str, unit: &str) -> Self {
        let dir = TempDir::new().unwrap();
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o700)).unwrap();
        let (portal, control, path) = (ports::free(), ports::free(), dir.path().display());
        std::fs::write(dir.path().join("disk"), vec![0xaa; DISK_BYTES]).unwrap();
        let secrets = "[AuthGroup1]\n  \
            Auth \"node\" \"a-secret-of-twelve\" \"target\" \"another-secret-12\"\n";
        let file = std::fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(dir.path().join("auth.conf"));
        std::io::Write::write_all(&mut file.unwrap(), secrets.as_bytes()).unwrap();
        let config = format!(
            "[Global]\n  NodeBase \"iqn.2026-01.test\"\n  PidFile {path}/pid\n  AuthFile \
             {path}/auth.conf\n  MediaDirectory {path}\n  DiscoveryAuthMethod Auto\n  {global}\n\
             [UnitControl]\n  AuthMethod CHAP Mutual\n  AuthGroup None\n  Portal UC1 \
             {control}\n  Netmask 127.0.0.1\n\
             [PortalGroup1]\n  Portal DA1 {portal}\n\
             [InitiatorGroup1]\n  InitiatorName \"ALL\"\n  Netmask 127.0.0.0/8\n\
             [LogicalUnit1]\n  TargetName disk\n  Mapping PortalGroup1 InitiatorGroup1\n  UnitType \
             Disk\n  {unit}\n  LUN0 Storage {path}/disk 64MB\n"
        );
        let config_file = dir.path().join("istgt.conf");
        std::fs::write(&config_file, config).unwrap();
        let child = Command::new("istgt")
            .arg("-D")
            .arg("-c")
            .arg(config_file)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let istgt = Self { child, portal, dir };
        let started = Instant::now();
        while TcpStream::connect(portal).is_err() {
            assert!(started.elapsed() < START_LIMIT, "istgt did not start");
            thread::sleep(Duration::from_millis(20));
        }
        istgt
    }

    fn lun(&self) -> TargetAddress {
        TargetAddress { portal: self.portal, iqn: "iqn.2026-01.test:disk".to_owned(), lun: 0 }
    }

    fn disk(&self) -> Vec<u8> {
        std::fs::read(self.dir.path().join("disk")).unwrap()
    }
}

impl Drop for Istgt {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

const OPEN: &str = "AuthMethod None\n  AuthGroup None";

/// Writes, zeroes old contents and reads back, and compares the disk's file.
async fn use_disk(istgt: &Istgt, options: &IscsiOptions, case: &str) {
    let lun = Lun::connect(&istgt.lun(), None, options).await.expect(case);
    assert_eq!((lun.block_bytes(), lun.capacity_bytes()), (512, DISK_BYTES as u64));
    let data = noise(6 << 20, 21);
    write_all(&lun, 512, &data, 700 << 10).await.expect(case);
    lun.write_zeros(8 << 20, 20 << 20).await.expect(case);
    lun.flush().await.expect(case);
    for at in (0..data.len()).step_by(1 << 20) {
        let read = lun.read(512 + at as u64, 1 << 20).await.expect(case);
        assert!(read == data.slice(at..at + (1 << 20)), "{case}");
    }
    lun.logout().await.expect(case);
    let mut expected = vec![0xaa; DISK_BYTES];
    expected.get_mut(512..512 + data.len()).unwrap().copy_from_slice(&data);
    expected.get_mut(8 << 20..28 << 20).unwrap().fill(0);
    assert!(istgt.disk() == expected, "{case}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn istgt_has_the_same_bytes_with_and_without_digests_and_queue() {
    for queue in ["QueueDepth 0", "QueueDepth 32"] {
        for (digest, options) in [("Auto", options()), ("Header Data", digests())] {
            let unit = format!("{OPEN}\n  UseDigest {digest}\n  {queue}");
            let istgt = Istgt::start("MaxR2T 16", &unit);
            use_disk(&istgt, &options, &unit).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn istgt_has_the_same_bytes_at_the_extremes_of_its_parameters() {
    for (segment, first, burst, immediate) in [
        ("512", "512", "512", "No"),
        ("512", "512", "4096", "Yes"),
        ("262144", "262144", "1048576", "No"),
        ("1048576", "1048576", "16776192", "Yes"),
    ] {
        let global = format!(
            "MaxRecvDataSegmentLength {segment}\n  FirstBurstLength {first}\n  MaxBurstLength \
             {burst}\n  ImmediateData {immediate}\n  InitialR2T Yes\n  MaxOutstandingR2T \
             16\n  MaxR2T 16"
        );
        let istgt = Istgt::start(&global, OPEN);
        use_disk(&istgt, &options(), &global).await;
    }
}

#[tokio::test]
async fn istgt_lets_in_who_knows_the_secret_and_proves_that_it_knows_its_own() {
    let istgt = Istgt::start("", "AuthMethod CHAP Mutual\n  AuthGroup AuthGroup1");
    let right = "a-secret-of-twelve";
    let refused = |refusal| Err(IscsiErrorKind::LoginRefused(refusal));
    let cases = [
        (chap(right, Some(("target", "another-secret-12"))), Ok(())),
        (
            chap("a-secret-of-thirteen", Some(("target", "another-secret-12"))),
            refused(LoginRefusal::WrongSecret),
        ),
        (chap(right, Some(("target", "not-the-secret-12"))), refused(LoginRefusal::TargetUnproven)),
    ];
    for (chap, expected) in cases {
        let result = Lun::connect(&istgt.lun(), Some(&chap), &options()).await;
        assert_eq!(result.map(drop).map_err(|error| error.kind), expected, "{chap:?}");
    }
    Lun::connect(&istgt.lun(), None, &options()).await.unwrap_err();
}
