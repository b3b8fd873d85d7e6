//! Source code of a project, shown in its notebooks.

use std::ops::Range;

use include_dir::Dir;

use crate::display::display;
use crate::error::{Error, Result};

/// The source files of some crates, compiled in, so that the code shown is the code that runs.
#[derive(Clone, Copy, Debug)]
pub struct Sources(&'static [(&'static str, &'static Dir<'static>)]);

/// A piece of code, shown as highlighted Rust and as plain text.
#[derive(Clone, Debug, PartialEq)]
pub struct Source {
    file: String,
    code: String,
}

impl Sources {
    /// The files of these folders, each given with its path in the project.
    ///
    /// If several folders have an item of the same name, the first folder wins.
    pub const fn new(folders: &'static [(&'static str, &'static Dir<'static>)]) -> Self {
        Self(folders)
    }

    /// Returns the code of an item, with the first sentence of its documentation.
    ///
    /// `name` is a function, type, trait or constant, such as `train_step`, or a method, such as
    /// `Optimizer::new`; a module prefix, as in `loss::onehot`, disambiguates. A type is shown with
    /// its implementations.
    ///
    /// # Errors
    /// [`Error::UnknownItem`] if there is no such item; the message lists similar names.
    ///
    /// # Examples
    /// ```
    /// use notebook_display::{SOURCES, Sources};
    ///
    /// static FILES: Sources = Sources::new(&[("crates/notebook-display/src", &SOURCES)]);
    ///
    /// let code = FILES.find("side_by_side")?.to_string();
    /// assert!(code.starts_with("// crates/notebook-display/src/figure.rs\n"));
    /// assert!(code.contains("pub fn side_by_side(figures: &[Figure]) -> Result<Figure> {"));
    /// # Ok::<(), notebook_display::Error>(())
    /// ```
    pub fn find(&self, name: &str) -> Result<Source> {
        let found = self.find_with_docs(name)?;
        Ok(Source { code: with_short_docs(&found.code), ..found })
    }

    /// Returns the code of an item with all of its documentation except the examples.
    ///
    /// # Errors
    /// Those of [`find`](Sources::find).
    pub fn find_with_docs(&self, name: &str) -> Result<Source> {
        let mut files = Vec::new();
        for (path, folder) in self.0 {
            collect(folder, path, &mut files);
        }
        find(&files, name)
    }
}

/// Collects the Rust files of a folder and its subfolders, except tests.
fn collect(folder: &'static Dir, path: &str, files: &mut Vec<File>) {
    for file in folder.files() {
        let name = file.path();
        let is_rust = name.extension().is_some_and(|extension| extension == "rs");
        if !is_rust || name.ends_with("tests.rs") {
            continue;
        }
        if let Some(text) = file.contents_utf8() {
            let name = name.to_string_lossy();
            files.push(File::new(format!("{path}/{name}"), &name, text));
        }
    }
    for folder in folder.dirs() {
        collect(folder, path, files);
    }
}

impl Source {
    /// The code as Markdown, for a front end that highlights it.
    pub fn markdown(&self) -> String {
        // Longer than any fence in the code.
        let is_fence = |line: &str| line.trim_start().starts_with("```");
        let fence = if self.code.lines().any(is_fence) { "``````" } else { "```" };
        format!("{fence}rust\n// {}\n\n{}\n{fence}", self.file, self.code)
    }

    /// Shows the code as the result of a notebook cell.
    pub fn evcxr_display(&self) {
        display(&[("text/markdown", &self.markdown()), ("text/plain", &self.to_string())]);
    }
}

/// The plain-text form.
impl std::fmt::Display for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        write!(f, "// {}\n\n{}", self.file, self.code)
    }
}

fn find(files: &[File], name: &str) -> Result<Source> {
    let is_match = |item: &Item| item.kind != Kind::Impl && path_matches(&item.path, name);
    // Public items take precedence over private ones of the same name, functions over methods.
    let rank = |item: &Item| (!item.is_public, item.is_method);
    let items = files.iter().flat_map(|file| file.items.iter().map(move |item| (file, item)));
    let matching = items.filter(|(_, item)| is_match(item));
    // The first of equal rank.
    if let Some((file, item)) = matching.min_by_key(|(_, item)| rank(item)) {
        return Ok(file.show(item));
    }
    let hint = match similar_names(files, name).join(", ") {
        names if names.is_empty() => "give a function, a type or a method".to_owned(),
        names => format!("did you mean {names}?"),
    };
    Err(Error::UnknownItem(format!("there is no item `{name}`: {hint}")))
}

