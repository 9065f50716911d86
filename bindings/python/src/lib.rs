//! The Python module `enclos._core`, which the package `enclos` is made of; `_core.pyi` is its documentation.

use std::collections::BTreeMap;

use enclos_attest::document::VerifiedDocument as Verified;
use enclos_bindings::{Answer, Problem, Settings, Verifier as Core};
use pyo3::exceptions::{PyException, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyBytes;

pyo3::create_exception!(enclos, Refused, PyException);

/// The exception for a problem; it has `reasons`.
fn raised(py: Python<'_>, problem: Problem) -> PyErr {
    match problem {
        Problem::Misused(texts) => PyValueError::new_err(texts.join(": ")),
        Problem::Refused(reasons) => {
            let error = Refused::new_err(reasons.join("; "));
            match error.value(py).setattr("reasons", reasons) {
                Ok(()) => error,
                Err(other) => other,
            }
        }
    }
}

#[pyclass(frozen, module = "enclos")]
#[derive(Debug)]
struct Verifier(Core);

#[pymethods]
impl Verifier {
    #[new]
    #[pyo3(signature = (roots=None, *, aws=false, pcrs=None, policy=None, max_age_seconds=None, archival=false, allow_debug=false))]
    #[expect(
        clippy::too_many_arguments,
        reason = "keyword arguments of a Python constructor"
    )]
    fn new(
        py: Python<'_>,
        roots: Option<BTreeMap<String, Vec<u8>>>,
        aws: bool,
        pcrs: Option<BTreeMap<u32, String>>,
        policy: Option<String>,
        max_age_seconds: Option<f64>,
        archival: bool,
        allow_debug: bool,
    ) -> PyResult<Self> {
        let settings = Settings {
            roots: roots.unwrap_or_default().into_iter().collect(),
            aws,
            pcrs: pcrs.unwrap_or_default(),
            policy,
            max_age_seconds,
            archival,
            allow_debug,
        };
        let core = Core::new(&settings).map_err(|problem| raised(py, problem))?;
        Ok(Self(core))
    }

    #[pyo3(signature = (document, *, nonce=None, now_ms=None))]
    fn verify(
        &self,
        py: Python<'_>,
        document: &[u8],
        nonce: Option<&[u8]>,
        now_ms: Option<u64>,
    ) -> PyResult<VerifiedDocument> {
        let verified = py.detach(|| self.0.verify(document, nonce, now_ms));
        verified
            .map(VerifiedDocument)
            .map_err(|problem| raised(py, problem))
    }

    #[pyo3(signature = (certificate, *, document=None, nonce=None, now_ms=None))]
    fn verify_tls_certificate(
        &self,
        py: Python<'_>,
        certificate: &[u8],
        document: Option<&[u8]>,
        nonce: Option<&[u8]>,
        now_ms: Option<u64>,
    ) -> PyResult<VerifiedDocument> {
        let answer = match (nonce, document) {
            (None, None) => None,
            (Some(nonce), Some(document)) => Some(Answer { nonce, document }),
            _ => {
                return Err(PyValueError::new_err(
                    "a nonce comes with the document that answers it, and the other way round",
                ));
            }
        };
        let verified = py.detach(|| self.0.verify_tls_certificate(certificate, answer, now_ms));
        verified
            .map(VerifiedDocument)
            .map_err(|problem| raised(py, problem))
    }

    #[pyo3(signature = (document, *, nonce=None, now_ms=None))]
    fn holds(
        &self,
        document: &VerifiedDocument,
        nonce: Option<&[u8]>,
        now_ms: Option<u64>,
    ) -> bool {
        self.0.holds(&document.0, nonce, now_ms)
    }

    #[getter]
    fn asks_for_nonce(&self) -> bool {
        self.0.asks_for_nonce()
    }
}

#[pyclass(frozen, module = "enclos")]
#[derive(Debug)]
struct VerifiedDocument(Verified);

#[pymethods]
impl VerifiedDocument {
    #[getter]
    fn module_id(&self) -> &str {
        self.0.module_id()
    }

    #[getter]
    fn timestamp_ms(&self) -> u64 {
        self.0.timestamp().0
    }

    #[getter]
    fn pcrs(&self) -> BTreeMap<u8, String> {
        let pcrs = self.0.pcrs().iter();
        pcrs.map(|(index, value)| (index.get(), value.to_string()))
            .collect()
    }

    #[getter]
    fn public_key<'py>(&self, py: Python<'py>) -> Option<Bound<'py, PyBytes>> {
        self.0.public_key().map(|bytes| PyBytes::new(py, bytes))
    }

    #[getter]
    fn user_data<'py>(&self, py: Python<'py>) -> Option<Bound<'py, PyBytes>> {
        self.0.user_data().map(|bytes| PyBytes::new(py, bytes))
    }

    #[getter]
    fn nonce<'py>(&self, py: Python<'py>) -> Option<Bound<'py, PyBytes>> {
        self.0.nonce().map(|bytes| PyBytes::new(py, bytes))
    }

    #[getter]
    fn root(&self) -> &str {
        self.0.anchor()
    }

    #[getter]
    fn is_debug(&self) -> bool {
        self.0.is_debug()
    }
}

#[pyfunction]
#[pyo3(signature = (policy, *, now_ms=None))]
fn lint_policy(py: Python<'_>, policy: &str, now_ms: Option<u64>) -> PyResult<Vec<String>> {
    enclos_bindings::lint_policy(policy, now_ms).map_err(|problem| raised(py, problem))
}

#[pymodule]
fn _core(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("Refused", module.py().get_type::<Refused>())?;
    module.add_class::<Verifier>()?;
    module.add_class::<VerifiedDocument>()?;
    module.add_function(wrap_pyfunction!(lint_policy, module)?)
}
