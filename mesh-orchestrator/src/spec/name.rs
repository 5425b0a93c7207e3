//! Validates names and image references.

use super::SpecError;

/// Maximum length of a name, which becomes part of containers' host names.
pub const MAX_NAME_LENGTH: usize = 63;

/// Checks a name by Docker's rule for services.
///
/// # Errors
/// If the name breaks the rule. The error states the rule.
pub fn check_name(field: &str, name: &str) -> Result<(), SpecError> {
    let allowed = |character: char| character.is_ascii_alphanumeric() || matches!(character, '-' | '_' | '.');
    let ends = |character: Option<char>| character.is_some_and(|character| character.is_ascii_alphanumeric());
    if name.len() <= MAX_NAME_LENGTH
        && ends(name.chars().next())
        && ends(name.chars().next_back())
        && name.chars().all(allowed)
    {
        return Ok(());
    }
    Err(SpecError::invalid(
        field,
        name,
        format!(
            "1 to {MAX_NAME_LENGTH} letters, digits, '-', '_' or '.', starting and ending with a letter or digit"
        ),
    ))
}

/// Adds the tag `latest` to an image reference without tag and digest.
///
/// # Errors
/// If it is not a reference by the rules of the OCI distribution specification.
pub fn normalise_image(field: &str, image: &str) -> Result<String, SpecError> {
    let refuse = || {
        SpecError::invalid(
            field,
            image,
            "[registry[:port]/]name[:tag][@sha256:digest] with the name in lower case",
        )
    };
    let (rest, digest) = match image.split_once('@') {
        Some((rest, digest)) => (rest, Some(digest)),
        None => (image, None),
    };
    if let Some(digest) = digest {
        let hexadecimal = digest.strip_prefix("sha256:").ok_or_else(refuse)?;
        let lower = |character: char| character.is_ascii_digit() || ('a'..='f').contains(&character);
        if hexadecimal.len() != 64 || !hexadecimal.chars().all(lower) {
            return Err(refuse());
        }
    }
    // A colon after the last slash starts a tag; one before it, the registry's port.
    let last = rest.rfind('/').map_or(0, |slash| slash + 1);
    let (name, tag) = match rest[last..].find(':') {
        Some(colon) => (&rest[..last + colon], Some(&rest[last + colon + 1..])),
        None => (rest, None),
    };
    if !tag.is_none_or(is_tag) || name.len() > 255 || !is_repository(name) {
        return Err(refuse());
    }
    Ok(if tag.is_none() && digest.is_none() {
        format!("{image}:latest")
    } else {
        image.into()
    })
}

fn is_tag(tag: &str) -> bool {
    let alphanumeric = |character: char| character.is_ascii_alphanumeric() || character == '_';
    (1..=128).contains(&tag.len())
        && tag.starts_with(alphanumeric)
        && tag
            .chars()
            .all(|character| alphanumeric(character) || matches!(character, '.' | '-'))
}

fn is_repository(name: &str) -> bool {
    let mut components = name.split('/').peekable();
    let Some(first) = components.peek().copied() else {
        return false;
    };
    let is_registry = name.contains('/') && (first.contains(['.', ':']) || first == "localhost");
    if is_registry {
        components.next();
        let (host, port) = first.split_once(':').unwrap_or((first, "1"));
        let host_character =
            |character: char| character.is_ascii_alphanumeric() || matches!(character, '.' | '-');
        if host.is_empty() || !host.chars().all(host_character) || port.parse::<u16>().is_err() {
            return false;
        }
    }
    components.all(|component| {
        let alphanumeric = |character: char| character.is_ascii_lowercase() || character.is_ascii_digit();
        component.starts_with(alphanumeric)
            && component.ends_with(alphanumeric)
            && component
                .chars()
                .all(|character| alphanumeric(character) || matches!(character, '.' | '_' | '-'))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_tag_is_latest() {
        for (image, expected) in [
            ("nginx", "nginx:latest"),
            ("localhost:5000/team/web", "localhost:5000/team/web:latest"),
            ("ghcr.io/team/web:1.2", "ghcr.io/team/web:1.2"),
        ] {
            assert_eq!(normalise_image("image", image).as_deref(), Ok(expected));
        }
        let digest = format!("nginx@sha256:{}", "ab".repeat(32));
        assert_eq!(normalise_image("image", &digest), Ok(digest));
    }

    #[test]
    fn refuses_what_is_not_an_image_reference() {
        for image in [
            "",
            "Nginx",
            "nginx:",
            "nginx:a b",
            "/nginx",
            "nginx/",
            "nginx@sha256:12",
            "a//b",
            "host.x:99999/a",
            "-nginx",
            "nginx:-x",
        ] {
            assert!(normalise_image("image", image).is_err(), "{image}");
        }
    }

    #[test]
    fn the_error_for_an_invalid_name_states_the_rule() {
        let error = check_name("name", "my service").unwrap_err().to_string();
        assert_eq!(
            error,
            "name: \"my service\" is invalid: must be 1 to 63 letters, digits, '-', '_' or '.', starting and \
             ending with a letter or digit"
        );
    }
}
