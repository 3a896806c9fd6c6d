//! A replica: a store that repeats the revisions of another etcd, its upstream.
//!
//! `feed` decides what to do with the messages of the watch over the whole keyspace, and `witness` which endpoints of
//! upstream have the same past; both without IO and without a clock. `people` keeps its users. `ARCHITECTURE.md` explains how
//! they work together.

pub mod feed;
pub mod people;
pub mod witness;
