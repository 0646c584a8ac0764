//! The rules of the tree that a machine can check. Every offence is told as `file:line: what`.
mod functions;
mod modules;
mod source;

use regex::Regex;
use source::{File, TREE, line_of};
use std::collections::BTreeSet;

const FILE_LINES_MAX: usize = 600;
const FUNCTION_LINES_MAX: usize = 70;

/// Rule, file, and why it cannot be otherwise. One that is no longer needed is an offence.
const EXCEPTIONS: &[(&str, &str, &str)] =
    &[("no_path_of_one_machine", "bench/src/machine.rs", "a sample of what the kernel says of any machine's mounts")];

#[test]
fn files_are_short() {
    let long = TREE.rust().filter(|file| file.text.lines().count() > FILE_LINES_MAX);
    let offences = long.map(|file| {
        let lines = file.text.lines().count();
        (file.path.as_str(), FILE_LINES_MAX + 1, format!("{lines} lines, {FILE_LINES_MAX} are enough for one story"))
    });
    report("files_are_short", offences);
}

#[test]
fn functions_are_short() {
    let all = TREE.rust().flat_map(|file| functions::functions(file).into_iter().map(move |f| (file, f)));
    let long = all.filter(|(_, function)| function.lines > FUNCTION_LINES_MAX);
    let offences = long.map(|(file, function)| {
        let what = format!("fn {} has {} lines, {FUNCTION_LINES_MAX} fit a screen", function.name, function.lines);
        (file.path.as_str(), function.line, what)
    });
    report("functions_are_short", offences);
}

#[test]
fn nothing_is_left_for_later() {
    let rust = TREE.rust().flat_map(|file| find(file, &file.code, r"\b(todo|unimplemented)!\s*[(\[{]"));
    let marks = concat!(r"\b(TO", "DO|FIX", r"ME)\b");
    let written = TREE.files.iter().flat_map(|file| find(file, &file.text, marks));
    report("nothing_is_left_for_later", rust.chain(written).map(|offence| say(offence, "finish it, or open an issue")));
}

#[test]
fn the_node_does_not_know_its_world() {
    let offences = TREE.below("node/", ".rs").flat_map(|file| {
        find(file, &file.code, r"\bmadsim\b|\b(is_)?simulat(ed|ion)\b").into_iter().chain(find(
            file,
            &file.text,
            r"(?i)\bif (in |a |the )?simulat(ed|ion|or)\b",
        ))
    });
    report("the_node_does_not_know_its_world", offences.map(|o| say(o, "the world enters through Host only")));
}

#[test]
fn the_core_is_pure() {
    let banned =
        r"\b(HashMap|HashSet|RandomState|tokio|rand|rand_chacha|getrandom)\b|\bstd::(time|thread|fs|net|env)\b";
    let offences = TREE.below("node/core/src/", ".rs").flat_map(|file| find(file, &file.code, banned));
    report(
        "the_core_is_pure",
        offences.map(|offence| say(offence, "the core decides from its inputs and nothing else")),
    );
}

#[test]
fn no_path_of_one_machine() {
    let homes = concat!("/(ro", "ot|ho", "me|tm", "p)/");
    let offences = TREE.files.iter().flat_map(|file| find(file, &file.text, homes));
    report("no_path_of_one_machine", offences.map(|offence| say(offence, "works on one machine only")));
}

#[test]
fn every_scenario_makes_a_claim() {
    let mute = TREE.below("scenarios/", ".toml").filter(|file| {
        let table = file.text.parse::<toml::Table>();
        let claim = table.as_ref().ok().and_then(|table| table.get("claim")?.as_str());
        claim.is_none_or(|claim| claim.trim().is_empty())
    });
    report("every_scenario_makes_a_claim", mute.map(|file| (file.path.as_str(), 1, "no claim".to_owned())));
}

#[test]
fn every_law_is_listed() {
    let list = TREE.find("sim/src/oracle/mod.rs").map_or("", |file| file.code.as_str());
    let laws = TREE.below("sim/src/oracle/", ".rs").filter_map(|file| {
        let name = file.path.strip_prefix("sim/src/oracle/")?.strip_suffix(".rs")?;
        (!name.contains('/') && name != "mod").then_some((file, name))
    });
    let missing = laws.filter(|(_, name)| !list.contains(&format!("mod {name};")));
    let offences = missing.map(|(file, name)| (file.path.as_str(), 1, format!("no `mod {name};` in oracle/mod.rs")));
    report("every_law_is_listed", offences);
}

#[test]
fn every_file_is_compiled() {
    let offences = modules::dead(&TREE).into_iter().map(|path| (path, 1, "no crate reaches this file".to_owned()));
    report("every_file_is_compiled", offences);
}

type Offence<'a> = (&'a str, usize, String);

/// Every place in a file's text, or in its code, that a pattern matches.
fn find<'a>(file: &'a File, text: &str, pattern: &str) -> Vec<Offence<'a>> {
    let pattern = Regex::new(pattern).expect("our own pattern");
    let at = |found: regex::Match| (file.path.as_str(), line_of(text, found.start()), found.as_str().to_owned());
    pattern.find_iter(text).map(at).collect()
}

fn say<'a>((path, line, found): Offence<'a>, why: &str) -> Offence<'a> {
    (path, line, format!("{found}: {why}"))
}

#[track_caller]
fn report<'a>(rule: &str, offences: impl Iterator<Item = Offence<'a>>) {
    let mut unused: BTreeSet<_> = EXCEPTIONS.iter().filter(|(of, ..)| *of == rule).map(|(_, path, _)| *path).collect();
    let mut lines: Vec<_> = offences
        .filter(|(path, ..)| !(unused.remove(path) || EXCEPTIONS.iter().any(|(of, p, _)| *of == rule && p == path)))
        .map(|(path, line, what)| format!("{path}:{line}: {what}"))
        .collect();
    lines.extend(unused.iter().map(|path| format!("{path}:1: the exception to {rule} is no longer needed")));
    assert!(lines.is_empty(), "{} offence(s)\n{}\n", lines.len(), lines.join("\n"));
}
