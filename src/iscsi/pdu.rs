//! The basic header segment (BHS) of every PDU, RFC 7143 §11: typed in the initiator, 48 bytes on
//! the wire.
//!
//! The login and the session use it. It knows the fields' positions, not their meaning for a
//! session; it never allocates.

use bytes::Bytes;

/// Bytes in a basic header segment, RFC 7143 §11.2.1.
pub(super) const BHS_BYTES: usize = 48;

/// The reserved tag: no task, or no answer wanted (RFC 7143 §11.2.1.8).
pub(super) const NO_TAG: u32 = 0xffff_ffff;

/// Largest data segment: its length has 24 bits.
pub(super) const DATA_SEGMENT_BYTES_MAX: u32 = 0x00ff_ffff;

/// An encoded basic header segment.
pub(super) type Bhs = [u8; BHS_BYTES];

/// A logical unit number in its 8-byte form (SAM-5).
pub(super) type LunField = [u8; 8];

/// A PDU to send: its header with every field set, and its data, which is never copied.
#[derive(Debug)]
pub(super) struct Pdu {
    pub(super) bhs: Bhs,
    pub(super) data: Bytes,
}

/// Stages of the login, RFC 7143 §11.12.3.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    Security,
    Operational,
    FullFeature,
}

impl Stage {
    const fn bits(self) -> u8 {
        match self {
            Self::Security => 0,
            Self::Operational => 1,
            Self::FullFeature => 3,
        }
    }

    const fn from_bits(bits: u8) -> Option<Self> {
        match bits & 3 {
            0 => Some(Self::Security),
            1 => Some(Self::Operational),
            3 => Some(Self::FullFeature),
            _ => None,
        }
    }
}

/// The direction of a SCSI command's data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Direction {
    None,
    Read,
    Write,
}

/// The sequence numbers in a request, at the moment of sending.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sequence {
    pub(super) cmd_sn: u32,
    pub(super) exp_stat_sn: u32,
}

/// A PDU of the initiator. All but SCSI commands are immediate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RequestPdu {
    /// NOP-Out (§11.18)
    NopOut { lun: LunField, itt: u32, ttt: u32 },
    /// SCSI Command (§11.3)
    Scsi { last: bool, direction: Direction, lun: LunField, itt: u32, bytes: u32, cdb: [u8; 16] },
    /// Task Management Function Request (§11.5); only LOGICAL UNIT RESET is ever needed.
    LogicalUnitReset { lun: LunField, itt: u32 },
    /// Login Request (§11.12)
    Login { transit: Option<Stage>, stage: Stage, isid: [u8; 6], tsih: u16, itt: u32 },
    /// SCSI Data-Out (§11.7)
    DataOut { last: bool, lun: LunField, itt: u32, ttt: u32, data_sn: u32, offset: u32 },
    /// Logout Request (§11.14), always "close the session"
    Logout { itt: u32 },
}

