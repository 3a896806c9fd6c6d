//! Log lines in the formats that operators' tools parse: Cilium's logfmt and JSON, etcd's JSON.

mod sink;

use crate::util::words::is_hidden;
use sink::{Lines as SinkLines, Sink};
use std::backtrace::{Backtrace, BacktraceStatus};
use std::fmt::{self, Write as _};
use std::sync::OnceLock;
use std::time::Duration;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::field::RecordFields;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;

/// The format of a log line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// `time=… level=info msg=… key=value`
    #[default]
    Text,
    /// The same without the time.
    TextWithoutTime,
    /// `{"time":…,"level":…,"msg":…}`
    Json,
    /// The same without the time.
    JsonWithoutTime,
    /// `{"level":…,"ts":…,"caller":…,"msg":…}`, as etcd's server logs.
    Etcd,
}

/// The stream that log lines are written to. Cilium's daemons log to standard output, etcd to standard error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Output {
    Stdout,
    Stderr,
}

/// Starts logging.
pub fn init(format: Format, level: Level, output: Output) {
    // kube logs every retry; the Kubernetes room logs each failure once, with the kind of object.
    let filter = EnvFilter::new(format!(
        "warn,kube_client=off,kube_runtime=off,isthmus={}",
        level.as_str().to_ascii_lowercase()
    ));
    let _ = STARTED.set((format, output));
    let sink = output.sink();
    let lines = tracing_subscriber::fmt::layer()
        .with_ansi(false)
        .event_format(Lines(format))
        .fmt_fields(NoFields)
        .with_writer(move || SinkLines(sink));
    let registry = tracing_subscriber::registry().with(filter).with(SpanFields).with(lines);
    let started = registry.try_init();
    // Fails if a subscriber exists, which happens in tests only.
    if started.is_ok() {
        std::panic::set_hook(Box::new(|panic| {
            let thread = std::thread::current();
            let backtrace = Backtrace::capture();
            let name = thread.name().unwrap_or("without a name");
            let mut text = format!("thread {name:?}: {panic}\n");
            if backtrace.status() == BacktraceStatus::Captured {
                text += &backtrace.to_string();
            }
            STDERR.write(text.as_bytes());
        }));
    }
}

static STDOUT: Sink = Sink::new(sink::stdout, lost);
static STDERR: Sink = Sink::new(sink::stderr, lost);

/// The wait at the end of the process for a reader of the log that is late.
const LAST_LINES: Duration = Duration::from_secs(1);

impl Output {
    fn sink(self) -> &'static Sink {
        match self {
            Self::Stdout => &STDOUT,
            Self::Stderr => &STDERR,
        }
    }
}

/// Writes `text` as an output that no failure of the output ends: to standard error, as the log is written.
pub fn complain(text: &str) {
    STDERR.write(text.as_bytes());
}

/// Waits for the last lines to be written, for a limited time.
pub fn finish() {
    STDOUT.finish(LAST_LINES);
    STDERR.finish(LAST_LINES);
}

/// The line that reports `count` lost lines.
fn lost(count: u64) -> String {
    let format = STARTED.get().map_or(Format::Text, |(format, _)| *format);
    let fields = Fields {
        message: "lines of the log were lost: the log was not read in time, or could not be written".to_owned(),
        rest: vec![("lines", count.to_string())],
    };
    line(format, "warn", &fields)
}

/// A line without a place in the sources.
fn line(format: Format, level: &str, fields: &Fields) -> String {
    let mut line = String::new();
    // Writing to a string does not fail.
    let _ = log_line(
        &mut Writer::new(&mut line),
        format,
        level,
        SourceLine::default(),
        fields,
    );
    line
}

/// The options of `--log-opt`.
pub struct Options {
    pub format: Format,
    pub level: Level,
    pub output: Output,
    /// One text for each invalid option; its default is in force.
    pub invalid: Vec<String>,
}

/// The format and the output that logging was started with.
static STARTED: OnceLock<(Format, Output)> = OnceLock::new();

/// Logs `message`, the reason why the process ends, at level fatal, which `tracing` does not have. Returns false
/// if logging was not started.
pub fn fatal(message: &str) -> bool {
    let Some((format, output)) = STARTED.get() else {
        return false;
    };
    let fields = Fields {
        message: message.to_owned(),
        rest: vec![],
    };
    output.sink().write(line(*format, "fatal", &fields).as_bytes());
    true
}

/// The level with and without `--debug`.
pub fn level(debug: bool) -> Level {
    if debug { Level::DEBUG } else { Level::INFO }
}

/// Parses `--log-opt`. Its level overrides `default_level`.
pub fn options(default_level: Level, options: &[String]) -> Options {
    let (mut format, mut level) = (Format::Text, default_level);
    let (mut output, mut invalid) = (Output::Stdout, vec![]);
    for option in options {
        let (key, value) = option.split_once('=').unwrap_or((option, ""));
        match (key, value) {
            ("format", "text-ts") => format = Format::Text,
            ("format", "text") => format = Format::TextWithoutTime,
            ("format", "json-ts") => format = Format::Json,
            ("format", "json") => format = Format::JsonWithoutTime,
            ("level", _) if value.parse::<Level>().is_ok() => {
                level = value.parse().unwrap_or(level);
            }
            ("level", "warning") => level = Level::WARN,
            ("writer", "stdout") => output = Output::Stdout,
            ("writer", "stderr") => output = Output::Stderr,
            _ => invalid.push(format!(
                "invalid log option {option:?}, using the default: valid are level=debug|info|warn|error, \
                 format=text|text-ts|json|json-ts and writer=stdout|stderr"
            )),
        }
    }
    Options {
        format,
        level,
        output,
        invalid,
    }
}

