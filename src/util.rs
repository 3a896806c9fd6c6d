//! Small parts that know nothing of the product.

pub mod interval;
