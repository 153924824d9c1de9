//! TLS: what is read from files, and what went wrong, in words.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::crypto::CryptoProvider;
use rustls::{CertificateError, ClientConfig, RootCertStore, ServerConfig};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};

/// Both versions that Cyrus speaks and that are still sound.
const VERSIONS: &[&rustls::SupportedProtocolVersion] =
    &[&rustls::version::TLS13, &rustls::version::TLS12];

/// Why TLS cannot be set up from the files given.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read or holds something else.
    #[error("{}: {why}", file.display())]
    File {
        /// Which.
        file: PathBuf,
        /// What is wrong with it, and what to do.
        why: String,
    },
    /// Not about one file.
    #[error("{0}")]
    Other(String),
}

/// Whose certificates the replica's must lead to, and what is shown to it.
#[derive(Clone, Debug, Default)]
pub struct ClientFiles {
    /// Certificate authorities (PEM); absent: the system's.
    pub ca_file: Option<PathBuf>,
    /// The client certificate chain (PEM) and its key, for replicas that ask for one.
    pub identity: Option<(PathBuf, PathBuf)>,
}

/// The configuration for connections to a replica. Sessions are resumed, as rustls does by
/// default.
pub fn client_config(files: &ClientFiles) -> Result<Arc<ClientConfig>, TlsError> {
    let builder = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(VERSIONS)
        .map_err(|error| TlsError::Other(error.to_string()))?
        .with_root_certificates(roots(files.ca_file.as_deref())?);
    let config = match &files.identity {
        None => builder.with_no_client_auth(),
        Some((certificate, key)) => builder
            .with_client_auth_cert(certificates(certificate)?, private_key(key)?)
            .map_err(|error| does_not_fit(certificate, key, &error))?,
    };
    Ok(Arc::new(config))
}

/// The configuration for STARTTLS towards clients.
pub fn server_config(certificate: &Path, key: &Path) -> Result<Arc<ServerConfig>, TlsError> {
    let config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(VERSIONS)
        .map_err(|error| TlsError::Other(error.to_string()))?
        .with_no_client_auth()
        .with_single_cert(certificates(certificate)?, private_key(key)?)
        .map_err(|error| does_not_fit(certificate, key, &error))?;
    Ok(Arc::new(config))
}

/// The name that the replica's certificate must carry.
pub fn server_name(name: &str) -> Result<ServerName<'static>, TlsError> {
    ServerName::try_from(name.to_owned()).map_err(|_| {
        TlsError::Other(format!(
            "{name:?} cannot be a name in a certificate; set server_name"
        ))
    })
}

/// What a failed handshake with the replica means and what to do about it.
#[must_use]
pub fn explain(error: &std::io::Error, name: &str) -> String {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref());
    let Some(error) = inner else {
        return format!("the TLS handshake failed: {error}");
    };
    match error {
        rustls::Error::InvalidCertificate(certificate) => match certificate {
            // A bad signature is what an authority made anew under its old name looks like.
            CertificateError::UnknownIssuer | CertificateError::BadSignature => format!(
                "the replica's certificate is not signed by an authority known here: set ca_file \
                 to the certificate of the authority that signed it ({certificate})"
            ),
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                format!(
                    "the replica's certificate is not for {name:?}: set server_name to a name that \
                     is in it, or have it issued for {name:?} ({certificate})"
                )
            }
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
                format!("the replica's certificate has expired: renew it ({certificate})")
            }
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => format!(
                "the replica's certificate is not valid yet: check the clocks ({certificate})"
            ),
            other => format!(
                "the replica's certificate is refused: {other}{}",
                hint(&other.to_string())
            ),
        },
        rustls::Error::AlertReceived(alert) => format!(
            "the replica ended the TLS handshake ({alert:?}): it may ask for a client certificate \
             (cert_file, key_file) or speak no TLS 1.2 or 1.3"
        ),
        rustls::Error::InvalidMessage(_) => {
            "what the replica sends is not TLS: tls = \"implicit\" is for a port that speaks TLS \
             from the first byte, tls = \"starttls\" for the others"
                .to_owned()
        }
        other => format!("the TLS handshake failed: {other}"),
    }
}

