//! Who the agent is to the ramdisk: a self-signed certificate, known by its SHA-256 alone.
//!
//! Called once at start. The pin travels in the boot menu, so names and dates in the certificate mean nothing: it is valid from the epoch
//! on, because the clocks at an edge site lie. It must never replace a certificate that is there.

use std::{
    fmt, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use rcgen::{CertificateParams, DnType, KeyPair, date_time_ymd};
use sha2::{Digest as _, Sha256};
use tokio_rustls::rustls::{
    self, ServerConfig,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
};
use zeroize::Zeroizing;

use crate::{atomic_file, model::ids::hex, regular_file};

const NAME: &str = "hostler";
/// How the line above a certificate begins that tells whether it is whole. Readers of PEM pass it over (RFC 7468 §2).
const CHECKSUM: &str = "checksum of this certificate: sha256:";
/// Much more than a certificate or its key has.
const PEM_BYTES_MAX: u64 = 64 << 10;

/// The agent's certificate, ready to serve.
#[derive(Clone)]
pub struct Identity {
    pub(super) tls: Arc<ServerConfig>,
    pin: String,
}

/// Why there is no usable certificate.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// A file cannot be read or written.
    #[error("{}: {source}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// What is there is not a certificate with its key.
    #[error("{} and its key: {reason}; remove both files to have new ones made", path.display())]
    Unusable {
        /// The certificate.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// No certificate could be made.
    #[error("cannot make a certificate: {0}")]
    Make(#[from] rcgen::Error),
}

impl Identity {
    /// Reads `callback.crt` and `callback.key` from the state directory, or makes them when there is no certificate yet.
    pub fn load_or_create(state_dir: &Path) -> Result<Self, IdentityError> {
        let certificate = state_dir.join("callback.crt");
        let key = state_dir.join("callback.key");
        if !certificate.try_exists().map_err(|source| file_error(&certificate, source))? {
            create(&certificate, &key)?;
        }
        load(&certificate, &key)
    }

    /// SHA-256 of the certificate's DER: 64 lower-case hex digits, for the ramdisk's command line.
    pub fn pin(&self) -> &str {
        &self.pin
    }
}

/// The pin only: the rest holds the private key.
impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity").field("pin", &self.pin).finish_non_exhaustive()
    }
}

fn create(certificate: &Path, key: &Path) -> Result<(), IdentityError> {
    let mut params = CertificateParams::new([NAME.to_owned()])?;
    params.distinguished_name.push(DnType::CommonName, NAME);
    params.not_before = date_time_ymd(1970, 1, 1);
    params.not_after = date_time_ymd(9999, 12, 31);
    let pair = KeyPair::generate()?;
    let signed = params.self_signed(&pair)?;
    // The key first: a certificate on disk always has its key, whenever the power goes.
    let key_pem = Zeroizing::new(pair.serialize_pem());
    let pem = format!("{CHECKSUM}{}\n{}", hex(&Sha256::digest(signed.der())), signed.pem());
    for (path, pem) in [(key, &*key_pem), (certificate, &pem)] {
        atomic_file::replace(path, 0o600, pem.as_bytes())
            .map_err(|source| file_error(path, source))?;
    }
    Ok(())
}

fn load(certificate: &Path, key: &Path) -> Result<Identity, IdentityError> {
    let read = |path: &Path| {
        regular_file::read(path, PEM_BYTES_MAX).map_err(|source| file_error(path, source))
    };
    let unusable = |reason: String| IdentityError::Unusable { path: certificate.into(), reason };
    let pem = read(certificate)?;
    let der = CertificateDer::from_pem_slice(&pem).map_err(|error| unusable(error.to_string()))?;
    let key_pem = Zeroizing::new(read(key)?);
    let key =
        PrivateKeyDer::from_pem_slice(&key_pem).map_err(|error| unusable(error.to_string()))?;
    let pin = hex(&Sha256::digest(&der));
    let text = String::from_utf8_lossy(&pem);
    let checksum = text.lines().find_map(|line| line.strip_prefix(CHECKSUM));
    // The version before wrote none. Ramdisks of that time know the certificate by this very hash.
    if checksum.is_some_and(|checksum| checksum != pin) {
        return Err(unusable("the certificate does not match its checksum".to_owned()));
    }
    let tls = tls_config(der, key).map_err(|error| unusable(error.to_string()))?;
    Ok(Identity { tls: Arc::new(tls), pin })
}

fn tls_config(
    certificate: CertificateDer<'static>,
    key: PrivateKeyDer<'static>,
) -> Result<ServerConfig, rustls::Error> {
    let provider = Arc::new(ring::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

fn file_error(path: &Path, source: io::Error) -> IdentityError {
    IdentityError::File { path: path.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt as _};

    use super::*;

    #[test]
    fn the_certificate_survives_a_restart_and_only_its_owner_can_read_the_key() {
        let dir = tempfile::tempdir().unwrap();
        let first = Identity::load_or_create(dir.path()).unwrap();
        let second = Identity::load_or_create(dir.path()).unwrap();
        assert_eq!(first.pin(), second.pin());
        assert_eq!((first.pin().len(), first.pin().to_lowercase().as_str()), (64, first.pin()));
        let mode = fs::metadata(dir.path().join("callback.key")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn two_agents_have_two_certificates() {
        let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let pin = |dir: &Path| Identity::load_or_create(dir).unwrap().pin().to_owned();
        assert_ne!(pin(one.path()), pin(two.path()));
    }

    #[test]
    fn a_certificate_without_its_own_key_is_refused_and_kept() {
        let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        Identity::load_or_create(one.path()).unwrap();
        Identity::load_or_create(two.path()).unwrap();
        let certificate = fs::read(one.path().join("callback.crt")).unwrap();
        let key = one.path().join("callback.key");
        for other in [fs::read(two.path().join("callback.key")).unwrap(), b"junk".to_vec()] {
            fs::write(&key, other).unwrap();
            let error = Identity::load_or_create(one.path()).unwrap_err().to_string();
            assert!(error.contains("remove both files"), "{error}");
        }
        fs::remove_file(&key).unwrap();
        let error = Identity::load_or_create(one.path()).unwrap_err().to_string();
        assert!(error.contains("callback.key"), "{error}");
        assert_eq!(fs::read(one.path().join("callback.crt")).unwrap(), certificate);
    }

    #[test]
    fn a_damaged_certificate_or_key_is_refused_by_name_or_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let pin = Identity::load_or_create(dir.path()).unwrap().pin().to_owned();
        for name in ["callback.crt", "callback.key"] {
            let path = dir.path().join(name);
            let whole = fs::read(&path).unwrap();
            let mut refused = 0;
            for at in 0..whole.len() {
                for bytes in [whole[..at].to_vec(), flipped(&whole, at)] {
                    fs::write(&path, bytes).unwrap();
                    match Identity::load_or_create(dir.path()) {
                        Ok(identity) => assert_eq!(identity.pin(), pin, "{name}: {at}"),
                        Err(error) => {
                            refused += 1;
                            assert!(error.to_string().contains("callback."), "{error}");
                        }
                    }
                }
            }
            assert!(refused > whole.len() / 2, "{name}: {refused}");
            fs::write(&path, whole).unwrap();
        }
    }

    fn flipped(whole: &[u8], at: usize) -> Vec<u8> {
        let mut bytes = whole.to_vec();
        bytes[at] ^= 1 << (at % 8);
        bytes
    }

    #[test]
    fn a_key_left_alone_by_a_crash_is_replaced_with_a_pair() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("callback.key"), "half").unwrap();
        Identity::load_or_create(dir.path()).unwrap();
    }
}
