//! TLS as libpq's `sslmode` means it, by rustls.

use crate::connection::address::{Address, TlsMode};
use crate::problem::Problem;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};
use std::path::Path;
use std::sync::Arc;
use tokio_postgres_rustls::MakeRustlsConnect;

/// What connects with TLS to this address.
pub fn connector(address: &Address) -> Result<MakeRustlsConnect, Problem> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifies = matches!(address.tls, TlsMode::VerifyCa | TlsMode::VerifyFull);
    let trusted = match verifies {
        true => Some(trusted(address.root_certificates.as_deref())?),
        false => None,
    };
    let verifier =
        Verifier { checks_name: address.tls == TlsMode::VerifyFull, trusted, provider: Arc::clone(&provider) };
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| Problem::failure(format!("TLS cannot be set up: {error}")))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    Ok(MakeRustlsConnect::new(config))
}

#[derive(Debug)]
struct Trusted {
    anchors: RootCertStore,
    certificates: Vec<CertificateDer<'static>>,
}

fn trusted(file: Option<&Path>) -> Result<Trusted, Problem> {
    let certificates: Vec<CertificateDer<'static>> = match file {
        Some(file) if file != Path::new("system") => {
            let refuse = |fault: &dyn std::fmt::Display| {
                Problem::configuration(format!("the root certificates in {} cannot be used: {fault}", file.display()))
                    .hint("sslrootcert names a file of certificates in PEM form, or is \"system\".")
            };
            let read = CertificateDer::pem_file_iter(file).map_err(|error| refuse(&error))?;
            let read: Vec<_> = read.collect::<Result<_, _>>().map_err(|error| refuse(&error))?;
            if read.is_empty() {
                return Err(refuse(&"it holds no certificate"));
            }
            read
        }
        _ => rustls_native_certs::load_native_certs().certs,
    };
    let mut anchors = RootCertStore::empty();
    let (added, _) = anchors.add_parsable_certificates(certificates.iter().cloned());
    if added == 0 {
        return Err(Problem::configuration("sslmode asks to verify the server, but no root certificate is known")
            .hint("Give sslrootcert, or install the system's root certificates."));
    }
    Ok(Trusted { anchors, certificates })
}

/// Checks what the mode asks for: nothing, who signed the certificate, or that and the host's name.
#[derive(Debug)]
struct Verifier {
    checks_name: bool,
    /// None if the mode asks for no check.
    trusted: Option<Trusted>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let Some(trusted) = &self.trusted else {
            return Ok(ServerCertVerified::assertion());
        };
        let parsed = ParsedCertificate::try_from(certificate)?;
        // A self-signed certificate that is itself trusted needs no chain.
        if !trusted.certificates.contains(certificate) {
            let algorithms = self.provider.signature_verification_algorithms.all;
            verify_server_cert_signed_by_trust_anchor(&parsed, &trusted.anchors, intermediates, now, algorithms)?;
        }
        if self.checks_name {
            verify_server_name(&parsed, name)?;
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        if self.trusted.is_none() {
            return Ok(HandshakeSignatureValid::assertion());
        }
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        if self.trusted.is_none() {
            return Ok(HandshakeSignatureValid::assertion());
        }
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
