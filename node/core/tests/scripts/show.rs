//! Outputs in few words, for people.
use detcd_core::{
    event::{NodeEvent, Role},
    machine::{
        Response,
        command::{Command, Put},
    },
    mvcc::{RangeEnd, Record},
    proto::raftpb,
    replica::{Answer, Output, Persist, SnapshotMark, State},
    types::MemberId,
    watch::{Canceled, Notice, What},
};
use prost::Message as _;

/// Names the contexts of reads, which are random numbers, by their order of appearance.
#[derive(Default)]
pub struct Names {
    contexts: Vec<Vec<u8>>,
}

impl Names {
    fn context(&mut self, context: &[u8]) -> String {
        let known = self.contexts.iter().position(|known| known == context);
        let at = known.unwrap_or_else(|| {
            self.contexts.push(context.to_vec());
            self.contexts.len() - 1
        });
        format!("round {}", at + 1)
    }

    /// `None` for what repeats another output.
    pub fn output(&mut self, output: &Output) -> Option<String> {
        Some(match output {
            Output::Send(message) => {
                let mut bytes = Vec::new();
                message.encode(&mut bytes);
                let message = raftpb::Message::decode(&bytes[..]).expect("etcd could read it");
                format!("sends {} {}", message.to(), self.message(&message))
            }
            Output::Persist(batch) => persist(batch),
            Output::Respond { ticket, answer: self::Answer { result, revision, .. } } => match result {
                Ok(response) => format!("answers #{ticket}: {}, revision {revision}", show_response(response)),
                Err(refusal) => format!("refuses #{ticket}: {refusal}{}", definite(refusal.is_definite())),
            },
            Output::ReadReady { ticket, result: Ok(()) } => format!("serves read #{ticket}"),
            Output::ReadReady { ticket, result: Err(refusal) } => format!("refuses read #{ticket}: {refusal}"),
            Output::Notify(notice) => show_notice(notice),
            Output::Note(event) => show_event(event)?,
            Output::SendSnapshot { message, state } => {
                format!("sends {} the state of {}, in term {}", message.to(), position(state), message.term())
            }
            Output::DropSnapshot { index } => format!("drops the state of {index}"),
            Output::Discard(_) => return None,
            Output::Halt(halt) => format!("halts: {halt}"),
            Output::Removed => "is removed, and ends".into(),
            Output::Stopped => "stops".into(),
        })
    }

    /// A message from its receiver's point of view: without sender and receiver.
    pub fn message(&mut self, message: &raftpb::Message) -> String {
        use raftpb::MessageType::*;
        let (index, term, commit) = (message.index(), message.term(), message.commit());
        let refused = message.reject();
        match message.r#type() {
            MsgApp => {
                let after = format!("{index}/{}", message.log_term());
                format!("append of term {term} after {after}: {}; commit {commit}", entries(&message.entries))
            }
            MsgAppResp if refused => format!("append refused: {index} does not fit, try {}", message.reject_hint()),
            MsgAppResp => format!("append taken: up to {index}"),
            MsgPreVote => format!("pre-vote for term {term}, log to {index}/{}", message.log_term()),
            MsgVote => format!("vote for term {term}, log to {index}/{}", message.log_term()),
            MsgPreVoteResp => format!("pre-vote {} for term {term}", if refused { "refused" } else { "granted" }),
            MsgVoteResp => format!("vote {} for term {term}", if refused { "refused" } else { "granted" }),
            MsgHeartbeat => format!("heartbeat of term {term}: commit {commit}{}", self.numbered(message.context())),
            MsgHeartbeatResp => format!("heartbeat answer of term {term}{}", self.numbered(message.context())),
            MsgReadIndex => format!("read index?{}", self.of(message.entries[0].data())),
            MsgReadIndexResp => format!("read index: {index}{}", self.of(message.entries[0].data())),
            MsgTimeoutNow => format!("leave to lead, in term {term}"),
            MsgProp => format!("proposal: {}", entries(&message.entries)),
            other => format!("{other:?}"),
        }
    }

    /// Before what it was asked with a leader puts a number of its own, for its quorum only: who asked gets its own
    /// words back.
    fn numbered(&mut self, context: &[u8]) -> String {
        self.of(context.split_at_checked(8).map_or(context, |(_, asked_with)| asked_with))
    }

    fn of(&mut self, context: &[u8]) -> String {
        if context.is_empty() { String::new() } else { format!(", {}", self.context(context)) }
    }
}

fn definite(definite: bool) -> &'static str {
    if definite { " (never takes effect)" } else { " (may take effect)" }
}

fn persist(batch: &Persist) -> String {
    let mut parts = Vec::new();
    if let Some(SnapshotMark { index, term, configuration }) = &batch.snapshot {
        parts
            .push(format!("the state of {index}/{term} ({})", members(&configuration.voters, &configuration.learners)));
    }
    if let (Some(first), Some(last)) = (batch.entries.first(), batch.entries.last()) {
        let entry = |index, term| format!("{index}/{term}");
        let (first, last) = (entry(first.index, first.term), entry(last.index, last.term));
        parts.push(if first == last { format!("entry {first}") } else { format!("entries {first} to {last}") });
    }
    if let Some(state) = batch.hard_state {
        parts.push(format!("term {}, vote {}, commit {}", state.term, state.vote, state.commit));
    }
    format!("writes {}{}", parts.join("; "), if batch.sync { "" } else { " (at leisure)" })
}

