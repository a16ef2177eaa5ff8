//! The agent's self-signed certificate, which deploy ramdisks verify by its SHA-256 alone.
//!
//! Called once at start. The boot menu has the pin, so that names and dates in the certificate mean
//! nothing: it is valid from the epoch on, because clocks at edge sites are wrong. This module must
//! never replace a whole certificate, nor keep an agent from starting because of a damaged one: a
//! new certificate only fails the attempts under way.

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
use tracing::{info, warn};
use zeroize::Zeroizing;

use crate::{
    atomic_file,
    model::ids::hex,
    regular_file::{self, NotRegular},
};

const NAME: &str = "hostler";
/// Begins the line above a certificate with its checksum. Readers of PEM skip that line (RFC 7468
/// §2).
const CHECKSUM: &str = "checksum of this certificate: sha256:";
/// Much more, in bytes, than a certificate or its key has.
const PEM_BYTES_MAX: u64 = 64 << 10;

/// The agent's certificate, ready to serve.
#[derive(Clone)]
pub struct TlsIdentity {
    pub(super) tls: Arc<ServerConfig>,
    pin: String,
}

/// The reason why there is no certificate.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the names of the fields say it")]
pub enum TlsIdentityError {
    /// A file cannot be read or written.
    #[error("{}: {source}", path.display())]
    File { path: PathBuf, source: io::Error },
    /// The files are not a certificate with its key.
    #[error("{} and its key: {reason}", path.display())]
    Unusable { path: PathBuf, reason: String },
    /// No certificate could be made.
    #[error("cannot make a certificate: {0}")]
    Make(#[from] rcgen::Error),
}

/// The log line about a new certificate.
const NEW_IDENTITY: &str =
    "a new callback certificate is made; a deploy ramdisk that was started before does not know it";

impl TlsIdentityError {
    /// Whether the files are useless, so that replacing them loses nothing.
    fn is_damage(&self) -> bool {
        match self {
            Self::Unusable { .. } => true,
            Self::File { source, .. } => {
                NotRegular::is_cause_of(source) || source.kind() == io::ErrorKind::InvalidData
            }
            Self::Make(_) => false,
        }
    }

    fn is_absence(&self) -> bool {
        matches!(self, Self::File { source, .. } if source.kind() == io::ErrorKind::NotFound)
    }
}

/// Moves a useless file aside, if there is one, to make room for a new one.
fn set_aside(path: &Path) -> Result<(), TlsIdentityError> {
    match std::fs::symlink_metadata(path) {
        Ok(_) => {
            let fate = atomic_file::keep_aside(path);
            warn!(path = %path.display(), fate, "of no use as a certificate or key");
            // A regular file is replaced later; anything else would be an obstacle.
            atomic_file::clear_irregular(path).map(drop).map_err(|source| file_error(path, source))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(source) => Err(file_error(path, source)),
    }
}

impl TlsIdentity {
    /// Reads `callback.crt` and `callback.key` from the state directory, or makes new ones if they
    /// are missing or damaged. Damaged files are kept under another name and logged.
    pub fn load_or_create(state_dir: &Path) -> Result<Self, TlsIdentityError> {
        let certificate = state_dir.join("callback.crt");
        let key = state_dir.join("callback.key");
        match load(&certificate, &key) {
            Err(error) if error.is_damage() => {
                for path in [&certificate, &key] {
                    set_aside(path)?;
                }
                warn!(%error, "{NEW_IDENTITY}");
            }
            Err(error) if error.is_absence() => info!("{NEW_IDENTITY}"),
            loaded => return loaded,
        }
        create(&certificate, &key)?;
        load(&certificate, &key)
    }

    /// The SHA-256 of the certificate's DER, as 64 lower-case hex digits, for the ramdisk's command
    /// line.
    pub fn pin(&self) -> &str {
        &self.pin
    }
}

/// Shows the pin only: the rest holds the private key.
impl fmt::Debug for TlsIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsIdentity").field("pin", &self.pin).finish_non_exhaustive()
    }
}

fn create(certificate: &Path, key: &Path) -> Result<(), TlsIdentityError> {
    let mut params = CertificateParams::new([NAME.to_owned()])?;
    params.distinguished_name.push(DnType::CommonName, NAME);
    params.not_before = date_time_ymd(1970, 1, 1);
    params.not_after = date_time_ymd(9999, 12, 31);
    let pair = KeyPair::generate()?;
    let signed = params.self_signed(&pair)?;
    // The key first: after a power cut, a certificate on disk always has its key.
    let key_pem = Zeroizing::new(pair.serialize_pem());
    let pem = format!("{CHECKSUM}{}\n{}", hex(&Sha256::digest(signed.der())), signed.pem());
    for (path, pem) in [(key, &*key_pem), (certificate, &pem)] {
        atomic_file::replace(path, 0o600, pem.as_bytes())
            .map_err(|source| file_error(path, source))?;
    }
    Ok(())
}

