//! A replica.

pub mod people;
