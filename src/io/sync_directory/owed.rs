//! `syncmux-owed`: lines that wait out a pause, in one small file that is replaced as a whole.

use std::io::{BufReader, ErrorKind};

use super::append::printed;
use super::disk::{Mode, Reader, write_all};
use super::{Error, OWED, SyncDirectory, text};
use crate::protocol::synclog::Line;

impl SyncDirectory {
    /// Makes the file hold exactly these lines, fsynced; without lines it goes. Lines that can't
    /// be written are left out and handed back.
    pub fn store_owed(&self, lines: &[Line]) -> Result<Vec<Line>, Error> {
        let _work = self.work();
        let (text, left_out) = printed(lines);
        self.replace(OWED, &text)?;
        Ok(left_out)
    }

    /// Makes a small file hold exactly this, fsynced; without text it goes.
    pub(super) fn replace(&self, name: &str, text: &[u8]) -> Result<(), Error> {
        let path = self.at(name);
        if text.is_empty() {
            return match self.disk.remove(name) {
                Ok(()) => self.sync_names(),
                Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
                Err(error) => Err(Error::io("remove", &path)(error)),
            };
        }
        let (temp, file) = self.create_temp("owed")?;
        let stored = write_all(&*file, text)
            .and_then(|()| file.sync())
            .and_then(|()| self.disk.rename(&temp, name));
        if let Err(error) = stored {
            let _ = self.disk.remove(&temp);
            return Err(Error::io("replace", &path)(error));
        }
        self.sync_names()
    }

    /// The lines that are owed, as they stand in the file.
    pub fn load_owed(&self) -> Result<Vec<Vec<u8>>, Error> {
        let _work = self.work();
        let path = self.at(OWED);
        let file = match self.disk.open(OWED, Mode::Read) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(Error::io("open", &path)(error)),
        };
        let mut lines = Vec::new();
        text::each_line(BufReader::new(Reader::new(&*file)), |line, _, _| {
            lines.push(line.to_vec());
            Ok(())
        })
        .map_err(Error::io("read", &path))?;
        Ok(lines)
    }
}