/// Whether the last segments of the path are `name`: `train::train_step` matches `train_step`.
fn path_matches(path: &str, name: &str) -> bool {
    let prefix = path.strip_suffix(name);
    prefix.is_some_and(|prefix| prefix.is_empty() || prefix.ends_with("::"))
}

/// Up to five public names with a small edit distance to `name`.
fn similar_names(files: &[File], name: &str) -> Vec<String> {
    let last = |path: &str| path.rsplit("::").next().unwrap_or_default().to_lowercase();
    let wanted = last(name);
    let items = files.iter().flat_map(|file| &file.items);
    let mut candidates: Vec<_> = items
        .filter(|item| item.kind != Kind::Impl && item.is_public)
        .map(|item| (edit_distance(&wanted, &last(&item.path)), item.is_method, item.name()))
        .filter(|(distance, ..)| *distance <= wanted.len() / 3 + 1)
        .collect();
    candidates.sort();
    candidates.dedup();
    candidates.into_iter().map(|(_, _, name)| name).take(5).collect()
}

/// Levenshtein distance.
fn edit_distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, a) in a.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, b) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(a != *b);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

struct File {
    path: String,
    text: &'static str,
    items: Vec<Item>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Function,
    Type,
    Impl,
    Other,
}

#[derive(Clone, Debug)]
struct Item {
    /// Module, type and name: `optimizer::Optimizer::target`; for an `impl` the path of its type.
    path: String,
    kind: Kind,
    is_method: bool,
    is_public: bool,
    /// Its place in the file, documentation included.
    range: Range<usize>,
}

impl Item {
    /// The name without modules: `Optimizer::target`.
    fn name(&self) -> String {
        let parts: Vec<_> = self.path.split("::").collect();
        let count = if self.is_method { 2 } else { 1 };
        parts[parts.len().saturating_sub(count)..].join("::")
    }
}

impl File {
    /// `name` is the file's path within `src`, which determines its module.
    fn new(path: String, name: &str, text: &'static str) -> Self {
        let module = name.trim_end_matches(".rs").trim_end_matches("/mod").replace('/', "::");
        let module = if module == "lib" { String::new() } else { module };
        let code = code_only(text);
        let mut scanner = Scanner { text, code: &code, items: Vec::new() };
        scanner.scan(0..text.len(), &module, false);
        Self { path, text, items: scanner.items }
    }

    /// The item; a type with its implementations in the same file.
    fn show(&self, item: &Item) -> Source {
        let belongs = |other: &&Item| {
            other.range == item.range
                || item.kind == Kind::Type && other.kind == Kind::Impl && other.path == item.path
        };
        let parts = self
            .items
            .iter()
            .filter(belongs)
            .map(|part| without_examples(&dedent(self.text, &part.range)));
        Source { file: self.path.clone(), code: parts.collect::<Vec<_>>().join("\n\n") }
    }
}

/// The lines of a range, dedented by the indentation of the first.
fn dedent(text: &str, range: &Range<usize>) -> String {
    let line_start = text[..range.start].rfind('\n').map_or(0, |index| index + 1);
    let indent = range.start - line_start;
    let lines = text[range.clone()].lines().map(|line| {
        let spaces = line.len() - line.trim_start_matches(' ').len();
        &line[spaces.min(indent)..]
    });
    lines.collect::<Vec<_>>().join("\n")
}

/// Removes the examples from documentation.
fn without_examples(code: &str) -> String {
    let (mut in_examples, mut in_fence) = (false, false);
    let lines = code.lines().filter(|line| {
        match line.trim_start().strip_prefix("///").map(str::trim) {
            Some(text) if text.starts_with("```") => in_fence = !in_fence,
            Some(text) if text.starts_with("# ") && !in_fence => {
                in_examples = text == "# Examples";
            }
            Some(_) => {}
            None => in_examples = false,
        }
        !in_examples
    });
    lines.collect::<Vec<_>>().join("\n")
}