struct Lines(Format);

/// Keeps the fields of each span, for the lines that are logged inside.
struct SpanFields;

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for SpanFields {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let mut fields = Fields::default();
        attributes.record(&mut fields);
        if let Some(span) = context.span(id) {
            span.extensions_mut().insert(fields);
        }
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, context: Context<'_, S>) {
        if let Some(span) = context.span(id)
            && let Some(fields) = span.extensions_mut().get_mut::<Fields>()
        {
            values.record(fields);
        }
    }
}

/// The subscriber's own texts of spans, which nobody reads.
struct NoFields;

impl<'a> FormatFields<'a> for NoFields {
    fn format_fields<R: RecordFields>(&self, _: Writer<'a>, _: R) -> fmt::Result {
        Ok(())
    }
}

#[derive(Default)]
struct Fields {
    message: String,
    rest: Vec<(&'static str, String)>,
}

impl Fields {
    /// Appends fields whose names are not there yet.
    fn add(&mut self, more: &Self) {
        for (name, value) in &more.rest {
            if self.rest.iter().all(|(present, _)| present != name) {
                self.rest.push((name, value.clone()));
            }
        }
    }
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
    fn format_event(&self, context: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let mut fields = Fields::default();
        event.record(&mut fields);
        // From the innermost span out, so that the nearest value of a name counts.
        for span in context.event_scope().into_iter().flatten() {
            if let Some(of_span) = span.extensions().get::<Fields>() {
                fields.add(of_span);
            }
        }
        let meta = event.metadata();
        let level = meta.level().as_str().to_ascii_lowercase();
        let at = SourceLine {
            file: meta.file().unwrap_or_default(),
            line: meta.line().unwrap_or_default(),
        };
        log_line(&mut writer, self.0, &level, at, &fields)
    }
}

/// The place in the sources that logs.
#[derive(Clone, Copy, Default)]
struct SourceLine<'a> {
    file: &'a str,
    line: u32,
}

fn log_line(writer: &mut Writer<'_>, format: Format, level: &str, at: SourceLine<'_>, fields: &Fields) -> fmt::Result {
    let time = jiff::Timestamp::now();
    match format {
        Format::Text | Format::TextWithoutTime => {
            if format == Format::Text {
                write!(writer, "time={time} ")?;
            }
            write!(writer, "level={level} msg={}", quoted(&fields.message))?;
            for (name, value) in &fields.rest {
                write!(writer, " {name}={}", quoted(value))?;
            }
            writeln!(writer)
        }
        Format::Json => json(writer, &[("time", &time.to_string()), ("level", level)], fields),
        Format::JsonWithoutTime => json(writer, &[("level", level)], fields),
        Format::Etcd => {
            let file = at.file.rsplit('/').next().unwrap_or_default();
            let ts = time.strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string();
            let caller = format!("{file}:{}", at.line);
            json(writer, &[("level", level), ("ts", &ts), ("caller", &caller)], fields)
        }
    }
}

/// A value in logfmt: quoted where the format requires quotes.
fn quoted(value: &str) -> String {
    let plain = |c: char| !c.is_whitespace() && !is_hidden(c) && c != '"' && c != '=';
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
        assert_eq!(quoted("a\u{202e}b\u{200b}"), "\"a\\u{202e}b\\u{200b}\"");
    }

    /// Takes lines into a string.
    #[derive(Clone, Default)]
    struct Taken(std::sync::Arc<parking_lot::Mutex<Vec<u8>>>);

    impl std::io::Write for Taken {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_line_inside_spans_carries_their_fields_once() {
        let taken = Taken::default();
        let writer = taken.clone();
        let lines = tracing_subscriber::fmt::layer()
            .event_format(Lines(Format::TextWithoutTime))
            .fmt_fields(NoFields)
            .with_writer(move || writer.clone());
        let registry = tracing_subscriber::registry().with(SpanFields).with(lines);
        tracing::subscriber::with_default(registry, || {
            let remote = tracing::info_span!("remote cluster", cluster_name = "hk", endpoint = tracing::field::Empty);
            let _remote = remote.enter();
            tracing::info!(tries = 3, "connecting");
            remote.record("endpoint", "h:1");
            let _scope = tracing::info_span!("scope", prefix = "p/", cluster_name = "inner").entered();
            tracing::info!(prefix = "of the event", "listing");
        });
        let text = String::from_utf8(taken.0.lock().clone()).unwrap();
        let expected = "level=info msg=connecting tries=3 cluster_name=hk\n\
                        level=info msg=listing prefix=\"of the event\" cluster_name=inner endpoint=h:1\n";
        assert_eq!(text, expected);
    }

    #[test]
    fn log_options_choose_format_and_level() {
        let given = [
            "format=json".to_owned(),
            "level=warning".to_owned(),
            "color=red".to_owned(),
            "writer=stderr".to_owned(),
        ];
        let options = options(Level::DEBUG, &given);
        assert_eq!((options.format, options.level), (Format::JsonWithoutTime, Level::WARN));
        assert_eq!((options.output, options.invalid.len()), (Output::Stderr, 1));
    }
}
