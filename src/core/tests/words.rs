//! What clients and the replica say.

pub(super) const OK: &str = "OK success\r\n";
pub(super) const NO: &str = "NO Unknown error\r\n";
pub(super) const CHECKSUM: &str = "NO IMAP_SYNC_CHECKSUM Checksum Failure\r\n";
pub(super) const LOCKED: &str = "NO IMAP_MAILBOX_LOCKED Mailbox is locked\r\n";
pub(super) const GONE: &str = "NO IMAP_MAILBOX_NONEXISTENT Mailbox does not exist\r\n";

pub(super) const CAPABILITIES: &str = "APPLY CAPABILITIES (SIEVE-MAILBOX)\r\n";
pub(super) const SEEN: &str =
    "APPLY SEEN %(USERID a UNIQUEID id LASTREAD 1 LASTUID 1 LASTCHANGE 1 SEENUIDS 1)\r\n";

/// `APPLY MAILBOX` of a mailbox with these messages.
pub(super) fn mailbox(name: &str, guids: &[u8]) -> String {
    let record = |guid: &u8| format!("%(UID {guid} FLAGS () GUID {})", hex(*guid));
    let records: Vec<String> = guids.iter().map(record).collect();
    format!(
        "APPLY MAILBOX %(UNIQUEID id MBOXNAME {name} LAST_UID 9 PARTITION default RECORD ({}))\r\n",
        records.join(" ")
    )
}

pub(super) fn message(guid: u8) -> String {
    format!("APPLY MESSAGE ({})\r\n", file(guid))
}

/// One element of `APPLY MESSAGE`, of four bytes.
pub(super) fn file(guid: u8) -> String {
    format!("%{{default {} 4}}\r\nbody", hex(guid))
}

pub(super) fn reserve(names: &str, guids: &[u8]) -> String {
    let guids: Vec<String> = guids.iter().map(|guid| hex(*guid)).collect();
    format!(
        "APPLY RESERVE %(PARTITION default MBOXNAME ({names}) GUID ({}))\r\n",
        guids.join(" ")
    )
}

/// The answer to a RESERVE.
pub(super) fn missing(guids: &[u8]) -> String {
    let guids: Vec<String> = guids.iter().map(|guid| hex(*guid)).collect();
    format!("* MISSING ({})\r\n{OK}", guids.join(" "))
}

pub(super) fn hex(guid: u8) -> String {
    format!("{guid:040x}")
}

// Of mailboxes with a version, as a client of Cyrus 3.6 sends them.

/// What the replica says of a mailbox.
pub(super) fn line(name: &str, version: u64) -> String {
    format!(
        "* MAILBOX %(UNIQUEID id MBOXNAME {name} LAST_UID 1 HIGHESTMODSEQ {version} PARTITION default FOLDERMODSEQ 1)\r\n"
    )
}

pub(super) fn answer(names: &[&str], version: u64) -> String {
    let lines: String = names.iter().map(|name| line(name, version)).collect();
    format!("{lines}{OK}")
}

pub(super) fn update(name: &str, version: u64) -> String {
    format!(
        "APPLY MAILBOX %(UNIQUEID id MBOXNAME {name} LAST_UID 1 HIGHESTMODSEQ {version} PARTITION default FOLDERMODSEQ 1 SINCE_MODSEQ 1 SINCE_CRC 1 SINCE_CRC_ANNOT 1 RECORD ())\r\n"
    )
}

pub(super) fn ask_for(names: &str) -> String {
    format!("GET MAILBOXES ({names})\r\n")
}