/// Reduces each doc comment to its first sentence.
fn with_short_docs(code: &str) -> String {
    let mut sentence_ended = false;
    let mut lines = Vec::new();
    for line in code.lines() {
        let Some(text) = line.trim_start().strip_prefix("///") else {
            sentence_ended = false;
            lines.push(line);
            continue;
        };
        sentence_ended |= text.trim().is_empty();
        if sentence_ended {
            continue;
        }
        let end = text.find(". ").map(|at| at + 1);
        let end = end.or_else(|| text.ends_with(['.', ':']).then_some(text.len()));
        sentence_ended = end.is_some();
        lines.push(&line[..line.len() - text.len() + end.unwrap_or(text.len())]);
    }
    lines.join("\n")
}

/// Replaces comments and literals by spaces, byte for byte.
fn code_only(text: &str) -> Vec<u8> {
    let bytes = text.as_bytes();
    let mut code = bytes.to_vec();
    let mut at = 0;
    while at < bytes.len() {
        let end = at + non_code_len(&bytes[at..], at > 0 && is_word(bytes[at - 1]));
        if end == at {
            at += 1;
            continue;
        }
        let blank = code[at..end].iter_mut().filter(|byte| **byte != b'\n');
        blank.for_each(|byte| *byte = b' ');
        at = end;
    }
    code
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || !byte.is_ascii()
}

/// Length of the comment or literal at the start of `rest`; 0 for code.
fn non_code_len(rest: &[u8], within_word: bool) -> usize {
    match rest {
        [b'/', b'/', ..] => find_bytes(rest, b"\n").unwrap_or(rest.len()),
        [b'/', b'*', ..] => block_comment_len(rest),
        [b'"', ..] => quoted_len(rest),
        [b'\'', ..] => char_literal_len(rest),
        [b'r' | b'b' | b'c', ..] if !within_word => prefixed_literal_len(rest),
        _ => 0,
    }
}

fn find_bytes(text: &[u8], pattern: &[u8]) -> Option<usize> {
    text.windows(pattern.len()).position(|window| window == pattern)
}

fn block_comment_len(rest: &[u8]) -> usize {
    let (mut depth, mut at) = (0, 0);
    while at < rest.len() {
        match &rest[at..] {
            [b'/', b'*', ..] => (depth, at) = (depth + 1, at + 2),
            [b'*', b'/', ..] => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
        if depth == 0 {
            break;
        }
    }
    at
}

/// Length of a quoted literal with escapes.
fn quoted_len(rest: &[u8]) -> usize {
    let mut at = 1;
    while at < rest.len() && rest[at] != rest[0] {
        at += if rest[at] == b'\\' { 2 } else { 1 };
    }
    (at + 1).min(rest.len())
}

/// Length of a character literal; 0 for a lifetime.
fn char_literal_len(rest: &[u8]) -> usize {
    let text = String::from_utf8_lossy(&rest[..rest.len().min(6)]);
    let mut chars = text.chars().skip(1);
    match (chars.next(), chars.next()) {
        (Some('\\'), _) => quoted_len(rest),
        (Some(c), Some('\'')) => c.len_utf8() + 2,
        _ => 0,
    }
}

/// Length of a literal such as `r"…"`, `br#"…"#`, `b'x'`, `c"…"`; 0 for an identifier.
fn prefixed_literal_len(rest: &[u8]) -> usize {
    let letters = rest.iter().take_while(|byte| b"rbc".contains(byte)).count();
    let hashes = rest[letters..].iter().take_while(|byte| **byte == b'#').count();
    let literal = &rest[letters + hashes..];
    let raw = rest[..letters].contains(&b'r');
    match (raw, literal.first()) {
        (true, Some(b'"')) if letters <= 2 => {
            let close = [&b"\""[..], &b"#".repeat(hashes)].concat();
            let inside = find_bytes(&literal[1..], &close).unwrap_or(literal.len() - 1);
            (letters + hashes + 1 + inside + close.len()).min(rest.len())
        }
        (false, Some(b'"' | b'\'')) if letters == 1 && hashes == 0 => 1 + quoted_len(literal),
        _ => 0,
    }
}

/// Finds the items of a file. `code` is `text` after [`code_only`].
struct Scanner<'a> {
    text: &'a str,
    code: &'a [u8],
    items: Vec<Item>,
}

