//! The words of an installed system about itself when it calls.
//!
//! Made from the body of a call, kept by the core in a bounded and escaped form. Nothing in it is
//! proven.

/// A report as it came, of any length and content.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BootReport {
    /// Its host name.
    pub hostname: Option<String>,
    /// cloud-init's id of the instance.
    pub instance_id: Option<String>,
    /// Its SSH host keys, each as its kind and its fingerprint: `ssh-ed25519 SHA256:…`.
    pub ssh_host_keys: Vec<String>,
}
