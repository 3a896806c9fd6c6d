//! The feed: what a replica does with the messages of its watch over the whole keyspace.
//!
//! A watch over everything sees each revision, so the next new revision is the last one plus one, and a lost event is
//! seen at once. The feed has no clock and no IO: its owner passes what happens as [`Input`]s, and carries out the
//! [`Action`]s in order. An action that the store refuses goes back as [`Input::Refused`], and the actions after it are
//! dropped. `ARCHITECTURE.md` has the table of stages and inputs.

use crate::mvcc::Followed;
use std::fmt;

/// Bytes of events that are buffered while the state is being loaded.
const BUFFER_MAX: usize = if cfg!(test) { 16 << 10 } else { 256 << 20 };
/// Memory that a buffered event takes beside its key-value, in bytes.
const EVENT_COST: usize = 48;
/// Faults in a row, without a new revision in between, after which the state is loaded anew.
const FAULTS: u32 = 2;
/// Periods of silence in a row after which the watch is opened anew.
const SILENCES: u32 = 2;

/// One message of the watch with events, or a fragment of one.
#[derive(Clone, Debug)]
pub struct FeedMessage {
    /// The revision of the header, which says nothing about what was delivered.
    pub header_revision: i64,
    /// Whether further parts of the same message follow.
    pub fragment: bool,
    pub events: Vec<Followed>,
}

/// Something that happened.
#[derive(Clone, Debug)]
pub enum Input {
    /// Upstream has created the watch; its store is at this revision.
    Created {
        revision: i64,
    },
    Message(FeedMessage),
    /// A message without events: everything up to this revision was delivered.
    Progress {
        revision: i64,
    },
    /// Upstream has ended the watch; a compact revision of 0 stands for another reason.
    Cancelled {
        compact_revision: i64,
        reason: String,
    },
    /// Nothing came for five seconds; again after each further five.
    Silence,
    /// The stream ended.
    Broken(Why),
    /// The state was loaded at this revision.
    Loaded {
        revision: i64,
        how: Load,
    },
    /// The store refused an action, and is at this revision.
    Refused {
        applied: i64,
    },
    /// The answer to [`Action::AskIndex`]: a revision that upstream has committed.
    Index {
        revision: i64,
    },
    /// The owner wants the state to be loaded anew.
    Reload(Why),
}

/// What a loaded state knows of its own revision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Load {
    /// All events: the state came with its history.
    Exact,
    /// The keys that are left: the state came from lists.
    Listed,
}

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Repeat the next revision ([`Store::adopt`](crate::mvcc::Store::adopt)).
    Adopt { revision: i64, events: Vec<Followed> },
    /// Compare a revision that is here ([`Store::compare`](crate::mvcc::Store::compare)).
    Compare { revision: i64, events: Vec<Followed> },
    /// Complete the first revision of a state from lists ([`Store::complete`](crate::mvcc::Store::complete)).
    Complete { revision: i64, events: Vec<Followed> },
    /// Ask for progress on the watch, once a second until something comes.
    AskProgress,
    /// Ask linearizably for upstream's revision: the member has less than this store.
    AskIndex,
    /// Close the watch, and open it anew from this revision (0: from now on).
    Reconnect { from: i64, why: Why },
    /// Close the watch, open it anew from now on, and load the state.
    Reload { why: Why },
}

/// Why the watch is opened anew, or the state is loaded anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Why {
    /// A revision was left out.
    Gap,
    /// Progress was reported beyond the last event.
    Lost,
    /// Messages that no etcd sends.
    Disorder,
    /// The watch did not begin with the events of the applied revision.
    Unproven,
    /// Upstream has other events than this store.
    Diverged,
    /// Upstream is at a revision below that of this store.
    Rewound,
    /// Upstream has compacted revisions that are missing here.
    Compacted,
    /// Upstream has ended the watch.
    Cancelled,
    /// Nothing came, not even progress that was asked for.
    Silent,
    /// The stream ended.
    Broken,
    /// The member has no leader.
    NoLeader,
    /// More revisions are missing than a watch should read.
    Behind,
    /// The watch that was buffered during a load cannot be continued.
    Buffer,
    /// Upstream is another cluster.
    OtherCluster,
    /// Endpoints have another past.
    OtherPast,
}

/// The state machine. See the module's documentation.
#[derive(Debug)]
pub struct Feed {
    /// The last revision for which [`Action::Adopt`] was returned, or that was loaded.
    applied: i64,
    stage: Stage,
    watch: Watch,
    /// Faults without a new revision in between.
    faults: u32,
    /// A revision was passed on to be adopted, and the store has not refused it so far.
    has_adopted: bool,
    /// The applied revision when upstream was asked for its own.
    asked_at: Option<i64>,
}

