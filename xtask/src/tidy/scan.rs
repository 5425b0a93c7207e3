//! Splits Rust source text into the tokens that the rules look at. Depends on nothing else here.

/// What a token is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A comment, documentation included, with its slashes.
    Comment,
    /// The inside of a string literal.
    Text,
    /// A name or a keyword.
    Name,
    /// Anything else: one character.
    Sign,
}

/// A piece of source text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Token<'a> {
    pub(super) kind: Kind,
    pub(super) text: &'a str,
    /// The line it begins on, from 1.
    pub(super) line: usize,
}

impl Token<'_> {
    /// Whether it is this sign.
    pub(super) fn is(&self, sign: &str) -> bool {
        self.kind == Kind::Sign && self.text == sign
    }

    /// Whether it is this name or keyword.
    pub(super) fn is_name(&self, name: &str) -> bool {
        self.kind == Kind::Name && self.text == name
    }
}

/// The tokens of a file. Numbers, lifetimes and character literals are left out.
pub(super) fn tokens(text: &str) -> Vec<Token<'_>> {
    let mut scanner = Scanner {
        text,
        at: 0,
        line: 1,
        tokens: Vec::new(),
    };
    while scanner.step() {}
    scanner.tokens
}

struct Scanner<'a> {
    text: &'a str,
    at: usize,
    line: usize,
    tokens: Vec<Token<'a>>,
}

impl<'a> Scanner<'a> {
    fn rest(&self) -> &'a str {
        &self.text[self.at..]
    }

    /// Takes `length` bytes, of which `inside` become a token.
    fn take(&mut self, kind: Option<Kind>, length: usize, inside: std::ops::Range<usize>) {
        let taken = &self.rest()[..length];
        if let Some(kind) = kind {
            self.tokens.push(Token {
                kind,
                text: &taken[inside],
                line: self.line,
            });
        }
        self.line += taken.bytes().filter(|byte| *byte == b'\n').count();
        self.at += length;
    }

    fn step(&mut self) -> bool {
        let rest = self.rest();
        let Some(first) = rest.chars().next() else {
            return false;
        };
        if rest.starts_with("//") {
            let length = rest.find('\n').unwrap_or(rest.len());
            self.take(Some(Kind::Comment), length, 0..length);
        } else if rest.starts_with("/*") {
            let length = block_comment(rest);
            self.take(Some(Kind::Comment), length, 0..length);
        } else if let Some((length, inside)) = string(rest) {
            self.take(Some(Kind::Text), length, inside);
        } else if first == '\'' {
            let length = quote(rest);
            self.take(None, length, 0..0);
        } else if first.is_alphabetic() || first == '_' {
            let length = name_length(rest);
            self.take(Some(Kind::Name), length, 0..length);
        } else if first.is_ascii_digit() {
            let length = name_length(rest);
            self.take(None, length, 0..0);
        } else {
            let kind = (!first.is_whitespace()).then_some(Kind::Sign);
            let length = first.len_utf8();
            self.take(kind, length, 0..length);
        }
        true
    }
}

fn name_length(rest: &str) -> usize {
    rest.find(|letter: char| !letter.is_alphanumeric() && letter != '_')
        .unwrap_or(rest.len())
}

/// Block comments nest.
fn block_comment(rest: &str) -> usize {
    let bytes = rest.as_bytes();
    let (mut at, mut depth) = (2, 1);
    while depth > 0 && at < bytes.len() {
        match &bytes[at..] {
            [b'/', b'*', ..] => (at, depth) = (at + 2, depth + 1),
            [b'*', b'/', ..] => (at, depth) = (at + 2, depth - 1),
            _ => at += 1,
        }
    }
    // Every byte that ends it is ASCII.
    at.min(rest.len())
}

/// A string literal's length and where its inside is; `None` where none begins.
fn string(rest: &str) -> Option<(usize, std::ops::Range<usize>)> {
    let prefix = ["br", "cr", "b", "c", "r", ""]
        .into_iter()
        .find(|prefix| rest.starts_with(prefix) && rest[prefix.len()..].starts_with(['"', '#']))?;
    let hashes = rest[prefix.len()..]
        .bytes()
        .take_while(|byte| *byte == b'#')
        .count();
    let begin = prefix.len() + hashes + 1;
    if !rest[prefix.len() + hashes..].starts_with('"') || (hashes > 0 && !prefix.ends_with('r')) {
        return None;
    }
    let length = if prefix.ends_with('r') {
        rest[begin..].find(&format!("\"{}", "#".repeat(hashes)))?
    } else {
        let mut escaped = false;
        rest[begin..].find(|letter: char| {
            let ends = letter == '"' && !escaped;
            escaped = letter == '\\' && !escaped;
            ends
        })?
    };
    Some((begin + length + 1 + hashes, begin..begin + length))
}