impl RequestPdu {
    /// Encodes the header for this request and `data_bytes` (at most 2^24 - 1) of data.
    pub(super) fn encode(&self, sequence: Sequence, data_bytes: u32) -> Bhs {
        let mut bhs = [0; BHS_BYTES];
        let [_, length @ ..] = data_bytes.to_be_bytes();
        put(&mut bhs, 5, &length);
        put_u32(&mut bhs, 24, sequence.cmd_sn);
        put_u32(&mut bhs, 28, sequence.exp_stat_sn);
        match *self {
            Self::NopOut { lun, itt, ttt } => {
                put(&mut bhs, 0, &[IMMEDIATE, FINAL]);
                put(&mut bhs, 8, &lun);
                put_u32(&mut bhs, 16, itt);
                put_u32(&mut bhs, 20, ttt);
            }
            Self::Scsi { last, direction, lun, itt, bytes, cdb } => {
                let way = match direction {
                    Direction::None => 0,
                    Direction::Read => 0x40,
                    Direction::Write => 0x20,
                };
                put(&mut bhs, 0, &[0x01, final_bit(last) | way | ATTRIBUTE_SIMPLE]);
                put(&mut bhs, 8, &lun);
                put_u32(&mut bhs, 16, itt);
                put_u32(&mut bhs, 20, bytes);
                put(&mut bhs, 32, &cdb);
            }
            Self::LogicalUnitReset { lun, itt } => {
                put(&mut bhs, 0, &[IMMEDIATE | 0x02, FINAL | 5]);
                put(&mut bhs, 8, &lun);
                put_u32(&mut bhs, 16, itt);
                put_u32(&mut bhs, 20, NO_TAG);
            }
            Self::Login { transit, stage, isid, tsih, itt } => {
                let transit = transit.map_or(0, |next| 0x80 | next.bits());
                put(&mut bhs, 0, &[IMMEDIATE | 0x03, transit | stage.bits() << 2]);
                put(&mut bhs, 8, &isid);
                put(&mut bhs, 14, &tsih.to_be_bytes());
                put_u32(&mut bhs, 16, itt);
            }
            Self::DataOut { last, lun, itt, ttt, data_sn, offset } => {
                put(&mut bhs, 0, &[0x05, final_bit(last)]);
                put(&mut bhs, 8, &lun);
                put_u32(&mut bhs, 16, itt);
                put_u32(&mut bhs, 20, ttt);
                // Data-Out has no CmdSN; the field is reserved.
                put_u32(&mut bhs, 24, 0);
                put_u32(&mut bhs, 36, data_sn);
                put_u32(&mut bhs, 40, offset);
            }
            Self::Logout { itt } => {
                put(&mut bhs, 0, &[IMMEDIATE | 0x06, FINAL]);
                put_u32(&mut bhs, 16, itt);
            }
        }
        bhs
    }
}

/// A PDU of the target, with the sequence numbers in every such PDU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ResponsePdu {
    pub(super) stat_sn: u32,
    pub(super) exp_cmd_sn: u32,
    pub(super) max_cmd_sn: u32,
    pub(super) body: ResponseBody,
}

/// The content of a target's PDU by opcode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ResponseBody {
    /// NOP-In (§11.19)
    NopIn { lun: LunField, itt: u32, ttt: u32 },
    /// SCSI Response (§11.4)
    Scsi { itt: u32, response: u8, status: u8, residual: Residual },
    /// Task Management Function Response (§11.6)
    TaskManagement { itt: u32, response: u8 },
    /// Login Response (§11.13)
    Login(LoginResponse),
    /// SCSI Data-In (§11.7)
    DataIn { itt: u32, data_sn: u32, offset: u32, status: Option<(u8, Residual)> },
    /// Logout Response (§11.15)
    Logout { itt: u32, response: u8 },
    /// Ready To Transfer (§11.8)
    R2t(R2t),
    /// Asynchronous Message (§11.9)
    Async { event: u8 },
    /// Reject (§11.17)
    Reject { reason: u8 },
}

/// A Login Response, RFC 7143 §11.13.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct LoginResponse {
    pub(super) itt: u32,
    pub(super) transit: bool,
    pub(super) more: bool,
    pub(super) stage: Option<Stage>,
    pub(super) next_stage: Option<Stage>,
    pub(super) version: u8,
    pub(super) tsih: u16,
    pub(super) class: u8,
    pub(super) detail: u8,
}

/// An R2T, RFC 7143 §11.8.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct R2t {
    pub(super) itt: u32,
    pub(super) ttt: u32,
    pub(super) number: u32,
    pub(super) offset: u32,
    pub(super) bytes: u32,
}

/// Difference between the expected and the transferred data, RFC 7143 §11.4.5.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Residual {
    None,
    /// Bytes that were not transferred (underflow).
    Under(u32),
    /// Bytes beyond the expected length (overflow).
    Over(u32),
}

