//! What the mesh's keys and values are. Nothing here knows where they come from or go to.

pub mod cluster;
pub mod gojson;
pub mod ip;
pub mod keys;
pub mod values;
