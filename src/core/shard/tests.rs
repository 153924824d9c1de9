//! One rule a test; the driver plays the clients and the looks at their files.

use std::collections::BTreeMap;

use bytes::Bytes;
use proptest::prelude::*;

use super::*;
use crate::protocol::Site;

fn key(user: &str) -> UserKey {
    Site::default().key_of_user(user.as_bytes())
}

/// `text user` or `text user other`; `-` is the shared key.
fn line(text: &str) -> LogLine {
    let mut words = text.split(' ').skip(1);
    let mut next = || {
        words.next().map(|user| {
            if user == "-" {
                UserKey::shared()
            } else {
                key(user)
            }
        })
    };
    LogLine {
        text: Bytes::copy_from_slice(text.as_bytes()),
        first: next().unwrap(),
        more: std::iter::from_fn(next).collect(),
    }
}

/// The shards' files: each shard has a `log` and a `log-run`, of which the core hears by looks.
struct Driver {
    dealer: Dealer,
    /// By shard: file number and lines of `log` and of `log-run`.
    log: Vec<Option<(u64, Vec<String>)>>,
    run: Vec<Option<(u64, Vec<String>)>>,
    /// How much of each file was told.
    told: BTreeMap<u64, usize>,
    next: u64,
}

impl Driver {
    fn new(shards: usize, way: Way) -> Self {
        let mut driver = Self::unknown(shards, way, 5);
        driver.look_at_all();
        driver
    }

    fn unknown(shards: usize, way: Way, limit: usize) -> Self {
        Driver {
            dealer: Dealer::new(shards, way, limit),
            log: vec![None; shards],
            run: vec![None; shards],
            told: BTreeMap::new(),
            next: 0,
        }
    }

    fn look_at_all(&mut self) {
        (0..self.log.len()).for_each(|shard| self.look(shard, true));
    }

    fn retired(&mut self, lines: &[&str]) -> usize {
        let lines = lines.iter().map(|line| (*line).to_owned()).collect();
        self.next += 1;
        self.log.push(Some((self.next, lines)));
        self.run.push(None);
        self.dealer.add_retired()
    }

    fn take(&mut self, lines: &[&str]) {
        lines.iter().for_each(|text| self.dealer.take(line(text)));
        self.write();
    }

    /// Appends what was dealt.
    fn write(&mut self) {
        for shard in 0..self.log.len() {
            let out: Vec<Bytes> = self.dealer.outgoing(shard).to_vec();
            if out.is_empty() {
                continue;
            }
            let next = &mut self.next;
            let (_, lines) = self.log[shard].get_or_insert_with(|| {
                *next += 1;
                (*next, Vec::new())
            });
            lines.extend(
                out.iter()
                    .map(|text| String::from_utf8(text.to_vec()).unwrap()),
            );
            self.dealer.written(shard);
        }
    }

    fn look(&mut self, shard: usize, exact: bool) {
        let mut look = Look {
            exact,
            ..Look::default()
        };
        for (id, lines) in [&self.run[shard], &self.log[shard]].into_iter().flatten() {
            let told = self.told.insert(*id, lines.len()).unwrap_or(0);
            let keys = lines[told..].iter().map(|text| line(text));
            let keys: Vec<_> = keys
                .map(|line| (line.first, line.more.into_iter().next()))
                .collect();
            look.named.push(((1, *id), keys));
            look.there.push((1, *id));
        }
        self.dealer.looked(shard, look);
        self.write();
    }

    fn begin(&mut self, shard: usize) {
        assert!(self.run[shard].is_none());
        self.run[shard] = self.log[shard].take();
    }

    /// The client works through all that there is.
    fn finish(&mut self, shard: usize) {
        self.run[shard] = None;
        self.log[shard] = None;
        self.look(shard, true);
    }

    fn lines(&self, shard: usize) -> Vec<&str> {
        let files = [&self.run[shard], &self.log[shard]].into_iter().flatten();
        files
            .flat_map(|(_, lines)| lines.iter().map(String::as_str))
            .collect()
    }

    fn held(&self) -> Vec<&str> {
        let text = |text| std::str::from_utf8(text).unwrap();
        self.dealer.held().map(|line| text(&line[..])).collect()
    }
}

