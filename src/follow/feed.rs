//! The feed: what a replica does with the messages of its watch over the whole keyspace.
//!
//! A watch over everything sees each revision, so the next new revision is the last one plus one, and a lost event is
//! seen at once. The feed has no clock and no IO: its owner passes what happens as [`Input`]s, and carries out the
//! [`Action`]s in order. An action that the store refuses goes back as [`Input::Refused`], and the actions after it are
//! dropped. `ARCHITECTURE.md` has the table of stages and inputs. `messages` joins fragments and splits messages into
//! revisions, and `buffer` keeps what comes during a load.

mod buffer;
mod messages;
mod why;

pub use messages::FeedMessage;
pub use why::Why;

use crate::mvcc::Followed;
use buffer::Buffer;
use messages::{Revision, Watch};

/// Faults in a row, without a new revision in between, after which the state is loaded anew.
const FAULTS: u32 = 2;
/// Periods of silence in a row after which the watch is opened anew.
const SILENCES: u32 = 2;

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

#[cfg(test)]
mod tests;
