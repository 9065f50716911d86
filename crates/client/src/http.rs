//! The little HTTP that a client of enclaves needs: two verbs, bounded bodies, bounded time, no redirects.

use std::time::Duration;

use ureq::Agent;
use ureq::config::ConfigBuilder;
use ureq::http::{Response, StatusCode};
use ureq::typestate::AgentScope;

/// Time for one exchange from connect to the last byte.
const TIMEOUT: Duration = Duration::from_secs(60);

/// Largest answer accepted, in bytes: an enclave that is not trusted yet could send without end.
const MAX_BODY: u64 = 16 << 20;

/// Why there is no usable answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HttpError {
    /// No answer.
    #[error("no answer from {url}")]
    Exchange {
        /// What was asked.
        url: String,
        /// Why.
        #[source]
        source: Box<ureq::Error>,
    },
    /// An answer with a status other than 2xx.
    #[error("{url} answered {status}: {text}")]
    Status {
        /// What was asked.
        url: String,
        /// The status.
        status: u16,
        /// Beginning of the body.
        text: String,
    },
    /// No attested connection: nothing was sent.
    #[cfg(feature = "tls")]
    #[error("nothing was sent to {url}: there is no attested TLS with it")]
    Attested {
        /// What was asked.
        url: String,
        /// Why.
        #[source]
        source: Box<crate::attested::AttestedTlsError>,
    },
    /// No certificate where one was expected.
    #[error("no PEM certificate found among the roots for HTTPS")]
    Roots,
}

impl HttpError {
    /// The status of the answer, if there was one.
    #[must_use]
    pub fn status(&self) -> Option<u16> {
        match self {
            Self::Status { status, .. } => Some(*status),
            _ => None,
        }
    }

    /// Whether there was nobody to send anything to: no connection, or one that ended before TLS was spoken.
    #[must_use]
    pub fn nothing_was_sent(&self) -> bool {
        match self {
            Self::Exchange { source, .. } => match source.as_ref() {
                ureq::Error::ConnectionFailed => true,
                ureq::Error::Io(error) => error.kind() == std::io::ErrorKind::ConnectionRefused,
                _ => false,
            },
            #[cfg(feature = "tls")]
            Self::Attested { source, .. } => {
                matches!(**source, crate::attested::AttestedTlsError::Io(_))
            }
            _ => false,
        }
    }

    /// Whether nobody took the request, as before a server listens: the connection was refused, or ended without an answer.
    #[must_use]
    pub fn nobody_answered(&self) -> bool {
        use std::io::ErrorKind::{BrokenPipe, ConnectionRefused, ConnectionReset, UnexpectedEof};
        let Self::Exchange { source, .. } = self else {
            return self.nothing_was_sent();
        };
        match source.as_ref() {
            ureq::Error::ConnectionFailed => true,
            ureq::Error::Io(error) => matches!(
                error.kind(),
                BrokenPipe | ConnectionRefused | ConnectionReset | UnexpectedEof
            ),
            _ => false,
        }
    }
}

/// An HTTP client.
#[derive(Debug, Clone)]
pub struct Http(Agent);

impl Default for Http {
    fn default() -> Self {
        Self::new(TIMEOUT)
    }
}

impl Http {
    /// A client that gives every exchange this much time. With feature `tls` it speaks HTTPS and trusts
    /// Mozilla's roots.
    #[must_use]
    pub fn new(timeout: Duration) -> Self {
        let config = config(timeout);
        #[cfg(feature = "tls")]
        let config = config.tls_config(tls::config(ureq::tls::RootCerts::WebPki));
        Self(config.build().new_agent())
    }

    /// A client that trusts these certificates (PEM, one or more) and no other for HTTPS.
    ///
    /// # Errors
    /// [`HttpError::Roots`] when there is no certificate in `pem`.
    #[cfg(feature = "tls")]
    pub fn with_roots(timeout: Duration, pem: &[u8]) -> Result<Self, HttpError> {
        let config = config(timeout).tls_config(tls::config(tls::roots(pem)?));
        Ok(Self(config.build().new_agent()))
    }

