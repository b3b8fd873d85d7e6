// The Cargo wrapper appends this to each cell's code. It runs when a cell is loaded, once per
// process: evcxr starts a new process after an interrupt.
const _: () = {
    #[used]
    #[cfg_attr(target_vendor = "apple", unsafe(link_section = "__DATA,__mod_init_func"))]
    #[cfg_attr(not(target_vendor = "apple"), unsafe(link_section = ".init_array"))]
    static ON_LOAD: extern "C" fn() = on_load;
    const DONE: &str = "WARM_EVCXR_PANIC_HOOK";

    extern "C" fn on_load() {
        if ::std::env::var_os(DONE).is_none() {
            // Sound: before the first cell, the process has a single thread.
            unsafe { ::std::env::set_var(DONE, "set") };
            ::std::panic::set_hook(::std::boxed::Box::new(print_panic));
        }
    }

    /// Prints the message and the line. A backtrace would show only the kernel below the cell.
    fn print_panic(info: &::std::panic::PanicHookInfo) {
        ::std::eprintln!("panicked: {}", info.payload_as_str().unwrap_or("(no message)"));
        let ::std::option::Option::Some(place) = info.location() else { return };
        let folder = ::std::env::var_os("EVCXR_TMPDIR").unwrap_or_default();
        let cell = ::std::fs::read_to_string(::std::path::Path::new(&folder).join(place.file()));
        let number = place.line().saturating_sub(1) as usize;
        match cell.unwrap_or_default().lines().nth(number) {
            ::std::option::Option::Some(line) if place.file() == "src/lib.rs" => {
                ::std::eprintln!("in the line: {}", line.trim());
            }
            _ => ::std::eprintln!("in {place}"),
        }
    }
};
