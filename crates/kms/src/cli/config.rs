//! Settings of `serve` from a file, and `enclos-kms config`.
//!
//! Every flag of `serve` is a key of the file: `--operations-listen` is `operations_listen`. A flag wins over the environment, and that
//! over the file. The file's settings become arguments behind those that were given, so what a setting may be, what excludes
//! what and what a mistake is called is told in one place: by the command line.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::error::ContextKind;
use clap::{Arg, ArgAction, ArgMatches, Command, CommandFactory as _, FromArgMatches as _};
use serde_json::{Value, json};
use toml::de::{DeTable, DeValue};

use super::table::Table;
use super::{Arguments, Failure, print, serve};

/// A file that is longer is something else.
const LONGEST: u64 = 1024 * 1024;

/// The flag that names the file.
const FLAG: &str = "config";

/// What `enclos-kms config` does.
#[derive(Debug, clap::Subcommand)]
pub(super) enum Check {
    /// Say whether `serve` would start with these settings, and where each comes from. Takes the flags of `serve`.
    Check {
        #[command(flatten)]
        serve: Box<serve::Arguments>,
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
}

/// Why settings cannot be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum ConfigError {
    #[error("cannot read the settings {path}")]
    Read {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("the settings {0} are longer than {LONGEST} bytes")]
    TooLong(PathBuf),
    #[error("{path}: {source}")]
    Syntax {
        path: PathBuf,
        source: Box<toml::de::Error>,
    },
    #[error("{path}:{line}: there is no setting `{key}`; {nearest}")]
    Unknown {
        path: PathBuf,
        line: usize,
        key: String,
        nearest: String,
    },
    #[error("{path}:{line}: `{key}` has the type {found}, expected {expected}")]
    Kind {
        path: PathBuf,
        line: usize,
        key: String,
        found: &'static str,
        expected: &'static str,
    },
    #[error("{path}:{line}: {text}")]
    Value {
        path: PathBuf,
        line: usize,
        text: String,
    },
    /// The command line itself: clap tells it.
    #[error(transparent)]
    CommandLine(clap::Error),
}

/// A setting of the file.
struct Setting {
    key: String,
    line: usize,
    arguments: Vec<OsString>,
}

/// Which settings came from which file, and everything that was parsed.
#[derive(Debug)]
pub(super) struct Sources {
    matches: ArgMatches,
    from_file: Vec<String>,
}

/// The command line, completed by the file that it or the environment names.
pub(super) fn parse(given: Vec<OsString>) -> Result<(Arguments, Sources), ConfigError> {
    let command = Arguments::command();
    let mut all = given;
    let file = match settings_of(&command, &all) {
        None => None,
        Some((serve, path)) => {
            let settings = read(&serve, &path)?;
            let new = settings.into_iter().filter(|s| !is_given(&serve, s, &all));
            let new: Vec<Setting> = new.collect();
            all.extend(new.iter().flat_map(|setting| setting.arguments.clone()));
            Some((path, new))
        }
    };
    let parsed = command.try_get_matches_from(all);
    let parsed = parsed.and_then(|matches| {
        let arguments = Arguments::from_arg_matches(&matches)?;
        Ok((arguments, matches))
    });
    let (arguments, matches) = parsed.map_err(|error| blamed(error, file.as_ref()))?;
    let from_file = file.into_iter().flat_map(|(_, settings)| settings);
    let sources = Sources {
        matches,
        from_file: from_file.map(|setting| setting.key).collect(),
    };
    Ok((arguments, sources))
}

