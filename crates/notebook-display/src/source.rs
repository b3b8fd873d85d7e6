//! Code of a project's own, shown beside the text that explains it.

use std::ops::Range;

use include_dir::Dir;

use crate::display::display;
use crate::error::{Error, Result};

/// The source files of some crates, compiled in, so that what is shown is what runs.
#[derive(Clone, Copy, Debug)]
pub struct Sources(&'static [(&'static str, &'static Dir<'static>)]);

/// A piece of code, shown as highlighted Rust with a plain-text twin.
#[derive(Clone, Debug, PartialEq)]
pub struct Source {
    file: String,
    code: String,
}

impl Sources {
    /// The files of these folders, each under its path in the project.
    ///
    /// Where several have an item of one name, the first folder's is found.
    pub const fn new(folders: &'static [(&'static str, &'static Dir<'static>)]) -> Self {
        Self(folders)
    }

    /// The code of an item, with the first sentence of its documentation.
    ///
    /// `name` is a function, type, trait or constant, `train_step`, or a method, `Momentum::new`; a
    /// module before it, `loss::onehot`, tells items of the same name apart. A type is shown with
    /// its implementations.
    ///
    /// # Errors
    ///
    /// [`Error::UnknownItem`] if there is no such item; the message lists similar names.
    ///
    /// # Examples
    ///
    /// ```
    /// use notebook_display::{SOURCES, Sources};
    ///
    /// let sources = Sources::new(&[("crates/notebook-display/src", &SOURCES)]);
    /// let code = sources.find("side_by_side")?.to_string();
    /// assert!(code.starts_with("// crates/notebook-display/src/figure.rs\n"));
    /// assert!(code.contains("pub fn side_by_side(figures: &[Figure]) -> Result<Figure> {"));
    /// # Ok::<(), notebook_display::Error>(())
    /// ```
    pub fn find(&self, name: &str) -> Result<Source> {
        let found = self.find_with_docs(name)?;
        Ok(Source { code: with_short_docs(&found.code), ..found })
    }

    /// The same with all of its documentation, but for the examples.
    ///
    /// # Errors
    ///
    /// Those of [`find`](Sources::find).
    pub fn find_with_docs(&self, name: &str) -> Result<Source> {
        let mut files = Vec::new();
        for (path, folder) in self.0 {
            collect(folder, path, &mut files);
        }
        find(&files, name)
    }
}

