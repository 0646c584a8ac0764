//! One name for each thing in what people read, a report or log lines: `n3` for a member, `c4#6` for a call, and requests
//! in hexadecimal.
//!
//! Nodes and laws speak of members by their ids, in hexadecimal or decimal, and of calls and requests by bare numbers.
use std::collections::BTreeMap;

use crate::history::{CHANGE_TRACE, Event, OpId, Stamped};

/// Shorter words are no ids.
const ID_CHARS_MIN: usize = 8;

#[derive(Default)]
pub struct Names {
    /// By id, as it is written.
    members: BTreeMap<String, String>,
    /// In the order in which they came.
    legend: Vec<String>,
}

impl Names {
    /// A machine's first member has its name; after it come `n3.2`, `n3.3`.
    pub fn new(history: &[Stamped]) -> Names {
        let (mut names, mut counts) = (Names { members: BTreeMap::new(), legend: Vec::new() }, BTreeMap::new());
        for stamped in history {
            let Event::Started { node, member } = &stamped.event else { continue };
            let id = format!("{member:x}");
            if names.members.contains_key(&id) {
                continue;
            }
            let count = counts.entry(*node).or_insert(0);
            *count += 1;
            let name = if *count == 1 { node.to_string() } else { format!("{node}.{count}") };
            names.legend.push(format!("{name} is {id}"));
            names.members.extend([(id, name.clone()), (member.to_string(), name)]);
        }
        names
    }

    /// Which member has which id.
    pub fn legend(&self) -> String {
        self.legend.join(", ")
    }

    pub fn apply(&self, text: &str) -> String {
        let (mut out, mut rest) = (String::with_capacity(text.len()), text);
        while let Some(start) = rest.find(|c: char| c.is_ascii_alphanumeric()) {
            let (before, from) = rest.split_at(start);
            let end = from.find(|c: char| !c.is_ascii_alphanumeric()).unwrap_or(from.len());
            let (word, after) = from.split_at(end);
            out.push_str(before);
            match self.name(word, &out) {
                Some(name) => out.push_str(&name),
                None => out.push_str(word),
            }
            rest = after;
        }
        out + rest
    }

    /// What stands for this word, after what comes before it.
    fn name(&self, word: &str, before: &str) -> Option<String> {
        if before.ends_with("trace: ") {
            let trace: u64 = word.parse().ok()?;
            let is_change = trace & CHANGE_TRACE != 0;
            let change = trace & !CHANGE_TRACE;
            return Some(if is_change { format!("change {change}") } else { OpId(trace).to_string() });
        }
        if before.ends_with("request: ") {
            return word.parse().ok().map(|request: u64| format!("{request:x}"));
        }
        self.members.get(word).filter(|_| word.len() >= ID_CHARS_MIN).cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::{Nanos, NodeNumber};

    #[test]
    fn members_calls_and_requests_have_one_name_each() {
        let started = |node, member| Event::Started { node: NodeNumber(node), member };
        let [first, second, third] = [0x3ebc_01ae_c68d_6d70, 0xfe9c_64ea_f399_1d47, 0x1111_2222_3333_4444];
        let events = [started(1, first), started(3, second), started(1, first), started(3, third)];
        let history = events.map(|event| Stamped { at: Nanos(0), sequence: 0, event });
        let names = Names::new(&history);
        assert_eq!(names.legend(), "n1 is 3ebc01aec68d6d70, n3 is fe9c64eaf3991d47, n3.2 is 1111222233334444");
        let text = format!("(to: {first:x}, [fe9c64eaf3991d47; {third}], trace: 17179869190, request: 255, index: 7)");
        assert_eq!(names.apply(&text), "(to: n1, [n3; n3.2], trace: c4#6, request: ff, index: 7)");
        let change = format!("trace: {}", CHANGE_TRACE | 12);
        assert_eq!(names.apply(&change), "trace: change 12");
        assert_eq!(names.apply("key k3, 3ebc01aec68d6d71"), "key k3, 3ebc01aec68d6d71");
    }
}
