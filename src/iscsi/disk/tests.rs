//! Repetitions of commands, against a scripted target for answers that real targets cannot be made
//! to give.

use std::{collections::VecDeque, sync::Mutex as StdMutex};

use bytes::BytesMut;
use tokio::io::{AsyncWriteExt as _, DuplexStream, ReadHalf};

use super::*;
use crate::iscsi::{
    login::Random,
    pdu::{self, BHS_BYTES, Bhs},
    wire::PduReader,
    zeroing::Zeroing,
};

fn verdict(response: u8, status: u8, sense: &[u8]) -> RetryDecision {
    RetryDecision::of(&CommandOutcome {
        response,
        status,
        sense: sense.to_vec(),
        ..CommandOutcome::default()
    })
}

#[test]
fn only_what_was_not_carried_out_is_tried_again() {
    let sense = |key, asc, ascq| [0, 8, 0x72, key, asc, ascq, 0, 0, 0, 0];
    let failure = |key, asc, ascq| ScsiFailure::Sense(Sense { key, asc, ascq });
    assert_eq!(verdict(0, 0, &[]), RetryDecision::Good);
    assert_eq!(verdict(0, 2, &sense(6, 0x29, 0)), RetryDecision::Again(failure(6, 0x29, 0)));
    assert_eq!(verdict(0, 0x08, &[]), RetryDecision::Later(ScsiFailure::Status(0x08)));
    assert_eq!(verdict(0, 0x28, &[]), RetryDecision::Later(ScsiFailure::Status(0x28)));
    assert_eq!(verdict(0, 2, &sense(2, 4, 1)), RetryDecision::Later(failure(2, 4, 1)));
    assert_eq!(verdict(0, 2, &sense(2, 0x3a, 0)), RetryDecision::Failed(failure(2, 0x3a, 0)));
    assert_eq!(verdict(0, 2, &sense(3, 0x0c, 0)), RetryDecision::Failed(failure(3, 0x0c, 0)));
    assert_eq!(verdict(0, 2, &[]), RetryDecision::Failed(ScsiFailure::NoSense));
    assert_eq!(verdict(0, 0x18, &[]), RetryDecision::Failed(ScsiFailure::Status(0x18)));
    assert_eq!(verdict(1, 0, &[]), RetryDecision::Failed(ScsiFailure::TargetFailure(1)));
}

/// The scripted target's reply to one command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reply {
    Good,
    Status(u8),
    Sense(u8, u8),
    /// GOOD, with a residual of 512 bytes.
    Residual,
    /// An asynchronous message with this event, then GOOD.
    Async(u8),
    Reject(u8),
    /// A NOP-In that demands an answer, then GOOD.
    Ping,
}

/// Opcode, second byte, first block and number of blocks of each received command.
type Received = Arc<StdMutex<Vec<(u8, u8, u64, u32)>>>;

/// A scripted target, which accepts every write as unsolicited data.
struct Script {
    /// The answers to the commands after the examination, in order; then `Good`.
    answers: VecDeque<Reply>,
    /// READ CAPACITY(16) byte 14 and VPD page B2h byte 5.
    flags: (u8, u8),
    /// The commands after the examination.
    received: Received,
}

struct Target {
    reader: PduReader<ReadHalf<DuplexStream>>,
    writer: tokio::io::WriteHalf<DuplexStream>,
    stat_sn: u32,
    cmd_sn: u32,
}

impl Target {
    async fn receive(&mut self) -> Option<Bhs> {
        let bhs = self.reader.header().await.ok()?;
        self.reader.data(&bhs, &mut BytesMut::new()).await.ok()?;
        if bhs[0] == 0x01 {
            self.cmd_sn = self.cmd_sn.wrapping_add(1);
        }
        Some(bhs)
    }

