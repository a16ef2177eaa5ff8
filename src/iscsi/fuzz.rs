//! A target that sends arbitrary bytes, from its login on: for the fuzz target, and for a property
//! test of the same. It has no other caller.
//!
//! The runtime's clock must be paused: then a wait for "no more PDUs" takes no time, and a limit of
//! seconds is checked at once.

use std::time::Duration;

use bytes::Bytes;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream},
    time::{Instant, timeout},
};

use super::{
    chap::Chap,
    connection::Connection,
    disk::{Lun, TargetAddress},
    error::IscsiError,
    login::Random,
    options::IscsiOptions,
    pdu::{self, BHS_BYTES},
    scsi,
};
use crate::model::secret::Secret;

/// More than the sum of all limits of [`options`], each as often as a target can provoke it.
const LONGEST: Duration = Duration::from_secs(120);

/// Capacity of the stream between initiator and target: less than a data segment, so that writes
/// have to wait, too.
const STREAM_BYTES: usize = 64 << 10;

/// Runs the initiator against a target that sends `bytes`. The bits of the first byte: 0 CHAP, 1
/// mutual CHAP, 2 skip to the end of a successful examination, 3 and 4 digests, 5 silence at the
/// end instead of a closed connection. The target sends the other bytes, one PDU whenever no more
/// data comes.
///
/// Panics if an operation exceeds its limit, or a read returns more than its length.
#[cfg_attr(test, expect(unreachable_pub, reason = "only the fuzz target is outside"))]
pub async fn fuzz(bytes: &[u8]) {
    scsi::is_disk(bytes);
    scsi::luns(bytes);
    scsi::block_limits(bytes);
    scsi::unmaps_to_zeros(bytes);
    drop(scsi::Sense::parse(bytes).map(|sense| sense.to_string()));
    for disk in [scsi::capacity_16(bytes), scsi::capacity_10(bytes)].into_iter().flatten() {
        assert!(disk.blocks.checked_mul(u64::from(disk.block_bytes)).is_some());
    }
    let Some((mode, stream)) = bytes.split_first() else { return };
    let (ours, theirs) = tokio::io::duplex(STREAM_BYTES);
    let began = Instant::now();
    let initiator = async {
        drop(initiate(*mode, ours).await);
        assert!(began.elapsed() < LONGEST, "{:?}", began.elapsed());
    };
    tokio::join!(initiator, speak(*mode, stream, theirs));
}

fn options(mode: u8) -> IscsiOptions {
    IscsiOptions {
        header_digest: mode & 8 != 0,
        data_digest: mode & 16 != 0,
        login_timeout: Duration::from_secs(1),
        command_timeout: Duration::from_secs(2),
        flush_timeout: Duration::from_secs(3),
        logout_timeout: Duration::from_secs(1),
        keepalive: Duration::from_millis(500),
        queue_depth: 4,
        ..IscsiOptions::default()
    }
}

/// Runs every operation of the imaging on a disk.
async fn initiate(mode: u8, stream: DuplexStream) -> Result<(), IscsiError> {
    let secret = |text: &str| Secret::new(text.to_owned());
    let mutual = (mode & 2 != 0).then(|| ("target".to_owned(), secret("their secret")));
    let chap = Chap { username: "node".to_owned(), secret: secret("our secret"), mutual };
    let chap = (mode & 1 != 0).then_some(&chap);
    let target = TargetAddress {
        portal: ([127, 0, 0, 1], 3260).into(),
        iqn: "iqn.test:t".to_owned(),
        lun: 1,
    };
    let random = Random { isid: [0x80, 1, 2, 3, 4, 5], identifier: [7], challenge: [9; 16] };
    let options = options(mode);
    let login = Connection::over(tokio::io::split(stream), &target.iqn, chap, &options, random);
    let lun = Lun::after(login, &target, &options).await?;
    let block = u64::from(lun.block_bytes());
    let data = vec![7; usize::try_from(200 * block).unwrap_or(0)];
    let write = lun.write(0, Bytes::from(data));
    let read = lun.read(0, 8 * lun.block_bytes());
    let zeros = lun.write_zeros(block, 100 * block);
    let (written, read, zeroed) = tokio::join!(write, read, zeros);
    assert!(read.is_err() || read.is_ok_and(|data| data.len() as u64 == 8 * block));
    drop((written, zeroed, lun.flush().await));
    lun.logout().await
}

/// The target: discards received bytes, and sends one PDU whenever no more come.
async fn speak(mode: u8, script: &[u8], mut stream: DuplexStream) {
    let prologue = if mode & 7 == 4 { examination() } else { Vec::new() };
    let pdus = prologue.iter().map(Vec::as_slice).chain(cut(script));
    for pdu in pdus {
        if !drained(&mut stream).await || stream.write_all(pdu).await.is_err() {
            return;
        }
    }
    while mode & 32 != 0 && drained(&mut stream).await {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Discards received bytes; `false` once the stream is closed.
async fn drained(stream: &mut DuplexStream) -> bool {
    let mut received = [0; 4096];
    loop {
        match timeout(Duration::from_micros(1), stream.read(&mut received)).await {
            Err(_silence) => return true,
            Ok(Ok(1..)) => {}
            Ok(Ok(0) | Err(_)) => return false,
        }
    }
}

/// Splits a script into PDUs by their headers; the last one may be cut short.
fn cut(mut script: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let declared = script.first_chunk::<BHS_BYTES>().map_or(0, |bhs| pdu::lengths(bhs).1);
        let bytes = BHS_BYTES + usize::try_from(declared).unwrap_or(0).next_multiple_of(4);
        let (pdu, rest) = script.split_at(bytes.min(script.len()));
        script = rest;
        (!pdu.is_empty()).then_some(pdu)
    })
}