/// If this is `serve` or `config check` with a file: their flags and the file.
fn settings_of(command: &Command, given: &[OsString]) -> Option<(Command, PathBuf)> {
    let word = |at: usize| given.get(at).and_then(|word| word.to_str());
    let command = match (word(1), word(2)) {
        (Some("serve"), _) => command.find_subcommand("serve"),
        (Some("config"), Some("check")) => {
            let config = command.find_subcommand("config");
            config.and_then(|config| config.find_subcommand("check"))
        }
        _ => None,
    }?;
    let named = given.iter().enumerate().find_map(|(at, word)| {
        let word = word.to_str()?;
        match word.strip_prefix("--config") {
            Some("") => given.get(at + 1).map(PathBuf::from),
            Some(rest) => rest.strip_prefix('=').map(PathBuf::from),
            None => None,
        }
    });
    let environment = || std::env::var_os("ENCLOS_KMS_CONFIG").map(PathBuf::from);
    Some((command.clone(), named.or_else(environment)?))
}

/// The name that a flag has in the file.
fn key(arg: &Arg) -> Option<String> {
    let long = arg.get_long()?;
    let is_setting = !matches!(long, FLAG | "json" | "help" | "version");
    is_setting.then(|| long.replace('-', "_"))
}

/// Whether a setting stands on the command line or in the environment, which win.
fn is_given(serve: &Command, setting: &Setting, given: &[OsString]) -> bool {
    let mut args = serve.get_arguments();
    let Some(arg) = args.find(|arg| key(arg).as_ref() == Some(&setting.key)) else {
        return false;
    };
    let flag = format!("--{}", arg.get_long().unwrap_or_default());
    let on_line = given.iter().filter_map(|word| word.to_str()).any(|word| {
        let rest = word.strip_prefix(&flag);
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('='))
    });
    on_line
        || arg
            .get_env()
            .is_some_and(|name| std::env::var_os(name).is_some())
}

/// The settings of a file, each as arguments of the command line.
fn read(serve: &Command, path: &std::path::Path) -> Result<Vec<Setting>, ConfigError> {
    let failed = |source| ConfigError::Read {
        path: path.to_owned(),
        source,
    };
    let length = std::fs::metadata(path).map_err(failed)?.len();
    if length > LONGEST {
        return Err(ConfigError::TooLong(path.to_owned()));
    }
    let text = std::fs::read_to_string(path).map_err(failed)?;
    let file = DeTable::parse(&text).map_err(|source| ConfigError::Syntax {
        path: path.to_owned(),
        source: Box::new(source),
    })?;
    let mut settings = Vec::new();
    for (name, value) in file.get_ref() {
        let before = text.get(..name.span().start).unwrap_or_default();
        let line = before.matches('\n').count() + 1;
        let name = name.get_ref().as_ref();
        let arg = serve
            .get_arguments()
            .find(|arg| key(arg).as_deref() == Some(name));
        let Some(arg) = arg else {
            return Err(ConfigError::Unknown {
                path: path.to_owned(),
                line,
                key: name.to_owned(),
                nearest: nearest(serve, name),
            });
        };
        let arguments = arguments(arg, value.get_ref());
        settings.push(Setting {
            key: name.to_owned(),
            line,
            arguments: arguments.map_err(|expected| ConfigError::Kind {
                path: path.to_owned(),
                line,
                key: name.to_owned(),
                found: value.get_ref().type_str(),
                expected,
            })?,
        });
    }
    settings.sort_by_key(|setting| setting.line);
    Ok(settings)
}

/// A value as arguments, or what it should have been.
fn arguments(arg: &Arg, value: &DeValue<'_>) -> Result<Vec<OsString>, &'static str> {
    let flag = format!("--{}", arg.get_long().unwrap_or_default());
    let one = |value: &DeValue<'_>| match value {
        DeValue::String(text) => Some(format!("{flag}={text}").into()),
        DeValue::Integer(number) if number.radix() == 10 => {
            Some(format!("{flag}={}", number.as_str()).into())
        }
        _ => None,
    };
    match (arg.get_action(), value) {
        (ArgAction::SetTrue, DeValue::Boolean(true)) => Ok(vec![flag.into()]),
        (ArgAction::SetTrue, DeValue::Boolean(false)) => Ok(Vec::new()),
        (ArgAction::SetTrue, _) => Err("true or false"),
        (ArgAction::Append, DeValue::Array(values)) => {
            let all = values.iter().map(|value| one(value.get_ref()));
            all.collect::<Option<_>>().ok_or("strings")
        }
        (ArgAction::Append, value) => Ok(vec![one(value).ok_or("a string or a list of them")?]),
        (_, value) => Ok(vec![one(value).ok_or("a string or a whole number")?]),
    }
}

