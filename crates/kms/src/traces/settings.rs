//! Where spans go: `--otlp-endpoint`, and OpenTelemetry's own variables.
//!
//! OpenTelemetry's crates read some variables themselves (those of the sampler, the resource, headers and limits). What they would
//! ignore in silence is refused here.

use std::path::PathBuf;
use std::time::Duration;

use hyper::Uri;

/// Where a collector takes spans, below the address that is configured for all signals.
const PATH: &str = "/v1/traces";

/// What a queue, a batch and a delay may be at most, whatever the environment says.
const LONGEST_QUEUE: u64 = 65_536;
const LONGEST_DELAY: u64 = 600_000;

const SAMPLERS: &[&str] = &[
    "always_on",
    "always_off",
    "traceidratio",
    "parentbased_always_on",
    "parentbased_always_off",
    "parentbased_traceidratio",
];

/// Why spans cannot be sent.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// Not an address of a collector.
    #[error("{name} is {value:?}, expected http://HOST:PORT or https://HOST:PORT")]
    Endpoint {
        /// What names it.
        name: &'static str,
        /// What it says.
        value: String,
    },
    /// A variable of OpenTelemetry that has no such value here.
    #[error("{name} is {value:?}, expected {expected}")]
    Variable {
        /// Which.
        name: &'static str,
        /// What it says.
        value: String,
        /// What it might say.
        expected: String,
    },
}

/// Where spans go, and how many wait.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Where they are posted to.
    pub(super) endpoint: Uri,
    /// Authorities of the collector's certificate, PEM; else the system's.
    pub(super) authority: Option<PathBuf>,
    /// For one post.
    pub(super) timeout: Duration,
    /// Most spans that wait.
    pub(super) queue: usize,
    /// Most spans in one post.
    pub(super) batch: usize,
    /// How long a span waits for others.
    pub(super) delay: Duration,
}

impl Settings {
    /// Settings of `--otlp-endpoint` and of the environment; `None` if nobody wants spans.
    ///
    /// # Errors
    /// If one says what it cannot.
    pub fn new(flag: Option<&str>) -> Result<Option<Self>, SettingsError> {
        let environment = |name: &str| std::env::var(name).ok();
        Self::of(flag, &Environment(&environment))
    }

    fn of(flag: Option<&str>, env: &Environment<'_>) -> Result<Option<Self>, SettingsError> {
        let disabled = env.get("OTEL_SDK_DISABLED").unwrap_or_default();
        if disabled.eq_ignore_ascii_case("true") {
            return Ok(None);
        }
        let exporter = env.one_of(&["OTEL_TRACES_EXPORTER"], &["otlp", "none"])?;
        let endpoint = env.endpoint(flag)?;
        let (Some(endpoint), None | Some("otlp")) = (endpoint, exporter.as_deref()) else {
            return Ok(None);
        };
        let protocols = ["http/protobuf"];
        env.one_of(&of_traces("PROTOCOL"), &protocols)?;
        env.one_of(&of_traces("COMPRESSION"), &["none"])?;
        env.sampler()?;
        let authority = env.first(&of_traces("CERTIFICATE"));
        let queue = env.number(&["OTEL_BSP_MAX_QUEUE_SIZE"], 2048, LONGEST_QUEUE)?;
        let batch = env.number(&["OTEL_BSP_MAX_EXPORT_BATCH_SIZE"], 512, LONGEST_QUEUE)?;
        let delay = env.number(&["OTEL_BSP_SCHEDULE_DELAY"], 5000, LONGEST_DELAY)?;
        let timeout = env.number(&of_traces("TIMEOUT"), 10_000, LONGEST_DELAY)?;
        let size = |number: u64| usize::try_from(number).unwrap_or(1);
        Ok(Some(Self {
            endpoint,
            authority: authority.map(|(_, path)| PathBuf::from(path)),
            timeout: Duration::from_millis(timeout),
            queue: size(queue),
            batch: size(batch.min(queue)),
            delay: Duration::from_millis(delay),
        }))
    }

    /// The address of the collector.
    #[must_use]
    pub fn endpoint(&self) -> &Uri {
        &self.endpoint
    }
}

