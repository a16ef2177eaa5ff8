//! The blocks in flight of a transfer: maps 16-bit block numbers to positions in the file, and
//! judges acknowledgements.
//!
//! A transfer uses it for each packet in either direction. Pure. It passes only acknowledgements
//! that make progress to the worker, because `tftpd`'s worker spins on any other.

use std::{collections::VecDeque, mem};

/// The meaning of an acknowledgement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// New blocks have arrived.
    Progress,
    /// The client has repeated its request for the next block: send the window again at once.
    Resend,
    /// An old, repeated or impossible acknowledgement.
    Ignore,
}

/// The blocks between the last acknowledged and the last sent one.
#[derive(Debug, Default)]
pub(super) struct Window {
    /// Acknowledged blocks, without a gap.
    acked: u64,
    /// The furthest block sent.
    sent: u64,
    /// Payload bytes sent, each counted once.
    sent_bytes: u64,
    /// The number of the file's last block, once it was sent.
    last: Option<u64>,
    /// Whether only one block may be in flight.
    single: bool,
    /// The datagrams after `acked` up to `sent`.
    kept: VecDeque<Vec<u8>>,
    /// The number of `kept`'s last datagrams that were not sent yet.
    waiting: usize,
    /// The block whose acknowledgement allows another early resend.
    no_resend_until: u64,
}

impl Window {
    /// A window of at most `window_blocks` in flight.
    pub(super) fn new(window_blocks: u16) -> Self {
        Self { single: window_blocks <= 1, ..Self::default() }
    }

    /// Adds a DATA packet: its block number, its bytes of the file, whether that is less than a
    /// whole block, and the datagram. A new one is kept to be sent [with
    /// others](Self::take_waiting); a repetition is returned.
    pub(super) fn sent(
        &mut self,
        number: u16,
        payload: usize,
        short: bool,
        datagram: Vec<u8>,
    ) -> Option<Vec<u8>> {
        let block = self.acked + self.distance(number);
        if block <= self.sent {
            return Some(datagram);
        }
        self.sent = block;
        self.sent_bytes += payload as u64;
        if short {
            self.last = Some(block);
        }
        self.kept.push_back(datagram);
        self.waiting += 1;
        None
    }

    /// Takes the datagrams that were not sent yet, and counts them as sent.
    pub(super) fn take_waiting(&mut self) -> impl Iterator<Item = &[u8]> {
        let waiting = mem::take(&mut self.waiting);
        let before = self.kept.len() - waiting;
        self.unacknowledged().skip(before)
    }

    /// Judges an ACK.
    pub(super) fn acknowledged(&mut self, number: u16) -> Verdict {
        let step = self.distance(number);
        if step == 0 {
            return self.repeated();
        }
        if step > self.sent - self.acked {
            return Verdict::Ignore;
        }
        self.acked += step;
        let arrived = usize::try_from(step).unwrap_or(usize::MAX).min(self.kept.len());
        self.kept.drain(..arrived);
        if self.acked < self.sent {
            // The worker answers this ACK by sending all later blocks again; repeated ACKs of the
            // lost block's window need no second answer.
            self.no_resend_until = self.sent + 1;
        }
        Verdict::Progress
    }

    /// Judges a repeated ACK. With one block in flight it is never answered (RFC 1123 §4.2.3.1, the
    /// Sorcerer's Apprentice). With more it means a lost block (RFC 7440 §4), but only once in a
    /// window: the repeated blocks would cause repeated ACKs themselves.
    fn repeated(&mut self) -> Verdict {
        if self.single { Verdict::Ignore } else { self.lost() }
    }

    /// Judges the known loss of a sent block: a resend is right once in a window.
    pub(super) fn lost(&mut self) -> Verdict {
        if !self.kept.is_empty() && self.acked >= self.no_resend_until {
            self.no_resend_until = self.sent + 1;
            Verdict::Resend
        } else {
            Verdict::Ignore
        }
    }

    /// The unacknowledged datagrams, to be sent again.
    pub(super) fn unacknowledged(&self) -> impl Iterator<Item = &[u8]> {
        self.kept.iter().map(Vec::as_slice)
    }

    /// Payload bytes sent, each counted once.
    pub(super) fn sent_bytes(&self) -> u64 {
        self.sent_bytes
    }

    /// Whether the client has acknowledged the file's last block.
    pub(super) fn complete(&self) -> bool {
        self.last.is_some_and(|last| self.acked >= last)
    }

    /// Whether only the acknowledgement of the file's last block is missing. The client may have
    /// ended after it sent that, and the file may well have arrived (RFC 1350 §6).
    pub(super) fn lacks_last_acknowledgement(&self) -> bool {
        self.last.is_some_and(|last| self.sent >= last && self.acked + 1 == last)
    }