/// A character literal's length, or a lifetime's.
fn quote(rest: &str) -> usize {
    let mut letters = rest.char_indices().skip(1);
    match (letters.next(), letters.next()) {
        (Some((_, '\\')), Some((at, escaped))) => {
            let after = at + escaped.len_utf8();
            rest[after..].find('\'').map_or(rest.len(), |end| after + end + 1)
        }
        (Some(_), Some((at, '\''))) => at + 1,
        _ => 1 + name_length(&rest[1..]),
    }
}

/// The tokens without those of tests: items after `#[cfg(test)]`.
pub(super) fn without_tests<'a>(tokens: &[Token<'a>]) -> Vec<Token<'a>> {
    let mut kept = Vec::with_capacity(tokens.len());
    let mut at = 0;
    while at < tokens.len() {
        if is_test_attribute(&tokens[at..]) {
            at = end_of_item(tokens, at + TEST_ATTRIBUTE.len());
        } else {
            kept.push(tokens[at]);
            at += 1;
        }
    }
    kept
}

const TEST_ATTRIBUTE: [&str; 7] = ["#", "[", "cfg", "(", "test", ")", "]"];

fn is_test_attribute(tokens: &[Token<'_>]) -> bool {
    tokens.len() >= TEST_ATTRIBUTE.len()
        && tokens
            .iter()
            .zip(TEST_ATTRIBUTE)
            .all(|(token, text)| token.text == text && token.kind != Kind::Text)
}

/// Where the item that begins here ends: after its `;`, or its braces.
fn end_of_item(tokens: &[Token<'_>], from: usize) -> usize {
    let (mut depth, mut braces) = (0_usize, false);
    for (at, token) in tokens.iter().enumerate().skip(from) {
        match token {
            _ if token.is("{") || token.is("[") || token.is("(") => {
                braces |= token.is("{") && depth == 0;
                depth += 1;
            }
            _ if token.is("}") || token.is("]") || token.is(")") => {
                depth = depth.saturating_sub(1);
                if depth == 0 && token.is("}") && braces {
                    // `use a::{b};` goes on behind its braces.
                    let next = tokens.get(at + 1).is_some_and(|next| next.is(";"));
                    return at + 1 + usize::from(next);
                }
            }
            _ if token.is(";") && depth == 0 => return at + 1,
            _ => {}
        }
    }
    tokens.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kinds(text: &str) -> Vec<(Kind, &str)> {
        tokens(text)
            .into_iter()
            .map(|token| (token.kind, token.text))
            .collect()
    }

    #[test]
    fn strings_comments_and_names_are_distinguished() {
        let text =
            "let a = \"x // \\\" y\"; // c \"d\"\n/* e /* f */ */ 'g' 'static r#\"h\"i\"# b\"j\" '\\'' k";
        assert_eq!(
            kinds(text)
                .into_iter()
                .filter(|(kind, _)| *kind != Kind::Sign)
                .collect::<Vec<_>>(),
            [
                (Kind::Name, "let"),
                (Kind::Name, "a"),
                (Kind::Text, "x // \\\" y"),
                (Kind::Comment, "// c \"d\""),
                (Kind::Comment, "/* e /* f */ */"),
                (Kind::Text, "h\"i"),
                (Kind::Text, "j"),
                (Kind::Name, "k"),
            ]
        );
    }

    #[test]
    fn lines_are_counted_inside_strings_and_comments() {
        let found = tokens("\"a\nb\"\n/*\n*/ c");
        assert_eq!(found.last().map(|token| token.line), Some(4));
    }

    #[test]
    fn what_only_tests_compile_is_left_out() {
        let text = "a #[cfg(test)] use b::{c}; d #[cfg(test)] mod tests { e { f } } g #[cfg(test)] mod h; i";
        let all = tokens(text);
        let kept: Vec<&str> = without_tests(&all).iter().map(|token| token.text).collect();
        assert_eq!(kept, ["a", "d", "g", "i"]);
    }
}
