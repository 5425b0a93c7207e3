//! Which programs a shell script runs: enough of the shell's grammar for the scripts of this workspace.

/// What the shell does itself.
const BUILT_IN: &[&str] = &[
    ".", ":", "[", "break", "cd", "command", "continue", "echo", "eval", "exit", "export", "false", "kill",
    "local", "printf", "read", "return", "set", "shift", "test", "trap", "true", "umask", "unset", "wait",
];

/// Words that a command may follow.
const BEFORE_A_COMMAND: &[&str] = &[
    "!", "do", "elif", "else", "exec", "if", "then", "time", "until", "while", "{",
];

/// Words that begin or end what holds no command.
const NO_COMMAND: &[&str] = &["}", "case", "done", "esac", "fi", "for"];

/// The programs, each with its line in the script, from 0.
pub(super) fn programs(script: &str) -> Vec<(String, usize)> {
    let mut found = Vec::new();
    let mut reader = Reader {
        rest: script,
        line: 0,
    };
    let mut is_command = true;
    while let Some(piece) = reader.next() {
        match piece {
            Piece::Separator => is_command = true,
            Piece::Word(word, line) => {
                if !is_command {
                    continue;
                }
                if word.ends_with(')') || is_assignment(&word) || BEFORE_A_COMMAND.contains(&word.as_str()) {
                    continue;
                }
                is_command = false;
                let is_plain = word
                    .chars()
                    .all(|letter| letter.is_ascii_alphanumeric() || "/_-.+".contains(letter));
                if is_plain && !NO_COMMAND.contains(&word.as_str()) && !BUILT_IN.contains(&word.as_str()) {
                    found.push((word, line));
                }
            }
        }
    }
    found
}

fn is_assignment(word: &str) -> bool {
    word.split_once('=').is_some_and(|(name, _)| {
        !name.is_empty()
            && name
                .chars()
                .all(|letter| letter.is_ascii_alphanumeric() || letter == '_')
    })
}

enum Piece {
    Word(String, usize),
    Separator,
}

struct Reader<'s> {
    rest: &'s str,
    line: usize,
}

impl Reader<'_> {
    fn next(&mut self) -> Option<Piece> {
        loop {
            let first = self.rest.chars().next()?;
            match first {
                '\n' | ';' | '&' | '|' | '(' | '`' => {
                    self.skip(1);
                    return Some(Piece::Separator);
                }
                '#' => {
                    let end = self.rest.find('\n').unwrap_or(self.rest.len());
                    self.skip(end);
                }
                '\\' if self.rest.starts_with("\\\n") => self.skip(2),
                '>' | '<' => {
                    let end = self.rest.find(|letter: char| !"><&".contains(letter));
                    self.skip(end.unwrap_or(self.rest.len()));
                    // Its target is no command.
                    self.skip_blanks();
                    self.word();
                }
                _ if first.is_whitespace() => self.skip_blanks(),
                _ => {
                    let line = self.line;
                    let word = self.word();
                    let is_descriptor = word.chars().all(|letter| letter.is_ascii_digit());
                    if !(is_descriptor && self.rest.starts_with(['<', '>'])) {
                        return Some(Piece::Word(word, line));
                    }
                }
            }
        }
    }

    fn skip(&mut self, bytes: usize) {
        self.line += self.rest[..bytes].matches('\n').count();
        self.rest = &self.rest[bytes..];
    }

    fn skip_blanks(&mut self) {
        let blank = |letter: char| letter != ' ' && letter != '\t' && letter != '\r';
        self.skip(self.rest.find(blank).unwrap_or(self.rest.len()));
    }

    /// A word; quoted parts and what is substituted are kept as they are, so that it is plain without them
    /// only.
    fn word(&mut self) -> String {
        let (mut quote, mut length) = (None, self.rest.len());
        let mut letters = self.rest.char_indices();
        while let Some((at, letter)) = letters.next() {
            match quote {
                Some(end) if letter == end => quote = None,
                Some(_) => {}
                None if letter == '$' && self.rest[at..].starts_with("$(") => {
                    length = at;
                    break;
                }
                None if matches!(letter, '\'' | '"') => quote = Some(letter),
                None if letter == '\\' => {
                    letters.next();
                }
                None if letter.is_whitespace() || ";&|(`<>".contains(letter) => {
                    length = at;
                    break;
                }
                None => {}
            }
        }
        if length == 0 {
            // `$(` begins another command.
            self.skip(1);
            return "$".into();
        }
        let word = self.rest[..length].to_owned();
        self.skip(length);
        word
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(script: &str) -> Vec<String> {
        programs(script).into_iter().map(|(name, _)| name).collect()
    }

    #[test]
    fn the_first_word_of_each_command_is_a_program() {
        assert_eq!(
            names(
                "mount a b && X=1 ip link | sed 's/;rm//; s/a b//' > /x || exec nft list; cat 2>/x <y # rm"
            ),
            ["mount", "ip", "sed", "nft", "cat"]
        );
        assert_eq!(
            names("kill -TERM $(cat /pid); echo $(cut -d' ' -f2 x)"),
            ["cat", "cut"]
        );
    }

    #[test]
    fn what_the_shell_does_itself_is_no_program() {
        let script = "if [ ! -L /run ]; then mount x; fi\nfor a in b c; do\n  cp \"$a\" d\ndone\ncase $0 in\n/a.sh) ;;\n\
                      *) depmod ;;\nesac\nexport A=1\nport() {\n  ls\n}\n$program go\n";
        assert_eq!(names(script), ["mount", "cp", "depmod", "port", "ls"]);
    }

    #[test]
    fn lines_are_counted() {
        assert_eq!(programs("a\n\nb 'c\n'\nd")[2], ("d".into(), 4));
    }
}