#[test]
fn the_hash_is_the_same_in_every_version() {
    let shared = UserKey::shared();
    for (user, of_8, of_3) in [
        (&shared, 5, 2),
        (&key("joe"), 1, 1),
        (&key("alice"), 7, 2),
        (&key("bob@example.com"), 1, 2),
        (&key("u000"), 0, 1),
        (&key("u001"), 3, 2),
    ] {
        assert_eq!(fixed_shard(user, 8), of_8, "{user}");
        assert_eq!(fixed_shard(user, 3), of_3, "{user}");
        assert_eq!(fixed_shard(user, 1), 0, "{user}");
    }
}

#[test]
fn a_fixed_user_always_has_the_same_shard() {
    let mut it = Driver::new(8, Way::Fixed);
    it.take(&["A joe", "S alice", "B joe", "M -"]);
    assert_eq!(it.lines(1), ["A joe", "B joe"]);
    assert_eq!(it.lines(7), ["S alice"]);
    assert_eq!(it.lines(5), ["M -"]);
    it.finish(1);
    it.take(&["C joe"]);
    assert_eq!(it.lines(1), ["C joe"]);
}

#[test]
fn a_balanced_user_sticks_while_it_has_work_and_then_takes_the_emptiest() {
    let mut it = Driver::new(3, Way::Balanced);
    it.take(&["A a", "A b", "A c", "A d", "B a", "A -", "B -"]);
    assert_eq!(it.lines(0), ["A a", "A d", "B a"]);
    assert_eq!(it.lines(1), ["A b", "A -", "B -"]);
    assert_eq!(it.lines(2), ["A c"]);
    // The same number of users: fewer lines.
    it.take(&["A e", "A f"]);
    assert_eq!(it.lines(2), ["A c", "A e", "A f"]);
    it.finish(0);
    it.take(&["C a", "C b"]);
    assert_eq!(it.lines(0), ["C a"], "b is still unfinished elsewhere");
    assert_eq!(it.lines(1), ["A b", "A -", "B -", "C b"]);
}

#[test]
fn a_user_is_bound_until_neither_file_names_it() {
    let mut it = Driver::new(2, Way::Balanced);
    it.take(&["A a", "A b"]);
    it.begin(0);
    it.look(0, true);
    it.take(&["B a"]);
    assert_eq!(it.lines(0), ["A a", "B a"]);
    // Its client puts a line back and ends its run; another one is emptier, and not taken.
    it.run[0] = None;
    it.finish(1);
    it.look(0, true);
    it.take(&["C a"]);
    assert_eq!(it.lines(0), ["B a", "C a"]);
    assert!(it.lines(1).is_empty());
    it.finish(0);
    it.take(&["A c", "D a"]);
    assert_eq!(it.lines(1), ["D a"]);
}

#[test]
fn a_look_that_is_not_exact_frees_nobody() {
    let mut it = Driver::new(2, Way::Balanced);
    it.take(&["A a"]);
    it.log[0] = None;
    it.look(0, false);
    it.take(&["A b", "B a"]);
    assert_eq!(it.lines(0), ["B a"]);
    // What is written and was not read yet is unfinished too.
    it.log[0] = None;
    it.look(0, true);
    it.take(&["A c"]);
    assert_eq!(it.lines(0), ["A c"]);
}

#[test]
fn a_line_over_two_users_waits_for_the_other_shard() {
    let mut it = Driver::new(2, Way::Balanced);
    it.take(&["A a", "A b", "R a b", "B a", "B b", "A c"]);
    assert_eq!(it.held(), ["R a b", "B a", "B b"], "c goes on");
    assert_eq!(it.lines(0), ["A a", "A c"]);
    assert_eq!(it.lines(1), ["A b"]);
    // One of them is finished: it goes to where the other one is, both in order behind it.
    it.finish(1);
    assert_eq!(it.lines(0), ["A a", "A c", "R a b", "B a", "B b"]);
    assert!(it.held().is_empty());
    // Both are bound there now.
    it.take(&["C b"]);
    assert_eq!(it.lines(0).last(), Some(&"C b"));
    assert!(it.lines(1).is_empty());
}

