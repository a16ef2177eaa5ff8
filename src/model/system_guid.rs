//! A system's UUID as its BMC reports it: sixteen bytes in an order that depends on the vendor.
//!
//! The IPMI subsystem requests it; the core compares it with the UUID that the ramdisk read from
//! the machine's firmware (SMBIOS, DSP0134 §7.2.1).

use std::fmt;

use serde::{Deserialize, Serialize};

use super::ids::hex;

/// The bytes of the response to Get System GUID (IPMI 2.0 §22.14).
///
/// IPMI calls the bytes opaque, and BMCs send the machine's UUID in one of three orders, which
/// `ipmitool mc guid` knows, too. A machine matches if its UUID is one of these three readings of
/// the bytes:
///
/// | order | 00112233-4455-6677-8899-aabbccddeeff is sent as | difference |
/// |---|---|---|
/// | IPMI 2.0 §20.8 | `ffeeddccbbaa99887766554433221100` | all bytes reversed |
/// | SMBIOS 2.6, §7.2.1 | `33221100554477668899aabbccddeeff` | three fields reversed |
/// | RFC 4122 §4.1.2 | `00112233445566778899aabbccddeeff` | none |
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SystemGuid([u8; 16]);

impl SystemGuid {
    /// Wraps the bytes; `None` if all are 00 or FF, because the system has no UUID (DSP0134
    /// §7.2.1).
    pub fn new(sent: [u8; 16]) -> Option<Self> {
        let blank = [0, 0xff].contains(&sent[0]) && sent.iter().all(|byte| *byte == sent[0]);
        (!blank).then_some(Self(sent))
    }

    /// Whether a reading is the UUID `text` in Linux's notation, in upper or lower case.
    pub fn is(&self, text: &str) -> bool {
        self.readings().contains(&text.to_ascii_lowercase())
    }

    /// The three readings, in the order of the table.
    pub fn readings(&self) -> [String; 3] {
        let mut reversed = self.0;
        reversed.reverse();
        let mut fields_reversed = self.0;
        for field in [0..4, 4..6, 6..8] {
            fields_reversed.get_mut(field).unwrap_or_default().reverse();
        }
        [reversed, fields_reversed, self.0].map(hyphenated)
    }
}

fn hyphenated(uuid: [u8; 16]) -> String {
    let hex = hex(&uuid);
    let field = |range| hex.get(range).unwrap_or_default();
    [field(0..8), field(8..12), field(12..16), field(16..20), field(20..32)].join("-")
}

/// Shows the bytes in hexadecimal, in the order of the response.
impl fmt::Display for SystemGuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex(&self.0))
    }
}

impl fmt::Debug for SystemGuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SystemGuid({self})")
    }
}

impl From<SystemGuid> for String {
    fn from(guid: SystemGuid) -> Self {
        guid.to_string()
    }
}

impl TryFrom<String> for SystemGuid {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        let is_hex = text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        let number = u128::from_str_radix(&text, 16).ok().filter(|_| is_hex);
        number
            .and_then(|number| Self::new(number.to_be_bytes()))
            .ok_or("a system GUID has 32 hex digits, not all 0 or f")
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const UUID: &str = "00112233-4455-6677-8899-aabbccddeeff";

    fn sent(hex: &str) -> SystemGuid {
        hex.to_owned().try_into().unwrap()
    }

    #[test]
    fn a_uuid_is_known_again_in_each_of_the_three_orders_and_in_no_other() {
        for known in [
            "ffeeddccbbaa99887766554433221100",
            "33221100554477668899aabbccddeeff",
            "00112233445566778899aabbccddeeff",
        ] {
            assert!(sent(known).is(UUID) && sent(known).is(&UUID.to_uppercase()), "{known}");
        }
        for other in [
            // The SMBIOS bytes reversed, halves and words exchanged, one digit off.
            "ffeeddccbbaa99886677445500112233",
            "8899aabbccddeeff0011223344556677",
            "11003322554477669988bbaaddccffee",
            "00112233445566778899aabbccddeefe",
        ] {
            assert!(!sent(other).is(UUID), "{other}");
        }
        let guid = sent("00112233445566778899aabbccddeeff");
        for malformed in ["", "00112233445566778899aabbccddeeff", &UUID[1..], &format!("{UUID} ")] {
            assert!(!guid.is(malformed), "{malformed:?}");
        }
    }

    #[test]
    fn a_system_without_a_uuid_has_no_guid() {
        assert_eq!((SystemGuid::new([0; 16]), SystemGuid::new([0xff; 16])), (None, None));
        for text in [&"0".repeat(32), &"f".repeat(32), "", "+0112233445566778899aabbccddeeff", UUID]
        {
            assert!(SystemGuid::try_from(text.to_owned()).is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn it_survives_its_text_form_and_means_at_most_three_uuids(
            bytes: [u8; 16], other: [u8; 16],
        ) {
            let guid = SystemGuid::new(bytes).unwrap();
            prop_assert_eq!(SystemGuid::try_from(guid.to_string()), Ok(guid));
            let readings = guid.readings();
            prop_assert!(readings.iter().all(|reading| guid.is(reading)));
            for text in SystemGuid::new(other).unwrap().readings() {
                prop_assert_eq!(guid.is(&text), readings.contains(&text));
            }
        }
    }
}
