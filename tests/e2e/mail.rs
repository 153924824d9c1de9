//! Messages: appended, flagged, expunged, copied and moved.

use crate::support::imap::message;
use crate::support::lab::{Lab, Setup, Way};

fn messages(lab: &mut Lab) {
    lab.step("append to a new mailbox");
    lab.add_user("alice");
    lab.add_user("bob");
    let mut alice = lab.master.login("alice");
    alice.append("INBOX", "", &message("one", 4000));
    alice.append("INBOX", "\\Flagged $Label1", &message("two", 4000));
    lab.settle();
}

#[test]
fn direct() {
    messages(&mut Setup::new(Way::Direct).start());
}
