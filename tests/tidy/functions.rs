//! How long functions are: a brace counter is enough for code that rustfmt accepts.
use super::source::{File, line_of};
use regex::Regex;
use std::sync::LazyLock;

static FUNCTION: LazyLock<Regex> = LazyLock::new(|| Regex::new(r"\bfn\s+(\w+)").expect("our own pattern"));

pub struct Function {
    pub name: String,
    pub line: usize,
    /// From `fn` to the closing brace.
    pub lines: usize,
}

/// Every function with a body, inner ones and methods included.
pub fn functions(file: &File) -> Vec<Function> {
    let found = FUNCTION.captures_iter(&file.code).filter_map(|captures| {
        let start = captures.get(0).expect("the match").start();
        let end = body_end(&file.code, start)?;
        let (first, last) = (line_of(&file.code, start), line_of(&file.code, end));
        Some(Function { name: captures[1].to_owned(), line: first, lines: last - first + 1 })
    });
    found.collect()
}

/// Where the body ends, if there is one: a signature holds no brace, and a `;` only in brackets.
fn body_end(code: &str, start: usize) -> Option<usize> {
    let (mut nested, mut braces) = (0, 0);
    for (offset, byte) in code.bytes().enumerate().skip(start) {
        match byte {
            b'(' | b'[' => nested += 1,
            b')' | b']' => nested -= 1,
            b';' if nested == 0 && braces == 0 => return None,
            b'{' => braces += 1,
            b'}' => {
                braces -= 1;
                if braces == 0 {
                    return Some(offset);
                }
            }
            _ => {}
        }
    }
    None
}

#[test]
fn bodies_are_measured_and_signatures_are_not() {
    let text = "trait T {\n    fn a(x: [u8; 4]);\n    fn b() {}\n}\nfn c(\n    x: [u8; 2],\n) -> fn(u8) {\n    \"}\";\n    if x {}\n}\n";
    let file = File { path: "x.rs".to_owned(), text: text.to_owned(), code: super::source::code_only(text) };
    let found: Vec<_> = functions(&file).into_iter().map(|f| (f.name, f.line, f.lines)).collect();
    assert_eq!(found, [("b".to_owned(), 3, 1), ("c".to_owned(), 5, 6)]);
}
