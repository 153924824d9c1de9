//! TLS: what is read from files, and what went wrong, in words.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use rustls::crypto::CryptoProvider;
use rustls::server::WebPkiClientVerifier;
use rustls::{CertificateError, ClientConfig, RootCertStore, ServerConfig};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};
use zeroize::Zeroizing;

use super::certificates::Role;

/// Both versions that Cyrus speaks and that are still sound.
const VERSIONS: &[&rustls::SupportedProtocolVersion] =
    &[&rustls::version::TLS13, &rustls::version::TLS12];

/// Bytes of the longest PEM file: more than any bundle of authorities has.
const LONGEST: u64 = 4 << 20;

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

/// What a TLS server shows to its clients, and whether it wants to see theirs.
#[derive(Clone, Debug)]
pub struct ServerFiles {
    /// The certificate chain (PEM).
    pub cert_file: PathBuf,
    /// Its key (PEM).
    pub key_file: PathBuf,
    /// Authorities (PEM): a client must have a certificate of theirs.
    pub client_ca_file: Option<PathBuf>,
}

impl ClientFiles {
    /// The files, to be watched. The system's authorities are not: they are read again by SIGHUP.
    #[must_use]
    pub fn roles(&self) -> Vec<Role> {
        let authorities = self.ca_file.iter().cloned().map(Role::Authorities);
        let identity = self.identity.iter();
        let identity =
            identity.flat_map(|(chain, key)| [Role::Chain(chain.clone()), Role::Key(key.clone())]);
        authorities.chain(identity).collect()
    }
}

impl ServerFiles {
    /// The files, to be watched.
    #[must_use]
    pub fn roles(&self) -> Vec<Role> {
        let authorities = self.client_ca_file.iter().cloned().map(Role::Authorities);
        let (chain, key) = (self.cert_file.clone(), self.key_file.clone());
        authorities
            .chain([Role::Chain(chain), Role::Key(key)])
            .collect()
    }
}

/// The configuration for connections to a replica. Sessions are resumed, as rustls does by
/// default.
pub fn client_config(files: &ClientFiles) -> Result<ClientConfig, TlsError> {
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
    Ok(config)
}

/// The configuration for TLS towards clients.
pub fn server_config(files: &ServerFiles) -> Result<ServerConfig, TlsError> {
    let ServerFiles {
        cert_file,
        key_file,
        client_ca_file,
    } = files;
    let builder = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(VERSIONS)
        .map_err(|error| TlsError::Other(error.to_string()))?;
    let builder = match client_ca_file {
        None => builder.with_no_client_auth(),
        Some(file) => {
            let roots = Arc::new(roots(Some(file))?);
            let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider()).build();
            builder.with_client_cert_verifier(verifier.map_err(|error| TlsError::File {
                file: file.clone(),
                why: error.to_string(),
            })?)
        }
    };
    builder
        .with_single_cert(certificates(cert_file)?, private_key(key_file)?)
        .map_err(|error| does_not_fit(cert_file, key_file, &error))
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

/// What a failed handshake with a client means and what to do about it.
#[must_use]
pub fn explain_client(error: &std::io::Error) -> String {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref());
    let Some(error) = inner else {
        return format!("the TLS handshake failed: {error}");
    };
    match error {
        rustls::Error::NoCertificatesPresented => {
            "it shows no certificate: set cert_file and key_file there".to_owned()
        }
        rustls::Error::InvalidCertificate(certificate) => match certificate {
            CertificateError::UnknownIssuer | CertificateError::BadSignature => format!(
                "its certificate is not signed by an authority in client_ca_file ({certificate})"
            ),
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
                format!("its certificate has expired: renew it ({certificate})")
            }
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                format!("its certificate is not valid yet: check the clocks ({certificate})")
            }
            other => format!(
                "its certificate is refused: {other}{}",
                hint(&other.to_string())
            ),
        },
        rustls::Error::AlertReceived(alert) => format!(
            "it ended the TLS handshake ({alert:?}): it may not trust the certificate in cert_file"
        ),
        other => format!("the TLS handshake failed: {other}"),
    }
}

/// Whether the first certificate of the file can be shown to anybody at this time.
///
/// # Errors
/// Where it can't be read, has expired or is not valid yet.
pub fn sound(file: &Path, now: SystemTime) -> Result<(), TlsError> {
    let failed = |why: String| TlsError::File {
        file: file.to_owned(),
        why,
    };
    let chain = certificates(file)?;
    let first = chain.first();
    first.map_or(Ok(()), |it| in_time(it, now)).map_err(failed)
}

/// Whether a certificate is valid at this time; why not, as the rest of a sentence about it.
///
/// # Errors
/// Where it has expired, is not valid yet or can't be read.
pub fn in_time(certificate: &CertificateDer<'_>, now: SystemTime) -> Result<(), String> {
    let (_, certificate) = X509Certificate::from_der(certificate)
        .map_err(|error| format!("can't be read: {error}"))?;
    let now = now.duration_since(UNIX_EPOCH);
    let now = now.map_or(0, |now| now.as_secs() as i64);
    let validity = certificate.validity();
    if validity.not_after.timestamp() < now {
        return Err(format!("has expired ({}): renew it", validity.not_after));
    }
    if validity.not_before.timestamp() > now {
        let from = validity.not_before;
        return Err(format!("is not valid before {from}: check the clock"));
    }
    Ok(())
}

