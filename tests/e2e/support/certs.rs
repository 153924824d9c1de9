//! Certificates made for one test: a CA, the replica's, and a client's.

use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose,
};

use super::process::write;

/// The name in the replica's certificate.
pub const SERVER_NAME: &str = "replica.test";

/// Files in PEM form, readable by Cyrus.
#[derive(Clone, Debug)]
pub struct Certs {
    pub ca: PathBuf,
    /// A CA that has signed nothing of ours.
    pub other_ca: PathBuf,
    pub cert: PathBuf,
    pub key: PathBuf,
    pub client_cert: PathBuf,
    pub client_key: PathBuf,
}

impl Certs {
    pub fn make(folder: &Path) -> Self {
        let at = |name: &str| folder.join(name);
        let ca = authority("syncmux test CA");
        let other = authority("some other CA");
        let certs = Self {
            ca: at("ca.pem"),
            other_ca: at("other-ca.pem"),
            cert: at("replica.pem"),
            key: at("replica.key"),
            client_cert: at("client.pem"),
            client_key: at("client.key"),
        };
        write(&certs.ca, ca.pem());
        write(&certs.other_ca, other.pem());
        for (cert, key, name, usage) in [
            (
                &certs.cert,
                &certs.key,
                SERVER_NAME,
                ExtendedKeyUsagePurpose::ServerAuth,
            ),
            (
                &certs.client_cert,
                &certs.client_key,
                "repl",
                ExtendedKeyUsagePurpose::ClientAuth,
            ),
        ] {
            let pair = KeyPair::generate().unwrap();
            let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
            params.distinguished_name.push(DnType::CommonName, name);
            params.extended_key_usages = vec![usage];
            write(cert, params.signed_by(&pair, &ca).unwrap().pem());
            write(key, pair.serialize_pem());
        }
        certs
    }
}

fn authority(name: &str) -> CertifiedIssuer<'static, KeyPair> {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}
