//! Files that others write while we read them.

use notify::EventKind;
use notify::event::{AccessKind, AccessMode};
use std::path::Path;
use std::time::Duration;

/// A file that changed less than this long ago may still be being written: most programs empty a file
/// before they fill it.
pub const SETTLE: Duration = Duration::from_millis(50);

/// Whether the file has not changed just now. A time in the future counts as long ago.
pub fn is_settled(path: &Path) -> bool {
    let modified = std::fs::metadata(path).and_then(|m| m.modified());
    modified.is_ok_and(|time| time.elapsed().map_or(true, |ago| ago >= SETTLE))
}

/// Whether something noticed is worth a look. Our own looks are events, too: they must not lead to more.
pub fn is_change(event: &notify::Result<notify::Event>) -> bool {
    let written = EventKind::Access(AccessKind::Close(AccessMode::Write));
    let reading = |kind: EventKind| kind.is_access() && kind != written;
    !event.as_ref().is_ok_and(|event| reading(event.kind))
}