#[derive(Debug)]
enum Stage {
    Loading(Buffer),
    Following(Proof),
}

/// Whether the present watch has shown the events of the applied revision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Proof {
    Shown,
    Missing(Load),
}

/// What came on the watch while the state is being loaded.
#[derive(Debug, Default)]
struct Buffer {
    /// Whole revisions, dense.
    revisions: Vec<Revision>,
    bytes: usize,
    /// Upstream's revision when the watch was created: later revisions are in the buffer, or still come.
    created: Option<i64>,
    /// The watch ended, or the buffer was full.
    is_lost: bool,
}

/// The present watch.
#[derive(Debug, Default)]
struct Watch {
    is_created: bool,
    /// The events of the last revision so far, while fragments of the message are missing.
    begun: Vec<Followed>,
    in_fragments: bool,
    silences: u32,
}

/// All events of one revision.
#[derive(Debug)]
struct Revision {
    number: i64,
    events: Vec<Followed>,
}

fn revision_of(event: &Followed) -> i64 {
    event.kv.fields().mod_revision
}

// === impl Feed ===

impl Feed {
    /// The feed of a store at revision `applied`. Without a state (0), the state is loaded first.
    pub fn new(applied: i64) -> Self {
        let stage = match applied {
            ..=0 => Stage::Loading(Buffer::default()),
            _ => Stage::Following(Proof::needed(applied, Load::Exact)),
        };
        Self {
            applied: applied.max(0),
            stage,
            watch: Watch::default(),
            faults: 0,
            has_adopted: false,
            asked_at: None,
        }
    }

    /// The last revision that was adopted or loaded; 0 before the first load.
    pub fn applied(&self) -> i64 {
        self.applied
    }

    /// Where the watch begins: at the applied revision, whose events prove that upstream has the same past; 0 (from now
    /// on) while the state is being loaded.
    pub fn start(&self) -> i64 {
        match self.stage {
            Stage::Loading(_) => 0,
            Stage::Following(_) => self.applied,
        }
    }

    pub fn is_loading(&self) -> bool {
        matches!(self.stage, Stage::Loading(_))
    }

    /// Takes what happened; returns what to do, in order.
    pub fn input(&mut self, input: Input) -> Vec<Action> {
        let mut actions = vec![];
        if !matches!(input, Input::Silence) {
            self.watch.silences = 0;
        }
        if std::mem::take(&mut self.has_adopted) && !matches!(input, Input::Refused { .. }) {
            self.faults = 0;
        }
        let done = match input {
            Input::Created { revision } => self.created(revision, &mut actions),
            Input::Message(message) => self.message(message, &mut actions),
            Input::Progress { revision } => self.progress(revision),
            Input::Cancelled { compact_revision, .. } => self.cancelled(compact_revision, &mut actions),
            Input::Silence => self.silence(&mut actions),
            Input::Broken(why) => self.broken(why, &mut actions),
            Input::Loaded { revision, how } => self.loaded(revision, how, &mut actions),
            Input::Refused { applied } => {
                self.applied = applied;
                Err(Why::Diverged)
            }
            Input::Index { revision } => match self.asked_at.take() {
                // What is applied was committed, so a later read sees it unless time went back.
                Some(asked_at) if revision < asked_at => Err(Why::Rewound),
                _ => Ok(()),
            },
            Input::Reload(why) => self.reload(why, &mut actions),
        };
        if let Err(why) = done {
            self.fault(why, &mut actions);
        }
        actions
    }

    fn created(&mut self, revision: i64, actions: &mut Vec<Action>) -> Result<(), Why> {
        if std::mem::replace(&mut self.watch.is_created, true) {
            return Err(Why::Disorder);
        }
        match &mut self.stage {
            Stage::Loading(buffer) => buffer.created = Some(revision),
            Stage::Following(_) if revision < self.applied => {
                self.asked_at = Some(self.applied);
                actions.push(Action::AskIndex);
            }
            Stage::Following(_) => {}
        }
        Ok(())
    }

    fn message(&mut self, message: FeedMessage, actions: &mut Vec<Action>) -> Result<(), Why> {
        if !self.watch.is_created {
            return Err(Why::Disorder);
        }
        for revision in self.watch.joined(message)? {
            self.revision(revision, actions)?;
        }
        Ok(())
    }