/// When each certificate of a file expires, in seconds since 1970; those that can't be read are
/// left out.
#[must_use]
pub fn expiries(file: &Path) -> Vec<i64> {
    let chain = certificates(file).unwrap_or_default();
    let expiry = |der: &CertificateDer<'_>| {
        let (_, certificate) = X509Certificate::from_der(der).ok()?;
        Some(certificate.validity().not_after.timestamp())
    };
    chain.iter().filter_map(expiry).collect()
}

/// The names in a certificate: DNS names, URIs (SPIFFE), mail addresses and IP addresses of its
/// subjectAltName; the common name only where there is no subjectAltName. One that can't be read
/// gives no name at all.
#[must_use]
pub fn names(certificate: &CertificateDer<'_>) -> Vec<String> {
    let Ok((_, certificate)) = X509Certificate::from_der(certificate) else {
        return Vec::new();
    };
    let Ok(alternative) = certificate.subject_alternative_name() else {
        return Vec::new();
    };
    if let Some(alternative) = alternative {
        let text = |name: &GeneralName<'_>| match name {
            GeneralName::DNSName(name) | GeneralName::URI(name) => Some((*name).to_owned()),
            GeneralName::RFC822Name(name) => Some((*name).to_owned()),
            GeneralName::IPAddress(bytes) => match **bytes {
                [a, b, c, d] => Some(std::net::Ipv4Addr::new(a, b, c, d).to_string()),
                _ => {
                    let bytes: [u8; 16] = (*bytes).try_into().ok()?;
                    Some(std::net::Ipv6Addr::from(bytes).to_string())
                }
            },
            _ => None,
        };
        return alternative
            .value
            .general_names
            .iter()
            .filter_map(text)
            .collect();
    }
    let common = certificate.subject().iter_common_name();
    common
        .filter_map(|name| name.as_str().ok().map(str::to_owned))
        .collect()
}

/// The names in the first certificate of a file.
#[must_use]
pub fn names_of(file: &Path) -> Vec<String> {
    let chain = certificates(file).unwrap_or_default();
    chain.first().map(names).unwrap_or_default()
}

/// Whether a name in a certificate is the one that is meant. In DNS names case does not count; in
/// URIs (SPIFFE) and mail addresses it does. IP addresses can be written in more than one way.
#[must_use]
pub fn same_name(meant: &str, name: &str) -> bool {
    if let Ok(meant) = meant.parse::<std::net::IpAddr>() {
        return name.parse() == Ok(meant);
    }
    if name.contains(['/', ':', '@']) {
        return meant == name;
    }
    meant.eq_ignore_ascii_case(name)
}

/// The content of a PEM file.
///
/// # Errors
/// Where it can't be read, or is too long to be one.
pub fn read(file: &Path) -> Result<Zeroizing<Vec<u8>>, TlsError> {
    let failed = |why: String| TlsError::File {
        file: file.to_owned(),
        why,
    };
    let cannot = |error: std::io::Error| failed(format!("cannot be read: {error}"));
    let opened = std::fs::File::open(file).map_err(cannot)?;
    let len = opened.metadata().map_err(cannot)?.len();
    // A vector that grows leaves copies of a key behind.
    let mut content = Zeroizing::new(Vec::with_capacity(len.min(LONGEST) as usize + 64));
    let most = opened.take(LONGEST + 1);
    { most }.read_to_end(&mut content).map_err(cannot)?;
    if content.len() as u64 > LONGEST {
        return Err(failed(
            "is too long for a PEM file (4 MiB at most)".to_owned(),
        ));
    }
    Ok(content)
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
    let pem = read(file)?;
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
    let pem = read(file)?;
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
    fn names_are_compared_as_what_they_are() {
        assert!(same_name("Master.example.com", "master.EXAMPLE.com"));
        assert!(!same_name("master", "master.example.com"));
        let id = "spiffe://example.com/ns/mail/sa/master";
        assert!(same_name(id, id));
        assert!(!same_name(id, "spiffe://example.com/ns/mail/sa/Master"));
        assert!(!same_name("root@example.com", "Root@example.com"));
        assert!(same_name("2001:DB8:0::1", "2001:db8::1"));
        assert!(!same_name("10.0.0.1", "10.0.0.2"));
    }

    #[test]
    fn a_subject_alt_name_that_cannot_be_read_gives_no_name() {
        let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
        params
            .distinguished_name
            .push(rcgen::DnType::CommonName, "master");
        let key = rcgen::KeyPair::generate().unwrap();
        let made = params.clone().self_signed(&key).unwrap();
        assert_eq!(names(made.der()), ["master"]);
        // subjectAltName, with something else in it.
        let odd = rcgen::CustomExtension::from_oid_content(&[2, 5, 29, 17], vec![4, 1, 0]);
        params.custom_extensions = vec![odd];
        let made = params.self_signed(&key).unwrap();
        assert_eq!(names(made.der()), [""; 0]);
    }

    #[test]
    fn a_key_must_fit_its_certificate() {
        let one = rcgen::generate_simple_self_signed(vec!["one".to_owned()]).unwrap();
        let two = rcgen::generate_simple_self_signed(vec!["two".to_owned()]).unwrap();
        let certificate = file(&one.cert.pem());
        let key = file(&one.signing_key.serialize_pem());
        let other = file(&two.signing_key.serialize_pem());
        let config = |key: &Path| {
            server_config(&ServerFiles {
                cert_file: certificate.path().to_owned(),
                key_file: key.to_owned(),
                client_ca_file: None,
            })
        };
        assert!(config(key.path()).is_ok());
        let error = config(other.path()).unwrap_err();
        assert!(error.to_string().contains("cannot be used with"), "{error}");
        let error = config(certificate.path()).unwrap_err();
        assert!(
            error.to_string().contains("holds no private key"),
            "{error}"
        );
    }
}
