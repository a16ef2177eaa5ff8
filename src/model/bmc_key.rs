//! The BMC key (`K_g`) of IPMI 2.0's two-key login, as an administrator writes it.
//!
//! The agent reads it from its file; the IPMI adapter uses it. It must never be shown.

use std::{fmt, str::FromStr};

use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

/// The bytes of a BMC key; shorter keys are padded with zeros (IPMI 2.0 §13.31).
pub const BMC_KEY_BYTES: usize = 20;

/// A BMC key of 20 bytes, written as text or, after `0x`, in hexadecimal. `Debug` hides it.
#[derive(Clone)]
pub struct BmcKey(Zeroizing<[u8; BMC_KEY_BYTES]>);

impl BmcKey {
    /// The 20 bytes.
    pub fn expose(&self) -> &[u8; BMC_KEY_BYTES] {
        &self.0
    }

    /// The bytes before the padding; `None` if one of them is zero, which no environment variable
    /// and no command line can hold.
    pub fn expose_without_zeros(&self) -> Option<&[u8]> {
        let end = self.0.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
        self.0.get(..end).filter(|key| !key.contains(&0))
    }
}

impl FromStr for BmcKey {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const FORM: &str = "a BMC key has 1 to 20 characters, or 0x and 2 to 40 hex digits";
        let mut key = Zeroizing::new([0; BMC_KEY_BYTES]);
        let bytes = match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
            Some(digits) => Zeroizing::new(unhex(digits).ok_or(FORM)?),
            None => Zeroizing::new(text.as_bytes().to_vec()),
        };
        if bytes.len() > BMC_KEY_BYTES || bytes.is_empty() {
            return Err(FORM);
        }
        if bytes.iter().all(|byte| *byte == 0) {
            return Err("a BMC key of zeros means that there is none; leave out bmc.kg_file");
        }
        for (to, from) in key.iter_mut().zip(bytes.iter()) {
            *to = *from;
        }
        Ok(Self(key))
    }
}

fn unhex(digits: &str) -> Option<Vec<u8>> {
    let digit = |digit: &u8| char::from(*digit).to_digit(16).and_then(|d| u8::try_from(d).ok());
    digits
        .as_bytes()
        .chunks(2)
        .map(|pair| {
            let [high, low] = pair else { return None };
            Some(digit(high)? << 4 | digit(low)?)
        })
        .collect()
}

impl PartialEq for BmcKey {
    fn eq(&self, other: &Self) -> bool {
        self.0.ct_eq(other.0.as_slice()).into()
    }
}

impl Eq for BmcKey {}

impl fmt::Debug for BmcKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("BmcKey(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(text: &str) -> Option<Vec<u8>> {
        text.parse::<BmcKey>().ok().map(|key| key.expose().to_vec())
    }

    #[test]
    fn a_bmc_key_is_text_or_hexadecimal_and_is_filled_up_with_zeros() {
        let filled = |start: &[u8]| [start, &vec![0; 20 - start.len()]].concat();
        assert_eq!(key("site-bmc-key"), Some(filled(b"site-bmc-key")));
        assert_eq!(key("0x7369746500ff"), Some(filled(b"site\0\xff")));
        assert_eq!(key(&format!("0x{}", "aB".repeat(20))), Some(vec![0xab; 20]));
        assert_eq!(key(&"k".repeat(20)), Some(vec![b'k'; 20]));
        let long = format!("0x{}", "ab".repeat(21));
        for bad in ["", "0x", "0x0", "0xzz", "0x0000", &"k".repeat(21), &long] {
            assert_eq!(key(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn a_bmc_key_is_not_shown_and_only_without_inner_zeros_fit_for_an_environment() {
        let key: BmcKey = "hunter2".parse().unwrap();
        assert_eq!(format!("{key:?}"), "BmcKey(..)");
        assert_eq!(key.expose_without_zeros(), Some(&b"hunter2"[..]));
        let inner: BmcKey = "0x410042".parse().unwrap();
        assert_eq!(inner.expose_without_zeros(), None);
        assert_ne!(key, inner);
    }
}
