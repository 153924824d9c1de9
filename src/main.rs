//! The `syncmux` program.
fn main() {}