    /// The distance from the last acknowledged block to this one; numbers wrap after 65535.
    fn distance(&self, number: u16) -> u64 {
        let [.., high, low] = self.acked.to_be_bytes();
        u64::from(number.wrapping_sub(u16::from_be_bytes([high, low])))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A window with sent blocks 1 to `blocks`.
    fn sent(blocks: u16, window_blocks: u16) -> Window {
        let mut window = Window::new(window_blocks);
        for number in 1..=blocks {
            window.sent(number, 512, false, number.to_be_bytes().to_vec());
        }
        window
    }

    #[test]
    fn an_acknowledgement_counts_only_for_blocks_in_flight() {
        let mut window = sent(4, 4);
        assert_eq!(window.acknowledged(5), Verdict::Ignore);
        assert_eq!(window.acknowledged(65535), Verdict::Ignore);
        assert_eq!(window.acknowledged(3), Verdict::Progress);
        assert_eq!(window.acknowledged(2), Verdict::Ignore);
        assert_eq!(window.unacknowledged().collect::<Vec<_>>(), [&[0, 4]]);
    }

    #[test]
    fn new_blocks_of_a_window_go_out_together_and_repetitions_at_once() {
        let mut window = sent(3, 4);
        assert_eq!(window.take_waiting().collect::<Vec<_>>(), [&[0, 1], &[0, 2], &[0, 3]]);
        assert_eq!(window.take_waiting().count(), 0);
        assert_eq!(window.acknowledged(2), Verdict::Progress);
        assert_eq!(window.sent(3, 512, false, vec![0, 3]), Some(vec![0, 3]), "a repetition");
        assert_eq!(window.sent(4, 512, false, vec![0, 4]), None);
        assert_eq!(window.take_waiting().collect::<Vec<_>>(), [&[0, 4]]);
    }

    #[test]
    fn what_is_known_to_be_lost_is_sent_again_once_whatever_the_window() {
        for blocks in [1, 4] {
            let mut window = sent(blocks, blocks);
            assert_eq!(window.lost(), Verdict::Resend);
            assert_eq!(window.unacknowledged().count(), usize::from(blocks));
            assert_eq!(window.lost(), Verdict::Ignore, "every datagram of a window is reported");
            assert_eq!(window.acknowledged(blocks), Verdict::Progress);
            assert_eq!(window.lost(), Verdict::Ignore, "nothing is on its way");
        }
    }

    #[test]
    fn a_repeated_acknowledgement_of_a_single_block_is_never_answered() {
        let mut window = sent(1, 1);
        assert_eq!(window.acknowledged(1), Verdict::Progress);
        window.sent(2, 512, false, vec![]);
        for _ in 0..3 {
            assert_eq!(window.acknowledged(1), Verdict::Ignore);
        }
    }

    #[test]
    fn a_window_is_sent_again_once_and_its_echoes_are_not_answered() {
        let mut window = sent(4, 4);
        assert_eq!(window.acknowledged(0), Verdict::Resend);
        assert_eq!(window.acknowledged(0), Verdict::Ignore);
        assert_eq!(window.acknowledged(4), Verdict::Progress);
        for number in 5..=8 {
            window.sent(number, 512, false, vec![]);
        }
        assert_eq!(window.acknowledged(4), Verdict::Ignore, "an echo of the blocks sent twice");
        assert_eq!(window.acknowledged(8), Verdict::Progress);
        window.sent(9, 512, false, vec![]);
        assert_eq!(window.acknowledged(8), Verdict::Resend);
    }

    #[test]
    fn a_block_lost_within_a_window_is_answered_once() {
        let mut window = sent(8, 8);
        assert_eq!(window.acknowledged(2), Verdict::Progress, "block 3 is lost");
        for number in 3..=10 {
            window.sent(number, 512, false, vec![]);
        }
        for _after in 5..=8 {
            assert_eq!(window.acknowledged(2), Verdict::Ignore);
        }
        assert_eq!(window.acknowledged(10), Verdict::Progress);
        window.sent(11, 512, false, vec![]);
        assert_eq!(window.acknowledged(10), Verdict::Resend);
    }

    #[test]
    fn block_numbers_go_round_and_bytes_are_counted_once() {
        let mut window = Window::new(1);
        for block in 1..=200_000_u32 {
            let [.., high, low] = block.to_be_bytes();
            let number = u16::from_be_bytes([high, low]);
            let short = block == 200_000;
            window.sent(number, 512, short, vec![]);
            window.sent(number, 512, short, vec![]);
            assert!(!window.complete());
            assert_eq!(window.acknowledged(number), Verdict::Progress);
        }
        assert!(window.complete());
        assert_eq!(window.sent_bytes(), 200_000 * 512);
    }
}
