//! The scope file as a whole.
