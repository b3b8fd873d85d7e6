//! Rich output: the kernel parses marked blocks on standard output.

use std::io::Write;

const BEGIN: &str = "EVCXR_BEGIN_CONTENT";
const END: &str = "EVCXR_END_CONTENT";
/// evcxr sets this variable in the process that runs the cells.
const KERNEL_VARIABLE: &str = "EVCXR_IS_RUNTIME";
const PANIC: &str = "EVCXR_PANIC_NOTIFICATION";

/// Like std's `println!`, but drops a line that cannot be written: a closed pipe (`| head`) or a
/// full disk must not end hours of training.
///
/// # Examples
/// ```
/// use notebook_display::println;
///
/// println!("epoch {}", 1);
/// ```
#[macro_export]
macro_rules! println {
    ($($text:tt)*) => {{
        use ::std::io::Write as _;
        let _ = ::std::writeln!(::std::io::stdout(), $($text)*);
    }};
}

/// Prints one result as a bundle of `(MIME type, content)`; the front end shows the richest type
/// that it supports. Outside a kernel, which would parse the markers, prints only the plain text.
///
/// Ignores write errors: if standard output is closed, nobody can read the result.
pub fn display(mime_bundle: &[(&str, &str)]) {
    let in_kernel = std::env::var_os(KERNEL_VARIABLE).is_some();
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(render(mime_bundle, in_kernel).as_bytes()).and_then(|()| out.flush());
}

fn render(mime_bundle: &[(&str, &str)], in_kernel: bool) -> String {
    if in_kernel {
        return mime_bundle.iter().map(|(mime, text)| block(mime, text)).collect();
    }
    let plain = mime_bundle.iter().filter(|(mime, _)| *mime == "text/plain");
    plain.map(|(_, text)| format!("{}\n", text.trim_end())).collect()
}

/// One marked block. A line that the kernel would take for its own marker gets a trailing space,
/// which is harmless in every MIME type used here.
fn block(mime: &str, text: &str) -> String {
    let mut block = format!("{BEGIN} {mime}\n");
    for line in text.lines() {
        block.push_str(line);
        if [END, PANIC].contains(&line.trim_end_matches('\r')) {
            block.push(' ');
        }
        block.push('\n');
    }
    block + END + "\n"
}

/// Escapes text for XML and HTML. Control characters, which XML forbids, become spaces.
pub(crate) fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\u{fffe}' | '\u{ffff}' => escaped.push(' '),
            c if c.is_control() => escaped.push(' '),
            c => escaped.push(c),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Parses printed lines as the kernel does, after `evcxr/src/eval_context.rs`.
    fn parse_blocks(printed: &str) -> Vec<(String, String)> {
        let mut lines = printed.lines();
        let mut blocks = Vec::new();
        while let Some(first) = lines.next() {
            let mime = first.strip_prefix("EVCXR_BEGIN_CONTENT ").expect("a block begins");
            let content: Vec<&str> = lines
                .by_ref()
                .take_while(|line| *line != END)
                .inspect(|line| assert_ne!(*line, PANIC))
                .collect();
            blocks.push((mime.to_owned(), content.join("\n")));
        }
        blocks
    }

    #[test]
    fn a_block_carries_its_text_unchanged() {
        let blocks = parse_blocks(&block("text/plain", "one\n\ntwo <&> three"));
        assert_eq!(blocks, [("text/plain".into(), "one\n\ntwo <&> three".into())]);
    }

    #[test]
    fn outside_a_kernel_only_the_plain_text_is_printed() {
        let mime_bundle = [("image/svg+xml", "<svg/>"), ("text/plain", "a chart\n")];
        assert_eq!(render(&mime_bundle, false), "a chart\n");
        assert_eq!(parse_blocks(&render(&mime_bundle, true)).len(), 2);
    }

    #[test]
    fn lines_that_look_like_markers_do_not_end_the_block() {
        let text = format!("a\n{END}\n{PANIC}\r\nb");
        let blocks = parse_blocks(&block("text/plain", &text));
        assert_eq!(blocks.len(), 1);
        assert!(blocks[0].1.starts_with("a\nEVCXR_END_CONTENT \n"), "{blocks:?}");
        assert!(blocks[0].1.ends_with("\nb"), "{blocks:?}");
    }
}
