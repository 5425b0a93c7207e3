//! The modules of each crate, and which refers to which: what the rules about imports look at. Tests may
//! import anything and are left out.

use std::collections::BTreeMap;

use super::{
    Scanned, Source,
    scan::{Kind, Token, without_tests},
};

/// A file as a module of its crate.
pub(super) struct Module<'a> {
    pub(super) source: &'a Source,
    /// The folder of the crate's root, e.g. `mesh-agent/src`.
    pub(super) root: String,
    /// Its path in the crate; empty for the root.
    pub(super) path: Vec<String>,
    /// Its tokens, without tests.
    pub(super) tokens: Vec<Token<'a>>,
    references: Vec<Reference>,
}

/// A path in a module's text.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Reference {
    /// From the crate's root.
    path: Vec<String>,
    /// The name by which the module knows it from then on, if it is imported.
    name: Option<String>,
    line: usize,
}

/// One module that uses another of its crate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Use {
    pub(super) from: usize,
    pub(super) to: usize,
    pub(super) line: usize,
}

/// All modules.
pub(super) struct Modules<'a> {
    pub(super) all: Vec<Module<'a>>,
    by_path: BTreeMap<(String, Vec<String>), usize>,
}

impl<'a> Modules<'a> {
    pub(super) fn of(files: &[Scanned<'a>]) -> Self {
        let roots: Vec<&str> = files
            .iter()
            .filter_map(|file| {
                let (folder, name) = file.source.path.rsplit_once('/')?;
                matches!(name, "lib.rs" | "main.rs").then_some(folder)
            })
            .collect();
        let mut modules = Self {
            all: Vec::new(),
            by_path: BTreeMap::new(),
        };
        for file in files {
            let Some((root, path)) = module_path(&file.source.path, &roots) else {
                continue;
            };
            let key = (root.to_owned(), path.clone());
            // The root of the crate is its library rather than the program beside it.
            if !modules.by_path.contains_key(&key) {
                modules.by_path.insert(key, modules.all.len());
            }
            modules.all.push(Module {
                source: file.source,
                root: root.to_owned(),
                path,
                tokens: without_tests(&file.tokens),
                references: Vec::new(),
            });
        }
        for at in 0..modules.all.len() {
            modules.all[at].references = modules.references(at);
        }
        modules
    }

    /// Which module uses which, but for those below and above each other.
    pub(super) fn uses(&self) -> Vec<Use> {
        let mut found = Vec::new();
        for (from, module) in self.all.iter().enumerate() {
            if module
                .path
                .iter()
                .any(|name| name == "tests" || name == "testing")
            {
                continue;
            }
            for reference in &module.references {
                let Some(to) = self.resolve(&module.root, &reference.path) else {
                    continue;
                };
                let target = &self.all[to].path;
                if !target.starts_with(&module.path) && !module.path.starts_with(target) {
                    found.push(Use {
                        from,
                        to,
                        line: reference.line,
                    });
                }
            }
        }
        found.sort_unstable();
        found.dedup_by_key(|used| (used.from, used.to));
        found
    }

    /// The module that a path ends in, re-exports followed.
    fn resolve(&self, root: &str, path: &[String]) -> Option<usize> {
        let mut path = path.to_vec();
        for _ in 0..8 {
            let (module, rest) = self.longest(root, &path)?;
            let renamed = rest.split_first().and_then(|(name, rest)| {
                let same = |reference: &&Reference| reference.name.as_deref() == Some(name);
                let imported = self.all[module].references.iter().find(same)?;
                Some([&imported.path, rest].concat())
            });
            match renamed {
                Some(other) if other != path => path = other,
                _ => return Some(module),
            }
        }
        None
    }

    fn longest<'p>(&self, root: &str, path: &'p [String]) -> Option<(usize, &'p [String])> {
        (0..=path.len()).rev().find_map(|length| {
            let key = (root.to_owned(), path[..length].to_vec());
            Some((*self.by_path.get(&key)?, &path[length..]))
        })
    }

    fn references(&self, at: usize) -> Vec<Reference> {
        let module = &self.all[at];
        let tokens: Vec<Token<'_>> = module
            .tokens
            .iter()
            .filter(|token| token.kind != Kind::Comment && token.kind != Kind::Text)
            .copied()
            .collect();
        let mut parser = Parser {
            tokens: &tokens,
            at: 0,
            found: Vec::new(),
        };
        while let Some(token) = tokens.get(parser.at) {
            let imports = token.is_name("use");
            if imports {
                parser.at += 1;
            }
            let Some(prefix) = self.prefix(module, &mut parser, imports) else {
                parser.at += usize::from(!imports);
                continue;
            };
            parser.tree(prefix, imports);
        }
        parser.found
    }

    /// The absolute path of what a path begins with: `crate`, `super`s, `self`, or in `use` a module below.
    fn prefix(&self, module: &Module<'_>, parser: &mut Parser<'_>, imports: bool) -> Option<Vec<String>> {
        let first = parser.tokens.get(parser.at)?;
        if first.kind != Kind::Name {
            return None;
        }
        let mut prefix = match first.text {
            "crate" => Vec::new(),
            "self" | "super" => module.path.clone(),
            name if imports => {
                let below = [module.path.as_slice(), &[name.to_owned()]].concat();
                let key = (module.root.clone(), below);
                return self.by_path.contains_key(&key).then(|| module.path.clone());
            }
            _ => return None,
        };
        let before = parser.at;
        while parser.is_path_on() {
            match parser.tokens[parser.at].text {
                "super" => {
                    prefix.pop();
                }
                "crate" | "self" => {}
                _ => return Some(prefix),
            }
            parser.at += 3;
        }
        if parser.at == before {
            return None;
        }
        Some(prefix)
    }
}