/// Decodes a header; the error is an opcode that no target may send.
pub(super) fn decode(bhs: &Bhs) -> Result<ResponsePdu, u8> {
    let flags = bhs[1];
    let itt = u32_at(bhs, 16);
    let body = match bhs[0] & 0x3f {
        0x20 => ResponseBody::NopIn { lun: array_at(bhs, 8), itt, ttt: u32_at(bhs, 20) },
        0x21 => ResponseBody::Scsi {
            itt,
            response: bhs[2],
            status: bhs[3],
            residual: residual(bhs, flags),
        },
        0x22 => ResponseBody::TaskManagement { itt, response: bhs[2] },
        0x23 => ResponseBody::Login(LoginResponse {
            itt,
            transit: flags & 0x80 != 0,
            more: flags & 0x40 != 0,
            stage: Stage::from_bits(flags >> 2),
            next_stage: Stage::from_bits(flags),
            version: bhs[3],
            tsih: u16::from_be_bytes(array_at(bhs, 14)),
            class: bhs[36],
            detail: bhs[37],
        }),
        0x25 => ResponseBody::DataIn {
            itt,
            data_sn: u32_at(bhs, 36),
            offset: u32_at(bhs, 40),
            status: (flags & 1 != 0).then(|| (bhs[3], residual(bhs, flags))),
        },
        0x26 => ResponseBody::Logout { itt, response: bhs[2] },
        0x31 => ResponseBody::R2t(R2t {
            itt,
            ttt: u32_at(bhs, 20),
            number: u32_at(bhs, 36),
            offset: u32_at(bhs, 40),
            bytes: u32_at(bhs, 44),
        }),
        0x32 => ResponseBody::Async { event: bhs[36] },
        0x3f => ResponseBody::Reject { reason: bhs[2] },
        opcode => return Err(opcode),
    };
    Ok(ResponsePdu {
        stat_sn: u32_at(bhs, 24),
        exp_cmd_sn: u32_at(bhs, 28),
        max_cmd_sn: u32_at(bhs, 32),
        body,
    })
}

/// The lengths in bytes of the additional header segments and of the data (4-byte words on the wire
/// for the former).
pub(super) fn lengths(bhs: &Bhs) -> (usize, u32) {
    (usize::from(bhs[4]) * 4, u32::from_be_bytes([0, bhs[5], bhs[6], bhs[7]]))
}

const IMMEDIATE: u8 = 0x40;
const FINAL: u8 = 0x80;
const ATTRIBUTE_SIMPLE: u8 = 1;

const fn final_bit(last: bool) -> u8 {
    if last { FINAL } else { 0 }
}

fn residual(bhs: &Bhs, flags: u8) -> Residual {
    match (flags & 0x06, u32_at(bhs, 44)) {
        (0x02, bytes @ 1..) => Residual::Under(bytes),
        (0x04, bytes @ 1..) => Residual::Over(bytes),
        _ => Residual::None,
    }
}

fn put(bhs: &mut Bhs, at: usize, bytes: &[u8]) {
    if let Some(field) = bhs.get_mut(at..at + bytes.len()) {
        field.copy_from_slice(bytes);
    }
}

fn put_u32(bhs: &mut Bhs, at: usize, value: u32) {
    put(bhs, at, &value.to_be_bytes());
}

/// Copies the field at `at`, a constant of the caller within the header.
fn array_at<const N: usize>(bhs: &Bhs, at: usize) -> [u8; N] {
    bhs.get(at..).and_then(|rest| rest.first_chunk()).copied().unwrap_or([0; N])
}