/// What was probably meant.
fn nearest(serve: &Command, name: &str) -> String {
    let known = serve.get_arguments().filter_map(key);
    let near = known.map(|key| (strsim::jaro_winkler(&key, name), key));
    let near = near.max_by(|(a, _), (b, _)| a.total_cmp(b));
    match near {
        Some((likeness, key)) if likeness > 0.7 => format!("did you mean `{key}`?"),
        _ => "`enclos-kms serve --help` lists them".to_owned(),
    }
}

/// An error about a setting of the file names its line instead of a flag that nobody typed.
fn blamed(error: clap::Error, file: Option<&(PathBuf, Vec<Setting>)>) -> ConfigError {
    let Some((path, settings)) = file else {
        return ConfigError::CommandLine(error);
    };
    let told = error.get(ContextKind::InvalidArg).map(ToString::to_string);
    let told = told.unwrap_or_default();
    let flag = told.split([' ', '=']).next().unwrap_or_default();
    let name = flag.trim_start_matches('-').replace('-', "_");
    let Some(setting) = settings.iter().find(|setting| setting.key == name) else {
        return ConfigError::CommandLine(error);
    };
    let text = error.render().to_string();
    let text = text.lines().next().unwrap_or_default();
    ConfigError::Value {
        path: path.clone(),
        line: setting.line,
        text: text.trim_start_matches("error: ").to_owned(),
    }
}

/// Does it.
pub(super) fn run(command: Check, sources: &Sources) -> Result<(), Failure> {
    let Check::Check { serve, json } = command;
    serve::check(&serve)?;
    let settings = shown(sources);
    if json {
        return Ok(print(&format!("{:#}", Value::Array(settings)))?);
    }
    let mut table = Table::new(&["SETTING", "VALUE", "FROM"]);
    for setting in &settings {
        let text = |name: &str| setting[name].as_str().unwrap_or_default();
        table.row(&[text("key"), text("value"), text("source")]);
    }
    Ok(table.print()?)
}