    /// A client that speaks with enclaves over attested TLS, and with nobody else: other URLs than https ones are refused, no
    /// proxy of the environment is used. Connections are kept while their verdict holds.
    #[cfg(feature = "tls")]
    #[must_use]
    pub fn attested(timeout: Duration, tls: &crate::attested::AttestedTls) -> Self {
        use ureq::unversioned::resolver::DefaultResolver;
        use ureq::unversioned::transport::{Connector, TcpConnector};
        let connector = ().chain(TcpConnector::default());
        let connector = connector.chain(crate::attested::AttestedConnector(tls.clone()));
        let config = config(timeout).proxy(None).build();
        Self(Agent::with_parts(
            config,
            connector,
            DefaultResolver::default(),
        ))
    }

    /// GET.
    ///
    /// # Errors
    /// [`HttpError`], also for a status other than 2xx.
    pub fn get(&self, url: &str) -> Result<Vec<u8>, HttpError> {
        answer(url, self.0.get(url).call())
    }

    /// POST with the given headers.
    ///
    /// # Errors
    /// [`HttpError`], also for a status other than 2xx.
    pub fn post<'a>(
        &self,
        url: &str,
        headers: impl IntoIterator<Item = (&'a str, &'a str)>,
        body: &[u8],
    ) -> Result<Vec<u8>, HttpError> {
        let request = headers
            .into_iter()
            .fold(self.0.post(url), |request, (name, value)| {
                request.header(name, value)
            });
        answer(url, request.send(body))
    }
}

fn config(timeout: Duration) -> ConfigBuilder<AgentScope> {
    Agent::config_builder()
        .timeout_global(Some(timeout))
        .http_status_as_error(false)
        .max_redirects(0)
        .user_agent(concat!("enclos/", env!("CARGO_PKG_VERSION")))
}

fn answer(
    url: &str,
    response: Result<Response<ureq::Body>, ureq::Error>,
) -> Result<Vec<u8>, HttpError> {
    let failed = |error| failed(url, error);
    let mut response = response.map_err(failed)?;
    let body = response
        .body_mut()
        .with_config()
        .limit(MAX_BODY)
        .read_to_vec()
        .map_err(failed)?;
    match response.status() {
        status if status.is_success() => Ok(body),
        status => Err(refused(url, status, &body)),
    }
}

fn failed(url: &str, error: ureq::Error) -> HttpError {
    let url = url.to_owned();
    #[cfg(feature = "tls")]
    let error = match error {
        ureq::Error::Other(inner) => match inner.downcast() {
            Ok(source) => return HttpError::Attested { url, source },
            Err(inner) => ureq::Error::Other(inner),
        },
        other => other,
    };
    HttpError::Exchange {
        url,
        source: Box::new(error),
    }
}

fn refused(url: &str, status: StatusCode, body: &[u8]) -> HttpError {
    const SHOWN: usize = 600;
    let text: String = String::from_utf8_lossy(body)
        .trim()
        .chars()
        .take(SHOWN)
        .collect();
    let text = if text.is_empty() {
        "(no text)".to_owned()
    } else {
        text
    };
    HttpError::Status {
        url: url.to_owned(),
        status: status.as_u16(),
        text,
    }
}

/// HTTPS by rustls and aws-lc.
#[cfg(feature = "tls")]
mod tls {
    use std::sync::Arc;

    use rustls::crypto::aws_lc_rs::default_provider;
    use ureq::tls::{PemItem, RootCerts, TlsConfig, parse_pem};

    use super::HttpError;

    pub(super) fn config(roots: RootCerts) -> TlsConfig {
        let provider = Arc::new(default_provider());
        TlsConfig::builder()
            .unversioned_rustls_crypto_provider(provider)
            .root_certs(roots)
            .build()
    }

    pub(super) fn roots(pem: &[u8]) -> Result<RootCerts, HttpError> {
        let certificates = parse_pem(pem).filter_map(|item| match item {
            Ok(PemItem::Certificate(certificate)) => Some(certificate),
            _ => None,
        });
        let certificates: Vec<_> = certificates.collect();
        if certificates.is_empty() {
            return Err(HttpError::Roots);
        }
        Ok(RootCerts::new_with_certs(&certificates))
    }
}
