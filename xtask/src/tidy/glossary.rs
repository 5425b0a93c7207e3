//! One thing has one name: the words that this project does not use, in names and in text.

use super::{
    Rule, Scanned, Source, Violation,
    scan::{Kind, Token},
};

/// A word that is not used, and what is written instead.
struct Entry {
    word: &'static str,
    instead: &'static str,
    /// Whether it is allowed after this word and before that one, both in lower case.
    allowed: fn(&str, &str) -> bool,
    /// Where it is not used.
    scope: Scope,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Scope {
    NamesAndText,
    Names,
    Text,
    /// A type's whole name.
    Type,
}

const fn entry(word: &'static str, scope: Scope, instead: &'static str) -> Entry {
    Entry {
        word,
        instead,
        allowed: |_, _| false,
        scope,
    }
}

const PLACE: &str = "index, slot, location or identity, whichever it is";
const WORD: &str = "announcement, message or argument, whichever it is";
const REPORTED: &str = "reported, logged, announced, acknowledged or last seen";
const PERSON: &str = "the client, the caller, no one, or the passive";
const LEADER: &str = "leadership or leader";

/// `in place`, `take place`, and what a scheduler does with tasks.
fn is_placing(before: &str, after: &str) -> bool {
    matches!(before, "in" | "take" | "takes" | "taking" | "took" | "taken")
        || matches!(after, "task" | "tasks" | "replica" | "replicas")
        || matches!(
            after,
            "a" | "the"
                | "its"
                | "tasks"
                | "task"
                | "replicas"
                | "them"
                | "it"
                | "each"
                | "every"
                | "new"
                | "no"
                | "on"
        ) && !matches!(
            before,
            "a" | "the" | "this" | "that" | "one" | "no" | "its" | "own" | "each" | "every" | "other" | "of"
        )
}

/// `lead to`, `leads`, and other verbs.
fn is_verb(before: &str, _: &str) -> bool {
    !matches!(
        before,
        "the" | "a" | "its" | "this" | "no" | "of" | "for" | "without" | "lost" | "loses" | "whose"
    )
}

/// A machine's words, and the words of a text.
fn is_of_a_machine(before: &str, _: &str) -> bool {
    matches!(
        before,
        "bit"
            | "16"
            | "32"
            | "64"
            | "whole"
            | "machine"
            | "two"
            | "one"
            | "each"
            | "single"
            | "glossary"
            | "s"
            | "other"
            | "of"
    )
}

const ENTRIES: &[Entry] = &[
    entry("picture", Scope::NamesAndText, "snapshot"),
    entry("pictures", Scope::NamesAndText, "snapshots"),
    entry("place", Scope::Names, PLACE),
    entry("places", Scope::Names, PLACE),
    Entry {
        allowed: is_placing,
        ..entry("place", Scope::Text, PLACE)
    },
    Entry {
        allowed: is_placing,
        ..entry("places", Scope::Text, PLACE)
    },
    entry("word", Scope::Names, WORD),
    entry("words", Scope::Names, WORD),
    Entry {
        allowed: is_of_a_machine,
        ..entry("word", Scope::Text, WORD)
    },
    Entry {
        allowed: is_of_a_machine,
        ..entry("words", Scope::Text, WORD)
    },
    entry("told", Scope::NamesAndText, REPORTED),
    entry("heard", Scope::NamesAndText, REPORTED),
    entry("said", Scope::NamesAndText, REPORTED),
    entry("nobody", Scope::NamesAndText, PERSON),
    entry("somebody", Scope::NamesAndText, PERSON),
    entry("whoever", Scope::NamesAndText, PERSON),
    entry("mouth", Scope::NamesAndText, "hook"),
    entry("mouths", Scope::NamesAndText, "hooks"),
    entry("footing", Scope::NamesAndText, "rung, or consistency"),
    entry("lead", Scope::Names, LEADER),
    Entry {
        allowed: is_verb,
        ..entry("lead", Scope::Text, LEADER)
    },
    entry("Window", Scope::Type, "Introspection"),
    entry("Stage", Scope::Type, "Fixture"),
    entry("Hand", Scope::Type, "TaskMemory"),
    entry("Look", Scope::Type, "Observation"),
    entry("Workshop", Scope::Type, "DatapathFactory"),
    entry("Standing", Scope::Type, "Membership, AgentState or UplinkHooks"),
    entry(
        "Presence",
        Scope::Type,
        "Announcements, Registration or OwnAnnouncement",
    ),
];

pub(super) fn rust(file: &Scanned<'_>) -> Vec<Violation> {
    let mut found = Vec::new();
    for token in &file.tokens {
        if token.kind == Kind::Name {
            found.extend(name(file.source, token));
        }
    }
    let text = file
        .tokens
        .iter()
        .filter(|token| matches!(token.kind, Kind::Comment | Kind::Text))
        .map(|token| (token.text, token.line));
    found.extend(words(file.source, text));
    found
}

pub(super) fn prose(source: &Source) -> Vec<Violation> {
    // These lines are the glossary itself.
    let lines = source.text.lines().enumerate();
    words(source, lines.map(|(index, line)| (line, index + 1)))
}

/// The packet logic is about a machine's words, and needs the name for nothing else.
fn is_machine_code(source: &Source, entry: &Entry) -> bool {
    entry.instead == WORD && source.path.starts_with("mesh-ebpf/")
}

fn name(source: &Source, token: &Token<'_>) -> Option<Violation> {
    let parts = segments(token.text);
    let entry = ENTRIES.iter().find(|entry| match entry.scope {
        Scope::Type => entry.word == token.text,
        Scope::Names | Scope::NamesAndText => parts.iter().enumerate().any(|(at, part)| {
            let before = at.checked_sub(1).map_or("", |before| parts[before].as_str());
            part == entry.word && !(entry.instead == PLACE && is_placing(before, ""))
        }),
        Scope::Text => false,
    })?;
    if is_machine_code(source, entry) {
        return None;
    }
    let message = format!("`{}`: not `{}` but {}", token.text, entry.word, entry.instead);
    Some(source.violation(token.line, Rule::Glossary, message))
}

/// `CamelCase` and `snake_case` taken apart, in lower case.
fn segments(name: &str) -> Vec<String> {
    let mut found = vec![String::new()];
    let mut before_was_lower = false;
    for letter in name.chars() {
        let begins = letter == '_' || (letter.is_uppercase() && before_was_lower);
        if begins && found.last().is_some_and(|last| !last.is_empty()) {
            found.push(String::new());
        }
        if letter != '_'
            && let Some(last) = found.last_mut()
        {
            last.extend(letter.to_lowercase());
        }
        before_was_lower = letter.is_lowercase() || letter.is_ascii_digit();
    }
    found
}

/// Checks text that goes on from piece to piece.
fn words<'t>(source: &Source, pieces: impl Iterator<Item = (&'t str, usize)>) -> Vec<Violation> {
    let mut all: Vec<(String, usize)> = Vec::new();
    for (text, first_line) in pieces {
        for (index, line) in text.lines().enumerate() {
            // What is quoted as code is checked where it is code.
            for (index_in_line, part) in line.split('`').enumerate() {
                if index_in_line % 2 == 1 {
                    all.push((String::new(), first_line + index));
                    continue;
                }
                let letters = |letter: char| !letter.is_ascii_alphanumeric();
                let words = part.split(letters).filter(|word| !word.is_empty());
                all.extend(words.map(|word| (word.to_lowercase(), first_line + index)));
            }
        }
    }
    let word = |at: Option<usize>| {
        at.and_then(|at| all.get(at))
            .map_or("", |(word, _)| word.as_str())
    };
    let mut found = Vec::new();
    for (at, (this, line)) in all.iter().enumerate() {
        let entry = ENTRIES.iter().find(|entry| {
            matches!(entry.scope, Scope::Text | Scope::NamesAndText)
                && entry.word == this
                && !is_machine_code(source, entry)
                && !(entry.allowed)(word(at.checked_sub(1)), word(at.checked_add(1)))
        });
        if let Some(entry) = entry {
            let message = format!(
                "`{} {this} {}`: not \"{this}\" but {}",
                word(at.checked_sub(1)),
                word(at.checked_add(1)),
                entry.instead
            );
            found.push(source.violation(*line, Rule::Glossary, message));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tidy::{Source, found_in};

    fn lines(text: &str) -> Vec<usize> {
        found_in(text, rust)
            .iter()
            .map(|violation| violation.line)
            .collect()
    }

    #[test]
    fn names_are_checked_by_their_parts() {
        assert_eq!(
            segments("ClusterPicture_of2Nodes"),
            ["cluster", "picture", "of2", "nodes"]
        );
        assert_eq!(
            lines("struct ClusterPicture;\nlet free_places = 1;\nfn replace_in() { block_in_place() }"),
            [1, 2]
        );
        assert_eq!(lines("struct Stage;\nstruct Stages;\nlet stage = 1;"), [1]);
    }

    #[test]
    fn text_is_checked_in_comments_and_strings() {
        assert_eq!(
            lines("// What the client\n// said.\nlet a = \"nobody listens\";"),
            [2, 3]
        );
        assert_eq!(lines("// the lead\n// errors lead to\n// `said`"), [1]);
    }

    #[test]
    fn some_uses_of_a_word_are_plain_english() {
        assert!(lines("// in place, takes\n// place; the scheduler places a task; a 32-bit word").is_empty());
        assert_eq!(lines("// a place of the ring"), [1]);
    }

    #[test]
    fn prose_is_checked_too() {
        let source = Source {
            path: "README.md".into(),
            text: "One\nsomebody else".into(),
        };
        assert_eq!(prose(&source).len(), 1);
    }
}