fn u32_at(bhs: &Bhs, at: usize) -> u32 {
    u32::from_be_bytes(array_at(bhs, at))
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};
    use proptest::prelude::*;

    use super::*;
    use crate::model::ids::hex;

    const SEQUENCE: Sequence = Sequence { cmd_sn: 0x0102_0304, exp_stat_sn: 0x0506_0708 };
    const LUN: LunField = [0, 1, 0, 0, 0, 0, 0, 0];

    fn check(request: RequestPdu, data_bytes: u32, golden: &Expect) {
        let bhs = request.encode(SEQUENCE, data_bytes);
        let lines: Vec<String> = bhs.chunks(16).map(hex).collect();
        golden.assert_eq(&lines.join("\n"));
    }

    #[test]
    fn requests_have_their_fields_where_rfc_7143_puts_them() {
        let mut cdb = [0; 16];
        (cdb[0], cdb[15]) = (0x8a, 0xee);
        check(
            RequestPdu::Scsi {
                last: false,
                direction: Direction::Write,
                lun: LUN,
                itt: 7,
                bytes: 0x10_0000,
                cdb,
            },
            0x2000,
            &expect![[r"
                01210000000020000001000000000000
                00000007001000000102030405060708
                8a0000000000000000000000000000ee"]],
        );
        check(
            RequestPdu::DataOut {
                last: true,
                lun: LUN,
                itt: 7,
                ttt: 9,
                data_sn: 3,
                offset: 0x4000,
            },
            0x2000,
            &expect![[r"
                05800000000020000001000000000000
                00000007000000090000000005060708
                00000000000000030000400000000000"]],
        );
        check(
            RequestPdu::Login {
                transit: Some(Stage::FullFeature),
                stage: Stage::Operational,
                isid: [0x80, 1, 2, 3, 4, 5],
                tsih: 6,
                itt: 1,
            },
            100,
            &expect![[r"
                43870000000000648001020304050006
                00000001000000000102030405060708
                00000000000000000000000000000000"]],
        );
        check(
            RequestPdu::NopOut { lun: LUN, itt: NO_TAG, ttt: 5 },
            0,
            &expect![[r"
                40800000000000000001000000000000
                ffffffff000000050102030405060708
                00000000000000000000000000000000"]],
        );
        check(
            RequestPdu::LogicalUnitReset { lun: LUN, itt: 8 },
            0,
            &expect![[r"
                42850000000000000001000000000000
                00000008ffffffff0102030405060708
                00000000000000000000000000000000"]],
        );
        check(
            RequestPdu::Logout { itt: 8 },
            0,
            &expect![[r"
                46800000000000000000000000000000
                00000008000000000102030405060708
                00000000000000000000000000000000"]],
        );
    }

    fn bhs(text: &str) -> Bhs {
        let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
        let bytes: Vec<u8> = digits
            .chunks(2)
            .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
            .collect();
        bytes.try_into().unwrap()
    }

    #[test]
    fn responses_are_read_from_where_rfc_7143_puts_their_fields() {
        let numbers = "00000011 00000012 00000013";
        let r2t = bhs(&format!(
            "31800000 00000000 0001000000000000 00000007 00000009 {numbers} 00000002 00040000 \
             00020000"
        ));
        let body =
            ResponseBody::R2t(R2t { itt: 7, ttt: 9, number: 2, offset: 0x4_0000, bytes: 0x2_0000 });
        assert_eq!(
            decode(&r2t),
            Ok(ResponsePdu { stat_sn: 0x11, exp_cmd_sn: 0x12, max_cmd_sn: 0x13, body })
        );

        let data_in = bhs(&format!(
            "25830002 00000004 0000000000000000 00000007 ffffffff {numbers} 00000001 00000200 \
             00000004"
        ));
        let body = ResponseBody::DataIn {
            itt: 7,
            data_sn: 1,
            offset: 0x200,
            status: Some((2, Residual::Under(4))),
        };
        assert_eq!(decode(&data_in).unwrap().body, body);

        let scsi = bhs(&format!(
            "21840102 00000014 0000000000000000 00000007 00000000 {numbers} 00000000 00000000 \
             00000009"
        ));
        let body =
            ResponseBody::Scsi { itt: 7, response: 1, status: 2, residual: Residual::Over(9) };
        assert_eq!(decode(&scsi).unwrap().body, body);
        assert_eq!(lengths(&scsi), (0, 0x14));

        let login = bhs(&format!(
            "23870000 00000000 80010203 04050006 00000001 00000000 {numbers} 02010000 00000000 \
             00000000"
        ));
        let ResponseBody::Login(login) = decode(&login).unwrap().body else { panic!() };
        assert_eq!(
            (login.stage, login.next_stage),
            (Some(Stage::Operational), Some(Stage::FullFeature))
        );
        assert_eq!(
            (login.transit, login.more, login.tsih, login.class, login.detail),
            (true, false, 6, 2, 1)
        );

        let mut initiators = [0; 48];
        initiators[0] = 0x01;
        assert_eq!(decode(&initiators), Err(0x01));
    }

    proptest! {
        #[test]
        fn decoding_never_panics_on_any_bytes(
            bytes in proptest::collection::vec(any::<u8>(), BHS_BYTES),
        ) {
            let bhs: Bhs = bytes.try_into().unwrap();
            lengths(&bhs);
            if let Ok(response) = decode(&bhs) {
                prop_assert_eq!(response.stat_sn, u32_at(&bhs, 24));
            }
        }
    }
}