fn load(certificate: &Path, key: &Path) -> Result<TlsIdentity, TlsIdentityError> {
    let read = |path: &Path| {
        regular_file::read(path, PEM_BYTES_MAX).map_err(|source| file_error(path, source))
    };
    let unusable = |reason: String| TlsIdentityError::Unusable { path: certificate.into(), reason };
    let pem = read(certificate)?;
    let der = CertificateDer::from_pem_slice(&pem).map_err(|error| unusable(error.to_string()))?;
    let key_pem = Zeroizing::new(read(key)?);
    let key =
        PrivateKeyDer::from_pem_slice(&key_pem).map_err(|error| unusable(error.to_string()))?;
    let pin = hex(&Sha256::digest(&der));
    let text = String::from_utf8_lossy(&pem);
    let checksum = text.lines().find_map(|line| line.strip_prefix(CHECKSUM));
    // Earlier versions wrote no checksum. A ramdisk that is running pins the certificate by this
    // hash.
    if checksum.is_some_and(|checksum| checksum != pin) {
        return Err(unusable("the certificate does not match its checksum".to_owned()));
    }
    let tls = tls_config(der, key).map_err(|error| unusable(error.to_string()))?;
    Ok(TlsIdentity { tls: Arc::new(tls), pin })
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

fn file_error(path: &Path, source: io::Error) -> TlsIdentityError {
    TlsIdentityError::File { path: path.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt as _};

    use super::*;

    #[test]
    fn the_certificate_survives_a_restart_and_only_its_owner_can_read_the_key() {
        let dir = tempfile::tempdir().unwrap();
        let first = TlsIdentity::load_or_create(dir.path()).unwrap();
        let second = TlsIdentity::load_or_create(dir.path()).unwrap();
        assert_eq!(first.pin(), second.pin());
        assert_eq!((first.pin().len(), first.pin().to_lowercase().as_str()), (64, first.pin()));
        let mode = fs::metadata(dir.path().join("callback.key")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn two_agents_have_two_certificates() {
        let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let pin = |dir: &Path| TlsIdentity::load_or_create(dir).unwrap().pin().to_owned();
        assert_ne!(pin(one.path()), pin(two.path()));
    }

    type Spoil<'a> = &'a dyn Fn(&Path);

    /// Invariant (fair): A damaged callback certificate, or a lock that is no file, is named and
    /// delays nobody.
    #[test]
    fn a_certificate_that_is_damaged_or_not_of_its_key_is_kept_aside_and_a_new_one_made() {
        let other = tempfile::tempdir().unwrap();
        TlsIdentity::load_or_create(other.path()).unwrap();
        let others_key = other.path().join("callback.key");
        let spoil: [(&str, Spoil<'_>); 5] = [
            ("callback.key", &|path| assert!(fs::copy(&others_key, path).unwrap() > 0)),
            ("callback.key", &|path| fs::write(path, "junk").unwrap()),
            ("callback.crt", &|path| {
                fs::write(path, flipped(&fs::read(path).unwrap(), 200)).unwrap();
            }),
            ("callback.crt", &|path| fs::write(path, "").unwrap()),
            ("callback.crt", &|path| {
                fs::remove_file(path).unwrap();
                fs::create_dir_all(path.join("inside")).unwrap();
            }),
        ];
        for (name, spoil) in spoil {
            let dir = tempfile::tempdir().unwrap();
            let before = TlsIdentity::load_or_create(dir.path()).unwrap();
            let path = dir.path().join(name);
            spoil(&path);
            let spoilt = fs::read(&path).ok();
            let made = TlsIdentity::load_or_create(dir.path()).unwrap();
            assert_ne!(made.pin(), before.pin(), "{name}");
            let aside = dir.path().join(format!("{name}.bad-1"));
            assert_eq!(fs::read(&aside).ok(), spoilt, "{name}");
            assert!(aside.exists(), "{name}");
            assert_eq!(
                TlsIdentity::load_or_create(dir.path()).unwrap().pin(),
                made.pin(),
                "{name}"
            );
        }
    }

    /// Invariant (fair): A damaged callback certificate, or a lock that is no file, is named and
    /// delays nobody.
    #[test]
    fn one_of_the_two_files_alone_gets_a_new_certificate() {
        for name in ["callback.crt", "callback.key"] {
            let dir = tempfile::tempdir().unwrap();
            let before = TlsIdentity::load_or_create(dir.path()).unwrap();
            fs::remove_file(dir.path().join(name)).unwrap();
            let made = TlsIdentity::load_or_create(dir.path()).unwrap();
            assert_ne!(made.pin(), before.pin(), "{name}");
        }
    }

    #[test]
    fn a_damaged_certificate_or_key_is_refused_by_name_or_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let pin = TlsIdentity::load_or_create(dir.path()).unwrap().pin().to_owned();
        for name in ["callback.crt", "callback.key"] {
            let path = dir.path().join(name);
            let whole = fs::read(&path).unwrap();
            let mut refused = 0;
            for at in 0..whole.len() {
                for bytes in [whole[..at].to_vec(), flipped(&whole, at)] {
                    fs::write(&path, bytes).unwrap();
                    match load(&dir.path().join("callback.crt"), &dir.path().join("callback.key")) {
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
        TlsIdentity::load_or_create(dir.path()).unwrap();
    }
}
