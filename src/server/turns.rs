//! Turns for reads and transactions that look at many keys, so that they stall nobody else.
//!
//! Short work runs at once. Work on more keys waits for the turn of its connection and then for one of a few slots of
//! the process, so that connections take turns however many calls each of them makes. Long work runs on a blocking
//! thread, in steps, and stops when its client goes away. Long answers have a budget of their own, which they hold until
//! the client has taken them.

use super::admission::{Caller, Operation};
use super::bodies::Held;
use super::connection::UNIT;
use super::peer::Peer;
use super::refusals::Budget;
use super::{Core, status};
use crate::util::pace::Rests;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::available_parallelism;
use tokio::sync::{AcquireError, OwnedSemaphorePermit, Semaphore};
use tonic::{Response, Status};

/// Work on at most this many keys takes some microseconds and needs no turn.
const SHORT_KEYS: usize = 100;
/// Work on more keys than this is long.
const LONG_KEYS: usize = 2000;
/// Answers from this length on take from the budget of long answers.
const LONG_ANSWER: usize = 512 << 10;

/// The slots of a process for work on many keys.
pub(super) struct Turns {
    /// Slots for work that runs on the threads of the runtime.
    medium: Arc<Semaphore>,
    /// Slots for work that runs on blocking threads. At least one core stays free for everything else.
    long: Arc<Semaphore>,
    /// Bytes of long answers, in units of [`UNIT`].
    answers: Arc<Semaphore>,
    answer_units: u32,
    /// The part of `answers` that each user may have at a time: half.
    owners: Mutex<HashMap<Arc<str>, Arc<Semaphore>>>,
}

/// Users whose part is remembered. The parts of users without long answers are forgotten then.
const OWNERS_MAX: usize = 1024;

/// Permits that a call has collected: for its read, and for its answer.
#[derive(Default)]
pub(super) struct Permits(Vec<OwnedSemaphorePermit>);

/// A result, and what has to be held until its answer is taken.
#[derive(Default)]
pub(super) struct Done<T> {
    pub(super) value: T,
    /// The turn of the connection, which is returned once the answer is within its budget.
    turn: Permits,
    /// What is held until the client has taken the answer.
    held: Permits,
}

/// Says whether the caller of a long read still waits. The caller has gone once this is dropped.
struct Waiting(Arc<AtomicBool>);

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Relaxed);
    }
}

/// Whether work on so many keys needs no turn.
pub(super) fn is_short(keys: usize) -> bool {
    keys <= SHORT_KEYS
}

/// Whether an answer of so many bytes takes from the budget of long answers.
pub(super) fn is_long_answer(bytes: usize) -> bool {
    bytes >= LONG_ANSWER
}

async fn acquire(semaphore: &Arc<Semaphore>, units: u32) -> Result<OwnedSemaphorePermit, Status> {
    let closed = |_: AcquireError| status::stopped();
    Arc::clone(semaphore).acquire_many_owned(units).await.map_err(closed)
}

impl Turns {
    pub(super) fn new(long_answer_bytes: usize) -> Self {
        let cores = available_parallelism().map_or(1, usize::from);
        let units = (long_answer_bytes / UNIT).max(1);
        Self {
            medium: Arc::new(Semaphore::new(2 * cores)),
            long: Arc::new(Semaphore::new((cores / 2).max(1))),
            answers: Arc::new(Semaphore::new(units)),
            answer_units: u32::try_from(units).unwrap_or(u32::MAX),
            owners: Mutex::default(),
        }
    }

    /// The part of one user.
    fn of_owner(&self, owner: Arc<str>) -> Arc<Semaphore> {
        let mut owners = self.owners.lock();
        if owners.len() >= OWNERS_MAX {
            owners.retain(|_, part| Arc::strong_count(part) > 1);
        }
        let new = || Arc::new(Semaphore::new(self.half() as usize));
        Arc::clone(owners.entry(owner).or_insert_with(new))
    }

    fn half(&self) -> u32 {
        self.answer_units.div_ceil(2)
    }

