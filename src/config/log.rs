//! The checks of `[log]`.

use super::build::Build;
use super::{Flags, Log, LogFormat, file};

impl Build<'_> {
    pub(super) fn log(&mut self, keys: file::Log, flags: &Flags) -> Log {
        use tracing::Level;
        let sane = Log::default();
        let format = self.pick(keys.format, flags.log_format.as_ref(), "--log-format");
        let level = self.pick(keys.level, flags.log_level.as_ref(), "--log-level");
        let formats = [("text", LogFormat::Text), ("json", LogFormat::Json)];
        let levels = [
            ("error", Level::ERROR),
            ("warn", Level::WARN),
            ("info", Level::INFO),
            ("debug", Level::DEBUG),
            ("trace", Level::TRACE),
        ];
        Log {
            format: format
                .and_then(|at| self.word(&at, "log format", &formats))
                .unwrap_or(sane.format),
            level: level
                .and_then(|at| self.word(&at, "log level", &levels))
                .unwrap_or(sane.level),
        }
    }
}