impl Scanner<'_> {
    /// Adds the items of a file, a module, an implementation or a trait.
    fn scan(&mut self, within: Range<usize>, path: &str, is_method: bool) {
        let mut from = within.start;
        while let Some(start) = self.next_code(from..within.end) {
            let (header, body, end) = self.item_extent(start..within.end);
            let header = String::from_utf8_lossy(&self.code[header]).into_owned();
            let range = self.start_with_docs(from, start)..end;
            let is_test = self.text[range.clone()].contains("#[cfg(test)]");
            if let (Some(header), false) = (Header::parse(&header), is_test) {
                self.add(header, path, is_method, range, body);
            }
            from = end;
        }
    }

    fn add(
        &mut self,
        header: Header,
        path: &str,
        is_method: bool,
        range: Range<usize>,
        body: Range<usize>,
    ) {
        let Header { name, kind, keyword, is_public } = header;
        let path = if path.is_empty() { name } else { format!("{path}::{name}") };
        if keyword == "mod" {
            return self.scan(body, &path, false);
        }
        self.items.push(Item { path: path.clone(), kind, is_method, is_public, range });
        if matches!(keyword, "impl" | "trait") {
            self.scan(body, &path, true);
        }
    }

    /// Start of the next item's code.
    fn next_code(&self, within: Range<usize>) -> Option<usize> {
        let code = &self.code[within.clone()];
        let is_code = |byte: &u8| !byte.is_ascii_whitespace() && *byte != b';' && *byte != b'}';
        code.iter().position(is_code).map(|index| within.start + index)
    }

    /// Header, inside of the braces, and end of the item at the start of a range.
    fn item_extent(&self, within: Range<usize>) -> (Range<usize>, Range<usize>, usize) {
        let start = self.after_attributes(within.clone());
        let header = |end: usize| start..end;
        let mut depth = 0_usize;
        let mut at = start;
        while at < within.end {
            match self.code[at] {
                b'(' | b'[' => depth += 1,
                b')' | b']' => depth = depth.saturating_sub(1),
                b'{' if depth == 0 && !ends_at_semicolon(&self.code[start..at]) => {
                    let end = self.end_of_brackets(at..within.end);
                    return (header(at), at + 1..end.saturating_sub(1).max(at + 1), end);
                }
                b'{' => depth += 1,
                b'}' => depth = depth.saturating_sub(1),
                b';' if depth == 0 => return (header(at), at..at, at + 1),
                _ => {}
            }
            at += 1;
        }
        (header(at), at..at, at)
    }

    fn after_attributes(&self, within: Range<usize>) -> usize {
        let mut at = within.start;
        while self.code[at..within.end].starts_with(b"#") {
            let Some(open) = find_bytes(&self.code[at..within.end], b"[") else {
                break;
            };
            let end = self.end_of_brackets(at + open..within.end);
            at = self.next_code(end..within.end).unwrap_or(within.end);
        }
        at
    }

    /// End of the bracket pair at the start of a range.
    fn end_of_brackets(&self, within: Range<usize>) -> usize {
        let mut depth = 0_usize;
        for at in within.clone() {
            match self.code[at] {
                b'(' | b'[' | b'{' => depth += 1,
                b')' | b']' | b'}' if depth <= 1 => return at + 1,
                b')' | b']' | b'}' => depth -= 1,
                _ => {}
            }
        }
        within.end
    }

    /// Start of the comment lines directly above an item, or of the item itself.
    fn start_with_docs(&self, from: usize, start: usize) -> usize {
        let mut begin = start;
        let mut line_start = self.text[..start].rfind('\n').map_or(0, |index| index + 1);
        while line_start > from {
            let before = &self.text[from..line_start - 1];
            let previous = before.rfind('\n').map_or(from, |index| from + index + 1);
            let line = &self.text[previous..line_start - 1];
            let text = line.trim_start();
            if !text.starts_with("//") || text.starts_with("//!") {
                break;
            }
            begin = line_start - 1 - text.len();
            line_start = previous;
        }
        begin
    }
}

