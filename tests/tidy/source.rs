//! The tree's own text, and Rust text without comments and strings.
use std::{
    fs,
    path::{Path, PathBuf},
    sync::LazyLock,
};

/// Made, downloaded or recorded elsewhere: not ours to keep tidy.
const NOT_OURS: &[&str] = &["target", ".git", "tests/peers/bin", "tests/histories", "reports/runs"];
const NOT_WRITTEN: &[&str] = &["Cargo.lock", "go.sum"];

pub struct Tree {
    pub root: PathBuf,
    pub files: Vec<File>,
}

/// A text file.
pub struct File {
    /// From the tree's root, with forward slashes.
    pub path: String,
    pub text: String,
    /// Of a Rust file, the text with every comment and every literal's content blanked: same offsets, same lines.
    pub code: String,
}

pub static TREE: LazyLock<Tree> = LazyLock::new(|| {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace").to_owned();
    let tree = Tree::read(&root);
    assert!(tree.files.iter().any(|file| file.path == "tests/tidy/source.rs"), "the tree does not hold this file");
    tree
});

impl Tree {
    pub fn read(root: &Path) -> Tree {
        let mut tree = Tree { root: root.to_owned(), files: Vec::new() };
        tree.walk(root);
        tree.files.sort_by(|a, b| a.path.cmp(&b.path));
        tree
    }

    fn walk(&mut self, dir: &Path) {
        for entry in fs::read_dir(dir).expect("a directory of the tree") {
            let entry = entry.expect("an entry").path();
            let path = entry.strip_prefix(&self.root).expect("below the root").to_string_lossy().replace('\\', "/");
            let name = path.rsplit('/').next().expect("a name");
            if NOT_OURS.contains(&path.as_str()) || NOT_WRITTEN.contains(&name) || entry.is_symlink() {
                continue;
            }
            if entry.is_dir() {
                self.walk(&entry);
            } else if let Ok(text) = fs::read_to_string(&entry) {
                let code = if path.ends_with(".rs") { code_only(&text) } else { String::new() };
                self.files.push(File { path, text, code });
            }
        }
    }

    pub fn rust(&self) -> impl Iterator<Item = &File> {
        self.below("", ".rs")
    }

    pub fn below(&self, dir: &str, suffix: &str) -> impl Iterator<Item = &File> {
        self.files.iter().filter(move |file| file.path.starts_with(dir) && file.path.ends_with(suffix))
    }

    pub fn find(&self, path: &str) -> Option<&File> {
        self.files.iter().find(|file| file.path == path)
    }
}

pub fn line_of(text: &str, offset: usize) -> usize {
    1 + text.as_bytes()[..offset].iter().filter(|&&byte| byte == b'\n').count()
}

/// Blanks comments and the contents of literals, byte for byte; line feeds stay.
pub fn code_only(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = bytes.to_vec();
    let mut at = 0;
    while at < bytes.len() {
        let end = literal_or_comment_end(bytes, at);
        match end {
            Some(end) => {
                out[at..end].iter_mut().filter(|byte| **byte != b'\n').for_each(|byte| *byte = b' ');
                at = end;
            }
            None => at += 1,
        }
    }
    String::from_utf8(out).expect("whole literals were blanked")
}

/// Where the comment or literal that starts here ends.
fn literal_or_comment_end(bytes: &[u8], at: usize) -> Option<usize> {
    let rest = &bytes[at..];
    let word_before = at > 0 && (bytes[at - 1].is_ascii_alphanumeric() || bytes[at - 1] == b'_');
    if rest.starts_with(b"//") {
        return Some(at + rest.iter().position(|&b| b == b'\n').unwrap_or(rest.len()));
    }
    if rest.starts_with(b"/*") {
        return Some(at + block_comment(rest));
    }
    match rest[0] {
        b'"' => Some(at + quoted(rest, b'"')),
        b'r' | b'b' | b'c' if !word_before => {
            let prefix = rest.iter().take_while(|b| matches!(b, b'r' | b'b' | b'c')).count();
            let hashes = rest[prefix..].iter().take_while(|&&b| b == b'#').count();
            let opens = rest.get(prefix + hashes) == Some(&b'"') && prefix <= 2 && rest[..prefix].contains(&b'r');
            opens.then(|| at + prefix + raw(&rest[prefix..], hashes))
        }
        // 'a' and '\n' and 'é' are literals, 'a alone is a lifetime.
        b'\'' if rest.get(1) == Some(&b'\\') => Some(at + quoted(rest, b'\'')),
        b'\'' => {
            let char_len = std::str::from_utf8(&rest[1..rest.len().min(5)])
                .unwrap_or_else(|e| std::str::from_utf8(&rest[1..1 + e.valid_up_to()]).expect("valid up to there"))
                .chars()
                .next()?
                .len_utf8();
            (rest.get(1 + char_len) == Some(&b'\'')).then_some(at + char_len + 2)
        }
        _ => None,
    }
}

fn block_comment(rest: &[u8]) -> usize {
    let (mut depth, mut at) = (0usize, 0);
    while at < rest.len() {
        match &rest[at..rest.len().min(at + 2)] {
            b"/*" => (depth, at) = (depth + 1, at + 2),
            b"*/" => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
        if depth == 0 {
            break;
        }
    }
    at
}

/// The length of a literal with escapes, its quotes included.
fn quoted(rest: &[u8], quote: u8) -> usize {
    let mut at = 1;
    while at < rest.len() && rest[at] != quote {
        at += if rest[at] == b'\\' { 2 } else { 1 };
    }
    (at + 1).min(rest.len())
}

/// The length of `#"..."#`, given how many hashes it begins with.
fn raw(rest: &[u8], hashes: usize) -> usize {
    let end = [b"\"".as_slice(), &rest[..hashes]].concat();
    let body = &rest[hashes + 1..];
    let length = body.windows(end.len()).position(|window| window == end).unwrap_or(body.len() - end.len());
    hashes + 1 + length + end.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_code_is_left() {
        #[track_caller]
        fn check(text: &str, code: &str) {
            let blanked = code_only(text);
            assert_eq!(blanked.len(), text.len());
            assert_eq!(blanked.split_whitespace().collect::<Vec<_>>().join(" "), code);
        }
        check("a // b\nc", "a c");
        check("a /* b /* c */ d */ e", "a e");
        check(r#"f("x\"y{", 'z', '\'', b'{')"#, "f( , , , b )");
        check("r#\"a \" {\"# + br\"{\" + r\"\\\" + hr", "+ + + hr");
        check("fn f<'a>(x: &'a str) { 'b: loop {} }", "fn f<'a>(x: &'a str) { 'b: loop {} }");
        check("'é' \"é{\" é", "é");
        check("\"open {", "");
    }

    #[test]
    fn lines_are_counted_from_one() {
        assert_eq!((line_of("a\nb\n", 0), line_of("a\nb\n", 2)), (1, 2));
    }
}