/// What to do about the errors that say too little by themselves.
fn hint(error: &str) -> &'static str {
    if error.contains("UnsupportedCertVersion") {
        "; it is an X.509 version 1 certificate, which openssl makes where no extensions are given: \
         have it issued again with subjectAltName"
    } else {
        ""
    }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

fn roots(ca_file: Option<&Path>) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    let Some(file) = ca_file else {
        let found = rustls_native_certs::load_native_certs();
        roots.add_parsable_certificates(found.certs);
        if roots.is_empty() {
            return Err(TlsError::Other(
                "the system has no certificate authorities: install ca-certificates or set ca_file"
                    .to_owned(),
            ));
        }
        return Ok(roots);
    };
    for certificate in certificates(file)? {
        roots.add(certificate).map_err(|error| TlsError::File {
            file: file.to_owned(),
            why: format!("holds a certificate that cannot be an authority: {error}"),
        })?;
    }
    Ok(roots)
}

fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let failed = |why: String| TlsError::File {
        file: file.to_owned(),
        why,
    };
    let pem = std::fs::read(file).map_err(|error| failed(format!("cannot be read: {error}")))?;
    let found = CertificateDer::pem_slice_iter(&pem)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| failed(format!("is not a PEM file: {error}")))?;
    if found.is_empty() {
        return Err(failed(
            "holds no certificate: a PEM file with BEGIN CERTIFICATE is wanted".to_owned(),
        ));
    }
    Ok(found)
}

fn private_key(file: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    let failed = |why: String| TlsError::File {
        file: file.to_owned(),
        why,
    };
    let pem = std::fs::read(file).map_err(|error| failed(format!("cannot be read: {error}")))?;
    PrivateKeyDer::from_pem_slice(&pem).map_err(|_| {
        failed(
            "holds no private key: a PEM file with BEGIN PRIVATE KEY (not encrypted) is wanted"
                .to_owned(),
        )
    })
}

fn does_not_fit(certificate: &Path, key: &Path, error: &rustls::Error) -> TlsError {
    TlsError::File {
        file: key.to_owned(),
        why: format!(
            "cannot be used with the certificate in {}: {error}{}",
            certificate.display(),
            hint(&error.to_string())
        ),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn file(content: &str) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(content.as_bytes()).unwrap();
        file
    }

    fn ca(path: &Path) -> String {
        let files = ClientFiles {
            ca_file: Some(path.to_owned()),
            identity: None,
        };
        client_config(&files).unwrap_err().to_string()
    }

    #[test]
    fn errors_name_the_file_and_what_is_wrong() {
        assert!(ca(Path::new("/nonexistent.pem")).contains("/nonexistent.pem: cannot be read"));
        let empty = file("nothing\n");
        assert!(ca(empty.path()).contains("holds no certificate"));
    }

    #[test]
    fn a_key_must_fit_its_certificate() {
        let one = rcgen::generate_simple_self_signed(vec!["one".to_owned()]).unwrap();
        let two = rcgen::generate_simple_self_signed(vec!["two".to_owned()]).unwrap();
        let certificate = file(&one.cert.pem());
        let key = file(&one.signing_key.serialize_pem());
        let other = file(&two.signing_key.serialize_pem());
        assert!(server_config(certificate.path(), key.path()).is_ok());
        let error = server_config(certificate.path(), other.path()).unwrap_err();
        assert!(error.to_string().contains("cannot be used with"), "{error}");
        let error = server_config(certificate.path(), certificate.path()).unwrap_err();
        assert!(
            error.to_string().contains("holds no private key"),
            "{error}"
        );
    }
}