/// The Rust files of a folder and those within, but for tests.
fn collect(folder: &'static Dir, path: &str, files: &mut Vec<File>) {
    for file in folder.files() {
        let name = file.path();
        let is_code = name.extension().is_some_and(|ending| ending == "rs");
        if let Some(text) = file.contents_utf8().filter(|_| is_code && !name.ends_with("tests.rs")) {
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
        // A fence longer than any in the code.
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
    let named = |item: &Item| item.kind != Kind::Impl && matches(&item.path, name);
    // A function comes before a method of the same name.
    for wanted in [false, true] {
        for file in files {
            let mut items = file.items.iter();
            if let Some(item) = items.find(|item| item.is_method == wanted && named(item)) {
                return Ok(file.show(item));
            }
        }
    }
    let hint = match similar(files, name).join(", ") {
        near if near.is_empty() => "functions, types and methods can be shown".to_owned(),
        near => format!("did you mean {near}?"),
    };
    Err(Error::UnknownItem(format!("there is no item `{name}`: {hint}")))
}

/// Whether the path is the name, or ends in it: `train::train_step` in `train_step`.
fn matches(path: &str, name: &str) -> bool {
    let before = path.strip_suffix(name);
    before.is_some_and(|before| before.is_empty() || before.ends_with("::"))
}

/// At most five names that a reader may have meant.
fn similar(files: &[File], name: &str) -> Vec<String> {
    let last = |path: &str| path.rsplit("::").next().unwrap_or_default().to_lowercase();
    let asked = last(name);
    let items = files.iter().flat_map(|file| &file.items);
    let mut near: Vec<_> = items
        .filter(|item| item.kind != Kind::Impl && item.is_public)
        .map(|item| (distance(&asked, &last(&item.path)), item.is_method, item.name()))
        .filter(|(distance, ..)| *distance <= asked.len() / 3 + 1)
        .collect();
    near.sort();
    near.dedup();
    near.into_iter().map(|(_, _, name)| name).take(5).collect()
}

/// How many letters must be inserted, removed or replaced to make one word of the other.
fn distance(a: &str, b: &str) -> usize {
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
    /// Module, type and name: `optimizer::Momentum::target`; of an `impl` the path of its type.
    path: String,
    kind: Kind,
    is_method: bool,
    is_public: bool,
    /// Where it stands in its file, from its documentation on.
    range: Range<usize>,
}

impl Item {
    /// The name without modules: `Momentum::target`.
    fn name(&self) -> String {
        let parts: Vec<_> = self.path.split("::").collect();
        let count = if self.is_method { 2 } else { 1 };
        parts[parts.len().saturating_sub(count)..].join("::")
    }
}

impl File {
    /// `name` is the file's name within its crate, which says what module it is.
    fn new(path: String, name: &str, text: &'static str) -> Self {
        let module = name.trim_end_matches(".rs").trim_end_matches("/mod").replace('/', "::");
        let module = if module == "lib" { String::new() } else { module };
        let code = code_only(text);
        let mut scanner = Scanner { text, code: &code, items: Vec::new() };
        scanner.scan(0..text.len(), &module, false);
        Self { path, text, items: scanner.items }
    }

    /// The item, and if it is a type its implementations in the same file.
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

/// The lines of a range without the indentation of the first.
fn dedent(text: &str, range: &Range<usize>) -> String {
    let line_start = text[..range.start].rfind('\n').map_or(0, |index| index + 1);
    let indent = range.start - line_start;
    let lines = text[range.clone()].lines().map(|line| {
        let spaces = line.len() - line.trim_start_matches(' ').len();
        &line[spaces.min(indent)..]
    });
    lines.collect::<Vec<_>>().join("\n")
}

/// The code without the examples in its documentation: a notebook is an example itself.
fn without_examples(code: &str) -> String {
    let (mut in_examples, mut in_fence) = (false, false);
    let lines = code.lines().filter(|line| {
        match line.trim_start().strip_prefix("///").map(str::trim) {
            Some(text) if text.starts_with("```") => in_fence = !in_fence,
            Some(text) if text.starts_with("# ") && !in_fence => in_examples = text == "# Examples",
            Some(_) => {}
            None => in_examples = false,
        }
        !in_examples
    });
    lines.collect::<Vec<_>>().join("\n")
}

/// The code with the first sentence of each documentation alone.
fn with_short_docs(code: &str) -> String {
    let mut is_over = false;
    let mut lines = Vec::new();
    for line in code.lines() {
        let Some(text) = line.trim_start().strip_prefix("///") else {
            is_over = false;
            lines.push(line);
            continue;
        };
        is_over |= text.trim().is_empty();
        if is_over {
            continue;
        }
        let end = text.find(". ").map(|at| at + 1);
        let end = end.or_else(|| text.ends_with(['.', ':']).then_some(text.len()));
        is_over = end.is_some();
        lines.push(&line[..line.len() - text.len() + end.unwrap_or(text.len())]);
    }
    lines.join("\n")
}

/// The text with comments and the content of literals turned to spaces, byte for byte.
fn code_only(text: &str) -> Vec<u8> {
    let bytes = text.as_bytes();
    let mut code = bytes.to_vec();
    let mut at = 0;
    while at < bytes.len() {
        let end = at + not_code(&bytes[at..], at > 0 && is_word(bytes[at - 1]));
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

/// Length of the comment or literal that the rest of a file begins with, 0 if it is code.
fn not_code(rest: &[u8], within_word: bool) -> usize {
    match rest {
        [b'/', b'/', ..] => until(rest, b"\n").unwrap_or(rest.len()),
        [b'/', b'*', ..] => block_comment(rest),
        [b'"', ..] => quoted(rest),
        [b'\'', ..] => character(rest),
        [b'r' | b'b' | b'c', ..] if !within_word => prefixed(rest),
        _ => 0,
    }
}

fn until(rest: &[u8], mark: &[u8]) -> Option<usize> {
    rest.windows(mark.len()).position(|window| window == mark)
}

fn block_comment(rest: &[u8]) -> usize {
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

/// Length of a literal in quotes, whose escapes may hide quotes.
fn quoted(rest: &[u8]) -> usize {
    let mut at = 1;
    while at < rest.len() && rest[at] != rest[0] {
        at += if rest[at] == b'\\' { 2 } else { 1 };
    }
    (at + 1).min(rest.len())
}

/// Length of a character literal; 0 for a lifetime.
fn character(rest: &[u8]) -> usize {
    let text = String::from_utf8_lossy(&rest[..rest.len().min(6)]);
    let mut following = text.chars().skip(1);
    match (following.next(), following.next()) {
        (Some('\\'), _) => quoted(rest),
        (Some(c), Some('\'')) => c.len_utf8() + 2,
        _ => 0,
    }
}

/// Length of a literal such as `r"…"`, `br#"…"#`, `b'x'`, `c"…"`; 0 for a word.
fn prefixed(rest: &[u8]) -> usize {
    let letters = rest.iter().take_while(|byte| b"rbc".contains(byte)).count();
    let hashes = rest[letters..].iter().take_while(|byte| **byte == b'#').count();
    let literal = &rest[letters + hashes..];
    let raw = rest[..letters].contains(&b'r');
    match (raw, literal.first()) {
        (true, Some(b'"')) if letters <= 2 => {
            let close = [&b"\""[..], &b"#".repeat(hashes)].concat();
            let inside = until(&literal[1..], &close).unwrap_or(literal.len() - 1);
            (letters + hashes + 1 + inside + close.len()).min(rest.len())
        }
        (false, Some(b'"' | b'\'')) if letters == 1 && hashes == 0 => 1 + quoted(literal),
        _ => 0,
    }
}

/// Finds the items of a file in its code; `code` and `text` have the same length.
struct Scanner<'a> {
    text: &'a str,
    code: &'a [u8],
    items: Vec<Item>,
}

impl Scanner<'_> {
    /// Adds the items of a file, or of the braces of a module, an implementation or a trait.
    fn scan(&mut self, within: Range<usize>, path: &str, is_method: bool) {
        let mut from = within.start;
        while let Some(start) = self.next_code(from..within.end) {
            let (header, body, end) = self.extent(start..within.end);
            let header = String::from_utf8_lossy(&self.code[header]).into_owned();
            let range = self.with_docs(from, start)..end;
            let is_test = self.text[range.clone()].contains("#[cfg(test)]");
            if let (Some(found), false) = (Header::parse(&header), is_test) {
                self.add(found, path, is_method, range, body);
            }
            from = end;
        }
    }

    fn add(
        &mut self,
        found: Header,
        path: &str,
        is_method: bool,
        range: Range<usize>,
        body: Range<usize>,
    ) {
        let Header { name, kind, keyword, is_public } = found;
        let path = if path.is_empty() { name } else { format!("{path}::{name}") };
        if keyword == "mod" {
            return self.scan(body, &path, false);
        }
        self.items.push(Item { path: path.clone(), kind, is_method, is_public, range });
        if matches!(keyword, "impl" | "trait") {
            self.scan(body, &path, true);
        }
    }

    /// Where the next item's code begins.
    fn next_code(&self, within: Range<usize>) -> Option<usize> {
        let code = &self.code[within.clone()];
        let is_code = |byte: &u8| !byte.is_ascii_whitespace() && *byte != b';' && *byte != b'}';
        code.iter().position(is_code).map(|index| within.start + index)
    }

    /// The header, the inside of the braces and the end of the item that begins a range.
    fn extent(&self, within: Range<usize>) -> (Range<usize>, Range<usize>, usize) {
        let start = self.after_attributes(within.clone());
        let header = |end: usize| start..end;
        let mut depth = 0_usize;
        let mut at = start;
        while at < within.end {
            match self.code[at] {
                b'(' | b'[' => depth += 1,
                b')' | b']' => depth = depth.saturating_sub(1),
                b'{' if depth == 0 && !ends_in_semicolon(&self.code[start..at]) => {
                    let end = self.closing(at..within.end);
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
            let Some(open) = until(&self.code[at..within.end], b"[") else {
                break;
            };
            let end = self.closing(at + open..within.end);
            at = self.next_code(end..within.end).unwrap_or(within.end);
        }
        at
    }

    /// Where the bracket or brace that begins a range is closed.
    fn closing(&self, within: Range<usize>) -> usize {
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

    /// Where the comment lines that touch an item from above begin, or the item itself.
    fn with_docs(&self, from: usize, start: usize) -> usize {
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

/// Whether an item that begins like this ends at a semicolon, not at its first closing brace.
fn ends_in_semicolon(header: &[u8]) -> bool {
    let header = String::from_utf8_lossy(header);
    Header::parse(&header)
        .is_none_or(|header| matches!(header.keyword, "const" | "static" | "type"))
        && !header.contains('!')
}

/// What the code before an item's braces says.
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
        let mut words = words(header);
        // `const fn` is a function, whereas `const X: fn()` is a constant.
        while let Some((word, rest)) = words {
            let next = self::words(rest);
            let found = KEYWORDS.iter().find(|(keyword, _)| *keyword == word);
            match (found, next) {
                (Some((keyword @ "impl", kind)), _) => {
                    let name = implemented_for(rest)?;
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
            words = next;
        }
        None
    }
}

/// The first word of some code, and what follows it.
fn words(code: &str) -> Option<(&str, &str)> {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    let start = code.find(is_word)?;
    let code = &code[start..];
    let end = code.find(|c| !is_word(c)).unwrap_or(code.len());
    Some(code.split_at(end))
}

/// The name of the type in what follows `impl`: of `<T> a::Trait<X> for b::Type<T> where …`, `Type`.
fn implemented_for(rest: &str) -> Option<String> {
    let plain = without_generics(rest);
    let plain = plain.split(" where ").next()?;
    let subject = plain.split_once(" for ").map_or(plain, |(_, subject)| subject);
    let path = subject.split_whitespace().find(|word| words(word).is_some())?;
    let last = path.rsplit("::").next()?;
    words(last).map(|(name, _)| name.to_owned())
}

/// Code without what stands between angle brackets, its line breaks made spaces.
fn without_generics(code: &str) -> String {
    let mut depth = 0_usize;
    let mut plain = String::new();
    let mut before = ' ';
    for c in code.chars() {
        match c {
            '<' => depth += 1,
            '>' if before != '-' => depth = depth.saturating_sub(1),
            _ if depth > 0 => {}
            c if c.is_whitespace() => plain.push(' '),
            c => plain.push(c),
        }
        before = c;
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
/// A blank doc line neither.
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
    fn examples_are_left_out_and_the_sections_around_them_kept() {
        let code = "/// One.\n///\n/// # Examples\n/// ```\n/// # hidden\n/// ```\n///\n/// # Source\n/// Two.\nfn f() {}";
        assert_eq!(without_examples(code), "/// One.\n///\n/// # Source\n/// Two.\nfn f() {}");
    }

    #[test]
    fn a_method_is_shown_without_its_indentation() {
        let code = tricky("Cnn::open");
        assert!(code.starts_with("/// A method.\npub fn open(&self) -> char {\n    let"), "{code}");
        assert!(code.ends_with("\n    '}'\n}"), "{code}");
    }

    #[test]
    fn every_kind_of_item_is_found_whole() {
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
    fn an_unknown_name_is_answered_with_similar_ones() {
        let files = files();
        let message = find(&files, "Modul").unwrap_err().to_string();
        assert!(message.contains("`Modul`") && message.contains("Module"), "{message}");
        assert!(find(&files, "hidden").is_err(), "test code is not shown");
        assert!(find(&files, "").is_err());
        assert!(find(&files, "dule").is_err(), "part of a name is no name");
    }

    #[test]
    fn of_docs_the_first_sentence_stays() {
        let code = "/// Adds 1.5 to `x`, as\n/// everybody does. It is quick.\n///\n/// # Errors\n\
                    /// None.\nfn f() {\n    // As it is.\n}\n/// One line\n///\n/// Two.\nfn g() {}";
        let short = "/// Adds 1.5 to `x`, as\n/// everybody does.\nfn f() {\n    // As it is.\n}\n\
                     /// One line\nfn g() {}";
        assert_eq!(with_short_docs(code), short);
    }

    #[test]
    fn code_with_a_fence_of_its_own_stays_in_one_block() {
        let code = "let text = \"\n```\n\";".to_owned();
        let markdown = Source { file: "a.rs".into(), code }.markdown();
        assert!(markdown.starts_with("``````rust\n") && markdown.ends_with("\n``````"));
    }
}