    async fn say(&mut self, head: [u8; 4], itt: [u8; 4], residual: u32, data: &[u8]) {
        let mut pdu = vec![0; BHS_BYTES];
        pdu[..4].copy_from_slice(&head);
        pdu[5..8].copy_from_slice(&u32::try_from(data.len()).unwrap().to_be_bytes()[1..]);
        pdu[16..20].copy_from_slice(&itt);
        // The target tag of a NOP-In; other PDUs ignore the field.
        pdu[20..24].copy_from_slice(&[0, 0, 0, 9]);
        let numbers = [self.stat_sn, self.cmd_sn, self.cmd_sn + 31, 0, 0, residual];
        for (at, number) in (24..).step_by(4).zip(numbers) {
            pdu[at..at + 4].copy_from_slice(&number.to_be_bytes());
        }
        if head[0] == 0x32 {
            pdu[36] = head[2];
            pdu[2] = 0;
        }
        pdu.extend_from_slice(data);
        pdu.resize(pdu.len().next_multiple_of(4), 0);
        // A NOP-In uses up no status number.
        if !(head[0] == 0x20 && itt == [0xff; 4]) {
            self.stat_sn += 1;
        }
        drop(self.writer.write_all(&pdu).await);
    }
}

impl Script {
    async fn play(mut self, stream: DuplexStream) -> Vec<Bhs> {
        let (read, writer) = tokio::io::split(stream);
        let mut target = Target { reader: PduReader::new(read), writer, stat_sn: 0, cmd_sn: 1 };
        let mut others = Vec::new();
        while let Some(bhs) = target.receive().await {
            let itt = bhs[16..20].try_into().unwrap();
            match bhs[0] & 0x3f {
                0x03 if bhs[1] == 0x81 => target.say([0x23, 0x81, 0, 0], itt, 0, &[]).await,
                0x03 => {
                    let keys = b"InitialR2T=No\0ImmediateData=No\0\
                        FirstBurstLength=262144\0MaxBurstLength=1048576\0";
                    target.say([0x23, 0x87, 0, 0], itt, 0, keys).await;
                }
                0x01 => self.answer(&mut target, &bhs, itt).await,
                0x06 => target.say([0x26, 0x80, 0, 0], itt, 0, &[]).await,
                0x05 => {}
                _ => others.push(bhs),
            }
        }
        others
    }

    async fn answer(&mut self, target: &mut Target, bhs: &Bhs, itt: [u8; 4]) {
        // A command's data fits a first burst, so that the target needs no R2T.
        let limits = [&[0, 0xb0, 0, 60, 0, 0, 0, 0, 0, 0, 2, 0][..], &[0; 52]].concat();
        let provisioning = [0, 0xb2, 0, 4, 0, self.flags.1, 0, 0];
        let capacity = [[0, 0, 0, 0, 0, 0x1f, 0xff, 0xff], [0, 0, 2, 0, 0, 0, self.flags.0, 0]];
        let data: &[u8] = match (bhs[32], bhs[33], bhs[34]) {
            (0x00, ..) => return target.say([0x21, 0x80, 0, 0], itt, 0, &[]).await,
            (0x12, 0, _) => &[0; 36],
            (0x12, _, 0) => &[0, 0, 0, 3, 0, 0xb0, 0xb2],
            (0x12, _, 0xb0) => &limits,
            (0x12, ..) => &provisioning,
            (0x9e, ..) => &capacity.concat(),
            _ => return self.say(target, bhs, itt).await,
        };
        target.say([0x25, 0x81, 0, 0], itt, 0, data).await;
    }

    async fn say(&mut self, target: &mut Target, bhs: &Bhs, itt: [u8; 4]) {
        let lba = u64::from_be_bytes(bhs[34..42].try_into().unwrap());
        let blocks = u32::from_be_bytes(bhs[42..46].try_into().unwrap());
        self.received.lock().unwrap().push((bhs[32], bhs[33], lba, blocks));
        // Data-Out PDUs of the command precede the answer.
        if bhs[1] & 0x80 == 0 {
            while target.receive().await.is_some_and(|bhs| bhs[0] != 0x05 || bhs[1] & 0x80 == 0) {}
        }
        let good = [0x21, 0x80, 0, 0];
        match self.answers.pop_front().unwrap_or(Reply::Good) {
            Reply::Good => target.say(good, itt, 0, &[]).await,
            Reply::Status(status) => target.say([0x21, 0x80, 0, status], itt, 0, &[]).await,
            Reply::Sense(key, asc) => {
                let sense = [0, 8, 0x72, key, asc, 0, 0, 0, 0, 0];
                target.say([0x21, 0x80, 0, 2], itt, 0, &sense).await;
            }
            Reply::Residual => target.say([0x21, 0x82, 0, 0], itt, 512, &[]).await,
            Reply::Async(event) => {
                target.say([0x32, 0x80, event, 0], [0xff; 4], 0, &[]).await;
                target.say(good, itt, 0, &[]).await;
            }
            Reply::Reject(reason) => {
                target.say([0x3f, 0x80, reason, 0], [0xff; 4], 0, bhs).await;
            }
            Reply::Ping => {
                target.say([0x20, 0x80, 0, 0], [0xff; 4], 0, b"echo").await;
                target.say(good, itt, 0, &[]).await;
            }
        }
    }
}

