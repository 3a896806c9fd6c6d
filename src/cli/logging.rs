//! Log lines in the shapes that the field's tools read: Cilium's logfmt and JSON, etcd's JSON.

use std::fmt::{self, Write as _};
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

/// The shape of a line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// `time=… level=info msg=… key=value`
    #[default]
    Text,
    /// `{"time":…,"level":…,"msg":…}`
    Json,
    /// `{"level":…,"ts":…,"caller":…,"msg":…}`, as etcd's server logs.
    Etcd,
}

/// Starts logging. Daemons log to standard output, as the originals; etcd and the demo to standard error.
pub fn init(format: Format, level: Level, to_stdout: bool) {
    let filter = EnvFilter::new(format!("warn,isthmus={}", level.as_str().to_ascii_lowercase()));
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(false)
        .event_format(Lines(format));
    // A second subscriber is refused, which only tests could want.
    let _ = match to_stdout {
        true => builder.with_writer(std::io::stdout).try_init(),
        false => builder.with_writer(std::io::stderr).try_init(),
    };
}

/// Reads `--log-opt`; what it does not understand is left at its default, with a complaint.
pub fn options(debug: bool, options: &[String]) -> (Format, Level, Vec<String>) {
    let (mut format, mut level) = (Format::Text, if debug { Level::DEBUG } else { Level::INFO });
    let mut complaints = vec![];
    for option in options {
        let (key, value) = option.split_once('=').unwrap_or((option, ""));
        match (key, value) {
            ("format", "text" | "text-ts") => format = Format::Text,
            ("format", "json" | "json-ts") => format = Format::Json,
            ("level", _) if value.parse::<Level>().is_ok() => {
                level = value.parse().unwrap_or(level);
            }
            ("level", "warning") => level = Level::WARN,
            ("writer", _) => {}
            _ => complaints.push(format!("log option {option:?} is not understood")),
        }
    }
    (format, level, complaints)
}

struct Lines(Format);

#[derive(Default)]
struct Fields {
    message: String,
    rest: Vec<(&'static str, String)>,
}

impl Visit for Fields {
    fn record_str(&mut self, field: &Field, value: &str) {
        match field.name() {
            "message" => value.clone_into(&mut self.message),
            name => self.rest.push((name, value.to_owned())),
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.record_str(field, &format!("{value:?}"));
    }
}

impl<S, N> FormatEvent<S, N> for Lines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, _: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let mut fields = Fields::default();
        event.record(&mut fields);
        let level = event.metadata().level().as_str().to_ascii_lowercase();
        let time = jiff::Timestamp::now();
        match self.0 {
            Format::Text => {
                write!(writer, "time={time} level={level} msg={}", quoted(&fields.message))?;
                for (name, value) in &fields.rest {
                    write!(writer, " {name}={}", quoted(value))?;
                }
                writeln!(writer)
            }
            Format::Json => json(&mut writer, &[("time", &time.to_string()), ("level", &level)], &fields),
            Format::Etcd => {
                let meta = event.metadata();
                let file = meta.file().and_then(|f| f.rsplit('/').next()).unwrap_or_default();
                let caller = format!("{file}:{}", meta.line().unwrap_or_default());
                let ts = time.strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string();
                json(
                    &mut writer,
                    &[("level", &level), ("ts", &ts), ("caller", &caller)],
                    &fields,
                )
            }
        }
    }
}

/// A value as logfmt has it: quoted if it must be.
fn quoted(value: &str) -> String {
    let plain = |c: char| !c.is_whitespace() && !c.is_control() && c != '"' && c != '=';
    match !value.is_empty() && value.chars().all(plain) {
        true => value.to_owned(),
        false => format!("{value:?}"),
    }
}

fn json(writer: &mut Writer<'_>, head: &[(&str, &str)], fields: &Fields) -> fmt::Result {
    let text = |value: &str| serde_json::Value::from(value).to_string();
    let rest = fields.rest.iter().map(|(name, value)| (*name, &**value));
    let mut line = String::from("{");
    for (name, value) in head.iter().copied().chain([("msg", &*fields.message)]).chain(rest) {
        let comma = if line.len() > 1 { "," } else { "" };
        write!(line, "{comma}{}:{}", text(name), text(value))?;
    }
    writeln!(writer, "{line}}}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_quoted_only_where_they_must_be() {
        assert_eq!(quoted("a/b:1"), "a/b:1");
        assert_eq!(quoted("two words"), "\"two words\"");
        assert_eq!(quoted("a=\"b\"\n"), "\"a=\\\"b\\\"\\n\"");
        assert_eq!(quoted(""), "\"\"");
    }

    #[test]
    fn log_options_choose_format_and_level() {
        let given = [
            "format=json".to_owned(),
            "level=warning".to_owned(),
            "color=red".to_owned(),
        ];
        let (format, level, complaints) = options(true, &given);
        assert_eq!((format, level, complaints.len()), (Format::Json, Level::WARN, 1));
    }
}
