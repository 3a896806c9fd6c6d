//! The part of the guard that has tests of its own.

pub mod counts;
