//! Parses requests: the datagram, the file name and the options (RFC 1350, 2347, 2348, 2349, 7440).
//!
//! The server uses it for every datagram on the well-known port. Pure. All input comes from
//! strangers: nothing in it may cause a panic, and no number is used before it is limited.

use std::{ffi::OsString, os::unix::ffi::OsStringExt as _, time::Duration};

use tftpd::{ErrorCode, OptionType, Packet, TransferOption};

use super::super::{name::clean_bytes, refusal::Refusal};

/// Default limit of a block, in bytes. Larger ones only make more IP fragments, and the loss of one
/// fragment loses the block.
pub(super) const BLOCK_BYTES_MAX: u16 = 8192;
/// Largest requested block that fits one Ethernet packet, in bytes.
const BLOCK_BYTES_OF_ETHERNET: u16 = 1500 - 28 - 4;
/// Smallest block RFC 2348 allows, in bytes.
const BLOCK_BYTES_MIN: u64 = 8;
/// The block size without negotiation, in bytes (RFC 1350).
pub(super) const BLOCK_BYTES_DEFAULT: u16 = 512;
/// Most blocks in flight.
const WINDOW_BLOCKS_MAX: u16 = 64;
/// Most bytes in flight: a transfer needs about four times as much memory, and there may be
/// hundreds.
const WINDOW_BYTES_MAX: u64 = 128 << 10;
/// Longest and default time before a window is repeated, in seconds.
const TIMEOUT_SECONDS_MAX: u64 = 5;

/// A valid read request.
#[derive(Debug, PartialEq)]
pub(super) struct ReadRequest {
    /// The file's name, see [`clean_bytes`]; not always UTF-8.
    pub(super) name: OsString,
    /// The requested options that are known.
    pub(super) options: Vec<TransferOption>,
}

/// The reason of a refusal, with the message for the client's console.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum TftpRefusal {
    #[error("request not understood")]
    NotUnderstood,
    #[error("only octet (binary) transfers are served")]
    NotOctet,
    #[error(transparent)]
    File(#[from] Refusal),
}

impl TftpRefusal {
    /// Converts the refusal to an ERROR packet.
    pub(super) fn to_packet(self) -> Packet {
        let code = match self {
            Self::NotUnderstood | Self::NotOctet => ErrorCode::IllegalOperation,
            Self::File(Refusal::ReadOnly | Refusal::NotAllowed) => ErrorCode::AccessViolation,
            Self::File(Refusal::NotFound) => ErrorCode::FileNotFound,
            Self::File(Refusal::Busy) => ErrorCode::NotDefined,
        };
        Packet::Error { code, msg: self.to_string() }
    }
}

/// Parses a datagram to the well-known port. `None` if it is no request: such a datagram gets no
/// answer, so that two servers cannot answer each other for ever.
pub(super) fn parse(datagram: &[u8]) -> Option<Result<ReadRequest, TftpRefusal>> {
    if !matches!(datagram, [0, 1 | 2, ..]) {
        return None;
    }
    let (opcode, fields) = datagram.split_at(2);
    Some(if opcode == [0, 1] { read_request(fields) } else { Err(Refusal::ReadOnly.into()) })
}

/// Parses the fields. The crate's `Packet` would refuse a whole request for one option.
fn read_request(fields: &[u8]) -> Result<ReadRequest, TftpRefusal> {
    // Some clients omit the last NUL.
    let fields = fields.strip_suffix(b"\0").unwrap_or(fields);
    let mut fields = fields.split(|byte| *byte == 0);
    let (Some(name), Some(mode)) = (fields.next(), fields.next()) else {
        return Err(TftpRefusal::NotUnderstood);
    };
    if !mode.eq_ignore_ascii_case(b"octet") {
        return Err(TftpRefusal::NotOctet);
    }
    let mut options = Vec::new();
    while let (Some(name), Some(value)) = (fields.next(), fields.next()) {
        options.extend(option(name, value));
    }
    Ok(ReadRequest { name: OsString::from_vec(clean_bytes(name)?), options })
}

/// Parses an option; `None` for an unknown option or an invalid value, which the answer omits (RFC
/// 2347).
fn option(name: &[u8], value: &[u8]) -> Option<TransferOption> {
    let name = str::from_utf8(name).ok()?.to_ascii_lowercase();
    let value = str::from_utf8(value).ok()?;
    // `parse` would accept a sign.
    let digits = value.bytes().all(|byte| byte.is_ascii_digit());
    let value = value.parse().ok().filter(|_| digits)?;
    Some(TransferOption { option: name.parse().ok()?, value })
}

/// The negotiated terms of a transfer.
#[derive(Debug, PartialEq)]
pub(super) struct Terms {
    /// Bytes in a block, at least 8.
    pub(super) block_bytes: u16,
    /// Blocks in flight, 1 to 64.
    pub(super) window_blocks: u16,
    /// Time before a window is repeated, 1 to 5 s.
    pub(super) timeout: Duration,
    /// The granted options, each at most once. If empty, the client expects no OACK.
    pub(super) granted: Vec<TransferOption>,
}

