//! Names and numbers that identify things: nodes, network interfaces, operations and digests.
//!
//! Used everywhere. A value of these types is well formed; nothing here looks anything up.

use std::{fmt, str::FromStr, sync::Arc};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

/// Longest RFC 1123 label, in bytes.
const LABEL_BYTES_MAX: usize = 63;

/// A node's name: an RFC 1123 label (1 to 63 of `a-z 0-9 -`, no hyphen at either end). It is the
/// stem of the spec's file name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct NodeName(Arc<str>);

impl NodeName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for NodeName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        if text.is_empty() || text.len() > LABEL_BYTES_MAX {
            Err(format!(
                "node name `{text}`: {} characters, must have 1 to {LABEL_BYTES_MAX}",
                text.len()
            ))
        } else if !text.bytes().all(allowed) || text.starts_with('-') || text.ends_with('-') {
            Err(format!(
                "node name `{text}`: must be lower-case letters, digits and inner hyphens (RFC \
                 1123)"
            ))
        } else {
            Ok(Self(text.into()))
        }
    }
}

impl TryFrom<String> for NodeName {
    type Error = String;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<NodeName> for String {
    fn from(name: NodeName) -> Self {
        name.as_str().to_owned()
    }
}

impl fmt::Display for NodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A network interface's 48-bit hardware address; written lower-case with colons, read with colons
/// or hyphens in either case.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MacAddr([u8; 6]);

impl MacAddr {
    /// Makes an address of six octets, in transmission order.
    pub const fn new(octets: [u8; 6]) -> Self {
        Self(octets)
    }

    /// The six octets, in transmission order.
    pub const fn octets(self) -> [u8; 6] {
        self.0
    }

    /// `52-54-00-00-00-01`, the form pxelinux uses in file names.
    pub fn hyphenated(self) -> String {
        self.to_string().replace(':', "-")
    }
}

/// Splits `52:54:00:12:34:56`, `52-54-00-12-34-56` or Cisco's `5254.0012.3456` into its pairs.
fn pairs(text: &str) -> Vec<&str> {
    if text.contains('.') {
        text.split('.')
            .flat_map(|four| four.split_at_checked(2).map_or([four, ""], |(one, two)| [one, two]))
            .collect()
    } else {
        text.split([':', '-']).collect()
    }
}

impl FromStr for MacAddr {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = || format!("`{text}` is not a MAC address, which looks like 52:54:00:12:34:56");
        let mut octets = [0; 6];
        let mut parts = pairs(text).into_iter();
        for octet in &mut octets {
            let part = parts
                .next()
                .filter(|p| p.len() == 2 && p.bytes().all(|b| b.is_ascii_hexdigit()))
                .ok_or_else(wrong)?;
            *octet = u8::from_str_radix(part, 16).map_err(|_| wrong())?;
        }
        match parts.next() {
            None if octets[0] & 1 == 0 && octets != [0; 6] => Ok(Self(octets)),
            None => Err(format!(
                "`{text}` is a multicast or empty address, not one network interface's"
            )),
            Some(_) => Err(wrong()),
        }
    }
}

impl TryFrom<String> for MacAddr {
    type Error = String;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<MacAddr> for String {
    fn from(mac: MacAddr) -> Self {
        mac.to_string()
    }
}

impl fmt::Display for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [first, rest @ ..] = self.0;
        write!(f, "{first:02x}")?;
        rest.iter().try_for_each(|octet| write!(f, ":{octet:02x}"))
    }
}

/// Identifies one started operation. A result with another id than the awaited one is stale and
/// changes nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct OpId(pub u64);

impl OpId {
    /// The lowest number.
    pub const MIN: Self = Self(0);
    /// The highest number.
    pub const MAX: Self = Self(u64::MAX);
}

impl fmt::Display for OpId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "op-{}", self.0)
    }
}

/// A digest with its algorithm, written `sha256:<hex>`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest(HashBytes);

/// The bytes of a digest. SHA-256, the usual one, needs no heap memory: each node has several.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum HashBytes {
    Sha256([u8; 32]),
    Sha512(Box<[u8; 64]>),
}

/// The digest algorithms hostler accepts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DigestAlgorithm {
    /// SHA-256, 64 hex digits.
    Sha256,
    /// SHA-512, 128 hex digits.
    Sha512,
}

impl DigestAlgorithm {
    const fn name(self) -> &'static str {
        match self {
            Self::Sha256 => "sha256",
            Self::Sha512 => "sha512",
        }
    }

    const fn bytes(self) -> usize {
        match self {
            Self::Sha256 => 32,
            Self::Sha512 => 64,
        }
    }
}