#[test]
fn a_line_over_two_users_goes_at_once_where_both_are_or_neither_is() {
    let mut it = Driver::new(2, Way::Fixed);
    it.take(&["R joe alice"]);
    let shard = fixed_shard(&key("joe"), 2);
    assert_eq!(it.lines(shard), ["R joe alice"], "by its first user");
    it.take(&["A alice"]);
    assert_eq!(
        it.lines(shard),
        ["R joe alice", "A alice"],
        "bound to that shard"
    );
    it.take(&["D alice joe"]);
    assert_eq!(it.lines(shard).len(), 3);
    it.finish(shard);
    it.take(&["B alice"]);
    assert_eq!(it.lines(fixed_shard(&key("alice"), 2)), ["B alice"]);
}

#[test]
fn held_lines_keep_their_order_over_chains_of_users() {
    let mut it = Driver::new(3, Way::Balanced);
    it.take(&["A a", "A b", "A c", "R a b", "R b c", "X c", "X a"]);
    assert_eq!(it.held(), ["R a b", "R b c", "X c", "X a"]);
    it.finish(2);
    assert_eq!(
        it.held().len(),
        4,
        "c is free, and its line waits behind R b c"
    );
    it.finish(0);
    // a and b are in shard 1 now, c is nowhere else.
    assert_eq!(it.lines(1), ["A b", "R a b", "R b c", "X c", "X a"]);
}

#[test]
fn beyond_the_limit_no_new_run() {
    let mut it = Driver::new(2, Way::Balanced);
    it.take(&["A a", "A b", "R a b", "1 a", "2 a", "3 a"]);
    assert!(!it.dealer.is_full());
    it.take(&["4 a"]);
    assert!(it.dealer.is_full());
    it.finish(1);
    assert!(!it.dealer.is_full());
}

#[test]
fn nothing_is_known_before_every_folder_was_seen() {
    let mut it = Driver::unknown(2, Way::Balanced, 5);
    it.retired(&["A a"]);
    it.look(0, true);
    it.look(1, true);
    assert!(!it.dealer.knows_all());
    it.look(2, false);
    assert!(!it.dealer.knows_all());
    it.look(2, true);
    assert!(it.dealer.knows_all());
}

#[test]
fn who_is_at_work_in_a_folder_that_is_no_shard_waits() {
    let mut it = Driver::unknown(2, Way::Fixed, 5);
    let retired = it.retired(&["A a", "R a b"]);
    it.look_at_all();
    it.take(&["B a", "B b", "A c"]);
    assert_eq!(it.held(), ["B a", "B b"]);
    // Its client finishes it.
    it.finish(retired);
    assert!(it.held().is_empty());
}

#[test]
fn lines_that_are_taken_back_are_dealt_before_the_others() {
    let mut it = Driver::unknown(2, Way::Fixed, 5);
    let first = it.retired(&["A a", "R a b"]);
    let second = it.retired(&["A joe"]);
    it.look_at_all();
    it.take(&["B b", "B joe"]);
    assert_eq!(it.held(), ["B b", "B joe"]);
    for folder in [first, second] {
        let (file, lines) = it.log[folder].take().unwrap();
        let lines = lines.iter().map(|text| line(text)).collect();
        it.dealer.take_back(lines);
        it.write();
        assert!(!it.held().is_empty(), "as long as the file is there");
        it.dealer.taken_back(folder, (1, file));
    }
    it.write();
    assert!(it.held().is_empty());
    assert_eq!(it.lines(fixed_shard(&key("a"), 2)), ["A a", "R a b", "B b"]);
    assert_eq!(it.lines(fixed_shard(&key("joe"), 2)), ["A joe", "B joe"]);
}

