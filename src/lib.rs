pub mod mvcc;
pub mod util;
