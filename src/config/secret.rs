//! Passwords: do not print and are wiped.

use std::fmt;

use zeroize::{Zeroize, ZeroizeOnDrop};

/// A password. `Debug` shows that there is one and nothing else; the memory is wiped at the end.
#[derive(Clone, PartialEq, Eq, Zeroize, ZeroizeOnDrop)]
pub struct Password(String);

impl Password {
    /// Takes a password over.
    #[must_use]
    pub fn new(text: String) -> Self {
        Password(text)
    }

    /// The password itself, for the one place that sends or compares it.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Password(..)")
    }
}
