//! CHAP with MD5, RFC 1994 and RFC 7143 §12.1.3: credentials and the one computation.
//!
//! The login uses it. No other file of this module exposes the secret.
//!
//! hostler offers only MD5: RFC 7143 requires it, and the algorithm number 7 means SHA-256 to LIO
//! but SHA-1 to tgtd.

use md5::{Digest as _, Md5};

use crate::model::secret::Secret;

/// CHAP credentials.
#[derive(Clone, Debug)]
pub struct Chap {
    /// The initiator's CHAP name.
    pub username: String,
    /// The secret that the initiator proves to know.
    pub secret: Secret,
    /// Mutual CHAP: the target's CHAP name, and the secret that the target must prove to know. It
    /// must differ from `secret`.
    pub mutual: Option<(String, Secret)>,
}

/// The number of MD5 in `CHAP_A`.
pub(super) const MD5: &str = "5";

/// Longest challenge of a target, in bytes (RFC 7143 §12.1.3: 1024).
pub(super) const CHALLENGE_BYTES_MAX: usize = 1024;

/// The CHAP response that proves knowledge of `secret`.
pub(super) fn response(identifier: u8, secret: &Secret, challenge: &[u8]) -> [u8; 16] {
    Md5::new()
        .chain_update([identifier])
        .chain_update(secret.expose())
        .chain_update(challenge)
        .finalize()
        .into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ids::hex;

    #[test]
    fn the_response_is_the_md5_of_identifier_secret_and_challenge() {
        // printf '\x2asecret-of-12+\x01\x02\x03\x04' | md5sum
        let secret = Secret::new("secret-of-12+".to_owned());
        assert_eq!(
            hex(&response(0x2a, &secret, &[1, 2, 3, 4])),
            "68f33fd577b90a77ba577f0817f463a5"
        );
    }
}