    /// Takes a whole revision.
    fn revision(&mut self, revision: Revision, actions: &mut Vec<Action>) -> Result<(), Why> {
        let proof = match &mut self.stage {
            Stage::Loading(buffer) => return buffer.push(revision),
            Stage::Following(proof) => proof,
        };
        let Revision { number, events } = revision;
        if number > self.applied {
            return match *proof {
                Proof::Missing(_) => Err(Why::Unproven),
                Proof::Shown if number > self.applied + 1 => Err(Why::Gap),
                Proof::Shown => {
                    (self.applied, self.has_adopted) = (number, true);
                    actions.push(Action::Adopt {
                        revision: number,
                        events,
                    });
                    Ok(())
                }
            };
        }
        let missing = std::mem::replace(proof, if number == self.applied { Proof::Shown } else { *proof });
        actions.push(match missing {
            Proof::Missing(Load::Listed) if number == self.applied => Action::Complete {
                revision: number,
                events,
            },
            _ => Action::Compare {
                revision: number,
                events,
            },
        });
        Ok(())
    }

    fn progress(&mut self, revision: i64) -> Result<(), Why> {
        if self.watch.in_fragments || !self.watch.is_created {
            return Err(Why::Disorder);
        }
        match &mut self.stage {
            Stage::Loading(buffer) if revision > buffer.last() => Err(Why::Lost),
            Stage::Loading(_) => Ok(()),
            Stage::Following(_) if revision > self.applied => Err(Why::Lost),
            Stage::Following(Proof::Missing(_)) if revision == self.applied => Err(Why::Unproven),
            Stage::Following(Proof::Shown) if revision == self.applied => {
                self.faults = 0;
                Ok(())
            }
            // The member is behind, and the watch waits for it.
            Stage::Following(_) => Ok(()),
        }
    }

    fn cancelled(&mut self, compact_revision: i64, actions: &mut Vec<Action>) -> Result<(), Why> {
        match &mut self.stage {
            Stage::Loading(buffer) => buffer.lose(),
            Stage::Following(_) if compact_revision > self.applied => return self.reload(Why::Compacted, actions),
            Stage::Following(_) => self.reconnect(Why::Cancelled, actions),
        }
        Ok(())
    }

    fn silence(&mut self, actions: &mut Vec<Action>) -> Result<(), Why> {
        self.watch.silences += 1;
        if self.watch.silences < SILENCES {
            // An etcd may answer before the watch is created, and then the answer says nothing.
            if self.watch.is_created {
                actions.push(Action::AskProgress);
            }
            return Ok(());
        }
        self.broken(Why::Silent, actions)
    }

    fn broken(&mut self, why: Why, actions: &mut Vec<Action>) -> Result<(), Why> {
        match &mut self.stage {
            Stage::Loading(buffer) => buffer.lose(),
            Stage::Following(_) => self.reconnect(why, actions),
        }
        Ok(())
    }

    /// Joins a loaded state with what came meanwhile.
    fn loaded(&mut self, revision: i64, how: Load, actions: &mut Vec<Action>) -> Result<(), Why> {
        let Stage::Loading(buffer) = &mut self.stage else {
            // The owner loaded without being asked to: the watch begins anew at that revision.
            self.applied = revision;
            self.stage = Stage::Following(Proof::needed(revision, how));
            self.reconnect(Why::Buffer, actions);
            return Ok(());
        };
        let buffer = std::mem::take(buffer);
        (self.applied, self.faults) = (revision, 0);
        let created = buffer.created.filter(|_| !buffer.is_lost);
        // A watch that began later leaves a gap, and a state from lists needs the events of its revision.
        let needed = match how {
            Load::Exact => revision,
            Load::Listed => revision - i64::from(revision > 1),
        };
        self.stage = Stage::Following(Proof::needed(revision, how));
        if created.is_none_or(|created| created > needed) {
            self.reconnect(Why::Buffer, actions);
            return Ok(());
        }
        if how == Load::Exact {
            // The state was loaded from this upstream a moment ago.
            self.stage = Stage::Following(Proof::Shown);
        }
        for revision in buffer.revisions {
            self.revision(revision, actions)?;
        }
        Ok(())
    }

    /// Notes that upstream cannot be trusted to have sent everything.
    fn fault(&mut self, why: Why, actions: &mut Vec<Action>) {
        if let Stage::Loading(buffer) = &mut self.stage {
            return buffer.lose();
        }
        if std::mem::take(&mut self.has_adopted) {
            self.faults = 0;
        }
        self.faults += 1;
        match self.faults < FAULTS {
            true => self.reconnect(why, actions),
            false => drop(self.reload(why, actions)),
        }
    }

    fn reconnect(&mut self, why: Why, actions: &mut Vec<Action>) {
        self.watch = Watch::default();
        self.asked_at = None;
        if let Stage::Following(proof) = &mut self.stage {
            let how = match *proof {
                Proof::Missing(how) => how,
                Proof::Shown => Load::Exact,
            };
            *proof = Proof::needed(self.applied, how);
        }
        actions.push(Action::Reconnect {
            from: self.start(),
            why,
        });
    }

