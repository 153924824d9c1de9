//! `syncmux-owed`: lines that wait out a pause, in one small file that is replaced as a whole.

use std::io::{BufReader, ErrorKind, Write};

use super::append::printed;
use super::{Error, OWED, SyncDirectory, open_plain, text};
use crate::protocol::synclog::Line;

impl SyncDirectory {
    /// Makes the file hold exactly these lines, fsynced; without lines it goes. Lines that can't
    /// be written are left out and handed back.
    pub fn store_owed(&self, lines: &[Line]) -> Result<Vec<Line>, Error> {
        let _work = self.work();
        let path = self.path.join(OWED);
        let (text, left_out) = printed(lines);
        if text.is_empty() {
            match std::fs::remove_file(&path) {
                Ok(()) => self.sync_names()?,
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => return Err(Error::io("remove", &path)(error)),
            }
            return Ok(left_out);
        }
        let (temp, mut file) = self.create_temp("owed")?;
        let stored = file
            .write_all(&text)
            .and_then(|()| file.sync_all())
            .and_then(|()| std::fs::rename(&temp, &path));
        if let Err(error) = stored {
            let _ = std::fs::remove_file(&temp);
            return Err(Error::io("replace", &path)(error));
        }
        self.sync_names()?;
        Ok(left_out)
    }

    /// The lines that are owed, as they stand in the file.
    pub fn load_owed(&self) -> Result<Vec<Vec<u8>>, Error> {
        let _work = self.work();
        let path = self.path.join(OWED);
        let file = match open_plain(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(Error::io("open", &path)(error)),
        };
        let mut lines = Vec::new();
        text::each_line(BufReader::new(file), |line, _| {
            lines.push(line.to_vec());
            Ok(())
        })
        .map_err(Error::io("read", &path))?;
        Ok(lines)
    }
}
