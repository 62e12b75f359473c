//! Lists that must not be empty.

use serde::de::{Deserialize, Deserializer, Error};

/// Reads a list with at least one entry. One without could be taken for no condition, or for one that nothing meets;
/// null, as where the only entry is commented out, is no list.
///
/// # Errors
/// No list, or an empty one.
pub fn at_least_one<'de, T, D>(deserializer: D) -> Result<Vec<T>, D::Error>
where
    T: Deserialize<'de>,
    D: Deserializer<'de>,
{
    let list = Vec::deserialize(deserializer)?;
    if list.is_empty() {
        return Err(D::Error::custom("at least one is needed; for all of them, take the key away"));
    }
    Ok(list)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neither_an_empty_list_nor_none_is_taken_for_no_list() {
        let read = |text: &str| at_least_one::<String, _>(&mut serde_json::Deserializer::from_str(text)).ok();
        assert_eq!(read(r#"["a", "b"]"#), Some(vec!["a".to_owned(), "b".to_owned()]));
        for text in ["[]", "null", "\"a\"", "[1]"] {
            assert_eq!(read(text), None, "{text}");
        }
    }
}