    fn reload(&mut self, why: Why, actions: &mut Vec<Action>) -> Result<(), Why> {
        self.watch = Watch::default();
        (self.faults, self.asked_at) = (0, None);
        self.stage = Stage::Loading(Buffer::default());
        actions.push(Action::Reload { why });
        Ok(())
    }
}

// === impl Proof ===

impl Proof {
    /// Revision 1 has no events that a watch could show.
    fn needed(applied: i64, how: Load) -> Self {
        match applied {
            ..=1 => Self::Shown,
            _ => Self::Missing(how),
        }
    }
}

// === impl Buffer ===

impl Buffer {
    fn push(&mut self, revision: Revision) -> Result<(), Why> {
        if self.is_lost {
            return Ok(());
        }
        if revision.number != self.last() + 1 {
            return Err(Why::Gap);
        }
        let cost = |event: &Followed| event.kv.as_bytes().len() + EVENT_COST;
        self.bytes += revision.events.iter().map(cost).sum::<usize>();
        self.revisions.push(revision);
        match self.bytes > BUFFER_MAX {
            true => Err(Why::Buffer),
            false => Ok(()),
        }
    }

    /// The revision up to which everything has come.
    fn last(&self) -> i64 {
        self.revisions.last().map_or(self.created.unwrap_or(0), |r| r.number)
    }

    /// Forgets what came: the watch begins anew once the state is loaded.
    fn lose(&mut self) {
        *self = Self {
            is_lost: true,
            ..Self::default()
        };
    }
}

// === impl Watch ===

impl Watch {
    /// Takes a message or a part of one; returns the revisions that are whole.
    fn joined(&mut self, message: FeedMessage) -> Result<Vec<Revision>, Why> {
        let FeedMessage {
            header_revision,
            fragment,
            events,
        } = message;
        let mut whole = vec![];
        let mut begun = std::mem::take(&mut self.begun);
        for event in events {
            let revision = revision_of(&event);
            match begun.first().map(revision_of) {
                Some(last) if revision < last => return Err(Why::Disorder),
                Some(last) if revision > last => whole.push(Revision {
                    number: last,
                    events: std::mem::take(&mut begun),
                }),
                _ => {}
            }
            if revision > header_revision {
                return Err(Why::Disorder);
            }
            begun.push(event);
        }
        self.in_fragments = fragment;
        match begun.first().map(revision_of).filter(|_| !fragment) {
            Some(number) => whole.push(Revision { number, events: begun }),
            None => self.begun = begun,
        }
        Ok(whole)
    }
}

// === impl Why ===

impl Why {
    /// The word for metrics and logs.
    pub const ALL: [Self; 15] = [
        Self::Gap,
        Self::Lost,
        Self::Disorder,
        Self::Unproven,
        Self::Diverged,
        Self::Rewound,
        Self::Compacted,
        Self::Cancelled,
        Self::Silent,
        Self::Broken,
        Self::NoLeader,
        Self::Behind,
        Self::Buffer,
        Self::OtherCluster,
        Self::OtherPast,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Gap => "gap",
            Self::Lost => "lost",
            Self::Disorder => "disorder",
            Self::Unproven => "unproven",
            Self::Diverged => "diverged",
            Self::Rewound => "rewound",
            Self::Compacted => "compacted",
            Self::Cancelled => "cancelled",
            Self::Silent => "silent",
            Self::Broken => "broken",
            Self::NoLeader => "no_leader",
            Self::Behind => "behind",
            Self::Buffer => "buffer",
            Self::OtherCluster => "other_cluster",
            Self::OtherPast => "other_past",
        }
    }
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Gap => "a revision was left out",
            Self::Lost => "progress was reported beyond the last event",
            Self::Disorder => "the messages of the watch are out of order",
            Self::Unproven => "the watch did not begin with the last revision that was applied",
            Self::Diverged => "upstream has other events than this replica",
            Self::Rewound => "upstream is at a revision before that of this replica",
            Self::Compacted => "upstream has compacted revisions that are missing here",
            Self::Cancelled => "upstream has ended the watch",
            Self::Silent => "upstream sent nothing, not even progress",
            Self::Broken => "the stream ended",
            Self::NoLeader => "the member has no leader",
            Self::Behind => "too many revisions are missing for a watch",
            Self::Buffer => "the watch that ran during the load cannot be continued",
            Self::OtherCluster => "upstream is another cluster",
            Self::OtherPast => "upstream has another past",
        })
    }
}

#[cfg(test)]
mod tests;
