//! Passwords and keys, which logs never show and which are wiped from memory when dropped.
//!
//! Used wherever a secret is held. `expose` is the only access to the text, so that a reviewer can
//! search for it.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use subtle::ConstantTimeEq;
use zeroize::ZeroizeOnDrop;

use super::ids::hex;

/// A password or other secret text. `Debug` hides it; there is no `Display`.
#[derive(Clone, Serialize, Deserialize, ZeroizeOnDrop)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    /// Wraps a secret text.
    pub fn new(text: String) -> Self {
        Self(text)
    }

    /// The text, for the one place that must send it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl PartialEq for Secret {
    fn eq(&self, other: &Self) -> bool {
        self.0.as_bytes().ct_eq(other.0.as_bytes()).into()
    }
}

impl Eq for Secret {}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// The key of one attempt: 256 random bits, compared in constant time, by which the ramdisk proves
/// that this attempt booted it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Secret", into = "Secret")]
pub struct AttemptKey(Secret);

impl AttemptKey {
    /// Makes a key of 32 random bytes.
    pub fn from_bytes(random: &[u8; 32]) -> Self {
        Self(Secret::new(hex(random)))
    }

    /// The key as 64 lower-case hex digits, for the boot menu and the `Authorization` header.
    pub fn expose(&self) -> &str {
        self.0.expose()
    }
}

impl FromStr for AttemptKey {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Secret::new(text.to_owned()).try_into()
    }
}

/// Moves the text, so that no copy stays in memory.
impl TryFrom<Secret> for AttemptKey {
    type Error = &'static str;

    fn try_from(text: Secret) -> Result<Self, Self::Error> {
        let lower_hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        let is_key = |text: &str| text.len() == 64 && text.bytes().all(lower_hex);
        if is_key(text.expose()) {
            Ok(Self(text))
        } else {
            Err("an attempt key has 64 lower-case hex digits")
        }
    }
}

impl From<AttemptKey> for Secret {
    fn from(key: AttemptKey) -> Self {
        key.0
    }
}

impl fmt::Debug for AttemptKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AttemptKey(..)")
    }
}

/// The token of one installation: 256 random bits, by which its system says that it is up, and
/// nothing else.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct BootToken(AttemptKey);

impl BootToken {
    /// A token from 32 random bytes.
    pub fn from_bytes(random: &[u8; 32]) -> Self {
        Self(AttemptKey::from_bytes(random))
    }

    /// 64 lower-case hex digits, for the URL on the config drive.
    pub fn expose(&self) -> &str {
        self.0.expose()
    }
}

impl FromStr for BootToken {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse().map(Self)
    }
}

impl fmt::Debug for BootToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("BootToken(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_output_never_shows_a_secret() {
        let secret = Secret::new("hunter2".to_owned());
        let key = AttemptKey::from_bytes(&[0xab; 32]);
        let token = BootToken::from_bytes(&[0xab; 32]);
        let shown = format!("{secret:?} {key:?} {token:?} {:#?}", Some((&secret, &key)));
        assert!(!shown.contains("hunter2") && !shown.contains("abab"), "{shown}");
    }

    #[test]
    fn a_key_survives_its_text_form_and_nothing_else_is_one() {
        let key = AttemptKey::from_bytes(&[0x5a; 32]);
        assert_eq!(key.expose().parse::<AttemptKey>(), Ok(key));
        for bad in [String::new(), "5a".repeat(31), "5A".repeat(32), "5a".repeat(33)] {
            assert!(bad.parse::<AttemptKey>().is_err(), "{bad:?}");
        }
    }
}