/// Limits of the path to a client.
#[derive(Clone, Copy, Debug)]
pub(super) struct PathLimits {
    /// Largest allowed block, in bytes.
    pub(super) block_bytes_max: u16,
    /// Largest block in one packet, in bytes, if known.
    pub(super) block_bytes_in_one_packet: Option<u16>,
}

impl PathLimits {
    /// The block size for a request. A client whose requested block fits one Ethernet packet gets
    /// one that fits one packet of this path. A client that requests more accepts fragments.
    fn block_bytes(self, requested: u64) -> u16 {
        let block_bytes = at_most(requested, self.block_bytes_max);
        match self.block_bytes_in_one_packet {
            Some(fits) if block_bytes <= BLOCK_BYTES_OF_ETHERNET => {
                block_bytes.min(fits.max(BLOCK_BYTES_DEFAULT))
            }
            Some(_) | None => block_bytes,
        }
    }
}

impl Terms {
    /// Negotiates: grants reasonable options. The answer omits others, which tells the client that
    /// they are not granted (RFC 2347).
    pub(super) fn agree(requested: &[TransferOption], file_bytes: u64, path: PathLimits) -> Self {
        let first = |kind| requested.iter().find(|o| o.option == kind).map(|o| o.value);
        let block_bytes = first(OptionType::BlockSize)
            .filter(|value| *value >= BLOCK_BYTES_MIN)
            .map(|value| path.block_bytes(value));
        let room = WINDOW_BYTES_MAX / u64::from(block_bytes.unwrap_or(BLOCK_BYTES_DEFAULT));
        let window_blocks = first(OptionType::WindowSize)
            .filter(|value| *value > 0)
            .map(|value| at_most(value.min(room), WINDOW_BLOCKS_MAX));
        // RFC 2349: the answer must repeat the requested value, so that no other can be offered.
        let timeout =
            first(OptionType::Timeout).filter(|value| (1..=TIMEOUT_SECONDS_MAX).contains(value));
        let file_bytes = first(OptionType::TransferSize).map(|_| file_bytes);

        let mut granted = Vec::new();
        for (option, value) in [
            (OptionType::BlockSize, block_bytes.map(u64::from)),
            (OptionType::WindowSize, window_blocks.map(u64::from)),
            (OptionType::Timeout, timeout),
            (OptionType::TransferSize, file_bytes),
        ] {
            granted.extend(value.map(|value| TransferOption { option, value }));
        }
        Self {
            block_bytes: block_bytes.unwrap_or(BLOCK_BYTES_DEFAULT),
            window_blocks: window_blocks.unwrap_or(1),
            timeout: Duration::from_secs(timeout.unwrap_or(TIMEOUT_SECONDS_MAX)),
            granted,
        }
    }
}

