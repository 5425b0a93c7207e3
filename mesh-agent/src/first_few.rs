//! Lists in messages: the first few, and how many more there are. Pure, imports nothing of ours.

/// At most so many of the texts, with a separator between them, and how many more there are.
pub(crate) fn first_few<T: AsRef<str>>(
    texts: impl IntoIterator<Item = T>,
    most: usize,
    separator: &str,
) -> String {
    let mut texts = texts.into_iter();
    let first: Vec<T> = texts.by_ref().take(most).collect();
    let mut list = String::new();
    for (number, text) in first.iter().enumerate() {
        if number > 0 {
            list.push_str(separator);
        }
        list.push_str(text.as_ref());
    }
    match texts.count() {
        0 => list,
        more => format!("{list} and {more} more"),
    }
}