struct Played {
    lun: Lun,
    received: Received,
    others: tokio::task::JoinHandle<Vec<Bhs>>,
}

/// Connects to a scripted target.
async fn play(
    answers: impl IntoIterator<Item = Reply>,
    flags: (u8, u8),
    zeroing: Option<Zeroing>,
) -> Played {
    let (ours, theirs) = tokio::io::duplex(256 << 10);
    let received = Received::default();
    let script =
        Script { answers: answers.into_iter().collect(), flags, received: Arc::clone(&received) };
    let others = tokio::spawn(script.play(theirs));
    let target = TargetAddress {
        portal: ([127, 0, 0, 1], 3260).into(),
        iqn: "iqn.test:t".to_owned(),
        lun: 1,
    };
    let options = IscsiOptions { zeroing, ..IscsiOptions::default() };
    let random = Random { isid: [0x80; 6], identifier: [1], challenge: [2; 16] };
    let login = Connection::over(tokio::io::split(ours), &target.iqn, None, &options, random);
    let lun = Lun::after(login, &target, &options).await.unwrap();
    Played { lun, received, others }
}

/// The result of one write of a block at a target with these answers, and the number of commands it
/// got.
async fn write_to(answers: impl IntoIterator<Item = Reply>) -> (Result<(), IscsiErrorKind>, usize) {
    let played = play(answers, (0, 0), None).await;
    let result = played.lun.write(512, zeros(512)).await.map_err(|error| error.kind);
    let received = played.received.lock().unwrap().len();
    (result, received)
}

#[tokio::test(start_paused = true)]
async fn a_busy_target_is_asked_again_after_a_pause_and_not_for_ever() {
    let began = Instant::now();
    let busy = [Reply::Status(0x08), Reply::Status(0x28), Reply::Sense(2, 0x04)];
    assert_eq!(write_to(busy[..2].iter().copied()).await, (Ok(()), 3));
    assert_eq!(began.elapsed().as_millis() / 10, 6, "20 ms, then 40 ms");
    let (result, tries) = write_to(std::iter::repeat_n(Reply::Status(0x28), 1000)).await;
    assert_eq!(result, Err(IscsiErrorKind::Scsi(ScsiFailure::Status(0x28))));
    assert!((30..50).contains(&tries) && began.elapsed() < Duration::from_secs(32), "{tries}");
}

#[tokio::test(start_paused = true)]
async fn a_unit_attention_is_answered_by_the_same_command_and_not_for_ever() {
    assert_eq!(write_to([Reply::Sense(6, 0x29), Reply::Sense(6, 0x3f)]).await, (Ok(()), 3));
    let attention = Sense { key: 6, asc: 0x29, ascq: 0 };
    let (result, tries) = write_to(std::iter::repeat_n(Reply::Sense(6, 0x29), 100)).await;
    assert_eq!(result, Err(IscsiErrorKind::Scsi(ScsiFailure::Sense(attention))));
    assert_eq!(tries, 17);
}

#[tokio::test(start_paused = true)]
async fn good_with_a_residual_is_not_taken_for_a_whole_write() {
    let (result, _) = write_to([Reply::Residual]).await;
    assert!(matches!(result, Err(IscsiErrorKind::Protocol(_))), "{result:?}");
}

#[tokio::test(start_paused = true)]
async fn rejects_and_announced_ends_fail_the_command_and_later_ones() {
    for (say, expected) in [
        (Reply::Reject(0x02), IscsiErrorKind::Digest(crate::iscsi::DigestOf::Data)),
        (
            Reply::Async(2),
            IscsiErrorKind::TargetGone(
                "the target announces that it drops the connection".to_owned(),
            ),
        ),
    ] {
        let played = play([say], (0, 0), None).await;
        assert_eq!(played.lun.write(0, zeros(512)).await.unwrap_err().kind, expected);
        assert_eq!(played.lun.flush().await.unwrap_err().kind, expected);
    }
}