fn at_most(value: u64, limit: u16) -> u16 {
    u16::try_from(value).unwrap_or(limit).min(limit)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn rrq(name: &str, mode: &str, options: &[(&str, &str)]) -> Vec<u8> {
        let mut bytes = vec![0, 1];
        for text in [name, mode].into_iter().chain(options.iter().flat_map(|(k, v)| [*k, *v])) {
            bytes.extend(text.as_bytes());
            bytes.push(0);
        }
        bytes
    }

    fn agree(options: &[(&str, &str)]) -> Terms {
        let request = parse(&rrq("x", "octet", options)).unwrap().unwrap();
        Terms::agree(&request.options, 1000, ANY_PATH)
    }

    const ANY_PATH: PathLimits =
        PathLimits { block_bytes_max: BLOCK_BYTES_MAX, block_bytes_in_one_packet: None };

    #[test]
    fn every_request_that_cannot_be_served_gets_an_answer_and_nothing_else_does() {
        let mut write = rrq("x", "octet", &[]);
        write[1] = 2;
        assert_eq!(parse(&write), Some(Err(Refusal::ReadOnly.into())));
        assert_eq!(parse(&rrq("x", "netascii", &[])), Some(Err(TftpRefusal::NotOctet)));
        assert_eq!(parse(b"\0\x01no end"), Some(Err(TftpRefusal::NotUnderstood)));
        assert_eq!(parse(b"\0\x01no mode\0"), Some(Err(TftpRefusal::NotUnderstood)));
        for other in [&b""[..], b"\0", b"\0\x03\0\x01data", b"\0\x04\0\x01", b"\0\x05\0\0e\0"] {
            assert_eq!(parse(other), None, "{other:?}");
        }
    }

    /// Invariant (netboot): No TFTP option and no byte of a name keeps a machine from an existing
    /// file.
    #[test]
    fn an_option_that_is_not_understood_is_as_if_it_had_not_been_asked_for() {
        let understood = |more: &[u8]| {
            let datagram = [&rrq("x", "OCTET", &[("blksize", "1024")])[..], more].concat();
            let request = parse(&datagram).unwrap().unwrap();
            assert_eq!(request.name, "x");
            request.options.iter().map(|option| option.value).collect::<Vec<_>>()
        };
        for odd in [
            &b"tsize\0\0"[..],
            b"tsize\0abc\0",
            b"tsize\0-1\0",
            b"tsize\0+1\0",
            b"tsize\x001456 \0",
            b"tsize\099999999999999999999999\0",
            b"tsize\0\xff\xfe\0",
            b"\xff\xfe\x001\0",
            b"unheard\0of\0",
            b"\0\0",
            b"tsize\0",
            b"tsize",
            b"\0",
        ] {
            assert_eq!(understood(odd), [1024], "{}", odd.escape_ascii());
            // An option after a whole one is understood.
            if odd.split(|byte| *byte == 0).count() == 3 {
                assert_eq!(understood(&[odd, b"timeout\x002"].concat()), [1024, 2]);
            }
        }
    }

    #[test]
    fn a_name_need_not_be_text() {
        let request = parse(b"\0\x01/boot\\\xfcber\xff\0octet").unwrap().unwrap();
        assert_eq!(request.name.as_encoded_bytes(), b"boot/\xfcber\xff");
    }

    #[test]
    fn options_are_granted_within_limits() {
        let terms = agree(&[("blksize", "65464"), ("WindowSize", "65535")]);
        assert_eq!((terms.block_bytes, terms.window_blocks), (8192, 16));
        let terms = agree(&[("blksize", "1428"), ("windowsize", "16"), ("timeout", "2")]);
        assert_eq!((terms.block_bytes, terms.window_blocks), (1428, 16));
        assert_eq!(terms.timeout, Duration::from_secs(2));
        let terms = agree(&[("tsize", "0")]);
        let size = TransferOption { option: OptionType::TransferSize, value: 1000 };
        assert_eq!(terms.granted, [size]);
    }

    #[test]
    fn a_block_is_no_larger_than_allowed_nor_than_the_packets_of_a_path_that_is_known() {
        let block = |requested: u16, block_bytes_max, block_bytes_in_one_packet| {
            let requested =
                [TransferOption { option: OptionType::BlockSize, value: requested.into() }];
            let path = PathLimits { block_bytes_max, block_bytes_in_one_packet };
            Terms::agree(&requested, 1, path).block_bytes
        };
        assert_eq!(block(1468, 1024, None), 1024);
        assert_eq!(block(1468, BLOCK_BYTES_MAX, Some(1388)), 1388);
        assert_eq!(block(1024, BLOCK_BYTES_MAX, Some(1388)), 1024);
        assert_eq!(block(1468, BLOCK_BYTES_MAX, Some(100)), 512, "what needs no option");
        assert_eq!(block(8192, BLOCK_BYTES_MAX, Some(1388)), 8192, "it takes fragments");
        assert_eq!(block(8192, 1468, Some(1388)), 1388);
    }

    #[test]
    fn an_option_outside_its_standard_is_left_out_of_the_answer() {
        let requested =
            [("blksize", "7"), ("windowsize", "0"), ("timeout", "6"), ("utimeout", "9")];
        let terms = agree(&requested);
        assert_eq!(terms.granted, []);
        assert_eq!((terms.block_bytes, terms.window_blocks), (512, 1));
        assert_eq!(terms.timeout, Duration::from_secs(5));
    }

    #[test]
    fn an_option_given_twice_is_answered_once() {
        let terms = agree(&[("blksize", "1024"), ("blksize", "2048")]);
        assert_eq!((terms.granted.len(), terms.block_bytes), (1, 1024));
    }

    proptest! {
        #[test]
        fn never_panics_on_any_bytes(
            bytes in proptest::collection::vec(any::<u8>(), 0..600),
            code in 1u8..3,
        ) {
            parse(&bytes);
            let request = [&[0, code][..], &bytes].concat();
            prop_assert!(parse(&request).is_some());
        }

        #[test]
        fn no_option_makes_a_transfer_large(block: u64, window: u64, timeout: u64) {
            let requested = [
                TransferOption { option: OptionType::BlockSize, value: block },
                TransferOption { option: OptionType::WindowSize, value: window },
                TransferOption { option: OptionType::Timeout, value: timeout },
                TransferOption { option: OptionType::WindowWait, value: timeout },
            ];
            let terms = Terms::agree(&requested, 1, ANY_PATH);
            let bytes = u64::from(terms.block_bytes) * u64::from(terms.window_blocks);
            prop_assert!(terms.block_bytes >= 8 && terms.window_blocks >= 1);
            prop_assert!(bytes <= WINDOW_BYTES_MAX);
            prop_assert!((1..=5).contains(&terms.timeout.as_secs()));
        }
    }
}
