//! Sizes and durations as a person writes them: `64MiB`, `"20m"`; a bare number is bytes or
//! seconds.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::de::{self, Deserialize, Deserializer, Visitor};

/// A number of bytes: `1048576`, `"1MiB"`, `"1M"` (units are powers of 1,024).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Size(pub(super) u64);

/// A time: `1200`, `"1200"`, `"20m"`, `"1h"`, `"500ms"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Span(pub(super) Duration);

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (number, unit) = split(text);
        let shift = match unit.to_ascii_lowercase().as_str() {
            "" | "b" => 0,
            "k" | "kb" | "kib" => 10,
            "m" | "mb" | "mib" => 20,
            "g" | "gb" | "gib" => 30,
            "t" | "tb" | "tib" => 40,
            _ => {
                return Err(format!(
                    "`{text}` is no size: write bytes, or such as \"64MiB\""
                ));
            }
        };
        number
            .parse::<u64>()
            .ok()
            .and_then(|number| number.checked_mul(1 << shift))
            .map(Size)
            .ok_or_else(|| format!("`{text}` is no size: write bytes, or such as \"64MiB\""))
    }
}

impl FromStr for Span {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is no time: write seconds, or such as \"20m\"");
        let (number, unit) = split(text);
        let number: u64 = number.parse().map_err(|_| wrong())?;
        let seconds = |each: u64| number.checked_mul(each).map(Duration::from_secs);
        match unit {
            "ms" => Some(Duration::from_millis(number)),
            "" | "s" => seconds(1),
            "m" => seconds(60),
            "h" => seconds(3_600),
            "d" => seconds(86_400),
            _ => None,
        }
        .map(Span)
        .ok_or_else(wrong)
    }
}

/// The digits, and the unit behind them.
fn split(text: &str) -> (&str, &str) {
    let text = text.trim();
    let end = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    (&text[..end], text[end..].trim_start())
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(NumberOrText {
            expected: "a size: bytes, or such as \"64MiB\"",
            whole: Size,
        })
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(NumberOrText {
            expected: "a time: seconds, or such as \"20m\"",
            whole: |seconds| Span(Duration::from_secs(seconds)),
        })
    }
}

/// Takes a whole number by `whole`, and text by `FromStr`.
struct NumberOrText<F> {
    expected: &'static str,
    whole: F,
}

impl<'de, T, F> Visitor<'de> for NumberOrText<F>
where
    T: FromStr<Err = String>,
    F: Fn(u64) -> T,
{
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.expected)
    }

    fn visit_i64<E: de::Error>(self, number: i64) -> Result<T, E> {
        u64::try_from(number).map(&self.whole).map_err(|_| {
            E::custom(format!(
                "`{number}` is negative: expected {}",
                self.expected
            ))
        })
    }

    fn visit_u64<E: de::Error>(self, number: u64) -> Result<T, E> {
        Ok((self.whole)(number))
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
        text.parse().map_err(E::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (text, bytes) in [
            ("0", 0),
            ("4096", 4096),
            ("64MiB", 64 << 20),
            ("2 g", 2 << 30),
        ] {
            assert_eq!(text.parse::<Size>(), Ok(Size(bytes)), "{text}");
        }
        for text in ["", "MiB", "-1", "1.5G", "5 apples", "99999999999999T"] {
            assert!(text.parse::<Size>().is_err(), "{text}");
        }
    }

    #[test]
    fn times() {
        for (text, seconds) in [("90", 90), ("20m", 1200), ("1h", 3600), ("5 s", 5)] {
            assert_eq!(
                text.parse::<Span>(),
                Ok(Span(Duration::from_secs(seconds))),
                "{text}"
            );
        }
        assert_eq!(
            "250ms".parse::<Span>(),
            Ok(Span(Duration::from_millis(250)))
        );
        for text in ["", "m", "-1", "20 minutes", "1m30s"] {
            assert!(text.parse::<Span>().is_err(), "{text}");
        }
    }
}