fn entries(entries: &[raftpb::Entry]) -> String {
    let show = |entry: &raftpb::Entry| match entry.index() {
        0 => entry_text(entry), // not in a log yet
        index => format!("{index}/{} {}", entry.term(), entry_text(entry)),
    };
    if entries.is_empty() { "nothing new".into() } else { entries.iter().map(show).collect::<Vec<_>>().join(", ") }
}

fn entry_text(entry: &raftpb::Entry) -> String {
    match entry.r#type() {
        raftpb::EntryType::EntryConfChange => change(entry.data()),
        _ => command(entry.data()),
    }
}

fn change(data: &[u8]) -> String {
    use raftpb::ConfChangeType::*;
    let change = raftpb::ConfChange::decode(data).expect("etcd could read it");
    let promotes = String::from_utf8_lossy(change.context()).contains("isPromote");
    let what = match change.r#type() {
        ConfChangeAddNode if promotes => "promote",
        ConfChangeAddNode => "add",
        ConfChangeAddLearnerNode => "add learner",
        ConfChangeRemoveNode => "remove",
        ConfChangeUpdateNode => "update",
    };
    format!("{what} {}", change.node_id())
}

fn position(state: &State) -> String {
    format!("{}/{}", state.0.applied(), state.0.applied_term())
}

fn members(voters: &[MemberId], learners: &[MemberId]) -> String {
    let list = |ids: &[MemberId]| ids.iter().map(|id| id.to_string()).collect::<Vec<_>>().join(", ");
    match learners {
        [] => format!("voters {}", list(voters)),
        _ => format!("voters {}, learners {}", list(voters), list(learners)),
    }
}

fn command(data: &[u8]) -> String {
    if data.is_empty() {
        return "(empty)".into();
    }
    match Command::decode(data.to_vec().into()) {
        Ok((_, Command::Put(Put { key, value, .. }))) => format!("put {}={}", text(&key), text(&value)),
        Ok((_, Command::Delete(delete))) => {
            let end = if delete.range.end == RangeEnd::Single { "" } else { ".." };
            format!("delete {}{end}", text(&delete.range.start))
        }
        Ok((_, Command::ClusterVersion { version })) => format!("version {version}"),
        Ok((_, Command::MemberAttributes { member, name, .. })) => format!("{member} is {name}"),
        Ok((_, other)) => format!("{other:?}"),
        Err(error) => format!("({error})"),
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn show_response(response: &Response) -> String {
    match response {
        Response::Put { .. } => "put".into(),
        Response::Done => "done".into(),
        Response::Members(membership) => {
            let configuration = membership.configuration();
            members(&configuration.voters, &configuration.learners)
        }
        Response::Delete { deleted, .. } => format!("deleted {deleted}"),
        other => format!("{other:?}"),
    }
}

fn show_notice(notice: &Notice) -> String {
    let Notice { watch, revision, what, .. } = notice;
    let what = match what {
        What::Created => "created".into(),
        What::Events(events) => events.iter().map(|event| show_record(&event.record)).collect::<Vec<_>>().join(", "),
        What::Progress => "nothing new".into(),
        What::Canceled(Canceled::Asked) => "canceled".into(),
        What::Canceled(Canceled::Compacted(revision)) => format!("canceled: compacted up to {revision}"),
        What::Canceled(Canceled::Refused(why)) => format!("canceled: {why}"),
    };
    format!("tells watch {watch}: {what} (now at {revision})")
}

fn show_record(record: &Record) -> String {
    let at = record.modified();
    match record.is_tombstone() {
        true => format!("delete {} @{at}", text(record.key())),
        false => format!("put {}={} @{at}", text(record.key()), text(record.value())),
    }
}

fn show_event(event: &NodeEvent) -> Option<String> {
    Some(match event {
        NodeEvent::RoleChanged { role, term, leader } => {
            let role = match role {
                Role::Follower => "follows",
                Role::PreCandidate => "would stand for election",
                Role::Candidate => "stands for election",
                Role::Leader => "leads",
            };
            let leader = if leader.0 == 0 { "nobody".into() } else { leader.to_string() };
            format!("{role} in term {term}, leader {leader}")
        }
        NodeEvent::Committed { index } => format!("commits {index}"),
        NodeEvent::Applied { index, term, revision, .. } => format!("applies {index}/{term}, revision {revision}"),
        NodeEvent::ReadConfirmed { index, .. } => format!("may serve reads from {index} on"),
        NodeEvent::ConfigurationApplied { voters, learners, valid: true, .. } => {
            format!("knows {}", members(voters, learners))
        }
        NodeEvent::ConfigurationApplied { valid: false, .. } => "finds that the change makes no sense".into(),
        NodeEvent::SnapshotInstalled { index, term, revision, .. } => {
            format!("goes on from the state of {index}/{term}, revision {revision}")
        }
        NodeEvent::LogCut { before } => format!("forgets its log up to {before}"),
        NodeEvent::HandingOver { to } => format!("hands over to {to}"),
        NodeEvent::DiskStalled { since_ms } => format!("waits for its disk since {since_ms} ms"),
        _ => return None,
    })
}
