std::panic::set_hook(Box::new(|info| {
    // One line for the message and one for the place: what lies below a cell's code is the kernel.
    eprintln!("panicked: {}", info.payload_as_str().unwrap_or("(no message)"));
    let Some(place) = info.location() else { return };
    let folder = std::env::var_os("EVCXR_TMPDIR").unwrap_or_default();
    let cell = std::fs::read_to_string(std::path::Path::new(&folder).join(place.file()));
    match cell.unwrap_or_default().lines().nth(place.line().saturating_sub(1) as usize) {
        Some(line) if place.file() == "src/lib.rs" => eprintln!("in the line: {}", line.trim()),
        _ => eprintln!("in {place}"),
    }
}));
