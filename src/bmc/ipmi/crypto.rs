//! Cryptography of the two cipher suites: keyed hashes, session keys, AES-CBC with IPMI's padding.
//!
//! The handshake and the session use it. It must never compare a check value except in constant
//! time, nor generate random bytes: its callers pass them in.

use aes::{
    Aes128,
    cipher::{BlockModeDecrypt, BlockModeEncrypt, KeyIvInit, block_padding::NoPadding},
};
use hmac::{Hmac, KeyInit, Mac};
use sha1::Sha1;
use sha2::Sha256;
use subtle::ConstantTimeEq;
use zeroize::{Zeroize, ZeroizeOnDrop};

use crate::model::spec::CipherSuite;

/// Bytes of an AES block and of an initialisation vector.
pub(super) const AES_BLOCK_BYTES: usize = 16;

/// The algorithms of a suite in the open session request: authentication, integrity,
/// confidentiality (IPMI 2.0 table 22-20).
pub(super) const fn algorithms(suite: CipherSuite) -> [u8; 3] {
    match suite {
        CipherSuite::Sha1 => [1, 1, 1],
        CipherSuite::Sha256 => [3, 4, 1],
    }
}

/// Length in bytes of the check value of a session's packets and of RAKP message 4 (IPMI 2.0
/// §13.28.1, §13.28.4).
pub(super) const fn check_bytes(suite: CipherSuite) -> usize {
    match suite {
        CipherSuite::Sha1 => 12,
        CipherSuite::Sha256 => 16,
    }
}

/// The suite's HMAC over the concatenated parts, untruncated: 20 or 32 bytes.
pub(super) fn hmac(suite: CipherSuite, key: &[u8], parts: &[&[u8]]) -> Vec<u8> {
    match suite {
        CipherSuite::Sha1 => keyed::<Hmac<Sha1>>(key, parts),
        CipherSuite::Sha256 => keyed::<Hmac<Sha256>>(key, parts),
    }
}

fn keyed<M: Mac + KeyInit>(key: &[u8], parts: &[&[u8]]) -> Vec<u8> {
    let mut mac = <M as KeyInit>::new_from_slice(key)
        .unwrap_or_else(|_| unreachable!("HMAC takes a key of any length"));
    for part in parts {
        mac.update(part);
    }
    mac.finalize().into_bytes().to_vec()
}

/// Compares a BMC's check value, which may be truncated, with the expected one in constant time.
pub(super) fn matches(expected: &[u8], sent: &[u8]) -> bool {
    expected.ct_eq(sent).into()
}

/// A session's keys (IPMI 2.0 §13.32), wiped when dropped.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub(super) struct Keys {
    #[zeroize(skip)]
    suite: CipherSuite,
    integrity: Vec<u8>,
    confidentiality: [u8; AES_BLOCK_BYTES],
}

impl Keys {
    /// Derives K1 and K2 from the session integrity key.
    pub(super) fn derive(suite: CipherSuite, session_integrity_key: &[u8]) -> Self {
        let mut k2 = hmac(suite, session_integrity_key, &[&[2; 20]]);
        let mut confidentiality = [0; AES_BLOCK_BYTES];
        for (to, from) in confidentiality.iter_mut().zip(&k2) {
            *to = *from;
        }
        k2.zeroize();
        Self { suite, integrity: hmac(suite, session_integrity_key, &[&[1; 20]]), confidentiality }
    }

    /// The check value of a packet's bytes from the authentication type on.
    pub(super) fn check_value(&self, covered: &[u8]) -> Vec<u8> {
        let mut value = hmac(self.suite, &self.integrity, &[covered]);
        value.truncate(check_bytes(self.suite));
        value
    }

    /// Encrypts a message; the result begins with the initialisation vector (IPMI 2.0 §13.29).
    pub(super) fn encrypt(&self, message: &[u8], iv: [u8; AES_BLOCK_BYTES]) -> Vec<u8> {
        let mut padded = message.to_vec();
        // IPMI's padding: 01 02 03 …, then the number of these bytes, up to a multiple of the
        // block.
        let mut pad = 0;
        while !(padded.len() + 1).is_multiple_of(AES_BLOCK_BYTES) {
            pad += 1;
            padded.push(pad);
        }
        padded.push(pad);
        let length = padded.len();
        let mut out = iv.to_vec();
        out.extend_from_slice(
            cbc::Encryptor::<Aes128>::new(&self.confidentiality.into(), &iv.into())
                .encrypt_padded::<NoPadding>(&mut padded, length)
                .unwrap_or_else(|_| unreachable!("the message was padded to whole blocks")),
        );
        out
    }

    /// Decrypts a payload; `None` if its length or padding is invalid.
    pub(super) fn decrypt(&self, payload: &[u8]) -> Option<Vec<u8>> {
        let (iv, enciphered) = payload.split_first_chunk::<AES_BLOCK_BYTES>()?;
        let mut message = enciphered.to_vec();
        cbc::Decryptor::<Aes128>::new(&self.confidentiality.into(), &(*iv).into())
            .decrypt_padded::<NoPadding>(&mut message)
            .ok()?;
        let pad = usize::from(message.pop()?);
        message.truncate(message.len().checked_sub(pad)?);
        Some(message)
    }
}

impl std::fmt::Debug for Keys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Keys(..)")
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::model::ids::hex;

    #[test]
    fn the_keyed_hashes_are_those_of_rfc_2202_and_rfc_4231() {
        let data: [&[u8]; 2] = [b"what do ya want ", b"for nothing?"];
        assert_eq!(
            hex(&hmac(CipherSuite::Sha1, b"Jefe", &data)),
            "effcdf6ae5eb2fa2d27416d5f184df9c259a7c79"
        );
        assert_eq!(
            hex(&hmac(CipherSuite::Sha256, b"Jefe", &data)),
            "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"
        );
    }

    #[test]
    fn a_check_value_of_another_length_never_matches() {
        assert!(matches(b"abc", b"abc"));
        for other in [b"".as_slice(), b"ab", b"abd", b"abcd"] {
            assert!(!matches(b"abc", other));
        }
    }

    fn suites() -> impl Strategy<Value = CipherSuite> {
        prop_oneof![Just(CipherSuite::Sha1), Just(CipherSuite::Sha256)]
    }

    proptest! {
        #[test]
        fn what_was_enciphered_is_deciphered(suite in suites(), message: Vec<u8>, iv: [u8; 16]) {
            let keys = Keys::derive(suite, b"key");
            let payload = keys.encrypt(&message, iv);
            prop_assert_eq!(payload.len() % AES_BLOCK_BYTES, 0);
            prop_assert_eq!(keys.decrypt(&payload), Some(message));
        }

        #[test]
        fn deciphering_never_panics_on_any_bytes(suite in suites(), bytes: Vec<u8>) {
            let _ignored = Keys::derive(suite, b"key").decrypt(&bytes);
        }
    }
}
