//! The load tester: simulates agents of a mesh and writers against any store that speaks etcd v3, verifies what the agents
//! receive, and reports latencies, costs and faults.
//!
//! An agent must cost less than what the server spends on it, because both may share a machine. So an agent is one task with
//! one connection, whose buffers it has only while it uses them, and reads answers without copying them.

mod agent;
mod dial;
mod error;
mod explain;
mod histogram;
mod lane;
mod link;
pub mod merge;
pub mod outcome;
pub mod plan;
mod process;
mod removal;
pub mod report;
mod run;
mod sampler;
pub mod scenarios;
mod session;
mod shared;
mod stamp;
mod survey;
mod tally;
mod verdict;
mod verify;
mod wire;
mod writer;

pub use dial::User;
pub use error::Error;
pub use run::{Progress, Target, run};
