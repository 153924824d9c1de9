//! How often what happened, so that a run of many seeds shows that everything did.

#[derive(Debug, Default, Clone, PartialEq)]
pub(crate) struct Counts {
    pub(crate) commands: u64,
    pub(crate) acknowledged_early: u64,
    pub(crate) refused: u64,
    pub(crate) locked: u64,
    pub(crate) lanes_lost: u64,
    pub(crate) kills: u64,
    pub(crate) lines_written: u64,
    pub(crate) drains: u64,
    pub(crate) vanished: u64,
    pub(crate) barriers: u64,
    pub(crate) healed: u64,
    pub(crate) tampered: u64,
    pub(crate) known_hits: u64,
    pub(crate) known_misses: u64,
    pub(crate) known_checks: u64,
    pub(crate) known_wrong: u64,
    pub(crate) read_ahead: u64,
    pub(crate) users_ahead: u64,
    pub(crate) must_heal: u64,
    pub(crate) power_losses: u64,
    pub(crate) starts_cut: u64,
    pub(crate) disk_faults: u64,
    pub(crate) put_off: u64,
    pub(crate) not_waited: u64,
    pub(crate) owed_right_now: u64,
}

impl Counts {
    pub(crate) fn add(&mut self, other: &Counts) {
        self.commands += other.commands;
        self.acknowledged_early += other.acknowledged_early;
        self.refused += other.refused;
        self.locked += other.locked;
        self.lanes_lost += other.lanes_lost;
        self.kills += other.kills;
        self.lines_written += other.lines_written;
        self.drains += other.drains;
        self.vanished += other.vanished;
        self.barriers += other.barriers;
        self.healed += other.healed;
        self.tampered += other.tampered;
        self.known_hits += other.known_hits;
        self.known_misses += other.known_misses;
        self.known_checks += other.known_checks;
        self.known_wrong += other.known_wrong;
        self.read_ahead += other.read_ahead;
        self.users_ahead += other.users_ahead;
        self.must_heal += other.must_heal;
        self.power_losses += other.power_losses;
        self.starts_cut += other.starts_cut;
        self.disk_faults += other.disk_faults;
        self.put_off += other.put_off;
        self.not_waited += other.not_waited;
        self.owed_right_now += other.owed_right_now;
    }
}