/// Whether an item with this header ends at a semicolon rather than at its closing brace.
fn ends_at_semicolon(header: &[u8]) -> bool {
    let header = String::from_utf8_lossy(header);
    Header::parse(&header)
        .is_none_or(|header| matches!(header.keyword, "const" | "static" | "type"))
        && !header.contains('!')
}

/// The parsed code before an item's braces.
struct Header {
    name: String,
    kind: Kind,
    keyword: &'static str,
    is_public: bool,
}

impl Header {
    fn parse(header: &str) -> Option<Self> {
        const KEYWORDS: [(&str, Kind); 11] = [
            ("fn", Kind::Function),
            ("struct", Kind::Type),
            ("enum", Kind::Type),
            ("union", Kind::Type),
            ("trait", Kind::Other),
            ("type", Kind::Other),
            ("static", Kind::Other),
            ("mod", Kind::Other),
            ("macro_rules", Kind::Other),
            ("impl", Kind::Impl),
            ("const", Kind::Other),
        ];
        let is_public = header.trim_start().starts_with("pub ");
        let mut current = next_word(header);
        // `const fn` is a function, whereas `const X: fn()` is a constant.
        while let Some((word, rest)) = current {
            let next = next_word(rest);
            let found = KEYWORDS.iter().find(|(keyword, _)| *keyword == word);
            match (found, next) {
                (Some((keyword @ "impl", kind)), _) => {
                    let name = impl_target(rest)?;
                    return Some(Self { name, kind: *kind, keyword, is_public: true });
                }
                (Some(("const", _)), Some(("fn" | "unsafe" | "async" | "extern", _))) => {}
                (Some((keyword, kind)), Some((name, _))) => {
                    let name = name.to_owned();
                    return Some(Self { name, kind: *kind, keyword, is_public });
                }
                (None, _) if word == "use" => return None,
                _ => {}
            }
            current = next;
        }
        None
    }
}

/// The first word of some code, and the rest.
fn next_word(code: &str) -> Option<(&str, &str)> {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    let start = code.find(is_word)?;
    let code = &code[start..];
    let end = code.find(|c| !is_word(c)).unwrap_or(code.len());
    Some(code.split_at(end))
}

/// The type name in the code after `impl`: `Type` in `<T> a::Trait<X> for b::Type<T> where …`.
fn impl_target(rest: &str) -> Option<String> {
    let plain = without_generics(rest);
    let plain = plain.split(" where ").next()?;
    let subject = plain.split_once(" for ").map_or(plain, |(_, subject)| subject);
    let path = subject.split_whitespace().find(|word| next_word(word).is_some())?;
    let last = path.rsplit("::").next()?;
    next_word(last).map(|(name, _)| name.to_owned())
}

/// Code without text in angle brackets, with line breaks replaced by spaces.
fn without_generics(code: &str) -> String {
    let mut depth = 0_usize;
    let mut plain = String::new();
    let mut previous = ' ';
    for c in code.chars() {
        match c {
            '<' => depth += 1,
            '>' if previous != '-' => depth = depth.saturating_sub(1),
            _ if depth > 0 => {}
            c if c.is_whitespace() => plain.push(' '),
            c => plain.push(c),
        }
        previous = c;
    }
    plain + " "
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRICKY: &str = r####"//! Module docs.
use std::fmt::{self, Display};

// A remark about nothing in particular.

/// Braces in docs { do not count.
///
/// Neither does a blank doc line.
#[derive(Clone)]
pub struct Cnn<'a, const N: usize> {
    pub text: &'a [u8; N],
}

impl<'a, const N: usize> Cnn<'a, N> {
    /// A method.
    pub fn open(&self) -> char {
        let braces = ("{", '{', b'}', r#"}"{"#, "\"}", '\'', '"', "\\");
        /* { /* nested { */ */
        let life: &'static str = "}"; // }
        '}'
    }
}

impl<T: Fn(&str) -> bool> Module for Cnn<'_, 3> where T: Display {
    fn call(&self) {}
}

