//! Prints the changes of mirrored keys: what is new, and which fields of a value changed.

use super::MIRRORED;
use crate::cli::print;
use crate::mvcc::{Event, EventKind, KeyRange, Kv, Store, Wake, WatchFilter, WatchUpdate};
use serde_json::Value;
use std::sync::Arc;
use tokio::sync::Notify;

/// The most fields of one value that are printed.
const FIELDS_MAX: usize = 6;
/// The longest text of a value that is printed whole, in characters.
const LENGTH_MAX: usize = 600;

/// Wakes the task that prints changes.
#[derive(Default)]
struct Changed(Notify);

impl Wake for Changed {
    fn wake(&self) {
        self.0.notify_one();
    }
}

/// Prints the changes of the mirror in `store` as they are committed, for ever.
pub(super) async fn print(cluster: &str, store: &Arc<Store>) {
    let changed = Arc::new(Changed::default());
    let filter = WatchFilter::new(KeyRange::prefix(MIRRORED));
    let mut watcher = store.watch(filter, 0, Arc::clone(&changed) as _);
    let mut seen = watcher.created_at();
    loop {
        changed.0.notified().await;
        // Only the batches are printed; taking the encoded events keeps the watcher at the latest revision.
        while let WatchUpdate::Events { .. } = watcher.take(usize::MAX) {}
        for batch in store.batches(seen + 1, usize::MAX) {
            seen = batch.revision;
            for event in batch.events.iter().filter(is_mirrored) {
                let time = jiff::Timestamp::now().strftime("%H:%M:%S%.3f");
                let text = change(event, store.before(event).as_ref());
                // The demo goes on for those who use it with other tools.
                let _ = print::answer(&format!("{time} {cluster} revision {seen}: {text}\n"));
            }
        }
    }
}

fn is_mirrored(event: &&Event) -> bool {
    event.kv.key().starts_with(MIRRORED.as_bytes())
}

/// The text of a change of a key, whose key-value was `before`.
fn change(event: &Event, before: Option<&Kv>) -> String {
    let key = String::from_utf8_lossy(event.kv.key());
    match event.kind {
        EventKind::Put => {
            let value = event.kv.value();
            let changed = before.and_then(|before| fields(before.value(), value));
            format!("put    {key}  {}", changed.unwrap_or_else(|| whole(value)))
        }
        EventKind::Delete => format!("delete {key}"),
    }
}

/// The fields that differ; `None` if one of the values is no JSON, or all is the same.
fn fields(before: &[u8], after: &[u8]) -> Option<String> {
    let parse = |value| serde_json::from_slice::<Value>(value).ok();
    let mut found = vec![];
    differences("", &parse(before)?, &parse(after)?, &mut found);
    let more = found.len().saturating_sub(FIELDS_MAX);
    found.truncate(FIELDS_MAX);
    if more > 0 {
        found.push(format!("and {more} more"));
    }
    (!found.is_empty()).then(|| found.join(", "))
}

fn differences(path: &str, before: &Value, after: &Value, found: &mut Vec<String>) {
    let under = |name: &str| match path {
        "" => name.to_owned(),
        path => format!("{path}.{name}"),
    };
    match (before, after) {
        (before, after) if before == after => {}
        (Value::Object(one), Value::Object(two)) => {
            for (name, before) in one {
                differences(&under(name), before, two.get(name).unwrap_or(&Value::Null), found);
            }
            for (name, after) in two.iter().filter(|(name, _)| !one.contains_key(*name)) {
                differences(&under(name), &Value::Null, after, found);
            }
        }
        (Value::Array(one), Value::Array(two)) if one.len() == two.len() => {
            for (at, (before, after)) in one.iter().zip(two).enumerate() {
                differences(&format!("{path}[{at}]"), before, after, found);
            }
        }
        (before, after) => found.push(format!("{path}: {before} → {after}")),
    }
}

/// A value, cut if it is very long.
fn whole(value: &[u8]) -> String {
    match std::str::from_utf8(value) {
        Ok(text) if text.chars().count() <= LENGTH_MAX => text.to_owned(),
        Ok(text) => text.chars().take(LENGTH_MAX).collect::<String>() + "…",
        Err(_) => format!("({} bytes)", value.len()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fields_that_changed_are_named() {
        let long = "x".repeat(1000);
        let before = format!(r#"{{"a":"{long}","ips":[{{"ip":"10.0.0.1"}},{{"ip":"10.0.0.2"}}],"old":1}}"#);
        let after = format!(r#"{{"a":"{long}","ips":[{{"ip":"10.0.0.1"}},{{"ip":"10.0.0.9"}}],"new":{{"b":2}}}}"#);
        assert_eq!(
            fields(before.as_bytes(), after.as_bytes()).as_deref(),
            Some(r#"ips[1].ip: "10.0.0.2" → "10.0.0.9", old: 1 → null, new: null → {"b":2}"#)
        );
        assert_eq!(fields(before.as_bytes(), before.as_bytes()), None);
        assert_eq!(fields(b"plain", b"text"), None);
        assert!(whole(long.as_bytes()).ends_with('…') && whole(b"text") == "text");
    }
}
