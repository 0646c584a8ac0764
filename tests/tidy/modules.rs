//! Which files the compiler sees: from every crate's roots, along `mod name;`, to the last leaf.
use super::source::{File, Tree};
use regex::Regex;
use std::{
    collections::BTreeSet,
    path::{Component, Path, PathBuf},
    sync::LazyLock,
};

static MODULE: LazyLock<Regex> = LazyLock::new(|| Regex::new(r"\bmod\s+(\w+)\s*([;{])|[{}]").expect("our pattern"));
static PATH: LazyLock<Regex> = LazyLock::new(|| Regex::new(r#"#\[path\s*=\s*"([^"]+)"\]"#).expect("our pattern"));
static INCLUDE: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(r#"include!\(\s*"([^"]+\.rs)"\s*\)"#).expect("our pattern"));

/// The Rust files that no crate reaches.
pub fn dead(tree: &Tree) -> Vec<&str> {
    let mut reached = BTreeSet::new();
    for manifest in tree.below("", "Cargo.toml") {
        for root in roots(tree, manifest) {
            reach(tree, &root, true, &mut reached);
        }
    }
    tree.rust().map(|file| file.path.as_str()).filter(|path| !reached.contains(*path)).collect()
}

/// The files at which rustc starts, by Cargo's rules.
fn roots(tree: &Tree, manifest: &File) -> Vec<String> {
    let dir = manifest.path.strip_suffix("Cargo.toml").expect("a manifest's name");
    let table: toml::Table = manifest.text.parse().unwrap_or_else(|e| panic!("{}: {e}", manifest.path));
    let mut roots: Vec<_> = ["src/lib.rs", "src/main.rs", "build.rs"].map(|path| format!("{dir}{path}")).to_vec();
    for (section, folder) in [("bin", "src/bin/"), ("test", "tests/"), ("bench", "benches/"), ("example", "examples/")]
    {
        let folder_path = format!("{dir}{folder}");
        let found = tree.below(&folder_path, ".rs").map(|file| file.path.clone());
        let direct = |path: &String| {
            let inner = &path[folder_path.len()..];
            !inner.contains('/') || inner.matches('/').count() == 1 && inner.ends_with("/main.rs")
        };
        roots.extend(found.filter(direct));
        let listed = table.get(section).and_then(toml::Value::as_array).into_iter().flatten();
        roots.extend(listed.filter_map(|target| Some(format!("{dir}{}", target.get("path")?.as_str()?))));
    }
    let library = table.get("lib").and_then(|lib| lib.get("path")).and_then(toml::Value::as_str);
    roots.extend(library.map(|path| format!("{dir}{path}")));
    roots.retain(|root| tree.find(root).is_some());
    roots
}

/// Marks `path` and everything below it. Modules of a root, or of a `mod.rs`, lie beside it, others in its own folder.
fn reach(tree: &Tree, path: &str, is_root: bool, reached: &mut BTreeSet<String>) {
    let Some(file) = tree.find(path) else { return };
    if !reached.insert(path.to_owned()) {
        return;
    }
    let here = Path::new(path).parent().expect("a file has a folder");
    let stem = Path::new(path).file_stem().expect("a file has a name");
    let folder = if is_root || stem == "mod" { here.to_owned() } else { here.join(stem) };
    let (mut inline, mut depth): (Vec<(&str, usize)>, _) = (Vec::new(), 0);
    let mut last_end = 0;
    for found in MODULE.captures_iter(&file.code) {
        let whole = found.get(0).expect("the match");
        match (found.get(1), whole.as_str()) {
            (Some(name), text) if text.ends_with('{') => {
                inline.push((name.as_str(), depth));
                depth += 1;
            }
            (Some(name), _) => {
                let folder = inline.iter().fold(folder.clone(), |folder, (name, _)| folder.join(name));
                let attributes = &file.text[last_end..whole.start()];
                let named = PATH.captures_iter(attributes).last().map(|path| here.join(&path[1]));
                let usual = [folder.join(format!("{}.rs", name.as_str())), folder.join(name.as_str()).join("mod.rs")];
                let children = named.map_or_else(|| usual.to_vec(), |named| vec![named]);
                children.iter().for_each(|child| reach(tree, &normal(child), false, reached));
            }
            (None, "{") => depth += 1,
            (None, _) => {
                depth -= 1;
                inline.pop_if(|(_, open)| *open == depth);
            }
        }
        last_end = whole.end();
    }
    for included in INCLUDE.captures_iter(&file.text) {
        reach(tree, &normal(&here.join(&included[1])), false, reached);
    }
}

/// `a/../b` to `b`.
fn normal(path: &Path) -> String {
    let mut out = PathBuf::new();
    for part in path.components() {
        match part {
            Component::ParentDir => drop(out.pop()),
            part => out.push(part),
        }
    }
    out.to_string_lossy().into_owned()
}

#[test]
fn a_planted_dead_file_is_found() {
    let file = |path: &str, text: &str| File {
        path: path.to_owned(),
        text: text.to_owned(),
        code: super::source::code_only(text),
    };
    let tree = Tree {
        root: PathBuf::new(),
        files: vec![
            file("c/Cargo.toml", "[[test]]\npath = \"checks/it.rs\"\n"),
            file("c/checks/it.rs", "mod a;"),
            file("c/checks/a.rs", ""),
            file("c/src/lib.rs", "fn f() {}\nmod a; pub mod b;\n// mod dead;\nmod inner { mod c; }\n"),
            file("c/src/a.rs", "#[cfg(test)]\nmod tests;\n#[path = \"odd.rs\"]\nmod d;"),
            file("c/src/a/tests.rs", ""),
            file("c/src/b/mod.rs", "mod e;"),
            file("c/src/b/e.rs", ""),
            file("c/src/dead.rs", "mod deader;"),
            file("c/src/dead/deader.rs", ""),
            file("c/src/inner/c.rs", ""),
            file("c/src/odd.rs", ""),
        ],
    };
    assert_eq!(dead(&tree), ["c/src/dead.rs", "c/src/dead/deader.rs"]);
}