/// The names of a variable of the exporter: the one for traces wins over the one for all signals.
fn of_traces(what: &str) -> [&'static str; 2] {
    match what {
        "PROTOCOL" => [
            "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL",
            "OTEL_EXPORTER_OTLP_PROTOCOL",
        ],
        "COMPRESSION" => [
            "OTEL_EXPORTER_OTLP_TRACES_COMPRESSION",
            "OTEL_EXPORTER_OTLP_COMPRESSION",
        ],
        "CERTIFICATE" => [
            "OTEL_EXPORTER_OTLP_TRACES_CERTIFICATE",
            "OTEL_EXPORTER_OTLP_CERTIFICATE",
        ],
        _ => [
            "OTEL_EXPORTER_OTLP_TRACES_TIMEOUT",
            "OTEL_EXPORTER_OTLP_TIMEOUT",
        ],
    }
}

/// What the environment says; an empty variable is none.
struct Environment<'a>(&'a dyn Fn(&str) -> Option<String>);

impl Environment<'_> {
    fn get(&self, name: &str) -> Option<String> {
        let value = (self.0)(name)?;
        let value = value.trim();
        (!value.is_empty()).then(|| value.to_owned())
    }

    fn first(&self, names: &[&'static str]) -> Option<(&'static str, String)> {
        let mut found = names.iter().map(|name| (*name, self.get(name)));
        found.find_map(|(name, value)| Some((name, value?)))
    }

    fn one_of(
        &self,
        names: &[&'static str],
        values: &[&str],
    ) -> Result<Option<String>, SettingsError> {
        match self.first(names) {
            None => Ok(None),
            Some((_, value)) if values.contains(&value.as_str()) => Ok(Some(value)),
            Some((name, value)) => Err(SettingsError::Variable {
                name,
                value,
                expected: values.join(" or "),
            }),
        }
    }

    fn number(
        &self,
        names: &[&'static str],
        default: u64,
        most: u64,
    ) -> Result<u64, SettingsError> {
        let Some((name, value)) = self.first(names) else {
            return Ok(default);
        };
        let number = value.parse().ok();
        let number = number.filter(|number| (1..=most).contains(number));
        number.ok_or_else(|| SettingsError::Variable {
            name,
            value,
            expected: format!("a number from 1 to {most}"),
        })
    }

    /// The flag and the variable for all signals name a collector, the variable for traces the very place.
    fn endpoint(&self, flag: Option<&str>) -> Result<Option<Uri>, SettingsError> {
        if let Some(base) = flag {
            return uri("--otlp-endpoint", base, PATH).map(Some);
        }
        let name = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT";
        if let Some(whole) = self.get(name) {
            return uri(name, &whole, "").map(Some);
        }
        let name = "OTEL_EXPORTER_OTLP_ENDPOINT";
        let base = self.get(name);
        base.map(|base| uri(name, &base, PATH)).transpose()
    }

    fn sampler(&self) -> Result<(), SettingsError> {
        let sampler = self.one_of(&["OTEL_TRACES_SAMPLER"], SAMPLERS)?;
        let is_ratio = sampler.is_some_and(|sampler| sampler.ends_with("traceidratio"));
        let name = "OTEL_TRACES_SAMPLER_ARG";
        let value = self.get(name);
        let ratio = value.as_deref().and_then(|text| text.parse::<f64>().ok());
        if !is_ratio || ratio.is_some_and(|ratio| (0.0..=1.0).contains(&ratio)) {
            return Ok(());
        }
        Err(SettingsError::Variable {
            name,
            value: value.unwrap_or_default(),
            expected: "a number from 0 to 1, as the sampler takes it".to_owned(),
        })
    }
}

/// An address with a path behind it. Whoever is in it has credentials there, which belong into a header.
fn uri(name: &'static str, base: &str, path: &str) -> Result<Uri, SettingsError> {
    let whole = format!("{}{path}", base.trim_end_matches('/'));
    let parsed = whole.parse::<Uri>().ok().filter(|uri| {
        let scheme = matches!(uri.scheme_str(), Some("http" | "https"));
        let authority = uri.authority().map_or("", |authority| authority.as_str());
        scheme && !authority.contains('@') && uri.query().is_none()
    });
    parsed.ok_or_else(|| SettingsError::Endpoint {
        name,
        value: base.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(
        flag: Option<&str>,
        variables: &[(&str, &str)],
    ) -> Result<Option<Settings>, SettingsError> {
        let environment = |name: &str| {
            let mut found = variables.iter().filter(|(known, _)| *known == name);
            found.next().map(|(_, value)| (*value).to_owned())
        };
        Settings::of(flag, &Environment(&environment))
    }

    fn place(flag: Option<&str>, variables: &[(&str, &str)]) -> Option<String> {
        let settings = of(flag, variables).unwrap();
        settings.map(|settings| settings.endpoint.to_string())
    }

    const ALL: (&str, &str) = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://all:4318/otlp/");
    const TRACES: (&str, &str) = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "https://own/there");

    #[test]
    fn nobody_is_sent_spans_who_was_not_named() {
        assert_eq!(place(None, &[]), None);
        assert_eq!(place(None, &[("OTEL_EXPORTER_OTLP_ENDPOINT", " ")]), None);
        assert_eq!(place(None, &[("OTEL_SERVICE_NAME", "kms")]), None);
        for off in [
            ("OTEL_SDK_DISABLED", "True"),
            ("OTEL_TRACES_EXPORTER", "none"),
        ] {
            assert_eq!(place(Some("http://c:4318"), &[off, ALL]), None);
        }
    }

    #[test]
    fn a_collector_is_named_by_flag_or_variable() {
        let flag = Some("http://[::1]:4318");
        let wanted = Some("http://[::1]:4318/v1/traces".to_owned());
        assert_eq!(place(flag, &[ALL, TRACES]), wanted);
        let wanted = Some("https://own/there".to_owned());
        assert_eq!(place(None, &[ALL, TRACES]), wanted);
        let wanted = Some("http://all:4318/otlp/v1/traces".to_owned());
        assert_eq!(place(None, &[ALL]), wanted);
        for bad in [
            "localhost:4318",
            "ftp://c",
            "http://",
            "http://u:p@c",
            "http://c/?x",
            "x y",
        ] {
            assert!(of(Some(bad), &[]).is_err(), "{bad}");
        }
    }

    #[test]
    fn variables_are_numbers_and_names_that_are_known() {
        let settings = of(
            None,
            &[
                ALL,
                ("OTEL_BSP_MAX_QUEUE_SIZE", "10"),
                ("OTEL_BSP_SCHEDULE_DELAY", "7"),
                ("OTEL_EXPORTER_OTLP_TIMEOUT", "1"),
                ("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "300"),
                ("OTEL_EXPORTER_OTLP_CERTIFICATE", "/ca.pem"),
                ("OTEL_TRACES_SAMPLER", "traceidratio"),
                ("OTEL_TRACES_SAMPLER_ARG", "0.5"),
            ],
        );
        let settings = settings.unwrap().unwrap();
        assert_eq!((settings.queue, settings.batch), (10, 10));
        let milliseconds = Duration::from_millis;
        assert_eq!(settings.delay, milliseconds(7));
        assert_eq!(settings.timeout, milliseconds(300));
        assert_eq!(settings.authority, Some(PathBuf::from("/ca.pem")));
        for (name, value) in [
            ("OTEL_BSP_MAX_QUEUE_SIZE", "0"),
            ("OTEL_BSP_MAX_QUEUE_SIZE", "99999999999"),
            ("OTEL_BSP_SCHEDULE_DELAY", "soon"),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
            ("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip"),
            ("OTEL_TRACES_EXPORTER", "zipkin"),
            ("OTEL_TRACES_SAMPLER", "xray"),
            ("OTEL_TRACES_SAMPLER", "parentbased_traceidratio"),
        ] {
            let refused = of(None, &[ALL, (name, value)]).unwrap_err().to_string();
            assert!(refused.starts_with(name), "{refused}");
        }
    }
}