impl Digest {
    /// Makes a digest of a hash's bytes; `None` if their number is wrong for the algorithm.
    pub fn from_bytes(algorithm: DigestAlgorithm, hash: &[u8]) -> Option<Self> {
        Some(Self(match algorithm {
            DigestAlgorithm::Sha256 => HashBytes::Sha256(hash.try_into().ok()?),
            DigestAlgorithm::Sha512 => HashBytes::Sha512(Box::new(hash.try_into().ok()?)),
        }))
    }

    /// Computes the SHA-256 of these bytes.
    pub fn of(bytes: &[u8]) -> Self {
        Self(HashBytes::Sha256(Sha256::digest(bytes).into()))
    }

    /// The digest's algorithm.
    pub fn algorithm(&self) -> DigestAlgorithm {
        match self.0 {
            HashBytes::Sha256(_) => DigestAlgorithm::Sha256,
            HashBytes::Sha512(_) => DigestAlgorithm::Sha512,
        }
    }

    /// The digest itself.
    pub fn bytes(&self) -> &[u8] {
        match &self.0 {
            HashBytes::Sha256(hash) => hash,
            HashBytes::Sha512(hash) => &**hash,
        }
    }
}

impl FromStr for Digest {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (name, digits) = text.split_once(':').ok_or_else(|| {
            "no algorithm; write sha256:<64 hex digits> or sha512:<128 hex digits>".to_owned()
        })?;
        let algorithm = match name {
            "sha256" => DigestAlgorithm::Sha256,
            "sha512" => DigestAlgorithm::Sha512,
            _ => return Err(format!("unknown algorithm `{name}`; use sha256 or sha512")),
        };
        let need = 2 * algorithm.bytes();
        if let Some(odd) = digits.chars().find(|c| !c.is_ascii_hexdigit()) {
            return Err(format!("`{odd}` is not a hex digit"));
        }
        Self::from_bytes(algorithm, &unhex(digits))
            .filter(|_| digits.len() == need)
            .ok_or_else(|| format!("{} hex digits, {name} needs {need}", digits.len()))
    }
}

impl TryFrom<String> for Digest {
    type Error = String;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> Self {
        digest.to_string()
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.algorithm().name(), hex(self.bytes()))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Digest({self})")
    }
}

/// Encodes bytes in lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    let digit = |value: u8| char::from_digit(u32::from(value), 16).unwrap_or_default();
    let mut digits = String::with_capacity(2 * bytes.len());
    for byte in bytes {
        digits.push(digit(byte >> 4));
        digits.push(digit(byte & 15));
    }
    digits
}

/// Decodes hexadecimal digits; an unpaired last digit is dropped.
fn unhex(digits: &str) -> Vec<u8> {
    let pairs = digits.as_bytes().as_chunks::<2>().0.iter();
    let pairs = pairs.map(|pair| str::from_utf8(pair).unwrap_or_default());
    pairs.map(|pair| u8::from_str_radix(pair, 16).unwrap_or_default()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_name_is_an_rfc_1123_label() {
        for good in ["a", "edge-07", "0", &"x".repeat(63)] {
            assert_eq!(good.parse::<NodeName>().unwrap().as_str(), good);
        }
        for bad in ["", "-a", "a-", "A", "a.b", "a_b", "a/b", "é", &"x".repeat(64)] {
            assert!(bad.parse::<NodeName>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_mac_address_reads_every_usual_spelling_and_refuses_what_no_nic_has() {
        let mac: MacAddr = "52:54:00:AB:cd:01".parse().unwrap();
        assert_eq!(mac, "52-54-00-ab-cd-01".parse().unwrap());
        assert_eq!(mac, "5254.00ab.cd01".parse().unwrap());
        assert_eq!(
            (mac.to_string().as_str(), mac.hyphenated().as_str()),
            ("52:54:00:ab:cd:01", "52-54-00-ab-cd-01")
        );
        for bad in [
            "",
            "52:54:00:ab:cd",
            "52:54:00:ab:cd:01:02",
            "5254.00ab.cd01.02",
            "52.54.00.ab.cd.01",
            "525.400ab.cd01",
            "52:54:00:ab:cd:+1",
            "01:00:5e:00:00:01",
            "00:00:00:00:00:00",
        ] {
            assert!(bad.parse::<MacAddr>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_digest_says_how_many_digits_it_needs() {
        let error = format!("sha256:{}", "a".repeat(63)).parse::<Digest>().unwrap_err();
        assert_eq!(error, "63 hex digits, sha256 needs 64");
        let digest: Digest = format!("sha512:{}", "AB".repeat(64)).parse().unwrap();
        assert_eq!(digest.to_string(), format!("sha512:{}", "ab".repeat(64)));
        assert_eq!(Digest::from_bytes(DigestAlgorithm::Sha256, &[0; 31]), None);
    }
}
