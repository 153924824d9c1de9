//! Certificates and keys from PEM files.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;

use super::error::words;

/// A certificate chain and the key that fits it.
#[derive(Clone)]
pub struct Identity {
    /// Where the chain was read.
    pub cert_file: PathBuf,
    /// Where the key was read.
    pub key_file: PathBuf,
    /// Both, ready for rustls.
    pub key: Arc<CertifiedKey>,
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Identity({})", self.cert_file.display())
    }
}

impl Identity {
    /// Reads both files; the error names the file.
    pub fn read(cert_file: &Path, key_file: &Path) -> Result<Self, String> {
        let chain = certificates(cert_file)?;
        let in_key_file = |what: &str| format!("{}: {what}", key_file.display());
        let der = PrivateKeyDer::from_pem_slice(&read(key_file)?).map_err(|_| {
            in_key_file("holds no private key in PEM form, which starts with -----BEGIN ")
        })?;
        let key = rustls::crypto::aws_lc_rs::sign::any_supported_type(&der)
            .map_err(|_| in_key_file("is of a kind that TLS does not use: take ECDSA or RSA"))?;
        let key = CertifiedKey::new(chain, key);
        match key.keys_match() {
            Err(rustls::Error::InconsistentKeys(rustls::InconsistentKeys::KeyMismatch)) => Err(
                in_key_file(&format!("is not the key of {}", cert_file.display())),
            ),
            // A key that can't tell its public half is left to the handshake.
            Ok(()) | Err(rustls::Error::InconsistentKeys(_)) => Ok(Identity {
                cert_file: cert_file.to_owned(),
                key_file: key_file.to_owned(),
                key: Arc::new(key),
            }),
            Err(error) => Err(format!("{}: {error}", cert_file.display())),
        }
    }
}

/// All certificates of a PEM file, at least one; the error names the file.
pub(super) fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&read(path)?).collect();
    match certificates {
        Ok(certificates) if !certificates.is_empty() => Ok(certificates),
        Ok(_) => Err(format!(
            "{}: holds no certificate in PEM form, which starts with -----BEGIN CERTIFICATE-----",
            path.display()
        )),
        Err(error) => Err(format!("{}: is no valid PEM: {error}", path.display())),
    }
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    std::fs::read(path).map_err(|error| format!("{}: {}", path.display(), words(&error)))
}
