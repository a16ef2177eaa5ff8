//! CHAP with MD5, RFC 1994 and RFC 7143 §12.1.3: credentials and the one computation.
//!
//! Called by the login. The secret is exposed here and nowhere else in this module.
//!
//! MD5 is the only algorithm offered: it is the one RFC 7143 requires, and the number 7 means
//! SHA-256 to LIO but SHA-1 to tgtd.

use md5::{Digest as _, Md5};

use crate::model::secret::Secret;

/// CHAP credentials.
#[derive(Clone, Debug)]
pub struct Chap {
    /// The name we give.
    pub username: String,
    /// The secret we prove to know.
    pub secret: Secret,
    /// Mutual CHAP: the name the target must give and the secret it must prove to know. It must
    /// differ from `secret`.
    pub mutual: Option<(String, Secret)>,
}

/// The algorithm's number in `CHAP_A`.
pub(super) const MD5: &str = "5";

/// Longest challenge a target may set, in bytes (RFC 7143 §12.1.3: 1024).
pub(super) const CHALLENGE_BYTES_MAX: usize = 1024;

/// The response that proves knowledge of `secret`.
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
