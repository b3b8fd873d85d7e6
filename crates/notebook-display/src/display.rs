//! How a value reaches the page: the kernel reads marked blocks from standard output.

use std::io::Write;

const BEGIN: &str = "EVCXR_BEGIN_CONTENT";
const END: &str = "EVCXR_END_CONTENT";
/// Set in the process in which evcxr runs the cells.
const IN_KERNEL: &str = "EVCXR_IS_RUNTIME";
const PANIC: &str = "EVCXR_PANIC_NOTIFICATION";

/// Prints one result in several forms; the front end shows the richest it can. In a program that no
/// kernel runs, nobody would take the marks away: there the plain text alone is printed.
///
/// A closed standard output is no error here: nobody is left to read the result.
pub fn display(forms: &[(&str, &str)]) {
    let is_kernel = std::env::var_os(IN_KERNEL).is_some();
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(printed(forms, is_kernel).as_bytes()).and_then(|()| out.flush());
}

fn printed(forms: &[(&str, &str)], is_kernel: bool) -> String {
    if is_kernel {
        return forms.iter().map(|(mime, text)| block(mime, text)).collect();
    }
    let plain = forms.iter().filter(|(mime, _)| *mime == "text/plain");
    plain.map(|(_, text)| format!("{}\n", text.trim_end())).collect()
}

/// One marked block. A line of the text that the kernel would take for its own mark gets a space
/// at its end, which every MIME type used here ignores.
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

#[cfg(test)]
mod tests {
    use super::*;

    /// What the kernel makes of the printed lines, after `evcxr/src/eval_context.rs`.
    fn read_back(printed: &str) -> Vec<(String, String)> {
        let mut lines = printed.lines();
        let mut read = Vec::new();
        while let Some(first) = lines.next() {
            let mime = first.strip_prefix("EVCXR_BEGIN_CONTENT ").expect("a block begins");
            let content: Vec<&str> = lines
                .by_ref()
                .take_while(|line| *line != END)
                .inspect(|line| assert_ne!(*line, PANIC))
                .collect();
            read.push((mime.to_owned(), content.join("\n")));
        }
        read
    }

    #[test]
    fn a_block_carries_its_text_unchanged() {
        let read = read_back(&block("text/plain", "one\n\ntwo <&> three"));
        assert_eq!(read, [("text/plain".into(), "one\n\ntwo <&> three".into())]);
    }

    #[test]
    fn outside_a_kernel_the_plain_text_alone_is_printed() {
        let forms = [("image/svg+xml", "<svg/>"), ("text/plain", "a chart\n")];
        assert_eq!(printed(&forms, false), "a chart\n");
        assert_eq!(read_back(&printed(&forms, true)).len(), 2);
    }

    #[test]
    fn lines_that_look_like_the_protocol_do_not_end_the_block() {
        let text = format!("a\n{END}\n{PANIC}\r\nb");
        let read = read_back(&block("text/plain", &text));
        assert_eq!(read.len(), 1);
        assert!(read[0].1.starts_with("a\nEVCXR_END_CONTENT \n"), "{read:?}");
        assert!(read[0].1.ends_with("\nb"), "{read:?}");
    }
}
