//! Locks as Cyrus takes them.
//!
//! A Cyrus is built with fcntl (POSIX) locks, which is the default and what distributions have,
//! or with flock. Both are taken here, always in this order; Cyrus takes one, so nobody waits in a
//! circle.

use std::fs::File;
use std::io;

use rustix::fs::{FlockOperation, fcntl_lock, flock, fstatfs};
use rustix::io::Errno;

/// Waits until nobody else holds a lock on the file; an exclusive one needs a descriptor that can
/// write.
pub(super) fn lock(file: &File, exclusive: bool) -> io::Result<()> {
    let operation = if exclusive {
        FlockOperation::LockExclusive
    } else {
        FlockOperation::LockShared
    };
    retry(|| fcntl_lock(file, operation))?;
    if maps_flock_to_fcntl(file) {
        return Ok(());
    }
    match retry(|| flock(file, operation)) {
        // A file system without flock: then Cyrus has no such locks there either.
        Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL | Errno::NOLCK) | Ok(()) => Ok(()),
        Err(errno) => {
            unlock(file);
            Err(errno.into())
        }
    }
}

/// Releases what [`lock`] took. Closing the file would do the same.
pub(super) fn unlock(file: &File) {
    let _ = flock(file, FlockOperation::Unlock);
    let _ = fcntl_lock(file, FlockOperation::Unlock);
}

/// On NFS and SMB the kernel makes a POSIX lock of a flock: taking both would be waiting for
/// ourselves, and one is enough to keep every kind of Cyrus out.
fn maps_flock_to_fcntl(file: &File) -> bool {
    const NFS: u64 = 0x6969;
    const SMB: u64 = 0x517b;
    const SMB2: u64 = 0xfe53_4d42;
    const CIFS: u64 = 0xff53_4d42;
    fstatfs(file).is_ok_and(|fs| {
        // 32 bits everywhere, but of a signed type here and there.
        let kind = (fs.f_type as u64) & 0xffff_ffff;
        matches!(kind, NFS | SMB | SMB2 | CIFS)
    })
}

fn retry(mut call: impl FnMut() -> Result<(), Errno>) -> Result<(), Errno> {
    loop {
        match call() {
            Err(Errno::INTR) => {}
            other => return other,
        }
    }
}