/// The limit.
pub const LIMIT: Range<usize> = Range { start: 1, end: 2 };
pub static ARRAY: [u8; 2] = [1, 2];
pub type Alias = Vec<[u8; 3]>;
pub struct Unit;
pub struct Pair(pub u8, pub u8);
pub(crate) const fn quick(x: u8) -> [u8; 2] {
    [x, 2]
}
macro_rules! numbers { ($($t:ty)*) => { $(impl Number for $t {})* }; }
numbers!(f32 f64);
pub trait Module {
    /// Required.
    fn call(&self);
}
pub mod inner {
    /// Deep.
    pub async unsafe fn deep() {}
}
pub fn last() -> u8 { 1 }

#[cfg(test)]
mod tests {
    pub fn hidden() {}
}
"####;

    fn files() -> [File; 1] {
        [File::new("src/model.rs".into(), "model.rs", TRICKY)]
    }

    fn tricky(name: &str) -> String {
        find(&files(), name).unwrap().code
    }

    #[test]
    fn a_type_comes_with_its_docs_and_implementations() {
        let code = tricky("Cnn");
        assert!(code.starts_with("/// Braces in docs { do not count.\n///\n"), "{code}");
        assert!(code.contains("impl<'a, const N: usize> Cnn<'a, N> {"), "{code}");
        assert!(code.ends_with("T: Display {\n    fn call(&self) {}\n}"), "{code}");
    }

    #[test]
    fn examples_are_removed_and_other_sections_kept() {
        let code = "/// One.\n///\n/// # Examples\n/// ```\n/// # hidden\n/// ```\n///\n\
                    /// # Source\n/// Two.\nfn f() {}";
        assert_eq!(without_examples(code), "/// One.\n///\n/// # Source\n/// Two.\nfn f() {}");
    }

    #[test]
    fn a_method_is_shown_without_its_indentation() {
        let code = tricky("Cnn::open");
        assert!(code.starts_with("/// A method.\npub fn open(&self) -> char {\n    let"), "{code}");
        assert!(code.ends_with("\n    '}'\n}"), "{code}");
    }

    #[test]
    fn every_kind_of_item_is_found_in_full() {
        assert_eq!(tricky("LIMIT").lines().count(), 2);
        assert_eq!(tricky("ARRAY"), "pub static ARRAY: [u8; 2] = [1, 2];");
        assert_eq!(tricky("Alias"), "pub type Alias = Vec<[u8; 3]>;");
        assert_eq!(tricky("Unit"), "pub struct Unit;");
        assert_eq!(tricky("Pair"), "pub struct Pair(pub u8, pub u8);");
        assert_eq!(tricky("quick").lines().count(), 3);
        assert_eq!(tricky("inner::deep"), "/// Deep.\npub async unsafe fn deep() {}");
        assert_eq!(tricky("model::last"), "pub fn last() -> u8 { 1 }");
        assert!(tricky("Module").ends_with("    fn call(&self);\n}"));
    }

    #[test]
    fn the_error_for_an_unknown_name_lists_similar_names() {
        let files = files();
        let message = find(&files, "Modul").unwrap_err().to_string();
        assert!(message.contains("`Modul`") && message.contains("Module"), "{message}");
        assert!(find(&files, "hidden").is_err(), "test code is not shown");
        assert!(find(&files, "").is_err());
        assert!(find(&files, "dule").is_err(), "a part of a name does not match");
    }

    #[test]
    fn short_docs_are_the_first_sentence() {
        let code = "/// Adds 1.5 to `x`, as\n/// everybody does. It is fast.\n///\n/// # Errors\n\
                    /// None.\nfn f() {\n    // As is.\n}\n/// One line\n///\n/// Two.\nfn g() {}";
        let short = "/// Adds 1.5 to `x`, as\n/// everybody does.\nfn f() {\n    // As is.\n}\n\
                     /// One line\nfn g() {}";
        assert_eq!(with_short_docs(code), short);
    }

    #[test]
    fn code_that_contains_a_fence_stays_in_one_block() {
        let code = "let text = \"\n```\n\";".to_owned();
        let markdown = Source { file: "a.rs".into(), code }.markdown();
        assert!(markdown.starts_with("``````rust\n") && markdown.ends_with("\n``````"));
    }
}
