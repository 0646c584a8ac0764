//! What a cluster agreed on: the entries of its log, and the state after each of them. And what it did not.
use bytes::Bytes;
use detcd_core::{
    consensus::Entry,
    format::{
        bbolt::Writer,
        wal::{HardState, Metadata},
    },
    machine::{
        Machine,
        backend::View,
        command::{Command, Put},
        membership::{Change, Member, cluster_id},
    },
    replica::{Persist, Recovered, SnapshotMark, State, founding_log},
    types::{Index, LeaseId, MemberId, PersistId, RequestId, Term},
};
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

/// Invariant: `states[i]` is the state after the first `i` entries.
pub struct History {
    founders: Vec<Member>,
    entries: Vec<Entry>,
    states: Vec<State>,
    /// What `hash_state` gives for each.
    hashes: Vec<u64>,
}

impl History {
    /// Three founders, then a put of so many bytes in such a term for each of these.
    pub fn new(puts: &[(u64, usize)]) -> History {
        let founder = |number| Member::founding(&format!("n{number}"), vec![format!("http://n{number}:2380")], "token");
        let mut founders: Vec<_> = (1..=3).map(founder).collect();
        founders.sort_by_key(|founder| founder.id);
        let mut entries = founding_log(&founders).entries;
        for (term, size) in puts {
            entries.push(put(entries.len() as u64 + 1, *term, *size, "agreed"));
        }
        let mut machine = Machine::default();
        let mut states = vec![State(Box::new(machine.clone()))];
        for entry in &entries {
            let (index, term) = (Index(entry.index), Term(entry.term));
            match founders.get(entry.index as usize - 1) {
                Some(founder) => machine.apply_change(index, term, Change::Add(founder.clone())).expect("it is new"),
                None => drop(machine.apply(index, term, entry.data.clone(), |_| false).expect("a put of ours")),
            }
            states.push(State(Box::new(machine.clone())));
        }
        let hashes = states.iter().map(|state| hash_state(&state.0)).collect();
        History { founders, entries, states, hashes }
    }

    pub fn metadata(&self) -> Metadata {
        Metadata { member: self.founders[0].id, cluster: cluster_id(&self.founders) }
    }

    pub fn founding(&self) -> Recovered {
        founding_log(&self.founders)
    }

    pub fn leader(&self) -> MemberId {
        self.founders[1].id
    }

    pub fn last(&self) -> u64 {
        self.entries.len() as u64
    }

    pub fn term(&self, index: u64) -> u64 {
        self.entries[index as usize - 1].term
    }

    pub fn entries(&self, indices: impl IntoIterator<Item = u64>) -> Vec<Entry> {
        indices.into_iter().map(|index| self.entries[index as usize - 1].clone()).collect()
    }

    pub fn state(&self, index: u64) -> &State {
        &self.states[index as usize]
    }

    pub fn state_hash(&self, index: u64) -> u64 {
        self.hashes[index as usize]
    }

    pub fn mark(&self, index: u64) -> SnapshotMark {
        let configuration = self.state(index).0.membership.configuration();
        SnapshotMark { index: Index(index), term: Term(self.term(index)), configuration }
    }

    /// The states after these entries, as a file of a member's.
    pub fn file(&self, index: u64) -> Vec<u8> {
        let mut writer = Writer::new(View::new((*self.state(index).0).clone()));
        std::iter::from_fn(|| writer.next_chunk(1 << 20)).flatten().collect()
    }
}

/// What a leader appended that nobody else ever agreed to.
pub fn stray(index: u64, term: u64, size: usize) -> Entry {
    put(index, term, size, "stray")
}

fn put(index: u64, term: u64, size: usize, what: &str) -> Entry {
    // Some values are all zeros: so is a sector that was not written.
    let byte = if index.is_multiple_of(5) { 0 } else { b'a' + (index % 26) as u8 };
    let put = Put {
        key: format!("{what} {index} {term}").into(),
        value: vec![byte; size].into(),
        lease: LeaseId(0),
        previous: false,
        ignore_value: false,
        ignore_lease: false,
    };
    let data = Command::Put(put).encode(RequestId(index << 8 | term));
    let mut entry = Entry::default();
    (entry.index, entry.term, entry.data) = (index, term, Bytes::from(data));
    entry
}

pub fn hash_entry(entry: &Entry) -> u64 {
    xxh3_64(&entry.data) ^ entry.entry_type as u64
}

/// Of all that a state holds: its file, as we would write it.
pub fn hash_state(machine: &Machine) -> u64 {
    let mut writer = Writer::new(View::new(machine.clone()));
    let mut hash = Xxh3::new();
    while let Some(chunk) = writer.next_chunk(1 << 20) {
        hash.update(&chunk);
    }
    hash.digest()
}

pub fn hard_state(term: u64, commit: u64) -> HardState {
    HardState { term: Term(term), vote: MemberId(0), commit: Index(commit) }
}

/// A batch that is waited for.
pub fn batch(entries: Vec<Entry>, state: Option<HardState>) -> Persist {
    Persist { id: PersistId(0), hard_state: state, entries, snapshot: None, sync: true }
}

/// A batch that may wait for the next.
pub fn lazy(state: HardState) -> Persist {
    Persist { sync: false, ..batch(Vec::new(), Some(state)) }
}