#[test]
fn lines_that_are_taken_back_and_must_wait_wait_in_order() {
    let mut it = Driver::unknown(2, Way::Fixed, 9);
    let retired = it.retired(&["A alice"]);
    it.look_at_all();
    it.take(&["A joe", "2 alice joe", "3 alice"]);
    assert_eq!(it.held(), ["2 alice joe", "3 alice"]);
    // Two files, one after the other; alice is unfinished in both, and joe elsewhere.
    let (file, _) = it.log[retired].take().unwrap();
    it.run[retired] = Some((file, vec!["A alice".to_owned()]));
    it.next += 1;
    it.log[retired] = Some((it.next, vec!["1 alice joe".to_owned()]));
    it.look(retired, true);
    it.dealer.take_back(vec![line("A alice")]);
    it.dealer.taken_back(retired, (1, file));
    assert_eq!(it.held(), ["A alice", "2 alice joe", "3 alice"]);
    it.run[retired] = None;
    let (file, _) = it.log[retired].take().unwrap();
    it.dealer.take_back(vec![line("1 alice joe")]);
    it.dealer.taken_back(retired, (1, file));
    it.write();
    let shard = fixed_shard(&key("alice"), 2);
    assert_eq!(shard, fixed_shard(&key("joe"), 2));
    let all = ["A joe", "A alice", "1 alice joe", "2 alice joe", "3 alice"];
    assert_eq!(it.lines(shard), all);
}

#[test]
fn a_user_in_two_shards_waits_until_it_is_in_one() {
    // Never by us; but by hand, before syncmux came.
    let mut it = Driver::unknown(2, Way::Balanced, 5);
    for shard in 0..2 {
        it.next += 1;
        it.log[shard] = Some((it.next, vec!["A a".to_owned()]));
    }
    it.look_at_all();
    it.take(&["B a"]);
    assert_eq!(it.held(), ["B a"]);
    it.finish(0);
    assert_eq!(it.lines(1), ["A a", "B a"]);
}

#[test]
fn held_lines_change_their_version() {
    let mut it = Driver::new(2, Way::Balanced);
    let before = it.dealer.held_version();
    it.take(&["A a", "A b"]);
    assert_eq!(it.dealer.held_version(), before);
    it.take(&["R a b"]);
    let held = it.dealer.held_version();
    assert_ne!(held, before);
    it.finish(0);
    assert_ne!(it.dealer.held_version(), held);
    assert!(!it.dealer.is_idle());
    it.finish(1);
    assert!(it.dealer.is_idle());
}

proptest! {
    /// Any lines, with looks and clients in between: each user is in one shard at most, in order.
    #[test]
    fn one_shard_for_a_user_and_in_order(
        steps in prop::collection::vec((0..8_u8, 0..5_u8, 0..5_u8, 0..4_usize), 1..200),
        fixed in any::<bool>(),
    ) {
        let way = if fixed { Way::Fixed } else { Way::Balanced };
        let mut it = Driver::new(4, way);
        let mut number = 0;
        // By user: the numbers of its lines, as they went out.
        let mut out: BTreeMap<String, Vec<u32>> = BTreeMap::new();
        for (what, one, two, shard) in steps {
            let before: Vec<usize> = (0..4).map(|shard| it.lines(shard).len()).collect();
            match what {
                0..=3 => {
                    number += 1;
                    it.take(&[&format!("{number} u{one}")]);
                }
                4 if one != two => {
                    number += 1;
                    it.take(&[&format!("{number} u{one} u{two}")]);
                }
                5 if it.run[shard].is_none() => it.begin(shard),
                6 => {
                    it.run[shard] = None;
                }
                _ => it.look(shard, what == 7),
            }
            for (shard, before) in before.into_iter().enumerate() {
                let lines = it.lines(shard);
                let new: Vec<String> = lines.iter().skip(before).map(|it| (*it).to_owned()).collect();
                for text in new {
                    let mut words = text.split(' ');
                    let number: u32 = words.next().unwrap().parse().unwrap();
                    for user in words {
                        let numbers = out.entry(user.to_owned()).or_default();
                        prop_assert!(numbers.last().is_none_or(|last| *last < number));
                        numbers.push(number);
                    }
                }
            }
            for user in 0..5 {
                let names = |text: &&str| text.split(' ').skip(1).any(|it| it == format!("u{user}"));
                let shards = (0..4).filter(|shard| it.lines(*shard).iter().any(names)).count();
                prop_assert!(shards <= 1, "u{user} is in {shards} shards");
            }
        }
        // Nobody waits for ever: at the latest with the last unfinished line every held one has gone.
        let mut rounds = 0;
        while !it.held().is_empty() {
            (0..4).for_each(|shard| it.finish(shard));
            rounds += 1;
            prop_assert!(rounds < 1_000, "{:?}", it.held());
        }
        (0..4).for_each(|shard| it.finish(shard));
        prop_assert!(it.dealer.is_idle());
    }
}