struct Parser<'t> {
    tokens: &'t [Token<'t>],
    at: usize,
    found: Vec<Reference>,
}

impl Parser<'_> {
    fn is(&self, offset: usize, sign: &str) -> bool {
        self.tokens
            .get(self.at + offset)
            .is_some_and(|token| token.is(sign))
    }

    /// Whether `name ::` is next.
    fn is_path_on(&self) -> bool {
        self.is(1, ":") && self.is(2, ":")
    }

    /// Reads the rest of a path, and all of it that braces hold.
    fn tree(&mut self, mut path: Vec<String>, imports: bool) {
        let line = self.tokens.get(self.at).map_or(0, |token| token.line);
        loop {
            if self.is(0, "{") && imports {
                self.at += 1;
                while self.at < self.tokens.len() && !self.is(0, "}") {
                    self.tree(path.clone(), imports);
                    self.at += usize::from(self.is(0, ","));
                }
                self.at += 1;
                return;
            }
            let Some(token) = self.tokens.get(self.at) else {
                return;
            };
            self.at += 1;
            if token.kind != Kind::Name {
                // A glob, or what a type's arguments begin with.
                self.push(path, None, line);
                return;
            }
            if token.text != "self" {
                path.push(token.text.to_owned());
            }
            if self.is(0, ":") && self.is(1, ":") {
                self.at += 2;
                continue;
            }
            let mut name = path.last().cloned();
            if imports && self.tokens.get(self.at).is_some_and(|next| next.is_name("as")) {
                name = self.tokens.get(self.at + 1).map(|alias| alias.text.to_owned());
                self.at += 2;
            }
            self.push(path, name.filter(|_| imports), line);
            return;
        }
    }

    fn push(&mut self, path: Vec<String>, name: Option<String>, line: usize) {
        self.found.push(Reference { path, name, line });
    }
}

/// The root and the path in its crate of a file below one of the roots.
fn module_path<'r>(file: &str, roots: &[&'r str]) -> Option<(&'r str, Vec<String>)> {
    let root = roots
        .iter()
        .filter(|root| {
            file.strip_prefix(**root)
                .is_some_and(|rest| rest.starts_with('/'))
        })
        .max_by_key(|root| root.len())?;
    let inside = file[root.len() + 1..].strip_suffix(".rs")?;
    let mut path: Vec<String> = inside.split('/').map(str::to_owned).collect();
    let last = path.last().map(String::as_str);
    let is_root = path.len() == 1 && matches!(last, Some("lib" | "main"));
    if is_root || last == Some("mod") {
        path.pop();
    }
    Some((root, path))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::tidy::scan;

    pub(in crate::tidy) fn sources(files: &[(&str, &str)]) -> Vec<Source> {
        files
            .iter()
            .map(|(path, text)| Source {
                path: (*path).into(),
                text: (*text).into(),
            })
            .collect()
    }

    pub(in crate::tidy) fn modules(sources: &[Source]) -> Modules<'_> {
        let files: Vec<Scanned<'_>> = sources
            .iter()
            .map(|source| Scanned {
                source,
                tokens: scan::tokens(&source.text),
            })
            .collect();
        Modules::of(&files)
    }

    fn uses(files: &[(&str, &str)]) -> Vec<String> {
        let sources = sources(files);
        let modules = modules(&sources);
        let name = |at: usize| modules.all[at].path.join("::");
        modules
            .uses()
            .into_iter()
            .map(|used| format!("{} {}", name(used.from), name(used.to)))
            .collect()
    }

    #[test]
    fn imports_and_paths_in_the_text_are_uses() {
        let found = uses(&[
            ("a/src/lib.rs", "mod b; mod c; mod d; mod e;"),
            ("a/src/b.rs", "use crate::{c::{X, Y as Z}, d};"),
            ("a/src/c.rs", "fn f() { super::e::g(); }"),
            ("a/src/d.rs", "pub(crate) struct S;"),
            ("a/src/e.rs", "/// [`crate::b`]\nfn h() { \"crate::b\" }"),
        ]);
        assert_eq!(found, ["b c", "b d", "c e"]);
    }

    #[test]
    fn a_re_export_is_followed_to_its_module() {
        let found = uses(&[
            ("a/src/lib.rs", "mod b;"),
            ("a/src/b/mod.rs", "mod c; mod d; pub use self::c::X; use d::Y;"),
            ("a/src/b/c.rs", "use super::Y;"),
            ("a/src/b/d.rs", "use super::X;"),
        ]);
        assert_eq!(found, ["b::c b::d", "b::d b::c"]);
    }

    #[test]
    fn modules_below_and_tests_do_not_count() {
        let found = uses(&[
            ("a/src/lib.rs", "mod b; mod c; use b::X;"),
            (
                "a/src/b.rs",
                "use crate::X; #[cfg(test)] mod tests { use crate::c::Y; }",
            ),
            ("a/src/c/mod.rs", ""),
            ("a/src/c/tests.rs", "use crate::b::X;"),
        ]);
        assert!(found.is_empty(), "{found:?}");
    }
}