    /// Waits until an answer of `bytes` is within the budget of long answers.
    async fn answer(&self, peer: &Peer, bytes: usize) -> Result<Vec<OwnedSemaphorePermit>, Status> {
        if !is_long_answer(bytes) {
            return Ok(vec![]);
        }
        let units = u32::try_from(bytes / UNIT)
            .ok()
            .filter(|units| *units <= self.answer_units);
        let units = units.ok_or_else(|| status::too_long_answer(bytes, self.answer_units as usize * UNIT))?;
        let part = acquire(&self.of_owner(peer.owner()), units.min(self.half())).await?;
        Ok(vec![part, acquire(&self.answers, units).await?])
    }
}

impl<T> Done<T> {
    /// Splits the value off; the rest goes to [`Core::answer`].
    pub(super) fn take(self) -> (T, Done<()>) {
        let Self { value, turn, held } = self;
        (value, Done { value: (), turn, held })
    }
}

impl Core {
    /// The turn of the connection, for `steps` of work that is not short.
    pub(super) async fn turn(&self, peer: &Peer, steps: usize) -> Result<Option<OwnedSemaphorePermit>, Status> {
        match is_short(steps) {
            true => Ok(None),
            false => acquire(&peer.connection.turn, 1).await.map(Some),
        }
    }

    /// Runs `work`, which visits about `keys` keys. `work` gets a function to ask whether to go on.
    pub(super) async fn take_turn<T: Send + 'static>(
        self: &Arc<Self>,
        peer: &Peer,
        keys: usize,
        work: impl FnOnce(&Self, &mut dyn FnMut() -> bool) -> T + Send + 'static,
    ) -> Result<Done<T>, Status> {
        let connection = &peer.connection;
        if is_short(keys) {
            return Ok(Done {
                value: work(self, &mut || true),
                turn: Permits::default(),
                held: Permits::default(),
            });
        }
        if keys <= LONG_KEYS {
            let turn = acquire(&connection.turn, 1).await?;
            let _slot = acquire(&self.turns.medium, 1).await?;
            return Ok(Done {
                value: work(self, &mut || true),
                turn: Permits(vec![turn]),
                held: Permits::default(),
            });
        }
        let held = acquire(&connection.long_read, 1).await?;
        let slot = acquire(&self.turns.long, 1).await?;
        let waits = Arc::new(AtomicBool::new(true));
        let waiting = Waiting(Arc::clone(&waits));
        let core = Arc::clone(self);
        let run = tokio::task::spawn_blocking(move || {
            let _slot = slot;
            let mut rests = Rests::begin();
            work(&core, &mut || {
                rests.rest();
                waits.load(Ordering::Relaxed)
            })
        });
        let value = run.await.map_err(|e| Status::internal(e.to_string()))?;
        drop(waiting);
        Ok(Done {
            value,
            turn: Permits::default(),
            held: Permits(vec![held]),
        })
    }

    /// Like [`Core::take_turn`], for a call that was admitted. The call is admitted once more when its turn comes:
    /// permissions may have been revoked while the call waited.
    pub(super) async fn take_admitted_turn<T: Send + 'static>(
        self: &Arc<Self>,
        caller: &Caller,
        operation: Operation,
        keys: usize,
        work: impl FnOnce(&Self, &mut dyn FnMut() -> bool) -> T + Send + 'static,
    ) -> Result<Done<T>, Status> {
        let again = (!is_short(keys)).then(|| (caller.clone(), operation));
        let admitted = move |core: &Self, go_on: &mut dyn FnMut() -> bool| {
            if let Some((caller, operation)) = again {
                core.admission.check(&caller, &operation)?;
            }
            Ok(work(core, go_on))
        };
        let Done { value, turn, held } = self.take_turn(caller.peer(), keys, admitted).await?;
        match value {
            Ok(value) => Ok(Done { value, turn, held }),
            Err(refusal) => Err(self.admission.refused(refusal).await),
        }
    }

    /// Makes an answer of about `bytes`, once that is within the budget of long answers.
    pub(super) async fn answer<T>(
        &self,
        peer: &Peer,
        done: Done<()>,
        bytes: usize,
        message: T,
    ) -> Result<Response<T>, Status> {
        let mut held = done.held;
        held.0.extend(self.turns.answer(peer, bytes).await.inspect_err(|_| {
            self.refusals.note(Budget::LongAnswer, peer);
        })?);
        let mut response = Response::new(message);
        if !held.0.is_empty() {
            response.extensions_mut().insert(Held(Arc::new(held.0)));
        }
        drop(done.turn);
        Ok(response)
    }
}