#[tokio::test(start_paused = true)]
async fn a_target_that_asks_for_a_logout_gets_it_after_the_command() {
    let played = play([Reply::Async(1)], (0, 0), None).await;
    played.lun.write(0, zeros(512)).await.unwrap();
    let error = played.lun.write(0, zeros(512)).await.unwrap_err();
    assert!(matches!(error.kind, IscsiErrorKind::TargetGone(_)), "{error}");
    // The target gets no other PDU, and sees the connection closed.
    assert_eq!(played.others.await.unwrap(), [[0; BHS_BYTES]; 0]);
}

#[tokio::test(start_paused = true)]
async fn a_ping_in_the_midst_of_commands_is_answered_with_its_tag() {
    let played = play([Reply::Ping], (0, 0), None).await;
    played.lun.write(0, zeros(512)).await.unwrap();
    played.lun.flush().await.unwrap();
    played.lun.logout().await.unwrap();
    let others = played.others.await.unwrap();
    let [pong] = &others[..] else { panic!("{others:?}") };
    assert_eq!((pong[0], &pong[16..20], &pong[20..24]), (0x40, &[0xff; 4][..], &[0, 0, 0, 9][..]));
    assert_eq!(pdu::lengths(pong).1, 4, "the data comes back");
}

const CERTAIN: (u8, u8) = (0xc0, 0x44);

#[tokio::test(start_paused = true)]
async fn zeros_are_unmapped_only_where_both_answers_of_the_target_promise_them() {
    for (flags, zeroing, second_byte) in [
        (CERTAIN, None, 0x08),
        (CERTAIN, Some(Zeroing::Same), 0),
        ((0x80, 0x44), None, 0),
        ((0xc0, 0x40), None, 0),
        ((0xc0, 0x84), None, 0),
        ((0x00, 0x00), Some(Zeroing::Unmap), 0),
    ] {
        let played = play([], flags, zeroing).await;
        played.lun.write_zeros(512, 4096).await.unwrap();
        let received = played.received.lock().unwrap().clone();
        assert_eq!(received, [(0x93, second_byte, 1, 8)], "{flags:x?} {zeroing:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_refused_way_is_followed_by_the_next_and_no_block_is_left_out() {
    let refused = [Reply::Sense(5, 0x24), Reply::Sense(5, 0x20)];
    let played = play(refused, CERTAIN, None).await;
    played.lun.write_zeros(512, (512 << 10) + 512).await.unwrap();
    played.lun.write_zeros(0, 512).await.unwrap();
    let mut received = played.received.lock().unwrap().clone();
    // First with UNMAP, then without, and then only writes, which may overtake each other.
    assert_eq!(received[..2], [(0x93, 0x08, 1, 1025), (0x93, 0, 1, 1025)]);
    received[2..].sort_by_key(|(_, _, lba, _)| *lba);
    let writes = [(0, 1), (1, 512), (513, 512), (1025, 1)];
    assert_eq!(received[2..], writes.map(|(lba, blocks)| (0x8a, 0, lba, blocks)));
}

#[tokio::test(start_paused = true)]
async fn without_a_promise_both_ways_take_turns_until_one_is_chosen() {
    let played = play([], (0, 0), None).await;
    played.lun.write_zeros(0, 32 << 20).await.unwrap();
    let received = played.received.lock().unwrap().clone();
    let opcodes: Vec<u8> = received.iter().map(|(opcode, ..)| *opcode).collect();
    // Each turn is of 4 MiB: one WRITE SAME, or as many writes as are at work at once.
    let turns = [vec![0x93], vec![0x8a; 16]].concat().repeat(2);
    assert_eq!(opcodes[..turns.len()], turns);
    let blocks: u32 = received.iter().map(|(.., blocks)| blocks).sum();
    assert_eq!(blocks, (32 << 20) / 512);
    assert!(
        opcodes[turns.len()..].iter().all(|opcode| *opcode == opcodes[turns.len()]),
        "one way stays: {opcodes:x?}"
    );
}
