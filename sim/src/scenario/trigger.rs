//! Triggers: a fault strikes at the very moment at which a node does something.
//!
//! `when = "before fsync 2 after change_appended"` is: of one node, the second sync that is called after the node has
//! appended a change of the membership. Written as `[before|after] POINT [COUNT] [after POINT]`, where a point is a node
//! event's name, or `fsync`, which has a before (it is called) and an after (it is done).
use std::fmt;

use super::NODE_EVENTS;

/// What a node does, as far as one can wait for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Point {
    /// By its name.
    Event(&'static str),
    SyncCalled,
    Synced,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Trigger {
    pub point: Point,
    /// How often it must come to that.
    pub count: u64,
    /// Counted only from here on.
    pub after: Option<Point>,
}

impl Point {
    fn parse(side: Option<&str>, word: &str) -> Result<Point, String> {
        match (word, side) {
            ("fsync", Some("before")) => Ok(Point::SyncCalled),
            ("fsync", Some(_)) => Ok(Point::Synced),
            ("fsync", None) => Err("expected before fsync, or after fsync".into()),
            (_, Some("before")) => Err(format!("{word} has no before; expected {word}, or before fsync")),
            _ => match NODE_EVENTS.iter().find(|name| **name == word) {
                Some(name) => Ok(Point::Event(name)),
                None => {
                    let names = NODE_EVENTS.join(", ");
                    Err(format!("there is no point {word:?}; expected fsync or some of {names}"))
                }
            },
        }
    }
}

impl Trigger {
    pub fn parse(text: &str) -> Result<Trigger, String> {
        let mut words = text.split_whitespace().peekable();
        let side = words.next_if(|word| ["before", "after"].contains(word));
        let word = words.next().ok_or("expected [before|after] POINT [COUNT] [after POINT]")?;
        let point = Point::parse(side, word)?;
        let count = words.peek().and_then(|word| word.parse::<u64>().ok());
        words.next_if(|_| count.is_some());
        let count = count.unwrap_or(1);
        if count == 0 {
            return Err("expected a count of at least 1".into());
        }
        let after = match words.next() {
            None => None,
            Some("after") => {
                let word = words.next().ok_or("expected a point behind after")?;
                Some(if word == "fsync" { Point::Synced } else { Point::parse(None, word)? })
            }
            Some(word) => {
                return Err(format!("{word:?} is too much; expected [before|after] POINT [COUNT] [after POINT]"));
            }
        };
        match words.next() {
            None => Ok(Trigger { point, count, after }),
            Some(word) => Err(format!("{word:?} is too much; expected nothing behind the last point")),
        }
    }
}

impl fmt::Display for Point {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Point::Event(name) => name,
            Point::SyncCalled => "before fsync",
            Point::Synced => "after fsync",
        })
    }
}

/// As it is written.
impl fmt::Display for Trigger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.point.fmt(f)?;
        if self.count > 1 {
            write!(f, " {}", self.count)?;
        }
        match self.after {
            None => Ok(()),
            Some(Point::Synced) => f.write_str(" after fsync"),
            Some(point) => write!(f, " after {point}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn triggers_are_read_and_written() {
        for text in [
            "change_appended",
            "before fsync",
            "before fsync 2 after change_appended",
            "after fsync 3 after fsync",
            "snapshot_installed 2",
        ] {
            assert_eq!(Trigger::parse(text).map(|trigger| trigger.to_string()), Ok(text.to_owned()));
        }
        assert_eq!(Trigger::parse("after serving").map(|trigger| trigger.to_string()), Ok("serving".to_owned()));
    }

    #[test]
    fn mistakes_are_told() {
        #[track_caller]
        fn check(text: &str, why: &str) {
            let told = Trigger::parse(text).expect_err("it is wrong");
            assert!(told.contains(why), "{text}: {told}");
        }
        check("", "expected [before|after] POINT");
        check("fsync", "before fsync, or after fsync");
        check("before serving", "no before");
        check("fsink", "no point \"fsink\"");
        check("serving 0", "at least 1");
        check("serving 2 3", "\"3\" is too much");
        check("serving after", "a point behind after");
        check("serving after removed now", "\"now\" is too much");
    }
}
