//! Serial over LAN: a machine's output in packets, which the BMC repeats until it gets an
//! acknowledgement (IPMI 2.0 §15.9).
//!
//! The console uses it. It does no I/O. It must never return the same characters twice, acknowledge
//! characters that it did not return, nor send the machine a character.

/// Highest number of a packet with characters; 0 is a packet without (IPMI 2.0 table 15-2).
const SEQUENCE_MAX: u8 = 0x0f;
/// The most characters that one acknowledgement can count.
const CHARACTERS_MAX: usize = u8::MAX as usize;
/// Status bits of a BMC's packet: the console is closed; characters were lost on their way to the
/// BMC.
const DEACTIVATED: u8 = 0x10;
const OVERRUN: u8 = 0x08;

/// The acknowledgement of a packet: packet number 0, the acknowledged number, the number of
/// accepted characters, no operation.
pub(super) type Acknowledgement = [u8; 4];

/// The position in a console's stream.
#[derive(Debug, Default)]
pub(super) struct Stream {
    /// The number of the last packet with characters; 0 before the first.
    sequence: u8,
    /// The number of characters taken from that packet.
    taken: usize,
}

/// The new content of a packet.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct SolData<'a> {
    /// Characters that no earlier packet brought.
    pub(super) text: &'a [u8],
    /// Whether characters were lost before `text`.
    pub(super) gap: bool,
    /// Whether the BMC has closed the console.
    pub(super) over: bool,
    /// The acknowledgement that the BMC waits for.
    pub(super) acknowledgement: Option<Acknowledgement>,
}

impl Stream {
    /// Decodes a payload; `None` if it is cut short. A repeated packet may hold more characters
    /// than before.
    pub(super) fn take<'a>(&mut self, payload: &'a [u8]) -> Option<SolData<'a>> {
        let ([sequence, _acknowledged, _accepted, status], text) = payload.split_first_chunk()?;
        let sequence = sequence & SEQUENCE_MAX;
        let (overrun, over) = (status & OVERRUN != 0, status & DEACTIVATED != 0);
        if sequence == 0 {
            return Some(SolData { text: &[], gap: overrun, over, acknowledgement: None });
        }
        let text = text.get(..CHARACTERS_MAX).unwrap_or(text);
        let again = sequence == self.sequence;
        let skipped = self.sequence != 0 && sequence != self.sequence % SEQUENCE_MAX + 1;
        let known = if again { self.taken } else { 0 };
        (self.sequence, self.taken) = (sequence, known.max(text.len()));
        let accepted = u8::try_from(text.len()).unwrap_or(u8::MAX);
        Some(SolData {
            text: text.get(known..).unwrap_or_default(),
            gap: !again && (overrun || skipped),
            over,
            acknowledgement: Some([0, sequence, accepted, 0]),
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn packet(sequence: u8, status: u8, text: &str) -> Vec<u8> {
        [&[sequence, 0, 0, status], text.as_bytes()].concat()
    }

    #[test]
    fn characters_are_taken_once_and_acknowledged_each_time() {
        let mut stream = Stream::default();
        let mut take = |sequence, text| {
            let packet = packet(sequence, 0, text);
            let SolData { text, gap, acknowledgement, .. } = stream.take(&packet).unwrap();
            assert!(!gap);
            (String::from_utf8(text.to_vec()).unwrap(), acknowledgement.unwrap())
        };
        assert_eq!(take(7, "boot"), ("boot".to_owned(), [0, 7, 4, 0]));
        assert_eq!(take(7, "boot"), (String::new(), [0, 7, 4, 0]));
        assert_eq!(take(7, "booting"), ("ing".to_owned(), [0, 7, 7, 0]));
        assert_eq!(take(7, "boot"), (String::new(), [0, 7, 4, 0]));
        assert_eq!(take(7, "booting!"), ("!".to_owned(), [0, 7, 8, 0]));
        assert_eq!(take(8, "boot"), ("boot".to_owned(), [0, 8, 4, 0]));
    }

    #[test]
    fn what_is_missing_is_noticed() {
        let mut stream = Stream::default();
        let mut gap = |sequence, status| stream.take(&packet(sequence, status, "x")).unwrap().gap;
        assert_eq!([gap(14, 0), gap(15, 0), gap(1, 0), gap(2, 0)], [false; 4]);
        assert!(gap(4, 0), "3 is missing");
        assert!(gap(5, OVERRUN) && !gap(5, OVERRUN), "told once");
        assert!(gap(0, OVERRUN));
        assert!(!gap(6, 0));
    }

    #[test]
    fn a_packet_without_characters_is_not_answered() {
        let mut stream = Stream::default();
        for (status, over) in [(0, false), (0x60, false), (DEACTIVATED, true)] {
            let packet = packet(0, status, "");
            let nothing = SolData { text: &[], gap: false, over, acknowledgement: None };
            assert_eq!(stream.take(&packet), Some(nothing));
        }
    }

    #[test]
    fn no_more_is_taken_than_can_be_acknowledged() {
        let long = packet(1, 0, &"x".repeat(300));
        let brought = Stream::default().take(&long).map(|b| (b.text.len(), b.acknowledgement));
        assert_eq!(brought, Some((255, Some([0, 1, 255, 0]))));
    }

    proptest! {
        #[test]
        fn taking_never_panics_on_any_bytes(payloads: Vec<Vec<u8>>) {
            let mut stream = Stream::default();
            for payload in payloads {
                if let Some(brought) = stream.take(&payload) {
                    prop_assert!(brought.text.len() <= payload.len());
                }
            }
        }

        #[test]
        fn whatever_comes_again_the_text_is_received_once(
            pieces in prop::collection::vec(("[a-z]{1,20}", 0..3_usize, 0..20_usize), 0..40),
        ) {
            let mut stream = Stream::default();
            let (mut received, mut printed) = (String::new(), String::new());
            for (number, (text, again, shorter)) in pieces.iter().enumerate() {
                let sequence = u8::try_from(number % 15).unwrap() + 1;
                // The BMC sends perhaps a part of the packet, and then the whole packet, perhaps
                // several times.
                let part = &text[..text.len().saturating_sub(*shorter)];
                let whole = std::iter::repeat_n(text.as_str(), again + 1);
                for text in [part].into_iter().chain(whole) {
                    let packet = packet(sequence, 0, text);
                    let brought = stream.take(&packet).unwrap();
                    prop_assert!(!brought.gap);
                    received.push_str(std::str::from_utf8(brought.text).unwrap());
                }
                printed.push_str(text);
            }
            prop_assert_eq!(received, printed);
        }
    }
}