/// The target's PDUs from the login to the end of the examination of a disk: 1 GiB, thin, zeros
/// where unmapped.
fn examination() -> Vec<Vec<u8>> {
    let mut stat_sn = 0;
    let mut say = |opcode: u8, flags: u8, itt: u32, data: &[u8]| {
        let mut pdu = vec![0; BHS_BYTES];
        let [_, length @ ..] = u32::try_from(data.len()).unwrap_or(0).to_be_bytes();
        let fields: [(usize, &[u8]); 6] = [
            (0, &[opcode, flags]),
            (5, &length),
            (16, &itt.to_be_bytes()),
            (24, &u32::to_be_bytes(stat_sn)),
            (28, &1_u32.to_be_bytes()),
            (32, &64_u32.to_be_bytes()),
        ];
        for (at, bytes) in fields {
            pdu.splice(at..at + bytes.len(), bytes.iter().copied());
        }
        pdu.extend_from_slice(data);
        pdu.resize(pdu.len().next_multiple_of(4), 0);
        stat_sn += 1;
        pdu
    };
    let capacity = [[0, 0, 0, 0, 0, 0x1f, 0xff, 0xff], [0, 0, 2, 0, 0, 0, 0xc0, 0]].concat();
    vec![
        say(0x23, 0x81, 1, &[]),
        say(0x23, 0x87, 1, b"InitialR2T=No\0FirstBurstLength=8192\0MaxOutstandingR2T=2\0"),
        say(0x25, 0x81, 1, &[0; 36]),
        say(0x21, 0x80, 2, &[]),
        say(0x25, 0x81, 3, &capacity),
        say(0x25, 0x81, 4, &[0, 0, 0, 3, 0, 0xb0, 0xb2]),
        say(0x25, 0x81, 5, &[[0, 0xb0, 0, 60].as_slice(), &[0; 60]].concat()),
        say(0x25, 0x81, 6, &[0, 0xb2, 0, 4, 0, 0x44, 0, 0]),
    ]
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn paused() -> tokio::runtime::Runtime {
        let mut builder = tokio::runtime::Builder::new_current_thread();
        builder.enable_time().start_paused(true).build().unwrap()
    }

    fn play(bytes: &[u8]) -> Duration {
        paused().block_on(async {
            let began = Instant::now();
            Box::pin(fuzz(bytes)).await;
            began.elapsed()
        })
    }

    /// The disk is connected, so that later bytes meet commands in flight.
    #[test]
    fn the_examination_ends_with_a_disk() {
        paused().block_on(async {
            let (ours, theirs) = tokio::io::duplex(STREAM_BYTES);
            let target = TargetAddress {
                portal: ([127, 0, 0, 1], 3260).into(),
                iqn: "iqn.test:t".to_owned(),
                lun: 1,
            };
            let options = options(4);
            let random = Random { isid: [0; 6], identifier: [0], challenge: [0; 16] };
            let login =
                Connection::over(tokio::io::split(ours), &target.iqn, None, &options, random);
            let lun = Lun::after(login, &target, &options);
            let (lun, ()) = tokio::join!(lun, speak(4 | 32, &[], theirs));
            assert_eq!(lun.unwrap().capacity_bytes(), 1 << 30);
        });
    }

    #[test]
    fn a_target_that_falls_silent_is_given_up_in_time_wherever_it_does() {
        let script: Vec<u8> = examination().concat();
        for end in (0..script.len()).step_by(24) {
            let mut bytes = vec![32];
            bytes.extend_from_slice(&script[..end]);
            let taken = play(&bytes);
            assert!(taken < Duration::from_secs(20), "{end}: {taken:?}");
        }
    }

    /// A PDU that resembles a target's: opcode, flags, tag, `StatSN`, the fields at 36, 40, 44, and
    /// its data.
    fn pdu() -> impl Strategy<Value = Vec<u8>> {
        let opcode = prop_oneof![
            4 => proptest::sample::select(&[0x20_u8, 0x21, 0x22, 0x25, 0x26, 0x31, 0x32, 0x3f][..]),
            1 => any::<u8>(),
        ];
        let flags = prop_oneof![Just(0x80_u8), Just(0x81), Just(0), any::<u8>()];
        let field = prop_oneof![0..4_u32, Just(8192), Just(65_536), any::<u32>()];
        let tags = (prop_oneof![6..14_u32, Just(u32::MAX)], prop_oneof![8..14_u32, any::<u32>()]);
        let data = prop_oneof![Just(Vec::new()), proptest::collection::vec(any::<u8>(), 0..600)];
        (opcode, flags, tags, [field.clone(), field.clone(), field], data).prop_map(
            |(opcode, flags, (itt, stat_sn), fields, data)| {
                let mut pdu = vec![0; BHS_BYTES];
                (pdu[0], pdu[1]) = (opcode, flags);
                pdu[5..8].copy_from_slice(&u32::try_from(data.len()).unwrap().to_be_bytes()[1..]);
                let numbers = [itt, 0x77, stat_sn, 7, 64];
                for (at, number) in (16..).step_by(4).zip(numbers.into_iter().chain(fields)) {
                    pdu[at..at + 4].copy_from_slice(&number.to_be_bytes());
                }
                pdu.extend(data);
                pdu.resize(pdu.len().next_multiple_of(4), 0);
                pdu
            },
        )
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn no_target_makes_it_panic_or_wait_past_its_limits(
            mode in any::<u8>(),
            pdus in proptest::collection::vec(pdu(), 0..12),
            noise in proptest::collection::vec(any::<u8>(), 0..100),
        ) {
            for mode in [mode, 4, 4 | 32] {
                play(&[&[mode], &pdus.concat()[..], &noise].concat());
            }
        }
    }
}
