//! Compares the texts of functions.

/// The name of a function.
pub fn name(function: &str) -> Option<&str> {
    let mut words = function.split_whitespace().skip_while(|word| *word != "fn").skip(1);
    words.next()?.split(['(', '<']).next()
}

/// Whether two functions are the same but for spaces, line breaks and what stands before `fn`.
pub fn is_same(a: &str, b: &str) -> bool {
    let tokens = |text: &str| -> Option<String> {
        let start = if text.starts_with("fn ") { 0 } else { text.find(" fn ")? + 1 };
        Some(text[start..].split_whitespace().collect())
    };
    tokens(a).is_some() && tokens(a) == tokens(b)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn functions_are_compared_by_their_tokens() {
        let step = "pub fn step<T>(x: &mut T) -> T { x.a() + 1 }";
        assert_eq!(name(step), Some("step"));
        assert_eq!(name("fn step (x : T) {}"), Some("step"));
        assert_eq!(name("struct Step;"), None);
        assert!(is_same(step, "fn step<T>(x: &mut T)\n -> T { x.a() + 1 }"));
        assert!(!is_same(step, "fn step<T>(x: &mut T) -> T { x.a() + 2 }"));
        assert!(!is_same("struct A;", "struct A;"));
    }
}
