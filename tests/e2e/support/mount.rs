//! A small file system over a folder, gone with the test whatever happens to it.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use super::process::cyrus_ids;

/// Mounts, and unmounts when this end of the pipe is closed: also when the test is killed.
const SCRIPT: &str = "trap '' INT TERM HUP; mount \"$@\" \"$0\" || exit; echo mounted; cat >/dev/null; umount -l \"$0\"";

/// Something mounted on a folder.
#[derive(Debug)]
pub struct Mount {
    holder: Child,
}

impl Mount {
    /// A tmpfs that is Cyrus's own; `options` are for instance `size=64k,nr_inodes=20`.
    pub fn tmpfs(path: &Path, options: &str) -> Self {
        let ids = cyrus_ids();
        let options = format!("mode=755,uid={},gid={},{options}", ids.uid, ids.gid);
        Self::new(path, &["-t", "tmpfs", "-o", &options, "tmpfs"])
    }

    /// The folder itself, read-only: files that are open stay writable, names do not.
    pub fn read_only(path: &Path) -> Self {
        Self::new(path, &["--bind", "-o", "ro", path.to_str().unwrap()])
    }

    fn new(path: &Path, arguments: &[&str]) -> Self {
        use std::os::unix::process::CommandExt;
        let mut command = Command::new("sh");
        command.args(["-c", SCRIPT]).arg(path).args(arguments);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut holder = command.process_group(0).spawn().unwrap();
        let mut line = String::new();
        let mut said = BufReader::new(holder.stdout.take().unwrap());
        said.read_line(&mut line).unwrap();
        assert_eq!(line, "mounted\n", "mount {arguments:?}: needs root");
        Self { holder }
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        drop(self.holder.stdin.take());
        let _ = self.holder.wait();
    }
}

/// A file that takes all the room that there is; it comes back when the file is removed.
pub fn fill(path: &Path) {
    let mut file = std::fs::File::create(path).unwrap();
    for size in [64 << 10, 4096, 1] {
        let block = vec![b'x'; size];
        while file.write_all(&block).is_ok() {}
    }
}

/// Empty files until no more can be made: then there is no room for a link either.
pub fn fill_names(folder: &Path) {
    let names = (0..).map(|i| folder.join(format!("filler-{i}")));
    for name in names {
        if std::fs::File::create(name).is_err() {
            return;
        }
    }
}

/// Removes what [`fill_names`] made, but for some.
pub fn free_names(folder: &Path, but: usize) {
    let entries = std::fs::read_dir(folder).unwrap().filter_map(Result::ok);
    let fillers = entries.filter(|e| e.file_name().to_string_lossy().starts_with("filler-"));
    for entry in fillers.skip(but) {
        std::fs::remove_file(entry.path()).unwrap();
    }
}