/// Every setting that is not simply absent, with its source.
fn shown(sources: &Sources) -> Vec<Value> {
    let command = Arguments::command();
    let check = command.find_subcommand("config");
    let check = check.and_then(|config| config.find_subcommand("check"));
    let matches = sources.matches.subcommand_matches("config");
    let matches = matches.and_then(|matches| matches.subcommand_matches("check"));
    let (Some(check), Some(matches)) = (check, matches) else {
        return Vec::new();
    };
    let setting = |arg: &Arg| {
        let key = key(arg)?;
        let id = arg.get_id().as_str();
        let source = match matches.value_source(id)? {
            _ if sources.from_file.contains(&key) => "file",
            clap::parser::ValueSource::EnvVariable => "environment",
            clap::parser::ValueSource::CommandLine => "flag",
            _ if matches!(arg.get_action(), ArgAction::SetTrue) => return None,
            _ => "default",
        };
        let value = match arg.get_action() {
            ArgAction::SetTrue => matches.get_flag(id).to_string(),
            _ => {
                let values = matches.get_raw(id)?;
                let values: Vec<_> = values.map(|value| value.to_string_lossy()).collect();
                values.join(",")
            }
        };
        Some(json!({ "key": key, "value": value, "source": source }))
    };
    check.get_arguments().filter_map(setting).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn serve() -> Command {
        let command = Arguments::command();
        command.find_subcommand("serve").unwrap().clone()
    }

    /// The table of settings in docs/kms.md: made of the command line, so that neither can be without the other.
    #[test]
    fn the_documentation_lists_every_setting() {
        let mut table = String::from("| key in the file | variable | flag |\n|---|---|---|\n");
        for arg in serve().get_arguments() {
            let Some(key) = key(arg) else { continue };
            let long = arg.get_long().unwrap();
            let variable = format!("ENCLOS_KMS_{}", key.to_uppercase());
            let named = arg.get_env().map(|name| name.to_str().unwrap().to_owned());
            assert_eq!(named.as_deref(), Some(variable.as_str()), "--{long}");
            table += &format!("| `{key}` | `{variable}` | `--{long}` |\n");
        }
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/kms.md");
        let text = std::fs::read_to_string(path).unwrap();
        assert!(
            text.contains(&table),
            "docs/kms.md wants this table:\n{table}"
        );
        for arg in serve().get_arguments() {
            let long = arg.get_long().unwrap();
            assert!(
                text.contains(&format!("`--{long}")),
                "docs/kms.md explains no --{long}"
            );
        }
    }

    fn parsed(words: &[&str], file: &str) -> Result<(Arguments, Sources), ConfigError> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("kms.toml");
        std::fs::write(&path, file).unwrap();
        let mut all = vec!["enclos-kms", "serve", "--config", path.to_str().unwrap()];
        all.extend(words);
        parse(all.into_iter().map(OsString::from).collect())
    }

    #[track_caller]
    fn refused(file: &str, expected: &str) {
        let error = parsed(&[], file).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }

    const WHOLE: &str = "data = '/d'\nlisten = '127.0.0.1:1'\n";

    #[test]
    fn mistakes_are_told_with_their_line() {
        let with = |line: &str| format!("{WHOLE}{line}\n");
        refused(
            &with("lisen = '127.0.0.1:1'"),
            "kms.toml:3: there is no setting `lisen`; did you mean `listen`?",
        );
        refused(
            &with("[tls]\ncert = 'x'"),
            "kms.toml:3: there is no setting `tls`; ",
        );
        refused(&with("config = 'x'"), ":3: there is no setting `config`");
        refused(
            &with("trust_aws = 'yes'"),
            ":3: `trust_aws` has the type string, expected true or false",
        );
        refused(
            &with("rate_limit = 1.5"),
            ":3: `rate_limit` has the type float, expected a string or a whole number",
        );
        refused(
            &with("rate_limit = 0"),
            ":3: invalid value '0' for '--rate-limit <N>'",
        );
        refused(
            &with("trust_root = [1.5]"),
            ":3: `trust_root` has the type array, expected strings",
        );
        refused(&with("listen = '127.0.0.1:1'"), "duplicate key");
        refused(
            "data = 'd'\nlisten = 'nowhere'\n",
            ":2: invalid value 'nowhere'",
        );
        refused("data = 'd'\nlisten =\n", "line 2");
        refused("data = 'd'\n", "--listen");
    }

    #[test]
    fn every_kind_of_setting_is_taken_and_flags_win() {
        let file = format!(
            "{WHOLE}trust_aws = true\nstrict_policies = false\nserver_name = ['a', 'b']\nrate_limit = 5\n"
        );
        let (_, sources) = parsed(&["--listen", "127.0.0.1:2"], &file).unwrap();
        let matches = sources.matches.subcommand_matches("serve").unwrap();
        let raw = |id: &str| {
            let values = matches.get_raw(id).unwrap();
            values
                .map(|value| value.to_str().unwrap())
                .collect::<Vec<_>>()
        };
        assert_eq!(raw("listen"), ["127.0.0.1:2"]);
        assert_eq!(raw("server_name"), ["a", "b"]);
        assert_eq!(raw("rate_limit"), ["5"]);
        assert!(matches.get_flag("trust_aws") && !matches.get_flag("strict_policies"));
        assert!(!sources.from_file.contains(&"listen".to_owned()));
    }
}
